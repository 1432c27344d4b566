"""What about the classes of a tree may not be meant."""

import re
import typing
import unicodedata

from .names import first_few, printable

SPLIT_LIKE = re.compile(
    r"(train|training|test|testing|val|valid|validation|fold|split|part)[-_ ]?[a-z]?\d*", re.IGNORECASE
)
HELD_OUT = re.compile(
    r"(test|testing|val|valid|validation|dev|eval)([-_ ]?(set|data|images?))?", re.IGNORECASE
)
PARTS = re.compile(  # of a data set: pictures, and what belongs to them
    r"((train|val|test)[-_ ]?)?(images?|imgs?|masks?|labels?|annotations?|thumb(nail)?s?)|jpegimages|"
    r"segmentation(class|object)?",
    re.IGNORECASE,
)
NONE_LIKE = ("-1", "nan", "none", "null", "na", "n/a", "<na>")  # as programs write what is not there
MANY = 12  # images, from which on a tree is more than a first try, and a class of one image suspicious


def suspicions(
    counts: dict[str, int],  # the images of every class
    inside: dict[str, tuple[str, ...]],  # the names of the folders in every class folder
) -> tuple[str, ...]:
    "Remarks for the user. Nothing is refused: a strange tree may be meant."
    return (*_odd_counts(counts), *_odd_names(counts), *_odd_nesting(inside))


def _odd_counts(counts: dict[str, int]) -> typing.Iterator[str]:
    largest = max(counts, key=lambda name: counts[name])
    total = sum(counts.values())
    if len(counts) > 1 and counts[largest] > 0.99 * total:
        yield f"{counts[largest]:,} of {total:,} images are of one class: {printable(largest)}"
    singles = [name for name, count in counts.items() if count == 1]
    if singles and total >= MANY:
        yield f"classes with a single image, from which little can be learned: {first_few(singles)}"


def _odd_names(names: typing.Iterable[str]) -> typing.Iterator[str]:
    "Names that differ only by case, by spaces around them, by zeros in front, or in how they are encoded."
    alike: dict[str, list[str]] = {}
    for name in names:
        plain = unicodedata.normalize("NFKC", name).strip().casefold()
        plain = str(int(plain)) if re.fullmatch(r"\d{1,99}", plain, re.ASCII) else plain
        alike.setdefault(plain, []).append(f"'{name}'")
    groups = [" and ".join(group) for group in alike.values() if len(group) > 1]
    if groups:
        yield f"classes whose names are nearly the same are kept apart: {first_few(groups)}"
    nobody = [name.strip("'") for plain in NONE_LIKE for name in alike.get(plain, ())]
    if nobody:
        way_out = "where it stands for none, leave its label empty, or its folder out"
        yield f"{first_few(nobody)} is taken for a class: {way_out}"


def _odd_nesting(inside: dict[str, tuple[str, ...]]) -> typing.Iterator[str]:
    "Folders that are rather splits, folds or domains than classes."
    names = list(inside)
    advice = "if they are not meant, give the folder whose sub-folders are the classes"
    like_splits = [name for name in names if SPLIT_LIKE.fullmatch(name)]
    kinds = set(inside.values())
    same = kinds.pop() if len(names) > 1 and len(kinds) == 1 else ()
    parts = [name for name in names if PARTS.fullmatch(name)]
    held_out = [name for name in names if HELD_OUT.fullmatch(name)]
    repeated = [name for name in like_splits if set(names) & set(inside[name])]
    if repeated:
        yield (
            f"{first_few(repeated)} holds folders named like the classes beside it, and is taken for a class "
            "itself: if it is a split, move the other classes into a folder train beside it"
        )
    elif len(like_splits) > 1:
        yield f"the classes {first_few(like_splits)} are named like splits: {advice}"
    elif parts and len(parts) + len(like_splits) > 1:
        found = first_few([*parts, *like_splits])
        yield f"the classes {found} are named like parts of one data set, not like classes: {advice}"
    elif held_out and len(names) > 2:
        move = "if it is a split, move the other classes into a folder train beside it"
        yield f"{first_few(held_out)} is taken for a class: {move}"
    elif len(same) > 1:
        yield f"the classes {first_few(names)} all hold the same folders, {first_few(same)}: {advice}"
