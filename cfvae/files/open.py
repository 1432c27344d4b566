"""A name, a path or an archive to one data set."""

import os
import re
import typing
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..core import CfvaeError, check, check_path, whole_number
from ..data import ImageDataset, Shapes
from .archives import unpack
from .cache import Decoded, FileImages, decode_listing, load_or_fill, store_images
from .folders import list_folder
from .names import first_few, printable
from .store import source_tag
from .tables import list_table
from .tiny_imagenet import list_tiny_imagenet

CACHE = "data/cache"
MAX_SIZE = 4096  # pixels
LISTERS = {"folder": list_folder, "tiny-imagenet": list_tiny_imagenet, "table": list_table}
PLACES = "folder:PATH or tiny-imagenet:PATH (PATH is a folder or an archive), table:FILE (CSV or JSON lines)"
SPECS = f"shapes, shapes:n=2000,seed=1, cifar10, {PLACES}"
VALIDATION_SEED = 10**9  # added to the seed of generated validation images: no training run has it


def open_dataset(
    spec: str,  # one of SPECS; PATH may be a .tar, .tar.xz, .tar.gz or .zip, FILE names files and labels
    size: int,  # side of the square images, in pixels
    train: bool = True,  # the training split, or the validation (test) split
    cache: str | Path = CACHE,  # where archives are unpacked and decoded images are kept
) -> ImageDataset:
    """Open a dataset by its short name. Damaged images are left out: see `.skipped`.

    Raises `CfvaeError` for a name, path or tree that cannot be used."""
    check(isinstance(spec, str), f"a dataset is named by a string: {SPECS}")
    check(
        isinstance(train, bool), f"train is {train!r}: True is the training split, False the validation split"
    )
    cache = check_path(cache, "the cache")
    size = whole_number(size, "size", 1)
    check(size <= MAX_SIZE, f"size is {size}: a whole number of pixels from 1 to {MAX_SIZE} is needed")
    kind, _, rest = spec.partition(":")
    if kind == "shapes":
        return _open_shapes(rest, size, train)
    if spec == "cifar10":
        return _open_cifar10(size, train, cache)

    hint = f"did you mean folder:{printable(spec)}?" if os.path.exists(spec) else f"use {SPECS}"
    given = "images that a run was given in Python are given there again, as data"
    check(kind in LISTERS, f"unknown dataset '{printable(spec)}': {hint}; {given}")
    check(bool(rest), f"'{kind}:' needs a path, as in {kind}:my/photos")
    path = _expand(rest)
    shown = printable(path)
    exists = os.path.exists(path)
    moved = f"if a run's images have moved: cfvae train --out RUN --resume --data {kind}:PATH"
    needed = "a file of names and labels" if kind == "table" else "a folder or an archive"
    check(exists, f"{shown} does not exist: {kind}: needs the path of {needed}; {moved}")
    root = path if path.is_dir() or kind == "table" else unpack(path, cache)
    listing = LISTERS[kind](root, train, shown)
    tag = f"{source_tag(path)}-{kind}-{'train' if train else 'val'}"
    has_name = path.name not in ("", "..")  # unlike that of folder:.
    name = path.name if has_name else path.resolve().name
    return decode_listing(listing, size, cache, tag, printable(name or "images"))


def _expand(text: str) -> Path:
    "The path, with ~ as the home folder."
    try:
        return Path(text).expanduser()
    except RuntimeError:  # there is no such user, or no home folder
        shown = printable(text)
        message = f"{shown} names a home folder that is not there: write the path in full, or ./{shown}"
        raise CfvaeError(message) from None


def _open_shapes(options: str, size: int, train: bool) -> Shapes:
    "Generated images; the validation images are those of another seed."
    defaults = {"n": 10000, "seed": 0}
    values: dict[str, int] = {}
    for option in filter(None, options.split(",")):
        key, _, text = option.partition("=")
        key, text = key.strip(), text.strip()
        check(
            key in defaults,
            f"shapes has no option '{printable(key)}': it has n and seed, as in shapes:n=2000,seed=1",
        )
        is_number = re.fullmatch(r"\d{1,9}", text, re.ASCII) is not None
        check(is_number, f"shapes: {key} must be a whole number, not '{printable(text)}'")
        check(key not in values, f"shapes: {key} is given twice: leave one of them out")
        values[key] = int(text)
    values = defaults | values
    seed = values["seed"] if train else values["seed"] + VALIDATION_SEED
    return Shapes(values["n"], seed, size)


