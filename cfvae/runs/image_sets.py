"""Sets of images to compare: held-out ones, what a model makes of them, and what it draws."""

import dataclasses
import typing
import warnings
from pathlib import Path

import torch

from ..core import CfvaeError, check, check_fields, check_path, make_generator
from ..data import ImageDataset
from ..files.folders import NoValidationSplit
from ..files.open import open_dataset
from ..guidance import Guidance
from ..pipeline import LatentVAEPipeline
from .folder import has_same_images, load_recipe
from .train import prepare

BATCH = 64  # images at a time


@dataclasses.dataclass(frozen=True)
class Style:
    "How samples are drawn."

    guidance: Guidance = Guidance()  # how far towards the label
    temperature: float | tuple[float, ...] = 1.0  # one, or one per resolution

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def name(self) -> str:
        "What a table calls it."
        weights = f"{_shown(self.guidance.mean_weight)} / {_shown(self.guidance.var_weight)}"
        guided = f"guidance {weights}" if self.guidance else "unguided"
        return guided if self.temperature == 1 else f"{guided}, temperature {_shown(self.temperature)}"


def _shown(numbers: float | tuple[float, ...]) -> str:
    values = numbers if isinstance(numbers, tuple) else (numbers,)
    return ",".join(f"{value:g}" for value in values)


@dataclasses.dataclass(frozen=True)
class ImageSet:
    "Images, and what each of them should show."

    images: torch.Tensor  # (n, 3, size, size) in [-1, 1]
    classes: list[str] | None  # the name of each image's class; None without classes


def open_images(
    model: str | Path,  # whose images
    spec: str,  # as `open_dataset` reads it
    size: int,  # of the model's images
) -> tuple[ImageDataset, ImageDataset]:
    """Training images, and images that the model has not seen: the data's validation split.

    For data without one, those that a run has held out. Raises `CfvaeError` where there are none either, or
    where the run learned from other images, so that nobody knows which of these it has seen; warns of these
    where they do no harm but to stand for what the run learned from."""
    training = open_dataset(spec, size)
    is_run = (check_path(model, "the model") / "recipe.json").is_file()
    try:
        held = open_dataset(spec, size, train=False)
    except NoValidationSplit:
        if not is_run:
            raise
    else:
        if is_run and not _learned_from(model, training):
            message = f"{model} was trained on other images than those of {spec}"
            warnings.warn(f"{message}: 'training images' are not what it learned from", stacklevel=2)
        return training, held
    _, rest, held = prepare(load_recipe(model), training)
    check(
        has_same_images(Path(model), rest),
        f"{spec}: {model} was trained on other images, so nobody knows which of these it has seen: "
        "bring the old images back, or give data with a validation split",
    )
    return rest, held


def _learned_from(model: str | Path, training: ImageDataset) -> bool:
    "Whether a run was trained on these images, less those that it held out."
    try:
        _, rest, _ = prepare(load_recipe(model), training)
    except CfvaeError:  # it could not even be
        return False
    return has_same_images(Path(model), rest)


def choose_images(
    dataset: ImageDataset,  # images, perhaps sorted by class
    n: int,  # how many
) -> ImageSet:
    "Images of a data set, at random but always the same."
    rows = torch.randperm(len(dataset), generator=make_generator(0))[:n]
    images, labels = dataset.batch(rows)
    if int(labels.min()) < 0:
        return ImageSet(images, None)
    return ImageSet(images, [dataset.classes[label] for label in labels.tolist()])


def model_labels(
    pipe: LatentVAEPipeline,  # a model
    real: ImageSet,  # images of its classes
) -> torch.Tensor | None:
    """The model's own labels of images; None for a model without classes.

    Raises `CfvaeError` for images of classes that the model does not know, or of none."""
    if not pipe.classes:
        return None
    if real.classes is None:
        raise CfvaeError("--data: the images have no classes, and this model needs them")
    return torch.tensor(pipe.class_indices(real.classes))


def reconstruct(
    pipe: LatentVAEPipeline,  # a model
    real: ImageSet,  # images of its classes
    depth: int | None = None,  # layers that see the images; 0: the autoencoder alone; None: all
) -> ImageSet:
    "Images as the model remembers them."
    labels = model_labels(pipe, real)
    parts = []
    for rows in torch.arange(len(real.images)).split(BATCH):
        known = None if labels is None else labels[rows]
        part = pipe.reconstruct(real.images[rows], known, depth)
        parts.append(part.clamp(-1, 1).cpu())
    return ImageSet(torch.cat(parts), real.classes)


def draw(
    pipe: LatentVAEPipeline,  # a model
    n: int,  # how many
    style: Style,  # how
    seed: int,  # of the noise, which is the same for every style
) -> ImageSet:
    """Samples, the classes in turn; in bf16 where the hardware has it, as `opened.draw`.

    Raises `CfvaeError` where pixels are not finite: there is nothing to be judged."""
    labels: torch.Tensor | None = None
    classes: list[str] | None = None
    if pipe.classes:
        labels = torch.arange(n) % len(pipe.classes)
        classes = [pipe.classes[label] for label in labels.tolist()]
    drawn: typing.Any = pipe(
        labels,
        n,
        style.guidance,
        style.temperature,
        generator=make_generator(seed),
        output_type="pt",
        precision="auto",
    )
    finite = bool(drawn.images.isfinite().all())
    check(finite, f"samples, {style.name}: pixels are not finite numbers: lower guidance or temperature")
    return ImageSet(drawn.images.cpu() * 2 - 1, classes)
