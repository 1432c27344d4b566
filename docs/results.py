"""The page of measured results, gathered from what is committed: the README's table, the shipped weights, and every stored run of a lesson."""

import json
import re
from pathlib import Path

from lessons import ROOT, lessons, read


def page() -> str:
    "The page's source."
    parts = [
        "# Results",
        "Everything here was measured by this project; the text beside a figure says on what. Nothing is typed in by hand on this page: "
        "it is gathered from the README, from the description of the shipped weights and from the stored runs of the lessons.",
    ]
    parts += ["## What it takes", _section(ROOT / "README.md", "What it takes")]
    parts += [
        "## The shipped weights",
        _local(
            re.sub(
                r"^#",
                "##",
                re.sub(r"\A# .*\n", "", (ROOT / "cfvae/weights/README.md").read_text(encoding="utf-8")),
                flags=re.MULTILINE,
            )
        ),
    ]
    stored = sorted((ROOT / "nbs/stored").glob("*.json"))
    parts += (
        [
            "## Stored runs",
            "Runs that take longer than a lesson may. The lesson reads these numbers, and holds the code that made them.",
        ]
        if stored
        else []
    )
    for path in stored:
        parts += _stored(path)
    return "\n\n".join(parts) + "\n"


def _section(path: Path, title: str) -> str:
    return _local(
        re.search(
            rf"^## {title}\n(.*?)(?=^## |\Z)", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )[1].strip()
    )


def _local(text: str) -> str:
    "Links to files of the repository become their text."
    return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


def _stored(path: Path) -> list[str]:
    "Heading, picture and tables of one stored file."
    lesson = next(
        (each for each in lessons() if path.stem.startswith(f"{each.number}_") and each.number), None
    )
    parts = [f"### {path.stem.split('_', 1)[-1].replace('_', ' ').capitalize()}"]
    parts += [f"Lesson [{lesson.title}]({lesson.page}.ipynb) says what the columns mean."] if lesson else []
    picture = path.with_suffix(".png")
    if picture.exists():
        parts += [f"![{_alt(lesson, picture)}](lessons/stored/{picture.name})"]
    return parts + _tables(json.loads(path.read_text(encoding="utf-8")))


def _alt(lesson, picture: Path) -> str:
    "What the lesson says about the picture, where a cell of its shows it."
    for cell in read(lesson.path)["cells"] if lesson else []:
        alt = re.search(r'^#\| fig-alt: "(.*)"$', cell["source"], re.MULTILINE)
        if alt and (picture.name in cell["source"] or 'with_suffix(".png")' in cell["source"]):
            return alt[1]
    return f"The pictures that belong to the stored run {picture.stem.replace('_', ' ')}"


def _tables(value: object, name: str = "") -> list[str]:
    "Numbers and words of a JSON value as tables: a row for each entry of a list, or of a dict of dicts. Long lists of numbers are left to the lesson."
    if isinstance(value, dict) and value and all(isinstance(each, dict) for each in value.values()):
        value = [{"": key} | each for key, each in value.items()]
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        columns = list(dict.fromkeys(key for each in value for key, cell in each.items() if _plain(cell)))
        heading = [f"**{name}**"] if name else []
        return (
            [*heading, _table(columns, [[each.get(column, "") for column in columns] for each in value])]
            if columns
            else []
        )
    if not isinstance(value, dict):
        return []
    plain = {key: each for key, each in value.items() if _plain(each)}
    made = (
        [_table(["", "value"], [(key.replace("_", " "), each) for key, each in plain.items()])]
        if plain
        else []
    )
    return made + [part for key, each in value.items() if not _plain(each) for part in _tables(each, key)]


def _plain(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _table(columns: list[str], rows: list[list]) -> str:
    def line(cells):
        return "| " + " | ".join(_cell(cell) for cell in cells) + " |"

    return "\n".join(
        [line(column.replace("_", " ") for column in columns), "|" + "---|" * len(columns), *map(line, rows)]
    )


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return (f"{value:.4g}" if isinstance(value, float) else str("" if value is None else value)).replace(
        "|", "\\|"
    )
