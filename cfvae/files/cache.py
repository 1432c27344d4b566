"""A data set decoded once, kept as one array that can be memory-mapped."""

import hashlib
import io
import itertools
import json
import os
import shutil
import typing
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..checkpoints import write_synced
from ..core import CfvaeError, check, check_classes
from ..data import ImageDataset
from .arrays import NO_ARRAY, RowWriter
from .decode import Range, many_bit_range, try_decode, why_blank
from .folders import Listing
from .names import first_few, printable
from .store import new_folder, remove_older

Decoded = tuple[np.ndarray | None, int | str]  # pixels and the file's shorter side, or None and the reason
WORKERS = 2  # threads that decode
BLOCK = 256  # images handed to them at a time: memory stays bounded
LOOKED_AT = 8  # images whose range is told
DARK = 32  # an image without a brighter value than this is nearly black
BRIGHT = 250  # an image without a darker value than this is nearly white


class FileImages(ImageDataset):
    "Images that were read from files, and what is to be told of the files."

    split = ""  # the folder that was taken as the split; empty where there is none
    enlarged = 0  # images smaller than asked for
    extreme: tuple[str, ...] = ()  # images that came out nearly black or white
    many_bits = ""  # of the first images: one of more than 8 bits, and what is taken as white
    alike = 0  # images that are an earlier one again, pixel by pixel; black and white ones are not counted
    alike_pair: tuple[str, ...] = ()  # the first of them, and the one that it is the same as


def decode_listing(
    listing: Listing,  # from `list_folder` or `list_tiny_imagenet`
    size: int,  # side of the squares, in pixels
    cache: str | Path = "data/cache",  # the decoded array is kept below this
    tag: str = "images",  # separates sources in the cache; entries of one tag and size replace each other
    name: str = "images",  # for messages
) -> FileImages:
    """Decode a listing's images, or reuse the copy that was decoded from the same files.

    Unreadable ones are left out and listed in `.skipped` as (name, reason); the copy is made anew once one of
    them can be read. Raises `CfvaeError` where none is left, where the copy cannot be written, and for two
    classes that are shown by one name."""
    check_classes(listing.classes, name)  # escaped, two folders' names can become one
    prefix = f"{tag}-{size}"
    target = Path(cache) / "images" / f"{prefix}-{listing.key()[:16]}"
    paths = [os.path.join(listing.root, image) for image in listing.names]

    def fill(folder: Path) -> None:
        decoded = _decode_all(paths, size)
        store_images(folder, decoded, listing.names, listing.labels, listing.classes, size)

    def is_stale(copy: FileImages) -> bool:
        left_out = {image for image, _ in copy.skipped}
        again = [
            path for path, image in zip(paths, listing.names, strict=True) if printable(image) in left_out
        ]
        return any(try_decode(path, size)[0] is not None for path in again)

    dataset = load_or_fill(target, prefix, size, name, len(paths) * 3 * size**2, fill, is_stale)
    dataset.split = listing.split
    image, found = _many_bits(listing)
    dataset.many_bits = f"{image} has more than 8 bits: {found}" if found else ""
    blank = _blank(dataset, listing)
    clipped = () if blank or not found or not found.clips else (_clipped(image, found),)
    for note in [*listing.notes, *_notes(dataset, listing), *blank, *clipped]:
        warnings.warn(f"{name}: {note}", stacklevel=3)
    return dataset


def _many_bits(listing: Listing) -> tuple[str, Range | None]:
    "The first image of many bits, and its range; of the first few, since most trees are of one kind."
    for image in listing.names[:LOOKED_AT]:
        found = many_bit_range(listing.root / image)
        if found is not None:
            return printable(image), found
    return "", None


def _clipped(image: str, found: Range) -> str:
    return (
        f"{image} has numbers outside of the range that is read ({found}), which come out black or white: "
        "scale the numbers of such files first"
    )


