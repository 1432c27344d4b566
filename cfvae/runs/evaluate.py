"""How good is a model? Its samples and reconstructions against images that it has not seen.

What is chosen here, guidance weights by the sweep, is chosen against training images. Held-out images are
looked at once, for the figures that are reported."""

import dataclasses
import functools
import importlib
import statistics
import typing
import warnings
from pathlib import Path

import torch

from ..autoencoder import psnr
from ..core import check, check_fields, check_seed, config_to_dict, get_device
from ..data import ImageDataset
from ..distances import nearest_images
from ..files.names import first_few
from ..pipeline import LatentVAEPipeline, resolve_precision
from .bench import count_flops
from .folder import load_model
from .image_sets import ImageSet, Style, choose_images, draw, model_labels, open_images, reconstruct
from .judges import Judge, find_judges
from .judging import Row, Value, jackknife, judge_sets, share, sweep_guidance
from .layers import Layers, measure_layers
from .machine import Machine, describe_machine, time_calls
from .output import say
from .public import public_data, public_path

FEWEST = 60  # images on either side
MOST_UNEVEN = 2  # times as often as the mean class the most frequent one may be there without a remark
TIMED = 64  # images in the batch that is timed
MOST_LAYERED = 512  # held-out images whose layers are measured, at most


@dataclasses.dataclass(frozen=True)
class Question:
    "What is to be measured, and how."

    model: str | Path  # a run folder, a saved pipeline, the name of a shipped one, or hub:owner/name
    data: str  # as `open_dataset` reads it; its validation split is what everything is compared with
    features: str = "own"  # whose, as `find_judges` reads it
    n: int = 1000  # images on either side
    style: Style = Style()  # of the samples
    sweep: bool = False  # look for guidance weights, too
    seed: int = 0  # of the samples' noise
    device: str = "auto"  # where to compute

    def __post_init__(self) -> None:
        check_fields(self)
        check_seed(self.seed)


@dataclasses.dataclass(frozen=True)
class Nearest:
    "How far images lie from the training images, as the root mean square of pixels in [-1, 1]."

    images: str  # which set
    median: float  # distance to the nearest training image
    nearer: Value  # share that lies nearer than 99 of 100 held-out images do


@dataclasses.dataclass(frozen=True)
class Evaluation:
    "All that was measured of a model."

    question: Question
    training_images: int  # that the nearest are looked for among
    held_out_images: int  # that n are taken of
    judges: dict[str, str]  # name -> what it learned from
    rows: list[Row]  # against held-out images
    swept: list[Row]  # the sweep, against training images; empty without one
    chosen: str | None  # the style that the sweep led to
    reconstruction: dict[str, dict[str, Value]]  # set -> psnr in dB, and ssim where it could be measured
    nearest: list[Nearest]
    layers: Layers
    costs: dict[str, dict[str, float]]  # style -> gflop and milliseconds of one image
    machine: Machine
    drawn_in: str = "fp32"  # the precision of samples, and so of their costs: fp32 or bf16

    def to_dict(self) -> dict[str, typing.Any]:
        "As plain values, ready for JSON."
        return config_to_dict(self)


@dataclasses.dataclass(frozen=True)
class Shown:
    "What the page shows besides numbers."

    sets: dict[str, ImageSet]  # name -> images, all that were judged; the held-out ones come first
    distances: dict[str, torch.Tensor]  # name -> (n,), to the nearest training image
    neighbours: dict[str, torch.Tensor]  # name -> (n, 3, size, size), the nearest training images


def evaluate(
    question: Question,  # what to measure
) -> tuple[Evaluation, Shown]:
    "Measure a model. Raises `CfvaeError` where data or judges cannot be had, or n is out of reach."
    pipe, training, held = _open(question)
    judges = find_judges(question.features, held, pipe.device)
    n = question.n
    real, known = choose_images(held, n), choose_images(training, n)
    # raise, before any work, for classes that the model does not know, and a style that it has not
    labels = model_labels(pipe, real)
    draw(pipe, 1, question.style, question.seed)

    swept, styles = _choose_styles(question, pipe, judges, known)
    say(f"drawing {n} images, and coding {n} held-out ones")
    sets = _make_sets(pipe, real, known, styles, question.seed)
    say(f"judging them by {' and '.join(judge.name for judge in judges)}")
    rows = judge_sets(judges, real, sets.items())
    say(f"looking for the nearest of {len(training):,} training images")
    nearest, shown = _find_nearest(real, sets, training)

    some = slice(MOST_LAYERED)
    evaluation = Evaluation(
        question=_public(question),
        training_images=len(training),
        held_out_images=len(held),
        judges={judge.name: judge.about for judge in judges},
        rows=rows,
        swept=swept,
        chosen=styles[-1].name if swept else None,
        reconstruction=_measure_reconstructions(real, sets),
        nearest=nearest,
        layers=measure_layers(pipe, real.images[some], None if labels is None else labels[some]),
        costs={style.name: _measure_cost(pipe, style) for style in styles},
        machine=describe_machine(pipe.device),
        drawn_in=resolve_precision("auto", pipe.device),
    )
    return evaluation, shown


def _public(question: Question) -> Question:
    "For others to read: the folders of this machine are not theirs."
    return dataclasses.replace(
        question,
        model=public_path(question.model),
        data=public_data(question.data),
        features=public_path(question.features),
    )


