"""One page that shows what a run has learned, and says what it has not."""

import base64
import dataclasses
import io
import json
import math
import typing
from pathlib import Path

import jinja2
import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..checkpoints import way_out_of, write_synced
from ..core import PALETTE, CfvaeError, check_path, image_grid, set_style
from ..data import ImageDataset
from .free import check_writable, refuse_foreign
from .measure import JUDGED, Measurements, Nats, measure_run
from .next_steps import next_steps
from .opened import COLUMNS, ROWS, Run, draw_classes, draw_depths, open_run, strength_name, strengths

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("cfvae.runs", ""),
    autoescape=True,  # names of classes and folders come from whoever made the data
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.tests["finite"] = math.isfinite


def write_report(
    folder: str | Path,  # a run folder, as `runs.train.train` makes it
    device: str = "auto",  # where to compute
    data: str | ImageDataset | None = None,  # the run's images, where they have moved
) -> Path:
    """Write what a run has learned as report.html, and its numbers as report.json, into its folder.

    Returns the page's path. Raises `CfvaeError` where there is no model yet."""
    refuse_foreign(check_path(folder, "the run"), ("report.json", "report.html"), {"run", "nats"})
    run = open_run(folder, device, data)
    check_writable(run.folder)
    measurements = measure_run(run)
    numbers = json.dumps(measurements.to_dict(), indent=1)
    page = render_report(run, measurements)

    _write(run.folder / "report.json", numbers)
    return _write(run.folder / "report.html", page)


def render_report(
    run: Run,  # as from `open_run`
    measurements: Measurements,  # of this run
) -> str:
    "The page of a run: one file of HTML that loads nothing."
    return _TEMPLATES.get_template("report.html.j2").render(
        m=measurements,
        pictures=_draw_pictures(run, measurements),
        max_classes=ROWS,
        accuracies=_accuracies(measurements),
        layers_inside=_layers_inside(measurements.nats),
        empty_layers=_empty_layers(measurements.nats),
        next_steps=next_steps(run, measurements),
    )


def _write(path: Path, text: str) -> Path:
    "Write a file whole, or not at all."
    try:
        write_synced(path, text.encode())
    except OSError as error:
        reason = error.strerror or error
        raise CfvaeError(f"cannot write {path} ({reason}): {way_out_of(error)}") from None
    return path


# --- numbers that only the page has


def _accuracies(measurements: Measurements) -> list[tuple[str, float, int, float]]:
    "Lines of the table: what was judged, percent recognised, of how many, standard error in percent (13.1)."
    lines = []
    for name, share in (measurements.class_accuracy or {}).items():
        n = JUDGED if name.startswith("samples") else measurements.run.measured_images
        error = math.sqrt(share * (1 - share) / n) if n > 1 else math.nan  # one answer says nothing of others
        lines.append((name, 100 * share, n, 100 * error))
    return lines


def _layers_inside(nats: Nats) -> int:
    "How many layers hold as many nats as the schedule asks for."
    bands = zip(nats.rates, nats.band or [], strict=False)
    return sum(low <= rate <= high for rate, (low, high) in bands)


def _empty_layers(nats: Nats) -> list[int]:
    "The layers with less than one percent of the nats, counted from 1."
    return [layer for layer, rate in enumerate(nats.rates, start=1) if rate < 0.01 * nats.rate]


# --- pictures


@dataclasses.dataclass(frozen=True)
class _Grid:
    uri: str  # of a picture with one row per name
    names: typing.Sequence[str]
    caption: str


@dataclasses.dataclass(frozen=True)
class _Pictures:
    reconstructions: _Grid
    samples: list[_Grid]  # one for each of `strengths`
    depths: _Grid
    rates: str  # a data URI, as is the next
    curves: str


def _draw_pictures(run: Run, measurements: Measurements) -> _Pictures:
    return _Pictures(
        reconstructions=_reconstructions(run),
        samples=_samples(run),
        depths=_depths(run),
        rates=data_uri(_rates_figure(measurements.nats, run.recipe.vae.layer_resolutions)),
        curves=data_uri(_curves_figure(run.logs)),
    )


