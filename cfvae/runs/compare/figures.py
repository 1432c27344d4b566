"""The figures of a comparison, drawn from comparison.json alone."""

import io
import math
import typing
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from ...checkpoints import write_synced
from ...core import PALETTE, set_style
from ..output import say

Fields = dict[str, typing.Any]

COLOURS = dict(
    zip(("vae", "flow", "autoregressive", "pixel-vae", "pixel-autoregressive"), PALETTE, strict=False)
)
MARKERS = {0: "o", 1: "s", 2: "^", 3: "D"}  # of guidance weights
PANELS = {  # measure -> what stands at its axis
    "accuracy": "recognised as their class",
    "frechet": "Fréchet distance (less is better)",
    "precision": "precision",
    "recall": "recall",
}


def write_figures(
    comparison: Fields,  # as comparison.json holds it
    out: Path,  # the comparison's folder
) -> None:
    "quality-JUDGE.png for every judge, and training.png."
    for judge in comparison["judges"]:
        save_figure(draw_quality(comparison, judge), out / f"quality-{judge}.png")
    save_figure(draw_training(comparison), out / "training.png")


def save_figure(
    figure: Figure,  # what to save
    path: Path,  # a .png file
) -> None:
    "Write it, the same bytes for the same figure, and say so."
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    write_synced(path, buffer.getvalue())
    say(f"written: {path}")


# --- quality against computing


def draw_quality(
    comparison: Fields,  # as comparison.json holds it
    judge: str,  # whose measures
) -> Figure:
    "A panel for each measure of a judge."
    known = comparison["points"][0]["measures"][judge]
    return draw_panels(comparison, [(judge, measure) for measure in PANELS if measure in known])


