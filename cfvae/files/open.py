"""A name, a path or an archive to one data set."""

import re
import numpy as np
import os
import torch
from pathlib import Path
from PIL import Image, ImageOps

from ..core import CfvaeError, check
from ..data import ImageDataset, Shapes
from .archives import source_tag, unpack
from .cache import cached, store_array, decode_listing
from .folders import list_folder
from .names import printable
from .tiny_imagenet import list_tiny_imagenet


CACHE = "data/cache"


SPECS = "shapes, shapes:n=2000,seed=1, cifar10, folder:PATH or tiny-imagenet:PATH (PATH is a folder or an archive)"


def _open_shapes(options: str, size: int, train: bool) -> Shapes:
    "Generated images; the validation images are those of another seed."
    values = {"n": 10000, "seed": 0}
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        check(
            key.strip() in values,
            f"shapes has no option '{printable(key)}': it has n and seed, as in shapes:n=2000,seed=1",
        )
        check(
            re.fullmatch(r"\d{1,9}", value.strip(), re.ASCII) is not None,
            f"shapes: {key.strip()} must be a whole number, not '{printable(value)}'",
        )
        values[key.strip()] = int(value)
    return Shapes(values["n"], values["seed"] + (0 if train else 10**9), size)


def _open_cifar10(size: int, train: bool, cache: str | Path) -> ImageDataset:
    "CIFAR-10 as it is, or resized once into the cache."
    dataset = cifar10("data" if str(cache) == CACHE else str(cache), train)
    if size == dataset.size:
        return dataset
    rows = (Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())) for image in dataset.images)
    squares = (
        (
            np.asarray(ImageOps.fit(row, (size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1).copy(),
            row.width,
        )
        for row in rows
    )
    names, prefix = [str(i) for i in range(len(dataset))], f"cifar10-{size}"
    target = Path(cache) / "images" / f"{prefix}-{'train' if train else 'test'}-{dataset.fingerprint[:16]}"
    return cached(
        target,
        f"{prefix}-{'train' if train else 'test'}",
        size,
        "cifar10",
        3 * size**2 * len(dataset),
        lambda folder: store_array(folder, squares, names, dataset.labels.tolist(), dataset.classes, size),
    )[0]


def open_dataset(
    spec: str,  # "shapes", "shapes:n=2000,seed=1", "cifar10", "folder:PATH" or "tiny-imagenet:PATH"; PATH may be a .tar, .tar.xz, .tar.gz or .zip
    size: int,  # side of the square images, in pixels
    train: bool = True,  # the training split, or the validation (test) split
    cache: str | Path = CACHE,  # where archives are unpacked and decoded images are kept
) -> ImageDataset:
    "Open a dataset by its short name. Raises `CfvaeError` for a name, path or tree that cannot be used. Damaged images are left out: see `.skipped`."
    check(isinstance(spec, str), f"a dataset is named by a string: {SPECS}")
    check(
        type(size) is int and 1 <= size <= 4096,
        f"size is {size!r}, but must be a whole number of pixels from 1 to 4096",
    )
    kind, _, rest = spec.partition(":")
    if kind == "shapes":
        return _open_shapes(rest, size, train)
    if spec == "cifar10":
        return _open_cifar10(size, train, cache)
    listers = {"folder": list_folder, "tiny-imagenet": list_tiny_imagenet}
    hint = f"did you mean folder:{printable(spec)}?" if os.path.exists(spec) else f"use {SPECS}"
    check(kind in listers, f"unknown dataset '{printable(spec)}': {hint}")
    check(rest, f"'{kind}:' needs a path, as in {kind}:my/photos")
    path = Path(rest).expanduser()
    check(
        os.path.exists(path),
        f"{printable(path)} does not exist: {kind}: needs the path of a folder or an archive",
    )
    root = path if path.is_dir() else unpack(path, cache)
    listing = listers[kind](root, train, printable(path))
    return decode_listing(
        listing, size, cache, f"{source_tag(path)}-{kind}-{'train' if train else 'val'}", printable(path.name)
    )


def require_classes(
    dataset: ImageDataset,  # about to train a conditional model
) -> int:
    "The number of classes. Raises `CfvaeError` where images have no label, or are all of one class."
    way_out = "labels are needed.\nPut the images of each class into a folder of its own, at least two, or train without labels: --set conditional=false"
    low, high = int(dataset.labels.min()), int(dataset.labels.max())
    check(low >= 0, f"{dataset.name} has images without a class, but {way_out}")
    check(low < high, f"{dataset.name} has images of one class only ({dataset.classes[low]}), but {way_out}")
    return dataset.num_classes


def cifar10(
    root: str = "data",  # where the download is kept
    train: bool = True,  # the 50,000 training images, or the 10,000 of the test split
) -> ImageDataset:
    "CIFAR-10 by torchvision, downloaded and checked on first use. Raises `CfvaeError` where that is not possible."
    advice = "Give the images as a folder instead: --data folder:PATH (one folder per class, or an archive of them)."
    try:
        from torchvision.datasets import CIFAR10
    except (
        ImportError,
        RuntimeError,
    ) as error:  # torchvision beside a torch build that is not its own fails with either
        raise CfvaeError(
            f"cifar10: torchvision does not import here ({str(error).splitlines()[0]}).\n{advice}"
        ) from None
    try:
        source = CIFAR10(root, train=train, download=True)
    except Exception as error:
        raise CfvaeError(f"cifar10: the download failed ({type(error).__name__}).\n{advice}") from None
    return ImageDataset(
        torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous(),
        source.targets,
        source.classes,
        "cifar10",
    )
