"""File names as they can be shown."""

import typing
from pathlib import Path


def printable(
    name: str | Path,  # a file name, perhaps with bytes that are not text
) -> str:
    "The name as it can be shown: undecodable bytes and control characters are escaped."
    text = str(name).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_few(
    names: typing.Sequence[str],  # of files or classes
    limit: int = 3,  # how many are named
) -> str:
    "The first few names, and how many more there are."
    shown = ", ".join(printable(name) for name in names[:limit])
    more = len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown
