"""Trees of images: their classes and their splits."""

import dataclasses
import hashlib
import os
import re
from pathlib import Path

from PIL import Image

from ..core import CfvaeError, check
from .decode import FORMATS
from .names import first_few, printable
from .suspicions import suspicions

READABLE = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
# tried as well, so that they are reported: other formats of pictures, and what cameras call raw
UNREADABLE = (
    ".mpo .heic .heif .jxl .dib .tga .pcx .psd .exr .hdr .svg .dcm .dng .cr2 .cr3 .nef .arw .raf .orf .rw2"
)
SUFFIXES = READABLE | set(UNREADABLE.split())
SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|II\*\0|MM\0\*|RIFF....WEBP"
    rb"|BM....\0\0\0\0|\0\0\0\x0cjP  |....ftypavi[fs]",
    re.DOTALL,
)
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test", "testing", "dev", "eval")
FILLERS = (
    r"set|sets|data|dataset|images?|imgs?|pics?|pictures?|photos?|split|folder|seg"  # train_images, seg_test
)
PACKED = (".tar", ".tgz", ".txz", ".tar.xz", ".tar.gz", ".tar.bz2", ".zip", ".7z", ".rar")  # not looked into
NOT_THE_USERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")  # of macOS in archives, of a NAS, of Windows
RUN_FILES = {"recipe.json", "run.lock"}  # of a folder that training wrote: its pictures are no data
COUNT_FILE = ".cfvae-count"  # in a folder where cfvae unpacked an archive: how many files that were
MAX_DEPTH = 64  # folders inside each other
DECODING_VERSION = 3  # raising it makes every cached array be decoded again


class NoValidationSplit(CfvaeError):
    "Data that are not divided; those that are divided in a way that cannot be used are another error."


@dataclasses.dataclass
class Folder:
    "A folder of the tree. All names are relative to the top, with slashes between."

    name: str  # "" for the top
    images: list[str]  # its own images
    folders: list["Folder"]  # sub-folders with an image somewhere below
    empty: list[str]  # sub-folders without one
    again: list[str]  # links to folders that are scanned without them
    packed: list[str] = dataclasses.field(default_factory=list)  # archives, which are left as they are

    @property
    def base(self) -> str:
        "The last part of the name: for a class folder, the class."
        return self.name.rpartition("/")[2]

    def split_name(self) -> str:
        "The folder on the way here that is named like a split; empty where there is none."
        parts = self.name.split("/")
        named_so = [i for i, part in enumerate(parts) if _role(part) in TRAIN_NAMES + VAL_NAMES]
        return "/".join(parts[: named_so[-1] + 1]) if named_so else ""

    def all_images(self) -> list[str]:
        "Its own images and those of every folder below."
        names = list(self.images)
        for folder in self.folders:
            names += folder.all_images()
        return names


def scan_folder(
    root: str | Path,  # the top of the tree
    name: str = "",  # the folder to scan, relative to the top
    entered: set[str] | None = None,  # real paths of the folders that were scanned before
) -> Folder:
    """Collect the images of a tree, sorted by name, without opening them.

    Hidden files are ignored, as are runs and copies that cfvae made; each real folder is entered once. Raises
    `CfvaeError` for one not to be read."""
    entered = set() if entered is None else entered
    path = os.path.join(root, name)
    entered.add(os.path.realpath(path))
    check(name.count("/") < MAX_DEPTH, f"{printable(path)}: folders are nested more than {MAX_DEPTH} deep")

    folder = Folder(name, [], [], [], [])
    entries = _entries(path)
    is_copy = name and os.path.exists(os.path.join(path, COUNT_FILE))
    if is_copy or RUN_FILES <= {entry.name for entry in entries}:
        return folder
    for entry in sorted(entries, key=os.path.islink):  # the folder itself before a link to it
        inner_name = f"{name}/{entry.name}" if name else entry.name
        if not os.path.isdir(entry.path):
            if _is_image(entry):
                folder.images.append(inner_name)
            elif entry.name.lower().endswith(PACKED):
                folder.packed.append(inner_name)
        elif os.path.realpath(entry.path) in entered or _leads_back(entry, root):
            folder.again.append(inner_name)
        else:
            _add(folder, scan_folder(root, inner_name, entered))
    folder.images.sort()
    folder.folders.sort(key=lambda inner: inner.name)
    return folder


def _entries(path: str) -> list[os.DirEntry]:
    "What lies in a folder, sorted by name, without what is hidden and what systems add."
    try:
        with os.scandir(path) as entries:
            visible = [entry for entry in entries if _is_visible(entry.name)]
    except OSError as error:
        raise CfvaeError(f"cannot read the folder {printable(path)}: {error.strerror}") from None
    return sorted(visible, key=lambda entry: entry.name)


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in NOT_THE_USERS