def cifar10(
    root: str = "data",  # where the download is kept
    train: bool = True,  # the 50,000 training images, or the 10,000 of the test split
) -> ImageDataset:
    """CIFAR-10 by torchvision, downloaded and checked on first use.

    Raises `CfvaeError` where that is not possible."""
    way_out = "Give the images as a folder: --data folder:PATH (one folder per class, or an archive of them)."
    try:
        from torchvision.datasets import CIFAR10
    except (ImportError, RuntimeError) as error:  # beside a torch that is not its own it fails with either
        reason = str(error).splitlines()[0]
        raise CfvaeError(f"cifar10: torchvision does not import here ({reason}).\n{way_out}") from None
    try:
        source = CIFAR10(root, train=train, download=True)
    except Exception as error:
        raise CfvaeError(f"cifar10: the download failed ({type(error).__name__}).\n{way_out}") from None
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    return ImageDataset(images, source.targets, source.classes, "cifar10")


def _open_cifar10(size: int, train: bool, cache: str | Path) -> ImageDataset:
    "CIFAR-10 as it is, or resized once into the cache."
    dataset = cifar10("data" if Path(cache) == Path(CACHE) else str(cache), train)
    if size == dataset.size:
        return dataset
    prefix = f"cifar10-{size}-{'train' if train else 'test'}"
    target = Path(cache) / "images" / f"{prefix}-{dataset.fingerprint[:16]}"

    def fill(folder: Path) -> None:
        names = [str(i) for i in range(len(dataset))]
        resized = _resized(dataset, size)
        store_images(folder, resized, names, dataset.labels.tolist(), dataset.classes, size)

    return load_or_fill(target, prefix, size, "cifar10", 3 * size**2 * len(dataset), fill)


def _resized(dataset: ImageDataset, size: int) -> typing.Iterator[Decoded]:
    "Every image at another size, as `decode_image` would give it."
    for image in np.asarray(dataset.images):
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        square = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
        yield np.asarray(square).transpose(2, 0, 1).copy(), picture.width


def describe(
    dataset: ImageDataset,  # as `open_dataset` gives it
) -> str:
    "What was found, in one line: images, classes with their counts, split, range, what was left out."
    images = _counted(len(dataset), "image", "images")
    parts = [f"{dataset.name}: {images}, {_describe_classes(dataset)}"]
    if isinstance(dataset, FileImages) and dataset.split:
        parts.append(f"from the folder {printable(dataset.split)}")
    if isinstance(dataset, FileImages) and dataset.many_bits:
        parts.append(dataset.many_bits)
    if dataset.skipped:
        skipped = _counted(len(dataset.skipped), "file", "files")
        parts.append(f"{skipped} skipped")
    return "; ".join(parts)


def _counted(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def _describe_classes(dataset: ImageDataset) -> str:
    labels = dataset.labels[dataset.labels >= 0].cpu()
    if len(labels) == 0:
        return "without classes"
    counts = torch.bincount(labels, minlength=dataset.num_classes).tolist()
    named = [f"{name} ({count:,})" for name, count in zip(dataset.classes, counts, strict=True)]
    classes = _counted(len(named), "class", "classes")
    text = f"{classes}: {first_few(named, 6)}"
    unlabelled = len(dataset) - len(labels)
    return f"{text}; {unlabelled:,} without a class" if unlabelled else text


def require_classes(
    dataset: ImageDataset,  # about to train a conditional model
) -> int:
    "The number of classes. Raises `CfvaeError` where images have no label, or are all of one class."
    way_out = (
        "labels are needed.\nPut the images of each class into a folder of its own, at least two, "
        "or list them in a table (--data table:FILE), or train without labels: --set conditional=false"
    )
    check(len(dataset) > 0, f"{dataset.name} has no images: give some")
    low, high = int(dataset.labels.min()), int(dataset.labels.max())
    check(low >= 0, f"{dataset.name} has images without a class, but {way_out}")
    only_class = dataset.classes[low]
    check(low < high, f"{dataset.name} has images of one class only ({only_class}), but {way_out}")
    return dataset.num_classes
