"""What a comparison measures of samples, with the floors that no sample can be better than."""

import contextlib
import dataclasses
import functools
import statistics
import time
import typing
from pathlib import Path

import torch
from torch import nn

from ...core import device_of, make_generator
from ...data import ImageDataset
from ..bench import count_flops
from .contestant import Contestant, Material, Style
from .models import MODELS
from .training import WEIGHTS, Fields, Job, keep, load_trained, read_kept, read_result
from ..judges import Judge, find_judges
from ..judging import Value, compare_sets, jackknife, share
from ..machine import finish
from ..output import say

BATCH = {"cpu": 125, "cuda": 1000}  # images at a time
TIMED = {"cpu": 16, "cuda": 256}  # images in the batch that is timed
TIMED_SECONDS = 0.5  # that calls of one style go on for
SHOWN = ("accuracy", "frechet", "precision", "recall")  # in the line that a point prints


@dataclasses.dataclass(frozen=True)
class Jury:
    "Real images that no model has seen, and what the judges see in them."

    source: str  # of the judges, as `find_judges` reads it
    features: dict[str, torch.Tensor]  # judge -> (n, d), of the real images
    labels: torch.Tensor | None  # (n,), of the real images; None without classes
    classes: tuple[str, ...]  # of the data
    weights: dict[str, str]  # judge -> digest of its weights

    @property
    def n(self) -> int:
        "How many real images, and how many samples."
        return len(next(iter(self.features.values())))


@dataclasses.dataclass(frozen=True)
class Point:
    "A trained model, and a way to draw from it."

    job: Job  # with the whole budget
    style: Style  # one of the model's

    @property
    def path(self) -> Path:
        "Where what was measured is kept, below the comparison's folder."
        return Path("points") / self.job.model / f"seed-{self.job.seed}" / f"{self.style.name}.json"


@functools.cache
def _judges(source: str, dataset: ImageDataset, device: torch.device) -> list[Judge]:
    "Loaded once in every process."
    return find_judges(source, dataset, device)


def call_jury(
    material: Material,  # what is modelled
    source: str,  # of the judges, as `find_judges` reads it
    real: ImageDataset,  # what no model has seen
    device: torch.device,  # where to compute
) -> Jury:
    "The judges of the data, and what they see in the real images. Raises `CfvaeError` where there are none."
    images, labels = real.batch(range(len(real)))
    judges = _judges(source, material.images, device)
    features = {judge.name: judge.see(images) for judge in judges}
    known = labels if bool((labels >= 0).all()) else None
    return Jury(source, features, known, real.classes, {judge.name: judge.weights for judge in judges})


def measure(
    material: Material,  # what all models share
    jury: Jury,  # who judges
    images: torch.Tensor,  # (n, 3, size, size) in [-1, 1]
    labels: torch.Tensor | None,  # (n,) classes that were asked for
    device: torch.device,  # where to compute
) -> Fields:
    "Every judge's measures, each with the standard error that follows from the samples alone."
    names = None if labels is None else [jury.classes[label] for label in labels.tolist()]
    judged: Fields = {}
    for judge in _judges(jury.source, material.images, device):
        real = jury.features[judge.name].to(device)
        seen = judge.see(images).to(device)
        measures: dict[str, Value] = jackknife(compare_sets, real, seen)
        right = judge.recognises(images, names)
        if right is not None:
            measures["accuracy"] = share(right)
        judged[judge.name] = {name: dataclasses.asdict(value) for name, value in measures.items()}
    return {"n": len(images), "measures": judged}


# --- points


@torch.no_grad()
def draw_images(
    contestant: Contestant,  # the model's kind
    model: nn.Module,  # trained
    labels: torch.Tensor | None,  # (n,) class indices; None without classes
    n: int,  # how many
    style: Style,  # how
    seed: int,  # of the noise
) -> torch.Tensor:
    "Images in [-1, 1], (n, 3, size, size), on the model's device."
    device = device_of(model)
    generator = make_generator(seed, device)
    size = BATCH[device.type]
    images = []
    with _products_as_convolutions():
        for start in range(0, n, size):
            stop = min(start + size, n)
            part = None if labels is None else labels[start:stop].to(device)
            drawn = contestant.draw(model, part, stop - start, style, generator)
            images.append(contestant.decode(drawn).clamp(-1, 1))
    return torch.cat(images)


