"""The page of measured results, gathered from what is committed: README, shipped weights, stored runs."""

import json
import math
import re
from pathlib import Path
from typing import Any

from lessons import ROOT, Notebook, lessons, read

STORED = ROOT / "nbs/stored"
EXPERIMENTS = ROOT / "nbs/results"
CLAIMS = EXPERIMENTS / "claims.json"
ORIGIN = ("seeds", "hardware", "command")  # how an experiment was made
LONGEST = 40  # rows of a table; longer ones are left to their file
INTRODUCTION = (
    "Everything here was measured by this project; the text beside a figure says on what. "
    "Nothing is typed in by hand on this page: it is gathered from the README, from the description "
    "of the shipped weights and from the stored runs of the lessons."
)
STORED_RUNS = (
    "Runs that take longer than a lesson may. "
    "The lesson reads these numbers, and holds the code that made them."
)
ABOUT_EXPERIMENTS = (
    "Trainings in numbers, several seeds each. A value with an error is the mean over the seeds and "
    "the standard error of that mean; every single run stands in the file."
)


def page() -> str:
    "The page's source."
    parts = ["# Results", INTRODUCTION]
    parts += _claims(CLAIMS)
    parts += ["## What it takes", _section(ROOT / "README.md", "What it takes")]
    parts += ["## The shipped weights", _shipped_weights()]
    stored = sorted(STORED.glob("*.json"))
    if stored:
        parts += ["## Stored runs", STORED_RUNS]
    for path in stored:
        parts += _stored_run(path)
    parts += _experiments(EXPERIMENTS)
    return "\n\n".join(parts) + "\n"


def _claims(
    path: Path,  # a list of claims, each with what became of it
) -> list[str]:
    "The seven claims of the method, and what was measured of each."
    if not path.exists():
        return []
    claims = json.loads(path.read_text(encoding="utf-8"))
    return ["## The seven claims", claims["about"], *tables(claims["rows"])]


def _experiments(
    folder: Path,  # of results, a folder for each set of experiments
) -> list[str]:
    "Every file that says what it is about, with its picture."
    parts = []
    for path in sorted(folder.rglob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if path != CLAIMS and isinstance(content, dict) and (about := _about(content)):
            parts += experiment(path, {**content, "about": about})
    return ["## Experiments", ABOUT_EXPERIMENTS, *parts] if parts else []


def _about(content: dict[str, Any]) -> str | None:
    "What a file says that it is, or the command that made it."
    if "question" in content:
        question = content["question"]
        command = f"cfvae evaluate {question['model']} --data {question['data']} --n {question['n']}"
        return f"What `{command}` found."
    if "points" in content:
        judge = content["judges"][0]
        return f"What `cfvae compare` found on {content['data']}, n = {content['n']:,}, judged by {judge}."
    return content.get("about")


def experiment(
    path: Path,  # of the file
    content: dict[str, Any],  # what it holds
) -> list[str]:
    "Heading, text, picture and table of one experiment. `columns` names those of `rows` that are shown."
    parts = [f"### {_title(path)}", content["about"]]
    origin = {key: content[key] for key in ORIGIN if isinstance(content.get(key), str | list)}
    origin["file"] = f"`{path.relative_to(ROOT).as_posix()}`"
    parts.append("; ".join(f"{key}: {_cell(value)}" for key, value in origin.items()) + ".")
    picture = path.with_suffix(".png")
    if picture.exists():
        alt = content.get("alt", f"What the table of {_title(path)} says, drawn")
        parts.append(f"![{alt}](lessons/{picture.relative_to(ROOT / 'nbs').as_posix()})")

    rows = content.get("points") or content.get("rows")
    if rows is None:
        rest = {key: value for key, value in content.items() if key != "about" and key not in origin}
        return parts + tables(rest)
    if names := content.get("columns"):
        rows = [{name: row[name] for name in names if name in row} for row in rows]
    return parts + tables(rows)


def _title(path: Path) -> str:
    "The folder and the file's name, in words."
    words = [path.parent.name, "" if path.stem in ("table", "run") else path.stem]
    return " ".join(words).replace("_", " ").strip().capitalize()


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
        parts += [*_heading(name), _table(["", "value"], plain)]
    for key, each in value.items():
        if not _is_plain(each):
            parts += tables(each, key)
    return parts


def _all_dicts(values: Any) -> bool:
    return len(values) > 0 and all(isinstance(each, dict) for each in values)


def _row_table(rows: list[dict], name: str) -> list[str]:
    rows = [row | _measures(row) for row in rows]
    columns: dict[str, None] = {}  # in the order of their first appearance
    for row in rows:
        columns |= {key: None for key, cell in row.items() if _is_plain(cell)}
    if not columns or len(rows) > LONGEST:
        return []
    cells = [[row.get(column, "") for column in columns] for row in rows]
    return [*_heading(name), _table(list(columns), cells)]


def _measures(row: dict[str, Any]) -> dict[str, Any]:
    "The measures of a row beside its other columns; those of the first judge, where there are several."
    measures = row.get("measures") or {}
    one_judge = all(map(_is_plain, measures.values()))
    return measures if one_judge else next(iter(measures.values()))


def _heading(name: str) -> list[str]:
    return [f"**{name.replace('_', ' ')}**"] if name else []


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float) or _has_error(value)


def _has_error(value: object) -> bool:
    "Whether it is a number with its standard error."
    return isinstance(value, dict) and list(value)[:2] in (
        ["mean", "se"],
        ["value", "error"],
        ["mean", "error"],
    )


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
    if isinstance(value, dict):
        mean, error = list(value.values())[:2]
        return _with_error(mean, error)
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")


def _with_error(mean: float, error: float | None) -> str:
    "A mean to the digits that its standard error leaves certain."
    if not error:
        return f"{mean:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:.{digits}f} ± {error:.{digits}f}"
