"""A data set encoded once, by the first stage, into one array on disk."""

import hashlib
import json
import numpy as np
import os
import shutil
import torch
import typing
from pathlib import Path
from torch import nn
from tqdm.auto import tqdm

from ..core import CfvaeError, check, device_of
from ..data import ImageDataset
from ..latents import LatentDataset, LatentScaler, weights_fingerprint


def encode_dataset(
    autoencoder: nn.Module,  # anything with `encode`
    dataset: ImageDataset,  # what to encode
    folder: str | Path,  # where the codes are kept
    flip: bool = False,  # encode every image's mirror image too, since the mirror image of a code is not a code
    batch_size: int = 256,  # images at a time
    progress: bool = True,  # show a bar
    scaler: LatentScaler
    | None = None,  # shift and scale, where they are known; None: those that are measured on the way
) -> LatentDataset:
    "Encode a dataset once. Codes already in `folder` are used if autoencoder, images and flip are still the same, and made anew if not."
    folder = Path(folder)
    fingerprint = hashlib.sha256(
        f"{weights_fingerprint(autoencoder)} {dataset.fingerprint} {flip}".encode()
    ).hexdigest()
    if not _is_current(folder, fingerprint):
        _write_latents(autoencoder, dataset, folder, flip, batch_size, progress, fingerprint)
    about = json.loads((folder / "latents.json").read_text(encoding="utf-8"))
    scaler = scaler or LatentScaler(about["shift"], about["scale"])
    return LatentDataset(
        np.load(folder / "latents.npy", mmap_mode="r"),
        dataset.labels.repeat(1 + flip),
        dataset.classes,
        scaler,
        fingerprint,
    )


def _is_current(folder: Path, fingerprint: str) -> bool:
    "Whether the folder holds whole codes of just these images by just this autoencoder."
    try:
        about = json.loads((folder / "latents.json").read_text(encoding="utf-8"))
        return (
            about["fingerprint"] == fingerprint
            and len(np.load(folder / "latents.npy", mmap_mode="r")) == about["count"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_latents(
    autoencoder, dataset, folder: Path, flip: bool, batch_size: int, progress: bool, fingerprint: str
) -> None:
    "Encode into a folder under another name, then put it in place: a run that dies half-way leaves no half file behind that looks whole."
    temporary, training = folder.with_name(folder.name + ".tmp"), autoencoder.training
    starts = [(f, s) for f in range(1 + flip) for s in range(0, len(dataset), batch_size)]
    starts = tqdm(starts, desc="encoding", unit="batch", disable=not progress)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        parts = (_encode(autoencoder.eval(), dataset, s, batch_size, mirrored=bool(f)) for f, s in starts)
        about = {
            "fingerprint": fingerprint,
            **_save_codes(temporary / "latents.npy", parts, len(dataset) * (1 + flip)),
        }
        (temporary / "latents.json").write_text(json.dumps(about), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except OSError as error:
        raise CfvaeError(
            f"cannot write the codes to {folder}: {error.strerror or error}. Free some space, or choose another folder."
        ) from None
    finally:
        autoencoder.train(training)
        shutil.rmtree(temporary, ignore_errors=True)


@torch.no_grad()
def _encode(autoencoder, dataset, start: int, batch_size: int, mirrored: bool) -> torch.Tensor:
    x = dataset.batch(range(start, min(start + batch_size, len(dataset))))[0].to(device_of(autoencoder))
    z = autoencoder.encode(x.flip(-1) if mirrored else x).float().cpu()
    check(
        bool(z.isfinite().all()),
        "the autoencoder gives codes that are not finite numbers: train it again, with a lower learning rate",
    )
    check(
        bool((z.abs() < 65000).all()),
        f"the autoencoder gives codes up to {z.abs().max():.3g}, too large for half precision: train it again",
    )
    return z


def _save_codes(path: Path, parts: typing.Iterable[torch.Tensor], count: int) -> dict:
    "Write one .npy file part by part, and return what was measured on the way. Plain writes: a full disk is an error here, where a memory map would crash."
    numbers, total, total2, started = 0, 0.0, 0.0, False
    with path.open("wb") as file:
        for z in parts:
            if not started:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "<f2", "fortran_order": False, "shape": (count, *z.shape[1:])}
                )
                started = True
            file.write(np.ascontiguousarray(z.half().numpy(), "<f2").tobytes())
            total, total2 = total + z.double().sum((0, 2, 3)), total2 + z.double().square().sum((0, 2, 3))
            numbers += z[:, 0].numel()
        file.flush()
        os.fsync(file.fileno())
    mean = total / numbers
    spread = (total2 / numbers - mean**2).clamp_min(1e-12).sqrt()
    return {"count": count, "shift": mean.tolist(), "scale": spread.tolist()}
