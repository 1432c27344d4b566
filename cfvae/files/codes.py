"""A data set encoded once, by the first stage, into one array on disk."""

import hashlib
import itertools
import json
import os
import shutil
import typing
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..autoencoder import Autoencoder
from ..core import CfvaeError, check, device_of
from ..data import ImageDataset
from ..latents import LatentDataset, LatentScaler, weights_fingerprint
from ..pretrained import PretrainedAutoencoder
from .arrays import RowWriter

LARGEST_HALF = 65000  # half precision ends a little above


def encode_dataset(
    autoencoder: Autoencoder | PretrainedAutoencoder,  # anything with `encode`
    dataset: ImageDataset,  # what to encode
    folder: str | Path,  # where the codes are kept
    flip: bool = False,  # encode every mirror image too, since the mirror image of a code is not a code
    batch_size: int = 256,  # images at a time
    progress: bool = True,  # show a bar
    scaler: LatentScaler | None = None,  # shift and scale; None: those that are measured on the way
) -> LatentDataset:
    """Encode a dataset once.

    Codes already in `folder` are used if autoencoder, images and flip are still the same, else made anew.
    Raises `CfvaeError` for codes that are not finite, and where they cannot be written."""
    folder = Path(folder)
    made_from = f"{weights_fingerprint(autoencoder)} {dataset.fingerprint} {flip}"
    fingerprint = hashlib.sha256(made_from.encode()).hexdigest()
    if not _is_current(folder, fingerprint):
        parts = _encode_all(autoencoder, dataset, flip, batch_size, progress)
        _write_codes(folder, parts, fingerprint)
    about = json.loads((folder / "latents.json").read_text(encoding="utf-8"))
    codes = np.load(folder / "latents.npy", mmap_mode="r")
    labels = dataset.labels.repeat(2 if flip else 1)
    scaler = scaler or LatentScaler(about["shift"], about["scale"])
    return LatentDataset(codes, labels, dataset.classes, scaler, fingerprint)


def _is_current(folder: Path, fingerprint: str) -> bool:
    "Whether the folder holds whole codes of just these images by just this autoencoder."
    try:
        about = json.loads((folder / "latents.json").read_text(encoding="utf-8"))
        count = len(np.load(folder / "latents.npy", mmap_mode="r"))
        return about["fingerprint"] == fingerprint and about["count"] == count
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _encode_all(
    autoencoder: Autoencoder | PretrainedAutoencoder,
    dataset: ImageDataset,
    flip: bool,
    batch_size: int,
    progress: bool,
) -> typing.Iterator[torch.Tensor]:
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


def _write_codes(folder: Path, parts: typing.Iterable[torch.Tensor], fingerprint: str) -> None:
    """Write into a folder under another name, then put it in place.

    A run that dies half-way leaves no half file behind that looks whole."""
    temporary = folder.with_name(folder.name + ".tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        about = {"fingerprint": fingerprint, **_save_codes(temporary / "latents.npy", parts)}
        (temporary / "latents.json").write_text(json.dumps(about), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except OSError as error:
        raise CfvaeError(
            f"cannot write the codes to {folder}: {error.strerror or error}. "
            "Free some space, or choose another folder."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save_codes(path: Path, parts: typing.Iterable[torch.Tensor]) -> dict[str, typing.Any]:
    "Write one .npy file part by part, and return what was measured on the way, channel by channel."
    parts = iter(parts)
    first = next(parts)
    numbers = 0  # of every channel
    total = torch.zeros(first.shape[1], dtype=torch.float64)
    total_squares = torch.zeros_like(total)
    with RowWriter(path, "<f2", tuple(first.shape[1:])) as writer:
        for codes in itertools.chain([first], parts):
            writer.write(codes.half().numpy())
            total += codes.double().sum((0, 2, 3))
            total_squares += codes.double().square().sum((0, 2, 3))
            numbers += codes[:, 0].numel()
    mean = total / numbers
    variance = total_squares / numbers - mean**2
    spread = variance.clamp_min(1e-12).sqrt()
    return {"count": writer.count, "shift": mean.tolist(), "scale": spread.tolist()}
