"""What a page or a card tells others: no folder of this machine, and no name that is taken for markup."""

import dataclasses
import re
from pathlib import Path, PureWindowsPath

from ..files.names import printable
from ..files.open import LISTERS
from ..pretrained import PretrainedConfig
from ..recipes import Recipe


def public_path(
    path: str | Path,  # a folder, or a name on the hub
) -> str:
    "Of a path that leads through a machine only the last name; others as they are."
    parted = PureWindowsPath(path)  # knows either slash, and drives: the run may be from another machine
    at_home = str(parted).startswith("~")  # alone, or before somebody's name
    leads_through = parted.anchor != "" or at_home or ".." in parted.parts
    return parted.name if leads_through else str(path)


def public_data(
    spec: str,  # as `open_dataset` reads it
) -> str:
    "Where data came from, for others to read."
    kind, separator, place = spec.partition(":")
    return f"{kind}{separator}{public_path(place)}" if kind in LISTERS else spec


def public_recipe(
    recipe: Recipe,  # of a run
) -> Recipe:
    "The recipe for others to read."
    recipe = dataclasses.replace(recipe, data=public_data(recipe.data))
    first = recipe.autoencoder
    if isinstance(first, PretrainedConfig):
        named = dataclasses.replace(first, source=public_path(first.source))
        recipe = dataclasses.replace(recipe, autoencoder=named)
    return recipe


def in_markdown(
    text: str,  # such as a class name
) -> str:
    "The text as Markdown shows it letter by letter: no tag, no link, no line of its own."
    return re.sub(r"([\\`*_\[\]<>|~$])", r"\\\1", printable(text)).replace("&", "&amp;")


def in_backticks(
    text: str,  # such as where data came from
) -> str:
    "The text as code inside a line of Markdown."
    return f"`{printable(text).replace('`', chr(39))}`"
