"""Labels from a table: a CSV file, or JSON lines as `metadata.jsonl` has them."""

import csv
import io
import json
import re
import typing
from collections import Counter
from pathlib import Path, PurePosixPath

from ..core import CfvaeError, check
from .folders import Listing, NoValidationSplit
from .names import first_few, printable
from .suspicions import suspicions

FILE_COLUMNS = ("file_name", "filename", "file", "image", "path")
LABEL_COLUMNS = ("label", "class", "category")
UNREADABLE = (OSError, ValueError, RecursionError, csv.Error)  # ValueError: no text in UTF-8, or no JSON

Row = dict[str, typing.Any]


def list_table(
    path: str
    | Path,  # a .csv file with a header, or one JSON object a line; names are relative to its folder
    train: bool = True,  # a table has no validation split
    name: str | None = None,  # what to call the table in messages
) -> Listing:
    """Find images and classes by a table. An empty label stands for none.

    Raises `CfvaeError` for a table that cannot be read, or that leads out of its folder."""
    path = Path(path)
    name = name or printable(path)
    if not train:
        raise NoValidationSplit(f"{name} has no validation split: divide the training images with hold_out")
    try:
        rows = _read_rows(path)
    except UNREADABLE as error:
        form = "a CSV file with a header, or one JSON object a line, in UTF-8"
        raise CfvaeError(f"{name} cannot be read ({error}): it has to be {form}") from None
    check(len(rows) > 0, f"{name} names no images")

    file_column = _find_column(rows[0], FILE_COLUMNS, name)
    label_column = _find_column(rows[0], LABEL_COLUMNS, name)
    files = [_file(row.get(file_column), f"{name}: row {number}") for number, row in enumerate(rows, 1)]
    outside = [file for file in files if not _is_inside(file)]
    check(not outside, f"{name} names files that are not below its folder: {first_few(outside)}")
    labels = [_label(row.get(label_column), f"{name}: row {number}") for number, row in enumerate(rows, 1)]
    return _listing(path.parent, _once(files, labels, name), len(rows))


def _read_rows(path: Path) -> list[Row]:
    text = path.read_text(encoding="utf-8-sig").lstrip("\n")  # some programs begin a file with a mark
    if text.lstrip().startswith(("{", "[")):
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is no JSON object")
        return rows
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))


def _find_column(row: Row, names: tuple[str, ...], table: str) -> str:
    "The column that is called one of these names."
    columns = {str(column).strip().lower(): column for column in row}
    found = [columns[name] for name in names if name in columns]
    has = first_few([str(column) for column in row], 8)
    check(len(found) > 0, f"{table} has no column {' or '.join(names)}: it has {has}")
    return found[0]


def _file(value: object, row: str) -> str:
    "A file's name as the system compares it: ./a.png is a.png."
    named = isinstance(value, str) and value.strip() != ""
    check(named, f"{row} names no file: every row needs one")
    return str(PurePosixPath(str(value)))


def _once(files: list[str], labels: list[str], table: str) -> dict[str, str]:
    "File -> label. An image that is there twice could be learned from and held out."
    labelled: dict[str, str] = {}
    torn = [
        file for file, label in zip(files, labels, strict=True) if labelled.setdefault(file, label) != label
    ]
    check(not torn, f"{table} gives a file two labels: {first_few(torn)}")
    return labelled


def _is_inside(file: str) -> bool:
    parts = PurePosixPath(file).parts
    return bool(parts) and not PurePosixPath(file).is_absolute() and ".." not in parts and "\0" not in file


def _label(value: object, row: str) -> str:
    "A class as text; empty where there is none."
    if value is None:
        return ""
    usable = isinstance(value, (str, int)) and not isinstance(value, bool)
    check(usable, f"{row} has the label {value}: a class is a text or a whole number")
    return str(value).strip()


def _listing(root: Path, labelled: dict[str, str], rows: int) -> Listing:
    labels = list(labelled.values())
    counts = Counter(label for label in labels if label)
    numbers = all(re.fullmatch(r"\d{1,9}", label, re.ASCII) for label in counts)
    classes = sorted(counts, key=(lambda label: (int(label), label)) if numbers else None)
    index = {label: number for number, label in enumerate(classes)}
    shown = tuple(printable(label) for label in classes) or ("all",)
    notes = suspicions({label: counts[label] for label in classes}, {}) if classes else ()
    if rows > len(labels):
        notes = (f"{rows - len(labels)} rows name a file again and are left out", *notes)
    return Listing(root, tuple(labelled), tuple(index.get(label, -1) for label in labels), shown, notes)