def _notes(dataset: FileImages, listing: Listing) -> list[str]:
    "What the user should know of the images."
    notes = []
    if dataset.skipped:
        culprits = first_few([f"{image} ({reason})" for image, reason in dataset.skipped])
        skipped = len(dataset.skipped)
        notes.append(f"{skipped} of {len(listing.names)} images cannot be read and are left out: {culprits}")
    unseen = set(listing.labels) - set(dataset.labels.tolist())
    if unseen:
        names = first_few([listing.classes[label] for label in sorted(unseen)])
        notes.append(f"no image of these classes can be read: {names}")
    if dataset.enlarged:
        notes.append(
            f"{dataset.enlarged} of {len(dataset)} images are smaller than {dataset.size} pixels "
            "and were enlarged: a smaller size would waste less"
        )
    if dataset.alike:
        later, earlier = map(printable, dataset.alike_pair)
        notes.append(
            f"{dataset.alike} of {len(dataset)} images are copies of others, as {later} is of {earlier}: "
            "one may be held out while the other is learned from"
        )
    return notes


def _blank(dataset: FileImages, listing: Listing) -> tuple[str, ...]:
    "Images that show nothing, and why. A few black ones may be meant; not that all are."
    reasons = ((image, why_blank(listing.root / image)) for image in dataset.extreme)
    image, reason = next((found for found in reasons if found[1]), ("", None))
    count = f"{len(dataset.extreme)} of {len(dataset)} images come out nearly black or white"
    if reason:
        return (f"{count}, such as {printable(image)}: {reason}",)
    if len(dataset.extreme) < len(dataset):
        return ()
    return (f"{count}: are these the right files, and not masks, or numbers that stop far below 255?",)


def _decode_all(paths: list[str], size: int) -> typing.Iterator[Decoded]:
    "`try_decode` for every path, in order, with a progress bar on terminals only."
    bar = tqdm(total=len(paths), desc="decoding", unit="image", disable=None, leave=False)
    with ThreadPoolExecutor(WORKERS) as pool, bar:
        for start in range(0, len(paths), BLOCK):
            block = paths[start : start + BLOCK]
            for decoded in pool.map(try_decode, block, itertools.repeat(size)):
                yield decoded
                bar.update()


def store_images(
    folder: Path,  # takes the files
    decoded: typing.Iterable[Decoded],  # one entry per name
    names: typing.Sequence[str],  # of the image files
    labels: typing.Sequence[int],  # one per name
    classes: tuple[str, ...],  # what the labels mean
    size: int,  # side of the images
) -> None:
    """Write decoded images, their labels, and what is to be told about them.

    Raises `CfvaeError` where no image could be decoded."""
    kept: list[int] = []
    skipped: list[tuple[str, str]] = []
    enlarged = 0
    extreme: list[str] = []
    first_of: dict[bytes, str] = {}  # what an image holds -> the first that holds it
    alike_pair: tuple[str, ...] = ()
    digest = _digest_classes(classes)
    with RowWriter(folder / "images.npy", "|u1", (3, size, size)) as writer:
        for (pixels, about), name, label in zip(decoded, names, labels, strict=True):
            if pixels is None:
                skipped.append((printable(name), str(about)))
                continue
            writer.write(pixels[None])
            digest.update(pixels.tobytes())
            kept.append(label)
            enlarged += int(about) < size
            if pixels.max() <= DARK or pixels.min() >= BRIGHT:
                extreme.append(name)
                continue
            earlier = first_of.setdefault(hashlib.sha256(pixels.data).digest()[:16], name)
            if earlier != name and not alike_pair:
                alike_pair = (name, earlier)
    reasons = first_few([f"{name} ({reason})" for name, reason in skipped])
    check(bool(kept), f"none of the {len(names)} images can be read: {reasons}")

    kept_labels = np.array(kept, dtype=np.int64)
    digest.update(kept_labels.tobytes())
    buffer = io.BytesIO()
    np.save(buffer, kept_labels)
    write_synced(folder / "labels.npy", buffer.getbuffer())
    about_all = {
        "classes": classes,
        "skipped": skipped,
        "small": enlarged,
        "extreme": extreme,
        "alike": len(kept) - len(extreme) - len(first_of),
        "alike_pair": alike_pair,
        "fingerprint": digest.hexdigest(),
        "written": _when_written(folder),
    }
    about_all["checksum"] = _checksum(about_all)
    write_synced(folder / "meta.json", json.dumps(about_all).encode())