@contextlib.contextmanager
def _products_as_convolutions() -> typing.Iterator[None]:
    "Within the block a GPU rounds matrix products as it does convolutions: transformers are not held back."
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    products.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        products.allow_tf32 = before


def is_judged(
    point: Point,  # a trained model, and a way to draw from it
    out: Path,  # the comparison's folder
) -> bool:
    "Whether it was, and the model has not been trained again since. Raises `CfvaeError` for a damaged file."
    path = out / point.path
    if not path.is_file():
        return False
    noted = read_kept(path, {"measures": dict}).get(WEIGHTS)  # an earlier version noted none
    return noted in (None, _weights(point.job, out))


def _weights(job: Job, out: Path) -> str | None:
    return (read_result(job, out) or {}).get(WEIGHTS)


def judge_point(
    material: Material,  # what all models share
    point: Point,  # what to judge
    jury: Jury,  # who judges
    device: torch.device,  # where to compute
    out: Path,  # the comparison's folder
) -> None:
    "Draw as many samples as there are real images, and keep what was measured."
    contestant = MODELS[point.job.model](material).to(device)
    model = load_trained(contestant, point.job, out).to(device)

    start = time.perf_counter()
    labels = jury.labels if material.recipe.conditional else None
    images = draw_images(contestant, model, labels, jury.n, point.style, seed=1000 + point.job.seed)
    result = measure(material, jury, images, labels, device)
    seconds = time.perf_counter() - start

    keep(out / point.path, {**result, WEIGHTS: _weights(point.job, out)})
    first = next(iter(result["measures"].values()))
    shown = ", ".join(f"{name} {first[name]['value']:.3f}" for name in SHOWN if name in first)
    say(f"{point.job.model}, seed {point.job.seed}, {point.style.name}: {shown} ({seconds:.0f} s)")


def measure_cost(
    contestant: Contestant,  # the model's kind
    model: nn.Module,  # trained, on the device to be timed
    style: Style,  # how to draw
) -> Fields:
    "Seconds and counted FLOPs of an image, its decoding included."
    device = device_of(model)
    contestant.to(device)
    n = TIMED[device.type]
    classes = contestant.recipe.vae.num_classes if contestant.recipe.conditional else 0
    labels = torch.arange(n) % classes if classes else None

    def draw(count: int, how: Style) -> None:
        draw_images(contestant, model, None if labels is None else labels[:count], count, how, 0)

    def count(steps: int) -> float:
        return count_flops(functools.partial(draw, 2, dataclasses.replace(style, steps=steps))) / 2

    seconds = _time(functools.partial(draw, n, style), device)
    flops = count(min(style.steps, 1))
    if style.steps > 1:  # every further step is as much work as the second
        flops += (style.steps - 1) * (count(2) - flops)
    return {
        "evaluations": style.evaluations,
        "gflop_per_image": flops / 1e9,
        "seconds_per_image": seconds / n,
        "timed_batch": n,
    }


def _time(call: typing.Callable[[], None], device: torch.device) -> float:
    "Seconds of a call: the median of those that `TIMED_SECONDS` have room for, at least of one."
    times: list[float] = []
    while sum(times) < TIMED_SECONDS:
        finish(device)
        start = time.perf_counter()
        call()
        finish(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_floors(
    material: Material,  # what all models share
    jury: Jury,  # who judges
    others: ImageDataset,  # as many further real images
    device: torch.device,  # where to compute
) -> Fields:
    "What real images score against real images, and what they score once the first stage has had them."
    images, labels = others.batch(range(jury.n))
    known = labels if jury.labels is not None and bool((labels >= 0).all()) else None
    material.autoencoder.to(device)
    decoded = []
    with torch.no_grad():
        for part in images.split(BATCH[device.type]):
            codes = material.autoencoder.encode(part.to(device))
            decoded.append(material.autoencoder.decode(codes).clamp(-1, 1))
    floors = {}
    for name, pictures in (("real", images.to(device)), ("autoencoder", torch.cat(decoded))):
        floors[name] = measure(material, jury, pictures, known, device)
    return floors
