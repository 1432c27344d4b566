"""What a page or a card tells others: no folder of this machine, and no name that is taken for markup."""

import dataclasses
import re
from pathlib import Path

from ..files.names import printable
from ..files.open import LISTERS
from ..pretrained import PretrainedConfig
from ..recipes import Recipe


def public_path(
    path: str | Path,  # a folder, or a name on the hub
) -> str:
    "Of a path that leads through this machine only the last name; others as they are."
    leads_through = Path(path).is_absolute() or Path(path).parts[:1] == ("~",) or ".." in Path(path).parts
    return Path(path).name if leads_through else str(path)


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