def _checksum(meta: dict[str, typing.Any]) -> str:
    "Of all that is noted about a copy but this."
    noted = {key: value for key, value in meta.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(noted, sort_keys=True).encode()).hexdigest()


def _digest_classes(classes: typing.Iterable[str]) -> "hashlib._Hash":
    "The beginning of a copy's fingerprint; the images' bytes follow, then those of the labels."
    return hashlib.sha256(repr(tuple(classes)).encode("utf-8", "backslashreplace"))


def _when_written(folder: Path) -> list[list[int]]:
    "Sizes and times of change of the arrays: the same ones hold the same numbers."
    statuses = [os.stat(folder / name) for name in ("images.npy", "labels.npy")]
    return [[status.st_size, status.st_mtime_ns] for status in statuses]


def _is_intact(folder: Path, meta: dict, images: np.ndarray, labels: np.ndarray) -> bool:
    "Whether the arrays are those that were written. Only where a file has changed all of it is read."
    if meta.get("written") == _when_written(folder):
        return True
    digest = _digest_classes(meta["classes"])
    for start in range(0, len(images), BLOCK):
        digest.update(images[start : start + BLOCK].tobytes())
    digest.update(labels.tobytes())
    return digest.hexdigest() == meta["fingerprint"]


def load_or_fill(
    target: Path,  # the cache folder
    prefix: str,  # of the names of this source's folders
    size: int,  # side of the images
    name: str,  # for messages
    need: int,  # bytes that filling takes
    fill: typing.Callable[[Path], None],  # writes the files of `store_images` into a folder
    is_stale: typing.Callable[[FileImages], bool] = lambda copy: False,  # whether what is there is of no use
) -> FileImages:
    "The dataset in a cache folder, filled first if it has to be."
    stored = _load(target, size, name)
    if stored is not None and not is_stale(stored):
        return stored
    shutil.rmtree(target, ignore_errors=True)
    with new_folder(target, need) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on single files: what matters becomes a reason
        fill(folder)
    stored = _load(target, size, name)
    if stored is None:
        raise CfvaeError(
            f"{name}: the decoded copy in {printable(target)} cannot be read back: check the disk"
        )
    remove_older(target, prefix)
    return stored


def _load(folder: Path, size: int, name: str) -> FileImages | None:
    "What `store_images` wrote; None if it is not there or not whole."
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        images = np.load(folder / "images.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy")
        # copies of earlier versions have no checksum
        check(
            meta.get("checksum", _checksum(meta)) == _checksum(meta),
            "the notes are not those that were written",
        )
        fits = images.shape == (len(labels), 3, size, size) and images.dtype == np.uint8
        check(fits, "the array does not fit its labels")
        check(_is_intact(folder, meta, images, labels), "the arrays are not those that were written")
        dataset = FileImages(images, labels, meta["classes"], name, str(meta["fingerprint"]))
        dataset.skipped = [(str(image), str(reason)) for image, reason in meta["skipped"]]
        dataset.enlarged = int(meta["small"])
        dataset.extreme = tuple(map(str, meta.get("extreme", ())))  # copies of earlier versions have none
        dataset.alike = int(meta.get("alike", 0))
        dataset.alike_pair = tuple(map(str, meta.get("alike_pair", ())))
        return dataset
    except (*NO_ARRAY, KeyError, AttributeError, RecursionError):
        return None
