"""A data set decoded once, kept as one array that can be memory-mapped."""

import itertools
import typing
import numpy as np
import hashlib
import json
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from tqdm import tqdm
from pathlib import Path

from ..core import check
from ..data import ImageDataset
from .archives import new_folder, remove_older
from .decode import try_decode
from .folders import Listing
from .names import first_few, printable


def _decode_all(
    paths: typing.Sequence[str], size: int, workers: int = 2, block: int = 256
) -> typing.Iterator[tuple[np.ndarray | None, int | str]]:
    "`try_decode` for every path, in order, with a progress bar on terminals only."
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(paths), desc="decoding", unit="image", disable=None, leave=False) as bar,
    ):
        for start in range(0, len(paths), block):
            for result in pool.map(try_decode, paths[start : start + block], itertools.repeat(size)):
                yield result
                bar.update()


def _header(file: typing.IO[bytes], count: int, size: int) -> None:
    "The .npy header for uint8 (count, 3, size, size); its length does not depend on the count."
    file.seek(0)
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (count, 3, size, size)}
    )


def store_array(
    folder: Path,
    decoded: typing.Iterable,
    names: typing.Sequence[str],
    labels: typing.Sequence[int],
    classes: tuple[str, ...],
    size: int,
) -> None:
    "Write decoded images, their labels, and what is to be told about them."
    kept, skipped, small = [], [], 0
    digest = hashlib.sha256(repr(classes).encode("utf-8", "backslashreplace"))
    with open(folder / "images.npy", "wb") as file:
        _header(file, 0, size)
        for (array, side), name, label in zip(decoded, names, labels, strict=True):
            if array is None:
                skipped.append((printable(name), side))
                continue
            file.write(array.tobytes())
            digest.update(array)
            kept.append(label)
            small += side < size
        _header(file, len(kept), size)
        file.flush()
        os.fsync(file.fileno())
    check(
        kept,
        f"none of the {len(names)} images can be read: {first_few([f'{name} ({why})' for name, why in skipped])}",
    )
    np.save(folder / "labels.npy", np.array(kept, dtype=np.int64))
    digest.update(np.array(kept, dtype=np.int64))
    (folder / "meta.json").write_text(
        json.dumps(
            {"classes": classes, "skipped": skipped, "small": small, "fingerprint": digest.hexdigest()}
        )
    )


def _load(folder: Path, size: int, name: str) -> tuple[ImageDataset, int] | None:
    "The dataset in a cache folder and how many of its images were enlarged; None if it is not there or not whole."
    try:
        meta = json.loads((folder / "meta.json").read_text())
        images, labels = np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy")
        check(
            images.shape == (len(labels), 3, size, size) and images.dtype == np.uint8,
            "the array does not fit its labels",
        )
        dataset = ImageDataset(images, labels, meta["classes"], name, meta["fingerprint"])
        dataset.skipped = [tuple(entry) for entry in meta["skipped"]]
        return dataset, meta["small"]
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def cached(
    target: Path, prefix: str, size: int, name: str, need: int, store: typing.Callable[[Path], None]
) -> tuple[ImageDataset, int]:
    "The dataset in the cache folder `target`, which `store` fills first if it has to be."
    found = _load(target, size, name)
    if found is None:
        shutil.rmtree(target, ignore_errors=True)
        with new_folder(target, need) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on single files: what matters becomes a reason
            store(folder)
        found = _load(target, size, name)
        check(
            found is not None,
            f"{name}: the decoded copy in {printable(target)} cannot be read back: check the disk",
        )
        remove_older(target, prefix)
    return found


def decode_listing(
    listing: Listing,  # from `list_folder` or `list_tiny_imagenet`
    size: int,  # side of the squares, in pixels
    cache: str | Path = "data/cache",  # the decoded array is kept below this
    tag: str = "images",  # separates sources in the cache; entries of one tag and size replace each other
    name: str = "images",  # for messages
) -> ImageDataset:
    "Decode a listing's images, or reuse the copy that was decoded from the same files. Unreadable ones are left out and listed in `.skipped` as (name, reason)."
    prefix = f"{tag}-{size}"
    target = Path(cache) / "images" / f"{prefix}-{listing.key()[:16]}"
    paths = [os.path.join(listing.root, image) for image in listing.names]

    def store(folder: Path) -> None:
        store_array(folder, _decode_all(paths, size), listing.names, listing.labels, listing.classes, size)

    dataset, small = cached(target, prefix, size, name, len(paths) * 3 * size**2, store)
    notes = list(listing.notes)
    if dataset.skipped:
        culprits = first_few([f"{image} ({why})" for image, why in dataset.skipped])
        notes.append(
            f"{len(dataset.skipped)} of {len(paths)} images cannot be read and are left out: {culprits}"
        )
    if small:
        notes.append(
            f"{small} of {len(dataset)} images are smaller than {size} pixels and were enlarged: a smaller size would waste less"
        )
    for note in notes:
        warnings.warn(f"{name}: {note}", stacklevel=3)
    return dataset
