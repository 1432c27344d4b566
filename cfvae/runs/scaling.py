"""How a training step and a sample grow with layers, width, resolution and batch."""

import dataclasses
import functools
import statistics
import sys
import typing
from collections.abc import Callable, Sequence

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from ..core import CfvaeError, get_device, set_style
from ..hvae import HierarchicalVAEConfig
from ..objective import ObjectiveConfig
from ..pretrained import PretrainedConfig
from ..recipes import Recipe
from .bench import draw_batch, new_pipeline
from .machine import Machine, describe_machine, forget_peak, time_calls
from .steps import time_steps
from .train import check_recipe

MOST_ON_A_CPU = {  # sizes to start from, so that two cores need no more than minutes
    "batch": 16,
    "resolution": 8,  # higher levels are left out
    "widths": 32,
    "encoder_widths": 32,
    "layers": 4,
    "encoder_blocks": 2,
}
SECONDS = 1.0  # that each point's two measures go on for, where a few repeats take less


@dataclasses.dataclass(frozen=True)
class Point:
    "What one size costs, the others being the base's."

    axis: str  # layers, width, resolution or batch
    size: int  # in stochastic layers, channels of the widest level, pixels of a code, or examples
    step_milliseconds: float  # of a training step of stage two, median
    sample_milliseconds: float  # of a batch of codes, guided where the recipe can be guided, median


@dataclasses.dataclass(frozen=True)
class Scaling:
    "How costs grow on a machine."

    preset: str
    machine: Machine
    batch_size: int  # of the base, which all axes pass through
    vae: HierarchicalVAEConfig  # of the base
    points: list[Point]
    left_out: list[str]  # sizes that did not fit into memory
    smaller: bool  # the base is smaller than the preset, so that a CPU can do it in little time

    def to_dict(self) -> dict[str, typing.Any]:
        "As plain values, ready for JSON."
        return dataclasses.asdict(self)


# --- sizes


def _with_vae(recipe: Recipe, objective: ObjectiveConfig | None = None, **sizes: typing.Any) -> Recipe:
    "Other sizes of stage two, and nothing before it: samples are codes."
    vae = dataclasses.replace(recipe.vae, **sizes)
    codes = PretrainedConfig("", vae.resolution, vae.data_channels, factor=1)
    return dataclasses.replace(recipe, vae=vae, autoencoder=codes, objective=objective or recipe.objective)


def _with_layers(recipe: Recipe, factor: float) -> Recipe:
    layers = tuple(max(1, round(factor * count)) for count in recipe.vae.layers)
    return _with_vae(recipe, layers=layers)


def _with_width(recipe: Recipe, factor: float) -> Recipe:
    widths = _scale_widths(recipe.vae.widths, factor)
    encoder_widths = _scale_widths(recipe.vae.encoder_widths, factor)
    return _with_vae(recipe, widths=widths, encoder_widths=encoder_widths)


def _scale_widths(widths: Sequence[int], factor: float) -> tuple[int, ...]:
    "To multiples of 8, which attention heads divide."
    return tuple(max(8, 8 * round(factor * width / 8)) for width in widths)


def _with_resolution(recipe: Recipe, factor: float) -> Recipe:
    "A level of one pixel stays."
    sides = tuple(side if side == 1 else int(factor * side) for side in recipe.vae.resolutions)
    return _with_vae(recipe, resolutions=sides)


def _with_batch(recipe: Recipe, factor: float) -> Recipe:
    batch_size = max(1, int(factor * recipe.vae_training.batch_size))
    training = dataclasses.replace(recipe.vae_training, batch_size=batch_size)
    return dataclasses.replace(recipe, vae_training=training)


@dataclasses.dataclass(frozen=True)
class _Axis:
    change: Callable[[Recipe, float], Recipe]  # by a factor
    size: Callable[[Recipe], int]  # on the axis
    factors: tuple[float, ...]  # 1 is the base
    label: str  # under the axis


_AXES = {
    "layers": _Axis(_with_layers, lambda recipe: sum(recipe.vae.layers), (0.5, 1, 2, 4), "stochastic layers"),
    "width": _Axis(
        _with_width, lambda recipe: max(recipe.vae.widths), (0.5, 1, 2), "channels of the widest level"
    ),
    "resolution": _Axis(
        _with_resolution, lambda recipe: recipe.vae.resolution, (0.5, 1, 2), "pixels of a code, a side"
    ),
    "batch": _Axis(
        _with_batch, lambda recipe: recipe.vae_training.batch_size, (0.25, 0.5, 1, 2), "examples in a batch"
    ),
}


