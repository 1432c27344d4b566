"""Tiny-ImageNet's own layout of folders and tables."""

from pathlib import Path

from ..core import check
from .folders import Folder, Listing, scan_folder
from .names import first_few, printable


def _table(path: Path) -> dict[str, str]:
    "The first two columns of a tab-separated file. Raises `CfvaeError` naming the file, or the line that has only one."
    check(
        path.is_file(),
        f"Tiny-ImageNet's layout needs the file {path.name}; for plain class folders use folder:PATH",
    )
    rows = [
        line.split("\t")
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    for number, row in enumerate(rows, 1):
        check(len(row) >= 2, f"{path.name}: row {number} has no second column: {printable(row[0])[:60]}")
    return {row[0].strip(): row[1].strip() for row in rows}


def _readable(codes: list[str], words: dict[str, str]) -> tuple[str, ...]:
    "A word for every code: the first synonym, with the code where two classes share it."
    first = [printable(words.get(code, code)).split(",")[0].strip() for code in codes]
    return tuple(
        word if first.count(word) == 1 else f"{word} ({code})"
        for word, code in zip(first, codes, strict=True)
    )


def _tiny_top(root: Path, name: str) -> tuple[Path, dict[str, Folder], list[str]]:
    "Where the layout begins, its parts (train, val), and the sorted codes of the classes that have training images."
    top = scan_folder(root)
    while len(top.folders) == 1 and not (root / top.name / "wnids.txt").is_file():
        top = top.folders[0]
    listed = root / top.name / "wnids.txt"
    check(
        listed.is_file(),
        f"{name} has no wnids.txt, so it is not in Tiny-ImageNet's layout: for plain class folders use folder:PATH",
    )
    wanted = set(listed.read_text(encoding="utf-8", errors="replace").split())
    parts = {inner.base: inner for inner in top.folders}
    codes = (
        [inner.base for inner in parts["train"].folders if inner.base in wanted] if "train" in parts else []
    )
    check(
        codes,
        f"{name} has no training images: expected train/<code>/images/*.JPEG for the codes in wnids.txt",
    )
    return listed.parent, parts, codes


def list_tiny_imagenet(
    root: str
    | Path,  # a folder with wnids.txt, words.txt, train/ and val/, or one that holds only such a folder
    train: bool = True,  # train/<code>/images, or val/images with its table
    name: str | None = None,  # what to call the tree in messages
) -> Listing:
    "Find the images of Tiny-ImageNet's layout; classes are sorted by code and the same for both splits. Raises `CfvaeError` naming what is missing."
    root, name = Path(root), name or printable(root)
    base, parts, codes = _tiny_top(root, name)
    words = _table(base / "words.txt") if (base / "words.txt").is_file() else {}
    if train:
        code_of = {image: folder.base for folder in parts["train"].folders for image in folder.all_images()}
        images, missing = list(code_of), []
    else:
        check(
            "val" in parts,
            f"{name} has no validation images: expected val/images and val/val_annotations.txt",
        )
        table, images = _table(base / "val" / "val_annotations.txt"), parts["val"].all_images()
        code_of = {image: table.get(image.rpartition("/")[2]) for image in images}
        missing = sorted(set(table) - {image.rpartition("/")[2] for image in images})
    kept = [(image, codes.index(code_of[image])) for image in images if code_of[image] in codes]
    check(
        kept,
        f"{name}: no image of val/images is named in val_annotations.txt with a class that has training images",
    )
    notes = (
        [f"{len(images) - len(kept)} images without a known class are left out"]
        if len(kept) < len(images)
        else []
    )
    notes += (
        [f"{len(missing)} images named in val_annotations.txt are not there: {first_few(missing)}"]
        if missing
        else []
    )
    names, labels = zip(*kept, strict=True)
    return Listing(root, names, labels, _readable(codes, words), tuple(notes))
