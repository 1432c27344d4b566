"""How many threads a run computes with: measured once and kept, since the last bits depend on it."""

import json
from pathlib import Path

from ..checkpoints import write_synced
from ..core import check
from .folder import read_fields
from .free import THREADS_FILE, check_free
from .machine import faster_threads


MOST_THREADS = 4096  # what is above is no number of threads


def kept_threads(
    out: Path,  # the run folder, or what is to become it
) -> int:
    """The number that the run has noted; where it has noted none, the faster one is measured and noted.

    Raises `CfvaeError` for a damaged note, and for a folder that is not free."""
    path = out / THREADS_FILE
    if path.exists():
        way_out = "remove it, and the number is measured again"
        noted = read_fields(path, way_out).get("threads")
        threads = noted if type(noted) is int else 0
        check(1 <= threads <= MOST_THREADS, f"{path} cannot be read (it holds no number): {way_out}")
        return threads

    check_free(out)
    out.mkdir(parents=True, exist_ok=True)
    threads = faster_threads()
    write_synced(path, json.dumps({"threads": threads}).encode())
    return threads