def draw_panels(
    comparison: Fields,  # as comparison.json holds it
    shown: Sequence[tuple[str, str]],  # a judge and a measure for each panel
) -> Figure:
    "Measures against counted FLOPs of an image, with error bars and floors."
    rows = math.ceil(len(shown) / 2)
    judges = list(dict.fromkeys(judge for judge, _ in shown))
    with matplotlib.rc_context():
        set_style()
        figure = Figure(figsize=(10, 1 + 3.6 * rows), layout="constrained")
        axes = list(figure.subplots(rows, 2, squeeze=False).flat)
        for panel, (judge, measure) in zip(axes, shown, strict=False):
            _draw_panel(panel, comparison, judge, measure)
            label = PANELS[measure] if len(judges) == 1 else f"{PANELS[measure]}\n{judge}"
            panel.set(ylabel=label, xscale="log", xlabel="GFLOP for an image, its decoding included")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # 0.5, 1, 2, ..., written out
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_locator(NullLocator())
        for panel in axes[len(shown) :]:
            panel.set_axis_off()
        figure.suptitle(_title(comparison, judges), fontsize=11)
        figure.legend(handles=_legend(comparison), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _title(comparison: Fields, judges: Sequence[str]) -> str:
    seeds = max(len(model["seeds"]) for model in comparison["models"].values())
    several = f"{seeds} seeds" if seeds > 1 else "one seed"
    return f"{comparison['data']}, judged by {' and '.join(judges)}, n = {comparison['n']:,}, {several}"


def _draw_panel(panel: Axes, comparison: Fields, judge: str, measure: str) -> None:
    "Points of one model that differ in steps, or else in guidance, are joined by a line."
    for floor, dashes in (("real", "--"), ("autoencoder", ":")):
        level = comparison["floors"][floor]["measures"][judge].get(measure)
        if level is not None:
            panel.axhline(level["value"], color="0.35", linestyle=dashes, linewidth=1, zorder=1)

    lines: dict[tuple, list[Fields]] = {}
    for point in comparison["points"]:
        style = point["style"]
        joined = (style["solver"], style["weight"]) if style["solver"] else style["temperature"]
        lines.setdefault((point["model"], joined), []).append(point)
    for (model, _), points in lines.items():
        points.sort(key=lambda point: (point["gflop_per_image"], point["style"]["weight"]))
        _draw_line(panel, COLOURS[model], [_place(point, judge, measure) for point in points], points)


def _place(point: Fields, judge: str, measure: str) -> tuple[float, float, float]:
    "Where a point stands, and its standard error."
    value = point["measures"][judge][measure]
    return point["gflop_per_image"], value["mean"], value["error"]


def _draw_line(
    panel: Axes, colour: str, places: Sequence[tuple[float, float, float]], points: Sequence[Fields]
) -> None:
    xs, ys, errors = zip(*places, strict=True)
    solver = points[0]["style"]["solver"]
    panel.plot(xs, ys, color=colour, linewidth=1, alpha=0.6, linestyle="--" if solver == "heun" else "-")
    for x, y, error, point in zip(xs, ys, errors, points, strict=True):
        style = point["style"]
        usual = style["temperature"] == 1 and style["solver"] != "heun"
        panel.errorbar(
            x,
            y,
            error,
            color=colour,
            marker=MARKERS.get(style["weight"], "o"),
            markersize=6,
            markerfacecolor=colour if usual else "white",
            elinewidth=1,
            capsize=2,
        )
        if style["solver"] == "euler" and style["weight"] == 0:  # above the panel, where no marker can be
            above = panel.get_xaxis_transform()
            panel.text(x, 1.01, str(style["steps"]), fontsize=8, color=colour, ha="center", transform=above)


def _legend(comparison: Fields) -> list[Line2D]:
    handles = []
    for name, model in comparison["models"].items():
        handles.append(Line2D([], [], color=COLOURS[name], marker="o", label=model["title"]))
    for weight, marker in MARKERS.items():
        label = f"guidance {weight}" if weight else "unguided"
        handles.append(Line2D([], [], color="0.3", linestyle="", marker=marker, label=label))
    if "flow" in comparison["models"]:
        label = "above: Euler steps of the unguided flow"
        handles.append(Line2D([], [], color=COLOURS["flow"], linestyle="", marker="$8$", label=label))
    hollow = "temperature below 1, or Heun's method"
    handles.append(
        Line2D([], [], color="0.3", linestyle="", marker="o", markerfacecolor="white", label=hollow)
    )
    handles.append(Line2D([], [], color="0.35", linestyle="--", label="other real images"))
    handles.append(Line2D([], [], color="0.35", linestyle=":", label="the same, through the autoencoder"))
    return handles


# --- training


def draw_training(
    comparison: Fields,  # as comparison.json holds it
) -> Figure:
    """A panel for each model: held-out loss against training FLOPs, a line for each seed, the tries pale.

    A try that diverged leaves its panel at the top: the trainings decide what is in view."""
    models = comparison["models"]
    with matplotlib.rc_context():
        set_style()
        columns = min(3, len(models))
        rows = math.ceil(len(models) / columns)
        figure = Figure(figsize=(3.6 * columns, 2.9 * rows), layout="constrained")
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for panel, (name, model) in zip(panels, models.items(), strict=False):
            for seed in model["seeds"]:
                for attempt in seed["tries"]:
                    _draw_curve(panel, attempt, model, "0.75")
                _draw_curve(panel, seed, model, COLOURS[name])
            _look_at_trainings(panel, model)
            panel.set_title(model["title"], fontsize=10)
            panel.set_ylabel(model["unit"], fontsize=9)
            panel.tick_params(labelsize=8)
        for panel in panels[len(models) :]:
            panel.set_axis_off()
        figure.supxlabel("training (TFLOP)", fontsize=10)
    return figure


def _look_at_trainings(panel: Axes, model: Fields) -> None:
    "From the best held-out loss to somewhat more than the worst, of the trainings."
    losses = [loss for seed in model["seeds"] for _, loss in seed["curve"] if loss is not None]
    if losses:
        low, high = min(losses), max(losses)
        panel.set_ylim(low - 0.1 * (high - low), high + 0.5 * (high - low))


def _draw_curve(panel: Axes, training: Fields, model: Fields, colour: str) -> None:
    step = model["flops_per_example"] * training["batch_size"] / 1e12
    noted = [(step * steps, loss) for steps, loss in training["curve"] if loss is not None]
    if noted:
        panel.plot(*zip(*noted, strict=True), color=colour, linewidth=1.2)
