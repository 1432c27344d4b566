"""Whether a folder is free: nothing is replaced but what cfvae wrote."""

import json
import os
import re
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from ..checkpoints import way_out_of
from ..core import CfvaeError, check
from ..files.codes import refuse_foreign_codes
from ..files.lock import LOCK_FILE, OWNER_FILE
from ..files.names import first_few, printable
from ..files.ways import check_way
from .folder import load_recipe

THREADS_FILE = "threads.json"  # of a demo: how many threads it trains with
LEFTOVER = re.compile(
    r"(recipe|data|threads|tuning)\.json\.[0-9a-f]{16}\.tmp"
)  # half-written, by a process that was killed
DATA_FIELDS = {"fingerprint", "images", "classes"}  # of a run's data.json


def check_free(
    out: Path,  # the run folder, or what is to become it
) -> None:
    """Make sure that a folder is not there yet, is empty, or holds a run.

    Raises `CfvaeError` for one with files that cfvae did not write, and for the current folder unless it
    holds a run: that is what an empty name means."""
    check_way(out)
    if (out / "recipe.json").exists():
        load_recipe(out)  # complains where it is another program's
        refuse_foreign_codes(out / "latents")
        return

    refuse_filled(out, "run")


def refuse_filled(
    out: Path,  # a folder that is to hold nothing else
    kind: str,  # of what it is for: a run, a tuning
) -> None:
    "Raises `CfvaeError` for the current folder, and for one with files that cfvae did not write."
    named = out != Path()
    check(named, f"--out is empty, or the current folder: name a folder for the {kind}, such as runs/first")
    if out.is_dir():  # a file there is refused when the folder is locked
        foreign = sorted(printable(path.name) for path in out.iterdir() if not _begins_a_run(path))
        message = f"{out} holds files but no {kind} ({first_few(foreign)}), and some might be replaced"
        check(not foreign, f"{message}: choose another --out, or move them away")


def refuse_foreign(
    folder: Path,  # where files are to be written; it need not exist
    names: Sequence[str],  # theirs; the first is JSON
    marks: Collection[str],  # fields that it has where cfvae wrote it
) -> None:
    "Raises `CfvaeError` where a file that would be replaced was not written by cfvae."
    check_way(folder)
    present = [name for name in names if os.path.lexists(folder / name)]
    ours = set(marks) <= _read_fields(folder / names[0]).keys()
    message = f"{folder} holds {first_few(present)}, which cfvae did not write or which is damaged"
    check(ours or not present, f"{message}: move it away, or choose another folder")


def check_writable(
    folder: Path,  # where files are to be written; whoever writes makes it
) -> None:
    """Raises `CfvaeError`, before the work rather than after it, for a folder that takes no files.

    It is not made yet: what is refused afterwards would leave it behind, empty."""
    try:
        nearest = next(way for way in (folder, *folder.parents) if way.exists())
        nearest.mkdir(parents=True, exist_ok=True)  # complains of a file
        with tempfile.TemporaryFile(dir=nearest):
            return
    except OSError as error:
        reason = error.strerror or error
        raise CfvaeError(f"cannot write to {folder} ({reason}): {way_out_of(error)}") from None


def _read_fields(path: Path) -> dict[str, object]:
    "The fields of a JSON file; none if it cannot be read."
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _begins_a_run(path: Path) -> bool:
    "Whether the file is one of those that a run writes before its recipe, and leaves there if it is killed."
    if path.name == "data.json":
        return DATA_FIELDS == _read_fields(path).keys()
    if path.name == THREADS_FILE:
        return {"threads"} == _read_fields(path).keys()
    return path.name in (LOCK_FILE, OWNER_FILE) or LEFTOVER.fullmatch(path.name) is not None
