"""Models and pictures that are replaced whole: a full disk or a kill leaves the one that was there."""

import io
import os
import re
import secrets
import shutil
import typing
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError

from ..checkpoints import way_out_of
from ..core import CfvaeError
from ..pipeline import open_to_readers


class Saves(typing.Protocol):
    "A pipeline, an autoencoder, a classifier."

    def save_pretrained(self, path: typing.Any, /) -> typing.Any: ...


def save_whole(
    model: Saves,  # what is to be saved
    folder: str | Path,  # where to; the files of an earlier model are replaced
) -> None:
    """Save a model aside, wait for the disk, then put its files in place.

    Raises `CfvaeError` where it cannot be written; an earlier model is as it was."""
    folder = Path(folder)
    aside = folder.parent / f".{folder.name}.{secrets.token_hex(8)}.tmp"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        model.save_pretrained(aside)
        open_to_readers(aside)
        _put_in_place(aside, folder)
    except (OSError, SafetensorError, CfvaeError) as error:
        cause = _cause(error)
        way_out = f"{way_out_of(cause)}, or write to another disk; an earlier model there is as it was"
        reason = cause.strerror or cause
        raise CfvaeError(f"cannot write the model to {folder} ({reason}): {way_out}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


MARK = "cfvae"  # in the files that may be replaced by others of ours


def as_png(
    picture: Image.Image,  # what is to be saved
) -> bytes:
    "All of a file, to be written at once: an earlier picture stays until the new one is whole."
    about = PngInfo()
    about.add_text("Software", MARK)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=about)
    return buffer.getvalue()


def _put_in_place(aside: Path, folder: Path) -> None:
    paths = sorted(path for path in aside.rglob("*") if path.is_file())
    for path in paths:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    for path in paths:
        target = folder / path.relative_to(aside)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)


def _remove_leftovers(folder: Path) -> None:
    "Half-saved models of processes that were killed."
    leftover = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{16}}\.tmp")
    for path in folder.parent.iterdir():
        if leftover.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _cause(error: BaseException) -> OSError:
    "What the system said. A pipeline says it in an error of its own, safetensors by the error's number."
    cause = error.__context__ if isinstance(error, CfvaeError) and error.__context__ else error
    if isinstance(cause, OSError):
        return cause
    number = re.search(r"os error (\d+)", str(cause))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(cause))