def base_recipe(
    recipe: Recipe,  # a preset's
    device: torch.device,  # what is going to be measured
) -> Recipe:
    "The sizes that are varied: the recipe's own, or on a CPU what a CPU can do in little time."
    training = dataclasses.replace(recipe.vae_training, accumulate=1)
    if device.type == "cpu":
        batch_size = min(training.batch_size, MOST_ON_A_CPU["batch"])
        training = dataclasses.replace(training, batch_size=batch_size)
        recipe = _for_a_cpu(recipe)
    return dataclasses.replace(_with_vae(recipe), vae_training=training)


def _for_a_cpu(recipe: Recipe) -> Recipe:
    "The low levels of a model, and no level too large."
    low = [side for side in recipe.vae.resolutions if side <= MOST_ON_A_CPU["resolution"]]
    levels = max(1, len(low))
    sizes = {}
    for field in dataclasses.fields(recipe.vae):
        entries = getattr(recipe.vae, field.name)
        if isinstance(entries, tuple):  # one for each level
            most = MOST_ON_A_CPU.get(field.name, sys.maxsize)
            sizes[field.name] = tuple(min(entry, most) for entry in entries[:levels])

    shares = recipe.objective.values[:levels]
    objective = dataclasses.replace(recipe.objective, values=shares)
    return _with_vae(recipe, objective, **sizes)


# --- measuring


def measure_scaling(
    recipe: Recipe,  # around whose sizes
    device: str = "auto",  # where to compute
    seconds: float = SECONDS,  # that a point's two measures go on for, at least
) -> Scaling:
    "Vary one size after the other. What does not fit into memory is left out, and named."
    check_recipe(recipe)
    place = get_device(device)
    base = base_recipe(recipe, place)
    sizes = _sizes(base)

    @functools.cache  # the base lies on every axis
    def measure(changed: Recipe) -> tuple[float, float]:
        return _measure_point(changed, place, seconds)

    points = []
    left_out = []
    for axis, size, changed in tqdm(sizes, "sizes", file=sys.stderr):
        try:
            step, sample = measure(changed)
            points.append(Point(axis, size, step, sample))
        except torch.OutOfMemoryError:
            left_out.append(f"{axis} {size}")
    batch_size = base.vae_training.batch_size
    smaller = base.vae != recipe.vae or batch_size != recipe.vae_training.batch_size
    return Scaling(recipe.name, describe_machine(place), batch_size, base.vae, points, left_out, smaller)


def _sizes(base: Recipe) -> list[tuple[str, int, Recipe]]:
    "Every size of every axis with its recipe. A size that the model cannot have is passed over."
    sizes = []
    for name, axis in _AXES.items():
        recipes: dict[int, Recipe] = {}  # two factors may round to the same size
        for factor in axis.factors:
            try:
                changed = axis.change(base, factor)
            except CfvaeError:
                continue
            recipes[axis.size(changed)] = changed
        sizes += [(name, size, changed) for size, changed in recipes.items()]
    return sizes


def _measure_point(recipe: Recipe, device: torch.device, seconds: float) -> tuple[float, float]:
    "Milliseconds of a step and of a batch of codes."
    forget_peak(device)
    timer, _ = time_steps(recipe, device, seconds)
    pipe = new_pipeline(recipe).to(device)
    samples = time_calls(functools.partial(draw_batch, recipe, pipe), device, seconds)
    step = 1e3 * statistics.median(timer.times)
    return step, 1e3 * statistics.median(samples)


# --- drawing


def draw_scaling(
    scaling: Scaling,  # as from `measure_scaling`
) -> Figure:
    "A panel an axis, both scales logarithmic: a straight line is a power."
    with matplotlib.rc_context():
        set_style()
        figure = Figure(figsize=(8, 5.5), layout="constrained")
        panels = figure.subplots(2, 2, sharey=True)
        for panel, name in zip(panels.flat, _AXES, strict=True):
            points = [point for point in scaling.points if point.axis == name]
            _draw_panel(panel, points, _AXES[name].label)
        panels.flat[0].legend(fontsize=8)
        figure.supylabel("milliseconds", fontsize=10)
        base = f"a smaller {scaling.preset}" if scaling.smaller else scaling.preset
        figure.suptitle(f"{base} on {scaling.machine.name}", fontsize=11)
    return figure


def _draw_panel(panel: Axes, points: Sequence[Point], label: str) -> None:
    sizes = [point.size for point in points]
    steps = [point.step_milliseconds for point in points]
    samples = [point.sample_milliseconds for point in points]
    panel.plot(sizes, steps, marker="o", label="a training step")
    panel.plot(sizes, samples, marker="s", label="a batch of samples")
    panel.set(xlabel=label, xscale="log", yscale="log")
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.minorticks_off()
