"""The numbers of a run: what was trained, how training went, what the model does with unseen images."""

import dataclasses
import math
import statistics
import typing

import torch

from ..autoencoder import psnr
from ..core import count_parameters, make_generator
from ..data import FACTORS, Shapes
from ..evaluation import class_accuracy, shapes_classifier
from ..files.names import printable
from ..objective import blurred_distortion
from ..pretrained import PretrainedConfig
from ..recipes import Recipe
from .opened import COLUMNS, Run, draw, draw_classes, draw_depths, strength_name, strengths
from .public import public_recipe

MOST_IMAGES = 512  # held-out images that are measured, at most
BATCH = 64  # held-out images at a time
JUDGED = 500  # samples that the shipped classifier looks at


@dataclasses.dataclass(frozen=True)
class Parameters:
    "Numbers in each model."

    autoencoder: int
    vae: int  # those that training adjusts


@dataclasses.dataclass(frozen=True)
class Facts:
    "What was trained, and on what."

    preset: str
    data: str  # where the images came from
    found: str  # there: images, classes, split, range of many-bit images, what was left out
    classes: int  # 0: a model without classes
    held_out_images: int
    same_images: bool  # as in `Run`
    seeds: tuple[int, int]  # of stage one and two
    parameters: Parameters
    trained_on: str  # the device setting
    pretrained: str | None  # where a borrowed first stage came from

    @property
    def measured_images(self) -> int:
        "Held-out images that the measures see."
        return min(MOST_IMAGES, self.held_out_images)


@dataclasses.dataclass(frozen=True)
class Stage:
    "What is known of a stage, most of it from its log."

    steps: int  # done, with a log or without
    of: int  # asked for
    skipped: float  # steps whose gradient was too large; NaN without a log
    examples_per_second: float  # median over the log; NaN without one
    fell_in_last_tenth: float  # how much of the mean loss went from the last tenth but one to the last
    last: dict[str, float]  # of loss, distortion, rate, psnr: what the log's last line holds


@dataclasses.dataclass(frozen=True)
class PSNR:
    "Peak signal-to-noise ratios of reconstructed held-out images, in decibels (02.2)."

    autoencoder: float
    whole_model: float


@dataclasses.dataclass(frozen=True)
class Nats:
    "Means over held-out images with z from the posterior, in nats per image."

    rates: list[float]  # of every stochastic layer, lowest resolution first (08.1)
    rate: float  # their sum
    rate_error: float  # standard error of the rate, as a mean over these images
    distortion: float  # of data blurred by sigma_q (09.1)
    band: list[list[float]] | None  # [low, high] of every rate by the schedule (09.3); None without one


@dataclasses.dataclass(frozen=True)
class Measurements:
    "All that is measured of a run."

    run: Facts
    autoencoder: Stage
    vae: Stage
    psnr: PSNR
    spread: dict[str, float]  # guidance -> standard deviation of a pixel among samples of one class
    class_accuracy: dict[str, float] | None  # images -> share recognised (13.1); None unless `Shapes`
    depths: dict[str, float]  # layers with noise -> root mean square distance to the whole sample
    nats: Nats
    entropy: float | None  # nats, of a picture given what the model is told; None unless `Shapes`

    def to_dict(self) -> dict[str, typing.Any]:
        "The measurements as JSON holds them, with None in place of numbers that it has no word for."
        fields = dataclasses.asdict(self)
        for stage in ("autoencoder", "vae"):
            fields[stage] |= fields[stage].pop("last")
        for name in ("class_accuracy", "entropy"):
            if fields[name] is None:
                del fields[name]
        return _plain(fields)


def _plain(value: typing.Any) -> typing.Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def measure_run(
    run: Run,  # as from `open_run`
) -> Measurements:
    "Measure a run on held-out images and on samples. Each measure has its own seed: order does not matter."
    real, alone, whole = _reconstructions(run)
    ratios = PSNR(psnr(alone, real).item(), psnr(whole, real).item())
    class_accuracy = None
    entropy = None
    if run.is_shapes:
        class_accuracy = _class_accuracies(run, whole)
        entropy = _known_entropy(run.recipe)

    return Measurements(
        run=_facts(run),
        autoencoder=_stage(run, "autoencoder"),
        vae=_stage(run, "vae"),
        psnr=ratios,
        spread=_spreads(run),
        class_accuracy=class_accuracy,
        depths=_depth_distances(run),
        nats=_nats(run),
        entropy=entropy,
    )


def _known_entropy(recipe: Recipe) -> float:
    "Of a picture of `Shapes`, in nats, given its class where the model is told it."
    told = math.log(len(FACTORS["class"])) if recipe.conditional else 0.0
    return Shapes.entropy() - told