def data_uri(
    picture: Image.Image | Figure,  # what a page shows
) -> str:
    "The picture as a PNG inside a `data:` address: an <img> shows it without any file beside the page."
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        no_version = {"Software": None}  # so that the same figure gives the same bytes
        picture.savefig(buffer, format="png", dpi=130, metadata=no_version)
    else:
        picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _grid(images: torch.Tensor, names: typing.Sequence[str], caption: str) -> _Grid:
    picture = image_grid(images, columns=len(images) // len(names))
    return _Grid(data_uri(picture), names, caption)


def _reconstructions(run: Run) -> _Grid:
    images, labels = run.held.batch(range(min(COLUMNS, len(run.held))))
    alone = run.pipe.reconstruct(images, depth=0).cpu()
    whole = run.pipe.reconstruct(images, labels if run.recipe.conditional else None).cpu()
    names = ["held-out image", "autoencoder alone", "whole model"]
    return _grid(torch.cat([images, alone, whole]), names, "Images and their reconstructions")


def _samples(run: Run) -> list[_Grid]:
    names = run.pipe.classes[:ROWS] or ["sample"] * 4
    grids = []
    for guidance in strengths(run.recipe):
        caption = strength_name(guidance).capitalize()
        grids.append(_grid(draw_classes(run, guidance), names, caption))
    return grids


def _depths(run: Run) -> _Grid:
    rows = draw_depths(run)
    names = [f"first {depth} of {max(rows)}" for depth in rows]
    caption = "Samples from the first layers; the layers above take their priors' means"
    return _grid(torch.cat(list(rows.values())), names, caption)


def _rates_figure(
    nats: Nats,  # of a run
    resolutions: typing.Sequence[int],  # of every stochastic layer
) -> Figure:
    "Nats of every layer as bars, over the band that the schedule asks for."
    layers = range(1, len(nats.rates) + 1)
    names = [f"{layer}\n{size}x{size}" for layer, size in enumerate(resolutions, start=1)]
    with matplotlib.rc_context():
        set_style()
        figure = Figure(figsize=(7, 3), layout="constrained")
        axis = figure.subplots()
        for layer, (low, high) in zip(layers, nats.band or [], strict=False):
            label = "band of the schedule" if layer == 1 else None
            axis.bar(layer, high - low, bottom=low, width=0.95, color=PALETTE[1], alpha=0.35, label=label)
        axis.bar(layers, nats.rates, width=0.5, color=PALETTE[0], label="measured rate")
        axis.set_xticks(list(layers), names, fontsize=8)
        axis.set(xlabel="stochastic layer and its resolution", ylabel="rate (nats per image)")
        axis.legend(fontsize=8)
    return figure


def _curves_figure(
    logs: dict[str, list[dict]],  # as in `Run`
) -> Figure:
    "Loss, distortion and rate of both stages over the steps."
    with matplotlib.rc_context():
        set_style()
        figure = Figure(figsize=(7, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        _plot_log(left, logs["autoencoder"], "stage one: autoencoder", "loss")
        _plot_log(right, logs["vae"], "stage two: VAE", "nats per image")
    return figure


def _plot_log(axis: Axes, log: list[dict], title: str, unit: str) -> None:
    "The curves of one stage on a logarithmic axis, so that late progress can be seen."
    for key, colour in zip(("loss", "distortion", "rate"), PALETTE, strict=False):
        lines = [line for line in log if line.get(key) is not None and line[key] > 0]
        if lines:
            steps = [line["step"] for line in lines]
            values = [line[key] for line in lines]
            axis.plot(steps, values, color=colour, label=key, linewidth=1.2)
    axis.set(title=title, xlabel="step", ylabel=unit, yscale="log")
    if axis.lines:
        axis.legend(fontsize=8)
