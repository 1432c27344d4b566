"""Pictures and arrays on disk."""

import contextlib
import math
import os
import re
import secrets
import shutil
import signal
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

import numpy as np
import torch
from PIL import Image

from ..checkpoints import write_synced
from ..core import CfvaeError, check, from_uint8, image_grid
from ..files.ways import check_way
from ..runs.free import check_writable
from ..runs.saved import MARK, as_png

LONGEST_NAME = 60  # characters of a class in a file's name, of four bytes at most


def prepare_file(
    path: Path,  # what is to be written later
    ending: str,  # as .png
    option: str,  # which option says so
) -> None:
    """Make sure, before the work, that a file can be called so, and that its folder takes files.

    Raises `CfvaeError` for a file that is there and that cfvae did not write, such as a photograph."""
    named = path.suffix.lower() == ending and not path.is_dir()
    check(named, f"{option} is {path}: give the name of a {ending} file")
    check_way(path.parent)
    check_writable(path.parent)
    foreign = path.exists() and path.stat().st_size > 0 and not _is_ours(path)
    check(not foreign, f"{option} is {path}, which cfvae did not write: move it away, or choose another name")


def _is_ours(path: Path) -> bool:
    "Whether a picture or an array has cfvae's mark."
    try:
        if path.suffix.lower() == ".png":
            with Image.open(path) as picture:
                return picture.info.get("Software") == MARK
        with zipfile.ZipFile(path) as archive:
            return archive.comment == MARK.encode()
    except (OSError, ValueError, SyntaxError, zipfile.BadZipFile):  # damaged, or something else
        return False


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    "A full disk names no file: within the block it is this one."
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def prepare_image_folder(
    folder: Path,  # where one file per image is to be written later
) -> None:
    "Make sure, before the work, that the folder is there and empty."
    folder.mkdir(parents=True, exist_ok=True)
    empty = not any(folder.iterdir())
    message = f"{folder} already holds files, and old images among new ones would be counted: empty it"
    check(empty, f"{message}, or choose another --out-dir")


def save_grid(
    images: np.ndarray,  # (n, h, w, 3), uint8
    columns: int | None,  # images in a row; None: as square as it can be
    path: Path,  # a .png file
) -> None:
    "Save images as one picture; small ones are enlarged by a whole number."
    pixels = from_uint8(torch.as_tensor(images)).permute(0, 3, 1, 2)
    scale = max(1, 64 // images.shape[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_synced(path, as_png(image_grid(pixels, columns, scale=scale)))


def save_each(
    images: np.ndarray,  # (n, h, w, 3), uint8
    first: int,  # index of the first of them
    names: Sequence[str] | None,  # their classes
    folder: Path,  # where to
) -> None:
    """Save one PNG file per image, called by index and class.

    Raises `CfvaeError` where one is there: two commands that began at once found the folder empty."""
    for i, image in enumerate(images):
        stem = f"{first + i:06d}"
        if names is not None:
            stem += "-" + re.sub(r"[^\w-]+", "_", names[i])[:LONGEST_NAME]
        path = folder / f"{stem}.png"
        try:
            file = path.open("xb")
        except FileExistsError:
            message = f"{path} was not there before: another command writes into {folder}"
            raise CfvaeError(f"{message}. Choose another --out-dir") from None
        try:
            with _naming(path), file:
                file.write(as_png(Image.fromarray(image)))
        except BaseException:  # Ctrl-C too
            path.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def open_npz(
    path: Path,  # a .npz file
    shape: tuple[int, ...],  # of the whole array
) -> Iterator[IO[bytes]]:
    """A file that numpy reads as one uint8 array, `arr_0`. Raises `CfvaeError` where the disk is too full.

    It is written piece by piece, as the array may not fit into memory, and gets its name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    need = math.prod(shape)
    free = shutil.disk_usage(path.parent).free
    sizes = f"{need / 1e9:.1f} GB are needed and the disk has {free / 1e9:.1f} GB"
    check(need <= free, f"no space for {path}: {sizes}: draw fewer images, or write to another disk")
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    entry = zipfile.ZipInfo("arr_0.npy")  # with a fixed date: the same array gives the same bytes
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    try:
        with (
            unwinding_on_signals(),
            _naming(path),
            zipfile.ZipFile(unfinished, "x") as archive,
            archive.open(entry, "w", force_zip64=True) as file,
        ):
            archive.comment = MARK.encode()
            np.lib.format.write_array_header_1_0(file, header)
            yield file
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def unwinding_on_signals() -> Iterator[None]:
    "SIGTERM and a closed terminal end the process as they do anyway, but `finally` blocks are run before."
    if threading.current_thread() is not threading.main_thread():  # others may not set handlers
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    names = ("SIGTERM", "SIGHUP")  # the second is unknown to Windows
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # what is ignored, as under nohup, stays so
    earlier = {number: signal.getsignal(number) for number in numbers}
    ending = [number for number in numbers if earlier[number] is signal.SIG_DFL]
    for number in ending:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ending:
            signal.signal(number, signal.SIG_DFL)
