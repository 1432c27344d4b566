"""Trees of images: their classes and their splits."""

import re
import os
import dataclasses
import hashlib
from PIL import Image
from pathlib import Path

from ..core import CfvaeError, check
from .decode import FORMATS
from .names import first_few, printable


SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS} | {
    ".mpo",
    ".heic",
    ".heif",
}


SIGNATURE = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|II\*\0|MM\0\*|RIFF....WEBP", re.DOTALL)


def _is_image(entry: os.DirEntry) -> bool:
    "Whether a file should be tried: by its name, else by its first bytes. A broken link with an image's name is tried, so that it is reported."
    named = os.path.splitext(entry.name)[1].lower() in SUFFIXES
    if not os.path.isfile(entry.path):
        return named and entry.is_symlink() and not os.path.exists(entry.path)
    if named:
        return True
    try:
        with open(entry.path, "rb") as file:
            return SIGNATURE.match(file.read(16)) is not None
    except OSError:
        return False


@dataclasses.dataclass
class Folder:
    "A folder of the tree. All names are relative to the top, with slashes between."

    name: str  # "" for the top
    images: list[str]  # its own images
    folders: list["Folder"]  # sub-folders with an image somewhere below
    empty: list[str]  # sub-folders without one

    @property
    def base(self) -> str:
        "The last part of the name: for a class folder, the class."
        return self.name.rpartition("/")[2]

    def all_images(self) -> list[str]:
        "Its own images and those of every folder below."
        return self.images + [name for folder in self.folders for name in folder.all_images()]


def _entries(folder: str) -> list[os.DirEntry]:
    "What lies in a folder, sorted by name."
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise CfvaeError(f"cannot read the folder {printable(folder)}: {error.strerror}") from None


def scan_folder(
    root: str | Path,  # the top of the tree
    name: str = "",  # the folder to scan, relative to the top
    seen: set[str] | None = None,  # real paths of the folders already entered
) -> Folder:
    "Collect the images of a tree, sorted by name, without opening them. Hidden files are ignored; each real folder is entered once."
    seen = set() if seen is None else seen
    here = os.path.join(root, name)
    seen.add(os.path.realpath(here))
    check(name.count("/") < 64, f"{printable(here)}: folders are nested more than 64 deep")
    found = Folder(name, [], [], [])
    for entry in _entries(here):
        inner = f"{name}/{entry.name}" if name else entry.name
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if os.path.isdir(entry.path):
            if os.path.realpath(entry.path) not in seen:
                below = scan_folder(root, inner, seen)
                found.folders.append(below) if below.images or below.folders else found.empty.append(inner)
        elif _is_image(entry):
            found.images.append(inner)
    return found


TRAIN_NAMES, VAL_NAMES = ("train", "training"), ("val", "valid", "validation", "test", "testing")


def _split(folder: Folder, train: bool) -> Folder | None:
    "The sub-folder of the wanted split; None where this level does not divide into splits."
    named = {inner.base.lower(): inner for inner in folder.folders}
    training = next((named[n] for n in TRAIN_NAMES if n in named), None)
    if training is None or not (training.folders or all(n in TRAIN_NAMES + VAL_NAMES for n in named)):
        return None
    return training if train else next((named[n] for n in VAL_NAMES if n in named), None)


def class_root(
    tree: Folder,  # as `scan_folder` gives it
    train: bool = True,  # the training split, or the validation split
) -> Folder | None:
    "The folder whose sub-folders are the classes: down through splits and single top folders. None if there is no such split."
    folder, divided = tree, False
    while True:
        inner = None if divided else _split(folder, train)
        divided = divided or inner is not None
        if inner is None and len(folder.folders) == 1 and folder.folders[0].folders:
            inner = folder.folders[0]
        if inner is None:
            return folder if train or divided else None
        folder = inner


VERSION = 1  # of the decoding: raising it makes every cached array be decoded again


@dataclasses.dataclass(frozen=True)
class Listing:
    "The images of one split of a tree, none of them opened yet."

    root: Path  # the names are relative to it
    names: tuple[str, ...]  # one file each
    labels: tuple[int, ...]  # index into classes; -1 where there is none
    classes: tuple[str, ...]  # sorted by folder name
    notes: tuple[str, ...] = ()  # what was left out and why, for the user

    def key(self) -> str:
        "Checksum of names, labels, sizes and times of change: another key means that the decoded copy is stale."
        digest = hashlib.sha256(repr((VERSION, self.classes)).encode("utf-8", "backslashreplace"))
        for name, label in zip(self.names, self.labels, strict=True):
            try:
                status = os.stat(self.root / name)
                digest.update(
                    f"{label} {status.st_size} {status.st_mtime_ns} ".encode() + os.fsencode(name) + b"\0"
                )
            except OSError:
                digest.update(b"gone " + os.fsencode(name) + b"\0")
        return digest.hexdigest()


def _class_folders(top: Folder) -> list[Folder]:
    "The class folders; none if the images lie flat, or all but one sub-folder's worth of them do."
    return top.folders if len(top.folders) > 1 or not top.images else []


def _left_out(top: Folder) -> tuple[str, ...]:
    empty = [name.rpartition("/")[2] for name in top.empty]
    notes = [f"folders without images are ignored: {first_few(empty)}"] if empty else []
    notes += (
        [f"images beside the class folders have no label and are left out: {first_few(top.images)}"]
        if top.images
        else []
    )
    return tuple(notes)


def list_folder(
    root: str | Path,  # the top of any class-per-folder tree
    train: bool = True,  # the training split, or the validation split where the tree has one
    name: str | None = None,  # what to call the tree in messages
) -> Listing:
    "Find the classes of a tree. Raises `CfvaeError` for a tree without images, without the split, or with a class that training lacks."
    name, tree = name or printable(root), scan_folder(root)
    check(
        tree.images or tree.folders,
        f"{name} holds no images: expected one folder per class, or images ({', '.join(FORMATS)})",
    )
    top = class_root(tree, train)
    check(
        top is not None,
        f"{name} has no validation split (a folder val beside train): divide the training images with hold_out",
    )
    classes = [folder.base for folder in _class_folders(class_root(tree))]
    chosen = _class_folders(top)
    if not chosen and not classes:
        images = top.all_images()
        return Listing(Path(root), tuple(images), (-1,) * len(images), ("all",))
    unknown = [folder.base for folder in chosen if folder.base not in classes]
    check(
        chosen and not unknown,
        f"{name}: the validation split has classes that the training split lacks: {first_few(unknown or ['none at all'])}",
    )
    pairs = [(image, classes.index(folder.base)) for folder in chosen for image in folder.all_images()]
    images, labels = zip(*pairs, strict=True)
    return Listing(Path(root), images, labels, tuple(printable(c) for c in classes), _left_out(top))
