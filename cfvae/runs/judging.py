"""Sets of images in numbers: every set against real images, by every judge, each number with its error."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Iterator

import torch

from ..distances import density_coverage, frechet_distance, kernel_distance
from ..evaluation import precision_recall
from ..guidance import Guidance
from ..pipeline import LatentVAEPipeline
from .image_sets import ImageSet, Style, draw
from .judges import Judge

GROUPS = 10  # that images are divided into; each is left out once
SWEEP = ((0, 0), (0.5, 0.5), (1, 1), (2, 2), (3, 3), (1, 0), (2, 0), (3, 0))  # weights of mean, log-variance


@dataclasses.dataclass(frozen=True)
class Value:
    "A measured number and its standard error."

    value: float
    error: float


@dataclasses.dataclass(frozen=True)
class Row:
    "One set of images, compared with real images by one judge."

    images: str  # which set
    judge: str
    measures: dict[str, Value]  # those of `compare_sets`, and accuracy where the judge knows the classes


def jackknife(
    measure: Callable[..., dict[str, float]],  # of the rows of some tensors
    *tensors: torch.Tensor,  # (n, ...) each; rows of the same number are left out together
) -> dict[str, Value]:
    """Numbers and their standard errors: a tenth of the rows is left out, ten times (Efron 1982, chapter 3).

    The bootstrap would draw rows with replacement, and the nearest neighbour of a copy is its copy: measures
    that count neighbours would break."""
    parts = []
    for group in range(GROUPS):
        kept = [tensor[torch.arange(len(tensor)) * GROUPS // len(tensor) != group] for tensor in tensors]
        parts.append(measure(*kept))

    values = {}
    for name, value in measure(*tensors).items():
        spread = statistics.stdev(part[name] for part in parts)
        values[name] = Value(value, (GROUPS - 1) / math.sqrt(GROUPS) * spread)
    return values


def share(
    hits: torch.Tensor,  # (n,) of 0 and 1
) -> Value:
    "The share of ones and its standard error (13.1)."
    mean = hits.double().mean().item()
    return Value(mean, math.sqrt(mean * (1 - mean) / len(hits)))


def compare_sets(
    real: torch.Tensor,  # (n, d) features of real images
    other: torch.Tensor,  # (n, d) features of other images
) -> dict[str, float]:
    "All measures of two sets, by name."
    precision, recall = precision_recall(real, other)
    density, coverage = density_coverage(real, other)
    return {
        "frechet": frechet_distance(real, other),
        "kernel": kernel_distance(real, other),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
    }


def judge_sets(
    judges: list[Judge],  # who looks
    real: ImageSet,  # what everything is compared with
    sets: Iterable[tuple[str, ImageSet]],  # name and images, n each, as many as there are real ones
) -> list[Row]:
    "Every set by every judge."
    references = [judge.see(real.images) for judge in judges]
    rows = []
    for name, images in sets:
        for judge, reference in zip(judges, references, strict=True):
            measures = jackknife(compare_sets, reference, judge.see(images.images))
            recognised = judge.recognises(images.images, images.classes)
            if recognised is not None:
                measures["accuracy"] = share(recognised)
            rows.append(Row(name, judge.name, measures))
    return rows


def sweep_guidance(
    pipe: LatentVAEPipeline,  # a model with classes
    judges: list[Judge],  # who looks
    training: ImageSet,  # training images: what is chosen, is never chosen on test images
    temperature: float | tuple[float, ...],  # of all samples
    seed: int,  # of the noise of all samples
) -> tuple[list[Row], Style]:
    """Samples at several guidance weights against training images.

    Returns a row for each weight and judge, and the style with the least Frechet distance to the last judge:
    of two, the one whose features were learned from other classes."""
    styles = [Style(Guidance(*weights), temperature) for weights in SWEEP]

    def samples() -> Iterator[tuple[str, ImageSet]]:
        for style in styles:
            yield style.name, draw(pipe, len(training.images), style, seed)

    rows = judge_sets(judges, training, samples())
    distances = [row.measures["frechet"].value for row in rows if row.judge == judges[-1].name]
    return rows, styles[distances.index(min(distances))]