def _open(question: Question) -> tuple[LatentVAEPipeline, ImageDataset, ImageDataset]:
    "The model, its training images and images that it has not seen; all that can be refused is refused."
    device = get_device(question.device)
    pipe = load_model(question.model).to(device)
    guided = question.sweep or bool(question.style.guidance)
    reason = "has no classes that it could be guided to, or was trained with objective.label_drop 0"
    check(pipe.guidable or not guided, f"{question.model} {reason}")

    training, held = open_images(question.model, question.data, pipe.autoencoder.config.size)
    n, most = question.n, min(len(training), len(held))
    about = f"{held.name} has {len(training)} training images and {len(held)} held-out ones"
    check(most >= FEWEST, f"{about}: at least {FEWEST} of each are needed")
    check(FEWEST <= n <= most, f"--n is {n}, but {about}: choose {FEWEST} to {most}")
    _warn_of_missing_classes(pipe, held)
    return pipe, training, held


def _warn_of_missing_classes(pipe: LatentVAEPipeline, held: ImageDataset) -> None:
    "Samples are of all classes of the model, equally often; distances grow where the data are not."
    shown = {pipe.find_class(held.classes[label]) for label in held.labels.unique().tolist() if label >= 0}
    missing = [name for index, name in enumerate(pipe.classes) if index not in shown]
    if missing and shown - {None}:
        message = f"{held.name} has no held-out images of {first_few(missing)}, which samples will show"
        warnings.warn(f"{message}: they count as unlike the data", stacklevel=2)
    elif pipe.classes and int(held.labels.min()) >= 0:
        counts = held.labels.bincount()
        often = int(counts.argmax())
        times_the_mean = counts[often].item() * len(pipe.classes) / len(held)
        message = f"{held.classes[often]} is on {counts[often]} of {len(held)} held-out images of {held.name}"
        way_out = "distances count that as unlike the data, so compare with models of the same data only"
        if times_the_mean > MOST_UNEVEN:
            warnings.warn(f"{message}, and samples show all classes equally often: {way_out}", stacklevel=2)


def _choose_styles(
    question: Question, pipe: LatentVAEPipeline, judges: list[Judge], known: ImageSet
) -> tuple[list[Row], list[Style]]:
    "The sweep, where it was asked for, and the styles of samples to judge: as asked for, and as chosen."
    if not question.sweep:
        return [], [question.style]
    say("comparing guidance weights, against training images")
    rows, best = sweep_guidance(pipe, judges, known, question.style.temperature, question.seed)
    return rows, [style for style in (question.style,) if style != best] + [best]


# --- the sets

FLOOR = "training images"  # real against real: no model can be asked for more
ALONE = "through the autoencoder"
WHOLE = "through the whole model"


def _make_sets(
    pipe: LatentVAEPipeline, real: ImageSet, known: ImageSet, styles: list[Style], seed: int
) -> dict[str, ImageSet]:
    "What is compared with the held-out images, by name."
    sets = {FLOOR: known, ALONE: reconstruct(pipe, real, 0), WHOLE: reconstruct(pipe, real)}
    for style in styles:
        sets[f"samples, {style.name}"] = draw(pipe, len(real.images), style, seed)
    return sets


def _find_nearest(
    real: ImageSet, sets: dict[str, ImageSet], training: ImageDataset
) -> tuple[list[Nearest], Shown]:
    """Distances to the nearest training images, beside those of held-out images and of their reconstructions:
    soft pictures lie near to many images, without having been copied from any."""
    named = {"held-out images": real} | sets
    asked = [name for name in named if name not in (FLOOR, ALONE)]
    together = torch.cat([named[name].images for name in asked])  # the training images are gone through once
    distance, index = nearest_images(together, training)

    n = len(real.images)
    distances = dict(zip(asked, distance.split(n), strict=True))
    neighbours = {name: training.batch(rows)[0] for name, rows in zip(asked, index.split(n), strict=True)}

    near = distances["held-out images"].quantile(0.01)
    lines = []
    for name, distance in distances.items():
        nearer = share((distance < near).float())
        lines.append(Nearest(name, distance.median().item(), nearer))
    return lines, Shown(named, distances, neighbours)


def _measure_reconstructions(real: ImageSet, sets: dict[str, ImageSet]) -> dict[str, dict[str, Value]]:
    images = {name: sets[name].images for name in (ALONE, WHOLE)}
    return {name: jackknife(_likeness, real.images, coded) for name, coded in images.items()}


def _likeness(real: torch.Tensor, coded: torch.Tensor) -> dict[str, float]:
    "PSNR, and SSIM where the extra `evaluation` is installed."
    measures = {"psnr": psnr(coded, real).item()}
    try:
        library = importlib.import_module("torchmetrics.functional.image")
    except ImportError:
        return measures
    ssim = library.structural_similarity_index_measure(coded, real, data_range=2.0)
    return measures | {"ssim": ssim.item()}


def _measure_cost(pipe: LatentVAEPipeline, style: Style) -> dict[str, float]:
    "Floating-point operations and time of one image, drawn in a batch as samples are: see `drawn_in`."
    pipe.vae.requires_grad_(False)  # the counter stumbles over weights that are not trained now
    call = functools.partial(draw, pipe, TIMED, style, 0)
    seconds = statistics.median(time_calls(call, pipe.device))
    return {"gflop": count_flops(call) / TIMED / 1e9, "milliseconds": 1e3 * seconds / TIMED}
