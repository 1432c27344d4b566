"""File names as they can be shown."""

import typing
from pathlib import Path


def printable(
    name: str | Path,  # a file name, perhaps with bytes that are not text
) -> str:
    "The name as it can be shown: undecodable bytes and control characters are escaped."
    text = str(name).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_few(names: typing.Sequence[str], limit: int = 3) -> str:
    "The first few names, and how many more there are."
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(printable(name) for name in names[:limit]) + more
