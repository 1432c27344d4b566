"""Labels from a table: a CSV file, or JSON lines as `metadata.jsonl` has them."""

import csv
import dataclasses
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
SPLIT_COLUMNS = ("split", "subset", "fold", "set", "partition")  # nothing is divided by them
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
        raise NoValidationSplit(
            f"{name} has no validation split, as no table has: list other images in a table of their own, "
            "or in Python divide those for training with cfvae.data.hold_out"
        )
    try:
        columns, rows = _read_rows(path)
    except UNREADABLE as error:
        form = "a CSV file with a header, or one JSON object a line, in UTF-8"
        raise CfvaeError(f"{name} cannot be read ({error}): it has to be {form}") from None
    check(len(rows) > 0, f"{name} names no images")

    file_column = _find_column(columns, FILE_COLUMNS, name)
    label_column = _find_column(columns, LABEL_COLUMNS, name)
    complete = [None not in row and file_column in row and label_column in row for row in rows]
    row = f"{name}: row {complete.index(False) + 1}" if not all(complete) else name
    way_out = "write one for every column (null for none), what has a comma in it in quotation marks"
    check(all(complete), f"{row} has other cells than the columns {first_few(columns, 8)}: {way_out}")
    files = [_file(row[file_column], f"{name}: row {number}") for number, row in enumerate(rows, 1)]
    outside = [file for file in files if not _is_inside(file)]
    way_out = "write the names as they are below the folder of the table"
    check(
        not outside,
        f"{name} names files by a path in full, or that leads out: {first_few(outside)}: {way_out}",
    )
    labels = [_label(row[label_column], f"{name}: row {number}") for number, row in enumerate(rows, 1)]
    listing = _listing(path.parent, _once(files, labels, name), len(rows))
    notes = _unread(columns, (file_column, label_column))
    return dataclasses.replace(listing, notes=(*notes, *listing.notes))


def _read_rows(path: Path) -> tuple[list[str], list[Row]]:
    "The names of the columns, and the rows; under None, what a row has more than there are columns."
    text = path.read_text(encoding="utf-8-sig").lstrip("\n")  # some programs begin a file with a mark
    if text.lstrip().startswith(("{", "[")):
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is no JSON object")
        return list(rows[0]), rows
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    rows = [{key: cell for key, cell in row.items() if cell is not None} for row in reader]
    return list(reader.fieldnames or ()), rows


def _find_column(columns: list[str], names: tuple[str, ...], table: str) -> str:
    "The column that is called by the first of these names that there is."
    called = [_plain(column) for column in columns]
    found = [name for name in names if name in called]
    has = first_few(columns, 8)
    check(len(found) > 0, f"{table} has no column {' or '.join(names)}: it has {has}")
    check(called.count(found[0]) == 1, f"{table} has two columns {found[0]}: rename one of them")
    return columns[called.index(found[0])]


def _plain(column: str) -> str:
    return column.strip().lower()


def _unread(columns: list[str], read: tuple[str, str]) -> tuple[str, ...]:
    "Columns that could have been meant instead, or would divide the rows."
    known = FILE_COLUMNS + LABEL_COLUMNS + SPLIT_COLUMNS
    others = [column for column in columns if column not in read and _plain(column) in known]
    if not others:
        return ()
    return (
        f"only the columns {first_few(read)} are read, and not {first_few(others)}: all rows are one split",
    )


def _file(value: object, row: str) -> str:
    "A file's name as the system compares it: ./a.png is a.png."
    named = isinstance(value, str) and value.strip() != ""
    check(named, f"{row} names no file: every row needs one")
    text = str(value)
    if "/" not in text:  # written on Windows, as in a zip
        text = text.replace("\\", "/")
    return str(PurePosixPath(text))


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
    if all(re.fullmatch(r"(\d{1,9}\.0)?", label, re.ASCII) for label in labels):
        labels = [label.removesuffix(".0") for label in labels]  # pandas makes fractions of numbers with gaps
    counts = Counter(label for label in labels if label)
    numbers = all(re.fullmatch(r"\d{1,9}", label, re.ASCII) for label in counts)
    classes = sorted(counts, key=(lambda label: (int(label), label)) if numbers else None)
    index = {label: number for number, label in enumerate(classes)}
    shown = tuple(printable(label) for label in classes) or ("all",)
    notes = suspicions({label: counts[label] for label in classes}, {}) if classes else ()
    if rows > len(labels):
        notes = (f"{rows - len(labels)} rows name a file again and are left out", *notes)
    return Listing(root, tuple(labelled), tuple(index.get(label, -1) for label in labels), shown, notes)
