"""A data set encoded once, by the first stage, into one array on disk."""

import contextlib
import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
import typing
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..autoencoder import Autoencoder
from ..checkpoints import way_out_of, write_synced
from ..core import CfvaeError, check, check_path, device_of, whole_number
from ..data import ImageDataset
from ..latents import LatentDataset, LatentScaler, weights_fingerprint
from ..pretrained import PretrainedAutoencoder
from .arrays import NO_ARRAY, RowWriter
from .lock import LOCK_FILE, OWNER_FILE, FolderLock
from .ways import check_way

FORMAT = "cfvae codes 1"
FIRST_FIELDS = {"fingerprint", "count", "shift", "scale"}  # those of 0.1, which had no mark and no checksum
LEFTOVER = re.compile(r"latents\.(npy|json)\.[0-9a-f]{16}\.tmp")  # what a killed process leaves
SHARES = "shares"  # folder of what each of several processes encodes, until it is joined
LARGEST_HALF = 65000  # half precision ends a little above
ROWS = 4096  # that are hashed at a time

Fields = dict[str, typing.Any]  # what latents.json holds


def encode_dataset(
    autoencoder: Autoencoder | PretrainedAutoencoder,  # anything with `encode`
    dataset: ImageDataset,  # what to encode
    folder: str | Path,  # where the codes are kept
    flip: bool = False,  # encode every mirror image too, since the mirror image of a code is not a code
    batch_size: int = 256,  # images at a time
    progress: bool = True,  # show a bar
    scaler: LatentScaler | None = None,  # shift and scale; None: those that are measured on the way
    shares: int = 1,  # processes, each of which has called `encode_share`
) -> LatentDataset:
    """Encode a dataset once.

    Codes already in `folder` are used if they are whole and autoencoder, images and flip still the same, else
    made anew. Raises `CfvaeError` for codes that are not finite, where they cannot be written, where another
    process is writing them, and where the files in their place are not of cfvae."""
    check(len(dataset) > 0, f"{dataset.name} has no images: give some to encode")
    folder = check_path(folder)
    batch_size = whole_number(batch_size, "batch_size", 1)
    labels = dataset.labels.repeat(2 if flip else 1)
    fingerprint = _fingerprint(autoencoder, dataset, flip)

    stored = _load(folder, fingerprint, len(labels))
    if stored is None:
        refuse_foreign_codes(folder)
        with _alone_in(folder):
            if shares > 1:
                parts = _join_shares(autoencoder, dataset, folder, flip, shares)
            else:
                parts = _encode_all(autoencoder, dataset, flip, batch_size, progress)
            with contextlib.closing(parts):  # and the bar with them, before an error is printed
                _write_codes(folder, parts, fingerprint)
            stored = _load(folder, fingerprint, len(labels))
    if stored is None:
        raise CfvaeError(
            f"the codes in {folder} cannot be read back: check the disk, or choose another folder"
        )
    codes, measured = stored
    return LatentDataset(codes, labels, dataset.classes, scaler or measured, fingerprint)


def encode_share(
    autoencoder: Autoencoder | PretrainedAutoencoder,  # the same in all processes
    dataset: ImageDataset,  # all of it
    folder: str | Path,  # where the codes of all of it are wanted
    flip: bool,  # as in `encode_dataset`
    rank: int,  # of this process
    shares: int,  # of so many
) -> None:
    """One process's part of `encode_dataset(..., shares=shares)`, which the processes call once all are done.

    Nothing is done where all codes are there. Raises what `encode_dataset` raises."""
    fingerprint = _fingerprint(autoencoder, dataset, flip)
    count = len(dataset) * (2 if flip else 1)
    if _load(Path(folder), fingerprint, count) is None:
        _open_share(autoencoder, dataset, Path(folder), flip, rank, shares)


def refuse_foreign_codes(
    folder: Path,  # where codes are to be written
) -> None:
    "Raises `CfvaeError` where a file that would be replaced was not written by cfvae."
    check_way(folder)
    check(folder.is_dir() or not folder.exists(), f"{folder} is a file: codes need a folder")
    present = [name for name in ("latents.npy", "latents.json") if os.path.lexists(folder / name)]
    about = _read_fields(folder)
    of_cfvae = about.get("format") == FORMAT or about.keys() == FIRST_FIELDS
    ours = of_cfvae and not (folder / "latents.npy").is_dir()
    message = f"{folder} holds a {' and a '.join(present)} that cfvae did not write, or that are damaged"
    check(ours or not present, f"{message}: move them away, or choose another folder")