def _leads_back(entry: os.DirEntry, root: str | Path) -> bool:
    "Whether a link leads to a folder of the tree that is scanned at its own place, now or later."
    if not entry.is_symlink():
        return False
    end = Path(os.path.realpath(entry.path))
    top = Path(os.path.realpath(root))
    return end.is_relative_to(top) and all(map(_is_visible, end.relative_to(top).parts))


def _add(folder: Folder, inner: Folder) -> None:
    folder.packed += inner.packed
    if inner.images or inner.folders:
        folder.folders.append(inner)
    else:
        folder.empty.append(inner.name)


def _is_image(entry: os.DirEntry) -> bool:
    """Whether a file should be tried: by its name, else by its first bytes.

    A broken link with an image's name is tried, so that it is reported."""
    named_so = os.path.splitext(entry.name)[1].lower() in SUFFIXES
    if not os.path.isfile(entry.path):
        broken_link = entry.is_symlink() and not os.path.exists(entry.path)
        return named_so and broken_link
    if named_so:
        return True
    try:
        with open(entry.path, "rb") as file:
            return SIGNATURE.match(file.read(16)) is not None
    except OSError:
        return False


def class_root(
    tree: Folder,  # as `scan_folder` gives it
    train: bool = True,  # the training split, or the validation split
) -> Folder | None:
    """The folder whose sub-folders are the classes: down through splits and single top folders.

    None if there is no such split."""
    folder = tree
    divided = False
    while True:
        inner = None if divided else _split(folder, train)
        divided = divided or inner is not None
        if inner is None and len(folder.folders) == 1 and folder.folders[0].folders:
            inner = folder.folders[0]
        if inner is None:
            return folder if train or divided else None
        folder = inner


def _split(folder: Folder, train: bool) -> Folder | None:
    "The sub-folder of the split that is meant; None where this level does not divide into splits."
    by_role: dict[str, Folder] = {}
    for inner in folder.folders:
        role = _role(inner.base)
        if by_role.setdefault(role, inner) is not inner and role in TRAIN_NAMES:
            return None  # train2014 and train2017: which one is meant, nobody knows
    training = _first_of(TRAIN_NAMES, by_role)
    if training is None:
        return None
    only_splits = all(role in TRAIN_NAMES + VAL_NAMES for role in by_role)
    if not training.folders and not only_splits:  # a class that happens to be called train
        return None
    return training if train else _first_of(VAL_NAMES, by_role)


def _role(name: str) -> str:
    "A folder's name; that of a split without additions: train for Train, train_images, seg_train, train2017."
    lower = name.lower()
    words = [word for word in re.split(r"[-_ .]+", lower) if not re.fullmatch(FILLERS, word)]
    if len(words) != 1:
        return lower
    role = re.sub(rf"(\d{{4}}|{FILLERS})$", "", words[0])
    return role if role in TRAIN_NAMES + VAL_NAMES else lower


def _first_of(names: tuple[str, ...], folders: dict[str, Folder]) -> Folder | None:
    return next((folders[name] for name in names if name in folders), None)


