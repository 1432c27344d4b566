"""Where a path leads."""

import os
from pathlib import Path

from ..core import check


def check_way(
    folder: Path,  # where files are to be written; it need not exist
) -> None:
    """Raises `CfvaeError` for a path that goes back (..) out of a folder that is not there yet.

    Its end is out of sight until that folder is made: nobody could ask before what would be replaced."""
    for way in (*reversed(folder.parents), folder):
        visible = way.name != ".." or os.path.lexists(way)
        check(visible, f"{folder} leads through {way.parent}, which is not there: write the path without it")