def is_codes_file(
    name: str,  # of a file in a folder of codes
) -> bool:
    "Whether `encode_dataset` gives files such names, for ever or while it works."
    known = ("latents.npy", "latents.json", LOCK_FILE, OWNER_FILE)
    return name in known or LEFTOVER.fullmatch(name) is not None


def codes_fingerprint(
    folder: Path,  # of codes; it need not exist
) -> str | None:
    "What the codes in a folder were made from; None where there are none."
    return _read_fields(folder).get("fingerprint")


def _read_fields(folder: Path) -> Fields:
    "What latents.json says; nothing if it cannot be read."
    try:
        about = json.loads((folder / "latents.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def _load(folder: Path, fingerprint: str, count: int) -> tuple[np.ndarray, LatentScaler] | None:
    "The codes and their scaler; None unless they are whole, and those that are meant."
    about = _read_fields(folder)
    if about.get("fingerprint") != fingerprint or about.get("count") != count:
        return None
    try:
        codes = np.lib.format.open_memmap(folder / "latents.npy", mode="r")
    except NO_ARRAY:
        return None

    whole = codes.ndim == 4 and len(codes) == count and codes.dtype == np.dtype("<f2")
    if not whole or not _scaler_fits(about, channels=codes.shape[1]):
        return None
    if "sha256" in about or "format" in about:
        noted = (about.get("dtype"), about.get("shape"), about.get("sha256"))
        if noted != ("<f2", list(codes.shape), _checksum(codes, about)):
            return None
    return codes, LatentScaler(about["shift"], about["scale"])


def _scaler_fits(about: Fields, channels: int) -> bool:
    "Whether shift and scale are numbers that codes in half precision can have, one per channel."
    shift = about.get("shift")
    scale = about.get("scale")
    for values in (shift, scale):
        if not isinstance(values, list) or len(values) != channels:
            return False
        if not all(type(value) in (int, float) and abs(value) < LARGEST_HALF for value in values):
            return False  # NaN and infinity too: they are not below anything
    return all(value > 0 for value in about["scale"])


def _checksum(codes: np.ndarray, about: Fields) -> str:
    """Of all codes, then of what is noted about them.

    Hashing reads 0.5 to 1 GB/s, once when a run opens its codes: 10 to 20 seconds for all of ImageNet at
    32 x 32 x 4, which is little beside the hours that a run on damaged codes would cost."""
    digest = hashlib.sha256()
    for start in range(0, len(codes), ROWS):
        digest.update(codes[start : start + ROWS].tobytes())
    return _finish(digest, about)


def _finish(digest: "hashlib._Hash", about: Fields) -> str:
    "The checksum, once all codes are hashed: a changed shift is as bad as a changed code."
    noted = {key: value for key, value in about.items() if key != "sha256"}
    digest.update(json.dumps(noted, sort_keys=True).encode())
    return digest.hexdigest()


def _encode_all(
    autoencoder: Autoencoder | PretrainedAutoencoder,
    dataset: ImageDataset,
    flip: bool,
    batch_size: int,
    progress: bool,
) -> typing.Generator[torch.Tensor, None, None]:
    "Codes (b, channels, r, r), batch by batch: all images, then all mirror images."
    rounds = (False, True) if flip else (False,)
    starts = [(mirrored, s) for mirrored in rounds for s in range(0, len(dataset), batch_size)]
    was_training = autoencoder.training
    autoencoder.eval()
    try:
        for mirrored, start in tqdm(starts, desc="encoding", unit="batch", disable=not progress):
            images, _ = dataset.batch(range(start, min(start + batch_size, len(dataset))))
            yield _encode(autoencoder, images.flip(-1) if mirrored else images)
    finally:
        autoencoder.train(was_training)


def _fingerprint(autoencoder: Autoencoder | PretrainedAutoencoder, dataset: ImageDataset, flip: bool) -> str:
    made_from = f"{weights_fingerprint(autoencoder)} {dataset.fingerprint} {flip}"
    return hashlib.sha256(made_from.encode()).hexdigest()


def _open_share(
    autoencoder: Autoencoder | PretrainedAutoencoder,
    dataset: ImageDataset,
    folder: Path,
    flip: bool,
    rank: int,
    shares: int,
) -> LatentDataset:
    "The codes of one run of images out of so many, encoded if they are not there yet."
    images = dataset.subset(range(len(dataset) * rank // shares, len(dataset) * (rank + 1) // shares))
    place = folder / SHARES / f"{rank + 1}-of-{shares}"
    return encode_dataset(autoencoder, images, place, flip, progress=rank == 0)


def _join_shares(
    autoencoder: Autoencoder | PretrainedAutoencoder,
    dataset: ImageDataset,
    folder: Path,
    flip: bool,
    shares: int,
) -> typing.Generator[torch.Tensor, None, None]:
    "The codes of all shares in the order of `_encode_all`; the shares are removed after the last."
    opened = [_open_share(autoencoder, dataset, folder, flip, rank, shares) for rank in range(shares)]
    rounds = 2 if flip else 1
    for mirrored in range(rounds):
        for share in opened:
            count = len(share) // rounds
            rows = np.asarray(share.latents)[mirrored * count : (mirrored + 1) * count]
            for start in range(0, count, ROWS):
                yield torch.from_numpy(np.array(rows[start : start + ROWS])).float()
    del opened, share, rows
    shutil.rmtree(folder / SHARES)


@torch.no_grad()
def _encode(autoencoder: Autoencoder | PretrainedAutoencoder, images: torch.Tensor) -> torch.Tensor:
    codes = autoencoder.encode(images.to(device_of(autoencoder))).float().cpu()
    check(
        bool(codes.isfinite().all()),
        "the autoencoder gives codes that are not finite numbers: train it again, with a lower learning rate",
    )
    largest = codes.abs().max().item()
    check(
        largest < LARGEST_HALF,
        f"the autoencoder gives codes up to {largest:.3g}, too large for half precision: train it again",
    )
    return codes


@contextlib.contextmanager
def _alone_in(folder: Path) -> typing.Iterator[None]:
    """Keep other processes from writing codes here. The lock leaves no file behind among the codes.

    That can let two in at the same instant, one that opened the old file and one that made a new one: what
    they then mix up, if anything, has a wrong checksum."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    with FolderLock(folder):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows keeps an open file
                (folder / LOCK_FILE).unlink()


def _write_codes(folder: Path, parts: typing.Iterable[torch.Tensor], fingerprint: str) -> None:
    """Write the codes aside, then what is noted about them, then put the codes in place.

    Wherever a run dies, the checksum that is there is that of the codes beside it, or fits nothing."""
    aside = folder / f"latents.npy.{secrets.token_hex(8)}.tmp"
    try:
        _remove_leftovers(folder)
        about = _save_codes(aside, parts, fingerprint)
        write_synced(folder / "latents.json", json.dumps(about).encode())
        os.replace(aside, folder / "latents.npy")
    except OSError as error:
        raise _cannot_write(folder, error) from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def _remove_leftovers(folder: Path) -> None:
    "Half-written files of processes that were killed."
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _cannot_write(folder: Path, error: OSError) -> CfvaeError:
    way_out = f"{way_out_of(error)}, or choose another folder"
    return CfvaeError(f"cannot write the codes to {folder} ({error.strerror or error}): {way_out}")


def _save_codes(path: Path, parts: typing.Iterable[torch.Tensor], fingerprint: str) -> Fields:
    "Write one .npy file part by part, and return what latents.json is to say of it."
    parts = iter(parts)
    first = next(parts)
    row_shape = tuple(first.shape[1:])
    numbers = 0  # of every channel
    total = torch.zeros(first.shape[1], dtype=torch.float64)
    total_squares = torch.zeros_like(total)
    digest = hashlib.sha256()
    with RowWriter(path, "<f2", row_shape) as writer:
        for codes in itertools.chain([first], parts):
            rows = codes.half().numpy().astype("<f2", copy=False)
            writer.write(rows)
            digest.update(rows.tobytes())
            total += codes.double().sum((0, 2, 3))
            total_squares += codes.double().square().sum((0, 2, 3))
            numbers += codes[:, 0].numel()

    mean = total / numbers
    variance = total_squares / numbers - mean**2
    spread = variance.clamp_min(1e-12).sqrt()
    about = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "count": writer.count,
        "dtype": "<f2",
        "shape": [writer.count, *row_shape],
        "shift": mean.tolist(),
        "scale": spread.tolist(),
    }
    return {**about, "sha256": _finish(digest, about)}