def state_of(
    status: os.stat_result,  # of a file
) -> str:
    """What changes with a file's content or its rights.

    Two files that change places may keep size and time; the time of their last renaming they do not keep."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


@dataclasses.dataclass(frozen=True)
class Listing:
    "The images of one split of a tree, none of them opened yet."

    root: Path  # the names are relative to it
    names: tuple[str, ...]  # one file each
    labels: tuple[int, ...]  # index into classes; -1 where there is none
    classes: tuple[str, ...]  # sorted by folder name
    notes: tuple[str, ...] = ()  # what was left out and why, and what looks wrong, for the user
    split: str = ""  # the folder that was taken as the split, where the tree is divided

    def key(self) -> str:
        """Checksum of names, labels, sizes and times of change.

        Another key means that the decoded copy is stale."""
        version = repr((DECODING_VERSION, self.classes))
        digest = hashlib.sha256(version.encode("utf-8", "backslashreplace"))
        for name, label in zip(self.names, self.labels, strict=True):
            try:
                status = os.stat(self.root / name)
                about = f"{label} {state_of(status)} "
            except OSError:
                about = "gone "
            digest.update(about.encode() + os.fsencode(name) + b"\0")
        return digest.hexdigest()


def list_folder(
    root: str | Path,  # the top of any class-per-folder tree
    train: bool = True,  # the training split, or the validation split where the tree has one
    name: str | None = None,  # what to call the tree in messages
) -> Listing:
    """Find the classes of a tree.

    Raises `CfvaeError` for a tree without images, without the split, or with a class that training lacks."""
    name = name or printable(root)
    tree = scan_folder(root)
    empty = not tree.images and not tree.folders
    known_formats = ", ".join(FORMATS)
    expected = f"expected one folder per class, or images ({known_formats})"
    if tree.packed:
        expected = f"unpack the archives in it ({first_few(tree.packed)}), each into a folder of its own"
    check(not empty, f"{name} holds no images: {expected}")
    top = class_root(tree, train)
    if top is None:
        raise NoValidationSplit(
            f"{name} has no validation split (a folder val with images, beside train): "
            "put images there, or in Python divide those for training with cfvae.data.hold_out"
        )

    classes = [folder.base for folder in _class_folders(class_root(tree) or top)]
    folders = _class_folders(top)
    if not folders and not classes:
        flat = top.all_images()
        notes = _loose(tree, top) + _with_all_others(top) + _packed(tree)
        return Listing(Path(root), tuple(flat), (-1,) * len(flat), ("all",), notes, top.split_name())
    way_out = f"put its images into folders called like the classes of training: {first_few(classes)}"
    check(bool(folders), f"{name}: the validation split has no class folders: {way_out}")
    unknown = [folder.base for folder in folders if folder.base not in classes]
    lacking = f"the validation split has classes that the training split lacks: {first_few(unknown)}"
    check(not unknown, f"{name}: {lacking} (it has {first_few(classes)})")

    images: list[str] = []
    labels: list[int] = []
    for folder in folders:
        inside = folder.all_images()
        images += inside
        labels += [classes.index(folder.base)] * len(inside)
    shown_classes = tuple(printable(class_name) for class_name in classes)
    counts = {folder.base: len(folder.all_images()) for folder in folders}
    sub_folders = {folder.base: tuple(inner.base for inner in folder.folders) for folder in folders}
    notes = (
        _beside_the_split(tree, top)
        + _left_out(top)
        + _loose(tree, top)
        + _packed(tree)
        + suspicions(counts, sub_folders)
    )
    return Listing(Path(root), tuple(images), tuple(labels), shown_classes, notes, top.split_name())


def _class_folders(top: Folder) -> list[Folder]:
    "The class folders; none if the images lie flat, or all but one sub-folder's worth of them do."
    return top.folders if len(top.folders) > 1 or not top.images else []


def _beside_the_split(tree: Folder, top: Folder) -> tuple[str, ...]:
    """A folder train is taken as a split, whatever stands beside it; but beside a bus a train is a class.

    And of val2014 and val2017 the first is taken."""
    beside = _beside(tree, top)
    if not beside:
        return ()
    split = top.split_name()
    way_out = (
        f"if {printable(split)} is a class, or not the split that is meant, give its folder another name"
    )
    return (f"folders beside {printable(split)} are left out: {first_few(beside)}; {way_out}",)


def _beside(folder: Folder, top: Folder) -> list[str]:
    """The folders with images beside the way from a folder down to the classes.

    Where several are splits, only those that are so by the same name."""
    if folder is top:
        return []
    inner = _towards(folder, top)
    others = [other.base for other in folder.folders if other is not inner]
    if any(_role(name) in TRAIN_NAMES + VAL_NAMES for name in others):
        others = [name for name in others if _role(name) == _role(inner.base)]
    return others + _beside(inner, top)


def _towards(folder: Folder, top: Folder) -> Folder:
    (inner,) = (inner for inner in folder.folders if f"{top.name}/".startswith(f"{inner.name}/"))
    return inner


def _loose(folder: Folder, top: Folder) -> tuple[str, ...]:
    "The images on the way from a folder down to the classes."
    images = []
    while folder is not top:
        images += folder.images
        folder = _towards(folder, top)
    return (f"images above {printable(top.name)} are left out: {first_few(images)}",) if images else ()


def _with_all_others(top: Folder) -> tuple[str, ...]:
    "A split within a flat folder is none."
    splits = [folder.base for folder in top.folders if _role(folder.base) in TRAIN_NAMES + VAL_NAMES]
    if not splits or not top.images:
        return ()
    return (f"the images of {splits[0]} are taken with all others: move those into a folder train beside it",)


def _packed(tree: Folder) -> tuple[str, ...]:
    if not tree.packed:
        return ()
    return (f"archives are left out: unpack {first_few(tree.packed)} if images are in there",)


def _left_out(top: Folder) -> tuple[str, ...]:
    notes = []
    if top.empty:
        empty = [name.rpartition("/")[2] for name in top.empty]
        notes.append(f"folders without images are ignored: {first_few(empty)}")
    if top.again:
        again = [name.rpartition("/")[2] for name in top.again]
        notes.append(f"links to folders that are there already are left out: {first_few(again)}")
    if top.images:
        beside = first_few(top.images)
        notes.append(f"images beside the class folders have no label and are left out: {beside}")
    return tuple(notes)