def _facts(run: Run) -> Facts:
    recipe = public_recipe(run.recipe)
    first = recipe.autoencoder
    parameters = Parameters(
        autoencoder=sum(p.numel() for p in run.pipe.autoencoder.parameters()),
        vae=count_parameters(run.pipe.vae),
    )
    return Facts(
        preset=printable(recipe.name),
        data=recipe.data,
        found=run.found,
        classes=len(run.pipe.classes),
        held_out_images=len(run.held),
        same_images=run.same_images,
        seeds=(recipe.autoencoder_training.seed, recipe.vae_training.seed),
        parameters=parameters,
        trained_on=recipe.vae_training.device,
        pretrained=first.source if isinstance(first, PretrainedConfig) else None,
    )


def _stage(run: Run, name: str) -> Stage:
    log = run.logs[name]
    last = log[-1] if log else {}
    speeds = [line["examples_per_second"] for line in log]

    # the mean loss over the last tenth of the log, and over the tenth before it
    tenth = max(1, len(log) // 10)
    late = _mean_loss(log[-tenth:])
    before = _mean_loss(log[-2 * tenth : -tenth])
    comparable = late > 0 and before > 0  # against a discriminator a loss may be anything
    asked = getattr(run.recipe, f"{name}_training").steps
    known = run.trained
    if name == "autoencoder":
        known = 0 if run.recipe.is_pretrained else asked  # there is a model, so stage one is done

    return Stage(
        steps=known,
        of=asked,
        skipped=last.get("skipped", math.nan),
        examples_per_second=statistics.median(speeds) if speeds else math.nan,
        fell_in_last_tenth=1 - late / before if comparable else math.nan,
        last={key: last[key] for key in ("loss", "distortion", "rate", "psnr") if key in last},
    )


def _mean_loss(lines: list[dict]) -> float:
    return statistics.fmean(line["loss"] for line in lines) if lines else math.nan


def _batches(run: Run) -> typing.Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    "Held-out images, a batch at a time, with their labels where the model knows classes."
    count = min(MOST_IMAGES, len(run.held))
    for start in range(0, count, BATCH):
        images, labels = run.held.batch(range(start, min(start + BATCH, count)))
        yield images, labels if run.recipe.conditional else None


def _reconstructions(run: Run) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    "Held-out images (n, 3, size, size), the autoencoder's reconstructions, and those of the whole model."
    real, alone, whole = [], [], []
    for images, labels in _batches(run):
        real.append(images)
        alone.append(run.pipe.reconstruct(images, depth=0).cpu())
        whole.append(run.pipe.reconstruct(images, labels).cpu())
    return torch.cat(real), torch.cat(alone), torch.cat(whole)


def _spreads(run: Run) -> dict[str, float]:
    spreads = {}
    for guidance in strengths(run.recipe):
        rows = draw_classes(run, guidance).unflatten(0, (-1, COLUMNS))
        spreads[strength_name(guidance)] = rows.std(1).mean().item()
    return spreads


def _depth_distances(run: Run) -> dict[str, float]:
    rows = draw_depths(run)
    whole = rows[max(rows)]
    return {str(depth): (row - whole).square().mean().sqrt().item() for depth, row in rows.items()}


def _class_accuracies(run: Run, reconstructed: torch.Tensor) -> dict[str, float]:
    "Of held-out images, of the reconstructions of the first of them, and of samples at every strength."
    judge = shapes_classifier()
    real, labels = run.held.batch(range(len(reconstructed)))
    accuracies = {
        "held-out images": class_accuracy(judge, real, labels),
        "their reconstructions": class_accuracy(judge, reconstructed, labels),
    }
    if run.recipe.conditional:
        labels = torch.arange(JUDGED) % len(FACTORS["class"])
        for guidance in strengths(run.recipe):
            samples = draw(run, labels, JUDGED, guidance)
            name = f"samples, {strength_name(guidance)}"
            accuracies[name] = class_accuracy(judge, samples, labels)
    return accuracies


@torch.no_grad()
def _nats(run: Run) -> Nats:
    rates = []
    distortions = []
    generator = make_generator(0)
    for images, labels in _batches(run):
        z = run.pipe.encode(images)
        out = run.pipe.vae(z, labels, generator=generator)
        distortion = blurred_distortion(z, out.distribution, run.recipe.objective.sigma_q)
        rates.append(out.rates.cpu())
        distortions.append(distortion.cpu())

    mean = torch.cat(rates).mean(0)
    total = mean.sum()
    of_images = torch.cat(rates).sum(1)
    error = of_images.std().item() / math.sqrt(len(of_images)) if len(of_images) > 1 else math.nan
    shares = run.recipe.objective.shares(run.recipe.vae.layers)
    band = None
    if shares is not None:
        low = shares * total / 100
        high = 2 * shares * total / 100
        band = torch.stack([low, high], dim=1).tolist()
    return Nats(mean.tolist(), total.item(), error, torch.cat(distortions).mean().item(), band)
