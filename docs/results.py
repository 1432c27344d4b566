"""The page of measured results, gathered from what is committed: README, shipped weights, stored runs."""

import json
import re
from pathlib import Path
from typing import Any

from lessons import ROOT, Notebook, lessons, read

STORED = ROOT / "nbs/stored"
INTRODUCTION = (
    "Everything here was measured by this project; the text beside a figure says on what. "
    "Nothing is typed in by hand on this page: it is gathered from the README, from the description "
    "of the shipped weights and from the stored runs of the lessons."
)
STORED_RUNS = (
    "Runs that take longer than a lesson may. "
    "The lesson reads these numbers, and holds the code that made them."
)


def page() -> str:
    "The page's source."
    parts = ["# Results", INTRODUCTION]
    parts += ["## What it takes", _section(ROOT / "README.md", "What it takes")]
    parts += ["## The shipped weights", _shipped_weights()]
    stored = sorted(STORED.glob("*.json"))
    if stored:
        parts += ["## Stored runs", STORED_RUNS]
    for path in stored:
        parts += _stored_run(path)
    return "\n\n".join(parts) + "\n"


def _section(path: Path, title: str) -> str:
    _, after = path.read_text(encoding="utf-8").split(f"\n## {title}\n")
    section = after.split("\n## ")[0]
    return _without_local_links(section.strip())


def _shipped_weights() -> str:
    "Their description, its headings one level lower."
    text = (ROOT / "cfvae/weights/README.md").read_text(encoding="utf-8")
    text = re.sub(r"\A# .*\n", "", text)
    return _without_local_links(re.sub(r"^#", "##", text, flags=re.MULTILINE))


def _without_local_links(text: str) -> str:
    "Links to files of the repository become their text."
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


def _stored_run(path: Path) -> list[str]:
    "Heading, picture and tables of one stored file."
    number, _, name = path.stem.partition("_")
    lesson = next((each for each in lessons() if each.number == number), None)
    parts = [f"### {name.replace('_', ' ').capitalize()}"]
    if lesson:
        parts.append(f"Lesson [{lesson.title}]({lesson.page}.ipynb) says what the columns mean.")
    picture = path.with_suffix(".png")
    if picture.exists():
        parts.append(f"![{_alt(lesson, picture)}](lessons/stored/{picture.name})")
    return parts + tables(json.loads(path.read_text(encoding="utf-8")))


def _alt(lesson: Notebook | None, picture: Path) -> str:
    "What the lesson says about the picture, where a cell of its shows it."
    cells = read(lesson.path)["cells"] if lesson else []
    for cell in cells:
        source = cell["source"]
        alt = re.search(r'^#\| fig-alt: "(.*)"$', source, re.MULTILINE)
        if alt and (picture.name in source or 'with_suffix(".png")' in source):
            return alt[1]
    return f"The pictures that belong to the stored run {picture.stem.replace('_', ' ')}"


def tables(value: Any, name: str = "") -> list[str]:
    """Numbers and words of a JSON value as tables: a row for each entry of a list, or of a dict of dicts.

    Long lists of numbers are left to the lesson."""
    if isinstance(value, dict) and _all_dicts(value.values()):
        value = [{"": key} | row for key, row in value.items()]
    if isinstance(value, list) and _all_dicts(value):
        return _row_table(value, name)
    if not isinstance(value, dict):
        return []

    parts = []
    plain = [(key.replace("_", " "), each) for key, each in value.items() if _is_plain(each)]
    if plain:
        parts.append(_table(["", "value"], plain))
    for key, each in value.items():
        if not _is_plain(each):
            parts += tables(each, key)
    return parts


def _all_dicts(values: Any) -> bool:
    return len(values) > 0 and all(isinstance(each, dict) for each in values)


def _row_table(rows: list[dict], name: str) -> list[str]:
    columns: dict[str, None] = {}  # in the order of their first appearance
    for row in rows:
        columns |= {key: None for key, cell in row.items() if _is_plain(cell)}
    if not columns:
        return []
    heading = [f"**{name}**"] if name else []
    cells = [[row.get(column, "") for column in columns] for row in rows]
    return [*heading, _table(list(columns), cells)]


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _table(columns: list[str], rows: list) -> str:
    heading = _line([column.replace("_", " ") for column in columns])
    return "\n".join([heading, "|" + "---|" * len(columns), *map(_line, rows)])


def _line(cells: list) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")
