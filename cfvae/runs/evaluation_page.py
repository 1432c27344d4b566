"""One page that shows what was measured of a model: figures, and tables that say what they rest on."""

import dataclasses
import json
import math
import typing
from pathlib import Path

import jinja2
import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..checkpoints import write_synced
from ..core import PALETTE, check, check_path, image_grid, set_style
from ..files.names import first_few
from .evaluate import ALONE, FLOOR, WHOLE, Evaluation, Shown
from .free import check_writable, refuse_foreign
from .judging import SWEEP, Row
from .report import data_uri

COLUMNS = 10  # pictures in a row
ROWS = 3  # of samples

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("cfvae.runs", ""),
    autoescape=True,  # names of classes and folders come from whoever made the data
    undefined=jinja2.StrictUndefined,
)


def prepare_folder(
    folder: str | Path,  # where numbers and page are to be written
) -> Path:
    "Make sure that it can be written to, and holds nothing of others that would be replaced."
    folder = check_path(folder)
    check(not folder.is_file(), f"--out is {folder}, and a file is called so: give a folder")
    refuse_foreign(folder, ("evaluation.json", "evaluation.html"), {"question", "rows"})
    check_writable(folder)
    return folder


def write_evaluation(
    evaluation: Evaluation,  # as from `evaluate`
    shown: Shown,  # likewise
    folder: str | Path,  # where to; it is made where needed
) -> tuple[Path, Path]:
    "Write numbers and page as evaluation.json and evaluation.html; returns their paths."
    folder = prepare_folder(folder)
    numbers, page = folder / "evaluation.json", folder / "evaluation.html"
    text = json.dumps(_plain(evaluation.to_dict()), indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    write_synced(numbers, f"{text}\n".encode())
    write_synced(page, render_evaluation(evaluation, shown).encode())
    return numbers, page


def _plain(value: typing.Any) -> typing.Any:
    "With None in place of numbers that JSON has no word for."
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def render_evaluation(
    evaluation: Evaluation,  # as from `evaluate`
    shown: Shown,  # likewise
) -> str:
    "The page: one file of HTML that loads nothing."
    by_judge = {judge: _of(evaluation.rows, judge) for judge in evaluation.judges}
    swept_by_judge = {judge: _of(evaluation.swept, judge) for judge in evaluation.judges}
    return _TEMPLATES.get_template("evaluation.html.j2").render(
        e=evaluation,
        by_judge=by_judge,
        swept_by_judge=swept_by_judge,
        samples=_samples(shown),
        nearest=_nearest(shown),
        reconstructions=_reconstructions(shown),
        distances=_figure_uri(_draw_frechet, evaluation),
        histogram=_figure_uri(_draw_histogram, shown.distances),
        rates=_figure_uri(_draw_rates, evaluation),
        sweep=_figure_uri(_draw_sweep, evaluation) if evaluation.swept else None,
    )


def _of(rows: list[Row], judge: str) -> list[Row]:
    return [row for row in rows if row.judge == judge]


# --- pictures


@dataclasses.dataclass(frozen=True)
class Picture:
    "A picture with its text."

    uri: str
    caption: str


def _samples(shown: Shown) -> list[Picture]:
    pictures = []
    for name, drawn in shown.sets.items():
        if name.startswith("samples"):
            some = slice(ROWS * COLUMNS)
            names = list(dict.fromkeys(drawn.classes[some])) if drawn.classes else []
            classes = f", the classes in turn: {first_few(names, COLUMNS)}" if names else ""
            grid = image_grid(drawn.images[some], columns=COLUMNS)
            pictures.append(Picture(data_uri(grid), f"{name.capitalize()}{classes}"))
    return pictures


def _nearest(shown: Shown) -> Picture:
    "The samples that lie nearest to training images, above these."
    name, distance = list(shown.distances.items())[-1]
    order = distance.argsort()[:COLUMNS]
    pairs = torch.cat([shown.sets[name].images[order], shown.neighbours[name][order]])
    caption = f"Above: of {name}, the {COLUMNS} nearest to a training image. Below: that training image"
    return Picture(data_uri(image_grid(pairs, columns=COLUMNS)), caption)


def _reconstructions(shown: Shown) -> Picture:
    names = ("held-out images", ALONE, WHOLE)
    rows = torch.cat([shown.sets[name].images[:COLUMNS] for name in names])
    return Picture(data_uri(image_grid(rows, columns=COLUMNS)), f"From top to bottom: {', '.join(names)}")


# --- figures


def _figure_uri(draw: typing.Callable[[typing.Any], Figure], of: typing.Any) -> str:
    with matplotlib.rc_context():
        set_style()
        return data_uri(draw(of))


def _axes(columns: int, rows: int = 1, height: float = 2.8) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(9, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def _draw_frechet(evaluation: Evaluation) -> Figure:
    "The Frechet distance of every set, with the floor as a line."
    figure, [axes] = _axes(len(evaluation.judges))
    for axis, judge in zip(axes, evaluation.judges, strict=True):
        rows = {row.images: row.measures["frechet"] for row in _of(evaluation.rows, judge)}
        names = list(rows)[::-1]
        values = [rows[name].value for name in names]
        errors = [rows[name].error for name in names]
        axis.barh(names, values, xerr=errors, color=PALETTE[0])
        axis.axvline(rows[FLOOR].value, linestyle=":", color="grey")
        axis.set(xlabel="Frechet distance", title=judge)
    for axis in axes[1:]:
        axis.set_yticklabels([])
    return figure


def _draw_histogram(distances: dict[str, torch.Tensor]) -> Figure:
    "Distances to the nearest training image."
    figure, [[axis]] = _axes(1)
    largest = max(float(distance.max()) for distance in distances.values())
    for colour, (name, distance) in zip(PALETTE, distances.items(), strict=False):
        axis.hist(distance.numpy(), bins=40, range=(0.0, largest), histtype="step", color=colour, label=name)
    axis.set(xlabel="distance to the nearest training image (root mean square of pixels)", ylabel="images")
    axis.legend(fontsize=8)
    return figure


def _draw_rates(evaluation: Evaluation) -> Figure:
    "Nats of every layer, and the share of its units that is active."
    figure, [[left, right]] = _axes(2)
    layers = range(1, len(evaluation.layers.rates) + 1)
    left.bar(layers, evaluation.layers.rates, color=PALETTE[0])
    left.set(xlabel="stochastic layer", ylabel="rate (nats per image)")
    active = zip(evaluation.layers.active, evaluation.layers.units, strict=True)
    right.bar(layers, [100 * some / of for some, of in active], color=PALETTE[2])
    right.set(xlabel="stochastic layer", ylabel="active units (%)", ylim=(0, 100))
    return figure


def _draw_sweep(evaluation: Evaluation) -> Figure:
    "Frechet distance, precision and recall over the guidance weight, for every judge."
    figure, axes = _axes(len(evaluation.judges), rows=2)
    settings = {
        "both weights": [(mean, var) for mean, var in SWEEP if mean == var],
        "weight of the means alone": [(mean, var) for mean, var in SWEEP if var == 0],
    }
    for top, bottom, judge in zip(*axes, evaluation.judges, strict=True):
        measured = dict(zip(SWEEP, _of(evaluation.swept, judge), strict=True))
        for colour, (label, weights) in zip(PALETTE, settings.items(), strict=False):
            for axis, measure, line in (
                (top, "frechet", "-"),
                (bottom, "precision", "-"),
                (bottom, "recall", ":"),
            ):
                values = [measured[pair].measures[measure] for pair in weights]
                axis.errorbar(
                    [mean for mean, _ in weights],
                    [value.value for value in values],
                    [value.error for value in values],
                    color=colour,
                    linestyle=line,
                    label=label,
                )
        top.set(ylabel="Frechet distance", title=judge)
        bottom.set(xlabel="guidance weight", ylabel="precision (solid), recall (dotted)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    return figure
