"""`sample`: images from a model, guided or not."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..core import check, check_seed, get_device, make_generator
from ..files.names import printable
from ..guidance import Guidance
from ..pipeline import LatentVAEPipeline, resolve_precision
from ..runs.folder import load_model
from .describing import list_names
from .parsing import read_classes, read_labels, read_numbers
from .writing import open_npz, prepare_file, prepare_image_folder, save_each, save_grid

LARGEST_GRID = 4096  # images in one picture


@dataclasses.dataclass(frozen=True)
class Targets:
    "Where images go: any of three places, and at least one."

    grid: Path | None  # one picture of all
    folder: Path | None  # a file for each
    array: Path | None  # .npz

    def validate(
        self,
        n: int,  # how many images
    ) -> None:
        "Raise `CfvaeError` where there is no place, or a picture of so many would be too large."
        anywhere = self.grid or self.folder or self.array
        check(bool(anywhere), "where to? Give --out grid.png, --out-dir DIR or --npz FILE.npz")
        same = self.folder is not None and self.folder in (self.grid, self.array)
        check(
            not same, f"{self.folder} is given as a file and as a folder: --out-dir needs a name of its own"
        )
        among = self.grid is not None and self.folder in self.grid.parents
        check(
            not among, f"--out {self.grid} would be one of the images in {self.folder}: choose another place"
        )
        message = f"--out draws at most {LARGEST_GRID} images into one picture: use --out-dir or --npz"
        check(self.grid is None or n <= LARGEST_GRID, message)

    def prepare(self) -> None:
        "Check the places before anything is drawn, and make the folders."
        if self.grid is not None:
            prepare_file(self.grid, ".png", "--out")
        if self.array is not None:
            prepare_file(self.array, ".npz", "--npz")
        if self.folder is not None:
            prepare_image_folder(self.folder)

    def __str__(self) -> str:
        places = [self.grid, self.folder, self.array]
        return ", ".join(printable(place) for place in places if place is not None)


@dataclasses.dataclass(frozen=True)
class Style:
    "How images are drawn."

    guidance: Guidance  # how far towards the label
    temperature: float | tuple[float, ...]  # one, or one per resolution
    precision: str  # auto, fp32 or bf16


def read_style(mean_weight: str, var_weight: str, temperature: str, precision: str = "fp32") -> Style:
    "What the options of the same names say."
    means = read_numbers(mean_weight, "--mean-weight")
    variances = read_numbers(var_weight, "--var-weight")
    return Style(Guidance(means, variances), read_numbers(temperature, "--temperature"), precision)


def load_pipeline(
    model: Path,  # a run folder, a saved pipeline, the name of a shipped one, or hub:owner/name
    device: str,  # auto, cpu or cuda
) -> LatentVAEPipeline:
    "The pipeline, on the device."
    return load_model(model).to(get_device(device))


def choose_labels(
    pipe: LatentVAEPipeline,  # knows the classes
    n: int,  # how many images
    classes: str | None,  # what --classes says
    labels: str | None,  # what --labels says
) -> list[int] | None:
    """A class index per image; None for a model without classes.

    The classes asked for come over and over; where none is named, all in turn."""
    both = classes is not None and labels is not None
    check(not both, "--classes and --labels say the same in two ways: give one of them")
    count = len(pipe.classes)
    if classes is not None:
        chosen = pipe.class_indices(read_classes(classes, pipe.classes))
    elif labels is not None:
        chosen = read_labels(labels, count)
    else:
        chosen = list(range(count))

    if count == 0:
        return None
    check(len(chosen) > 0, "no class is named: give at least one, or leave the option out")
    return [chosen[i % len(chosen)] for i in range(n)]


def sample(
    pipe: LatentVAEPipeline,  # the model
    labels: list[int] | None,  # one per image
    n: int,  # how many images
    style: Style,  # guidance, temperature and precision
    seed: int,  # of the noise
    batch_size: int,  # images at a time
    targets: Targets,  # where to
) -> None:
    "Draw n images, write every batch before the next is drawn, and say what was drawn."
    check_seed(seed)
    check_style(pipe, labels, style)
    targets.prepare()
    names = None if labels is None else [pipe.classes[label] for label in labels]
    side = pipe.autoencoder.config.size
    batches = draw(pipe, labels, n, style, seed, batch_size)
    write_samples(batches, (n, side, side, 3), names, targets)

    images = "1 image" if n == 1 else f"{n} images"
    shown = "" if names is None else f" ({list_names(list(dict.fromkeys(names)))})"
    print(f"{images}{shown} in {targets}")


def check_style(
    pipe: LatentVAEPipeline,  # the model
    labels: list[int] | None,  # one per image
    style: Style,  # guidance, temperature and precision
) -> None:
    "Raise `CfvaeError`, before any file is made, for what the model cannot do: drawing no image finds out."
    pipe.check_style(None if labels is None else torch.tensor(labels), style.guidance)
    no_labels = None if labels is None else torch.zeros(0, dtype=torch.int64)
    pipe.vae.sample(0, no_labels, style.guidance, style.temperature)
    resolve_precision(style.precision, pipe.device)


def draw(
    pipe: LatentVAEPipeline,  # the model
    labels: list[int] | None,  # one per image
    n: int,  # how many images
    style: Style,  # guidance, temperature and precision
    seed: int,  # of the noise
    batch_size: int,  # images at a time
) -> Iterator[np.ndarray]:
    """Yield uint8 images (b, h, w, 3) until n are drawn.

    Image i depends on the seed and on i, not on n or the batch size: noise is drawn image by image."""
    generator = make_generator(seed)
    starts = range(0, n, batch_size)
    for start in tqdm(starts, desc="drawing", unit="batch", disable=None, leave=False):
        count = min(batch_size, n - start)
        noise = [pipe.vae.noise(1, generator) for _ in range(count)]
        eps = [torch.cat(layer) for layer in zip(*noise, strict=True)]
        batch_labels = None if labels is None else labels[start : start + count]
        drawn = pipe(
            batch_labels,
            count,
            style.guidance,
            style.temperature,
            eps,
            output_type="np",
            batch_size=count,
            precision=style.precision,
        )
        yield drawn.images


def write_samples(
    batches: Iterator[np.ndarray],  # images (b, h, w, 3), uint8
    shape: tuple[int, ...],  # of all of them together
    names: list[str] | None,  # the class of each
    targets: Targets,  # where to
) -> None:
    "Write images batch by batch; only what becomes one picture is kept in memory."
    kept = []
    first = 0
    with contextlib.ExitStack() as stack:
        array_file = stack.enter_context(open_npz(targets.array, shape)) if targets.array else None
        for images in batches:
            last = first + len(images)
            if array_file is not None:
                array_file.write(images.tobytes())
            if targets.folder is not None:
                batch_names = None if names is None else names[first:last]
                save_each(images, first, batch_names, targets.folder)
            if targets.grid is not None:
                kept.append(images)
            first = last
    if targets.grid is not None:
        save_grid(np.concatenate(kept), None, targets.grid)
