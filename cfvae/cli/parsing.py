"""What stands in one option as text: numbers, names, labels, depths."""

import re
import unicodedata
from collections.abc import Sequence

from ..core import CfvaeError, check


def split_list(text: str) -> list[str]:
    "The parts of a list with commas; empty ones are left out."
    parts = [part.strip() for part in text.split(",")]
    return [part for part in parts if part]


def read_numbers(
    text: str,  # as 1.5 or 1.5,1,0
    option: str,  # which option says so
) -> float | tuple[float, ...]:
    "One number, or one per resolution."
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        way_out = "give a number, or one per resolution, lowest first, as in 1.5,1,0"
        raise CfvaeError(f"{option} is '{text}': {way_out}") from None
    return values[0] if len(values) == 1 else values


def read_classes(
    text: str,  # what --classes says, as cat,dog
    known: Sequence[str],  # the model's classes
) -> list[str]:
    """Class names. A comma may be part of one, as in `tench, Tinca tinca`: the longest known name is meant,
    however its accents are coded."""
    composed = {unicodedata.normalize("NFC", name) for name in known}
    most = 1 + max((name.count(",") for name in known), default=0)
    parts = text.split(",")
    names = []
    while parts:
        taken = 1
        name = parts[0].strip()
        for count in range(min(most, len(parts)), 0, -1):
            joined = ",".join(parts[:count])
            meant = [one for one in (joined, joined.strip()) if unicodedata.normalize("NFC", one) in composed]
            if meant:
                taken, name = count, meant[0]
                break
        if name:
            names.append(name)
        del parts[:taken]
    return names


def read_labels(
    text: str,  # what --labels says, as 0,3
    count: int,  # of the model's classes
) -> list[int]:
    "Class indices of a model."
    check(count > 0, "--labels: the model was trained without classes, leave it out")
    labels = []
    for part in split_list(text):
        known = _is_number(part) and int(part) < count
        check(known, f"--labels: '{part}' is not a label of this model: it has 0 to {count - 1}")
        labels.append(int(part))
    return labels


def read_depths(
    text: str,  # what --depths says, as 1,4,all
) -> list[int | None]:
    "Numbers of layers; None stands for all."
    depths: list[int | None] = []
    for part in split_list(text):
        if part == "all":
            depths.append(None)
        else:
            check(_is_number(part), f"--depths: '{part}' is not a number of layers: write it as in 1,4,all")
            check(int(part) > 0, "--depths: 0 is the autoencoder alone, which is drawn anyway: leave it out")
            depths.append(int(part))
    check(len(depths) > 0, f"--depths is '{text}': name at least one, as in 1,4,all")
    return depths


def _is_number(text: str) -> bool:
    "Whether a text is a whole number of ordinary size."
    return re.fullmatch(r"\d{1,9}", text, re.ASCII) is not None
