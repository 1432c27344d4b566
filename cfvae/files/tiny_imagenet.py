"""Tiny-ImageNet's own layout of folders and tables."""

import dataclasses
from pathlib import Path

from ..core import check
from .folders import Folder, Listing, NoValidationSplit, scan_folder
from .names import first_few, printable


@dataclasses.dataclass(frozen=True)
class _Layout:
    "What lies where in an unpacked Tiny-ImageNet."

    base: Path  # the folder with wnids.txt
    splits: dict[str, Folder]  # train, val, test
    codes: list[str]  # of the classes that have training images, sorted
    lacking: list[str]  # of those that should, and have none


def list_tiny_imagenet(
    root: str | Path,  # a folder with wnids.txt, words.txt, train/ and val/, or one with only such a folder
    train: bool = True,  # train/<code>/images, or val/images with its table
    name: str | None = None,  # what to call the tree in messages
) -> Listing:
    """Find the images of Tiny-ImageNet's layout; classes are sorted by code, the same for both splits.

    Raises `CfvaeError` naming what is missing."""
    root = Path(root)
    name = name or printable(root)
    layout = _find_layout(root, name)
    code_of, missing = _training_codes(layout) if train else _validation_codes(layout, name)

    images: list[str] = []
    labels: list[int] = []
    for image, code in code_of.items():
        if code in layout.codes:
            images.append(image)
            labels.append(layout.codes.index(code))
    check(
        bool(images),
        f"{name}: no image of val/images is named in val_annotations.txt "
        "with a class that has training images",
    )
    notes = []
    if len(images) < len(code_of):
        notes.append(f"{len(code_of) - len(images)} images without a known class are left out")
    if layout.lacking:
        notes.append(
            f"classes of wnids.txt without training images are left out: {first_few(layout.lacking)}"
        )
    if missing:
        absent = first_few(missing)
        notes.append(f"{len(missing)} images named in val_annotations.txt are not there: {absent}")
    return Listing(root, tuple(images), tuple(labels), _class_names(layout), tuple(notes))


def _find_layout(root: Path, name: str) -> _Layout:
    top = scan_folder(root)
    while len(top.folders) == 1 and not (root / top.name / "wnids.txt").is_file():
        top = top.folders[0]
    code_list = root / top.name / "wnids.txt"
    check(
        code_list.is_file(),
        f"{name} has no wnids.txt, so it is not in Tiny-ImageNet's layout: "
        "for plain class folders use folder:PATH",
    )
    listed = set(_read_text(code_list).split())
    splits = {inner.base: inner for inner in top.folders}
    training = splits["train"].folders if "train" in splits else []
    codes = [folder.base for folder in training if folder.base in listed]
    check(
        bool(codes),
        f"{name} has no training images: expected train/<code>/images/*.JPEG for the codes in wnids.txt",
    )
    return _Layout(code_list.parent, splits, codes, sorted(listed - set(codes)))


def _training_codes(layout: _Layout) -> tuple[dict[str, str | None], list[str]]:
    "The class code of every training image: the name of its folder. None is missing."
    code_of: dict[str, str | None] = {}
    for folder in layout.splits["train"].folders:
        code_of |= dict.fromkeys(folder.all_images(), folder.base)
    return code_of, []


def _validation_codes(layout: _Layout, name: str) -> tuple[dict[str, str | None], list[str]]:
    "The class code of every validation image, from the table beside them; and images that only it knows."
    if "val" not in layout.splits:
        expected = "expected val/images and val/val_annotations.txt"
        raise NoValidationSplit(f"{name} has no validation images: {expected}")
    table = _read_table(layout.base / "val" / "val_annotations.txt")
    images = layout.splits["val"].all_images()
    file_names = [image.rpartition("/")[2] for image in images]
    code_of = {image: table.get(file) for image, file in zip(images, file_names, strict=True)}
    return code_of, sorted(set(table) - set(file_names))


def _read_table(path: Path) -> dict[str, str]:
    """The first two columns of a tab-separated file.

    Raises `CfvaeError` naming the file, the line that has only one, or what has two seconds."""
    check(
        path.is_file(),
        f"Tiny-ImageNet's layout needs the file {path.name}; for plain class folders use folder:PATH",
    )
    lines = [line for line in _read_text(path).splitlines() if line.strip()]
    table: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        cells = line.split("\t")
        check(len(cells) >= 2, f"{path.name}: row {number} has no second column: {printable(cells[0])[:60]}")
        first, second = cells[0].strip(), cells[1].strip()
        same = table.setdefault(first, second) == second
        check(
            same, f"{path.name}: row {number} says of {printable(first)} something else than a row before it"
        )
    return table


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig", errors="replace")  # some programs begin a file with a mark


def _class_names(layout: _Layout) -> tuple[str, ...]:
    "A word for every code: the first synonym, with the code where two classes share it."
    path = layout.base / "words.txt"
    synonyms = _read_table(path) if path.is_file() else {}
    words = [printable(synonyms.get(code, "")).split(",")[0].strip() or code for code in layout.codes]
    unique = [words.count(word) == 1 for word in words]
    return tuple(
        word if alone else f"{word} ({code})"
        for word, alone, code in zip(words, unique, layout.codes, strict=True)
    )
