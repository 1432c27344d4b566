"""Folders of the cache: made whole or not at all, named after their source, replaced by newer ones."""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import time
import typing
from pathlib import Path

from ..checkpoints import way_out_of
from ..core import CfvaeError, check
from .names import printable

PARTIAL = re.compile(r"\.partial-.*-[0-9a-f]{8}")  # a folder that is being made, or was when its process died
ELSEWHERE = "make it a link to a folder on another disk"
DAY = 24 * 3600.0  # seconds without a change, after which nobody is at work on it


def source_tag(
    source: Path,  # a folder or an archive
) -> str:
    "A name for a source's entries in the cache: readable, safe for any disk, different for different places."
    readable = re.sub(r"[^\w-]+", "_", source.name, flags=re.ASCII)[:40]
    place = hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:8]
    return f"{readable}-{place}"


@contextlib.contextmanager
def new_folder(
    target: Path,  # where the folder is to be
    need: int = 0,  # bytes that will be written
) -> typing.Iterator[Path]:
    """A temporary folder that becomes `target` if all goes well and vanishes if not.

    Raises `CfvaeError` where the disk refuses or has not `need` bytes."""
    partial = target.parent / f".partial-{target.name[:40]}-{secrets.token_hex(4)}"
    try:
        partial.mkdir(parents=True)
        _remove_abandoned(target.parent)
        _check_space(partial, target.name, need)
        yield partial
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster
                raise
    except OSError as error:
        message = f"cannot write {target.name} in {printable(target.parent)} ({error.strerror or error})"
        raise CfvaeError(f"{message}: {way_out_of(error)}, or {ELSEWHERE}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(cache: Path) -> None:
    "Remove what killed processes left half-made."
    for folder in cache.glob(".partial-*"):
        if PARTIAL.fullmatch(folder.name) and folder.is_dir() and _last_change(folder) < time.time() - DAY:
            shutil.rmtree(folder, ignore_errors=True)


def _last_change(folder: Path) -> float:
    "Seconds since the epoch; those of the newest file or folder inside."
    latest = 0.0
    for path in [folder, *folder.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):  # another process removes it too
            latest = max(latest, path.lstat().st_mtime)
    return latest


def _check_space(folder: Path, name: str, need: int) -> None:
    free = shutil.disk_usage(folder).free
    place = printable(folder.parent)
    sizes = f"it needs {need / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB"
    check(need <= free, f"no space for {name} in {place}: {sizes}: free some, or {ELSEWHERE}")


def remove_older(
    target: Path,  # the newest folder
    prefix: str,  # of the names of its source's folders; a version of 16 hexadecimal digits follows
) -> None:
    "Remove what the cache holds of earlier versions of the same source."
    for folder in target.parent.glob(f"{prefix}-*"):
        version = folder.name.removeprefix(f"{prefix}-")
        if folder != target and re.fullmatch(r"[0-9a-f]{16}", version):
            shutil.rmtree(folder, ignore_errors=True)
