"""The notebooks as the site needs them: their order, their equations, the papers that they cite."""

import dataclasses
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "nbs"
NUMBER = r"\d\d[a-z]?"  # of a lesson
PAPER = r"\b\d{4}\.\d{4,5}\b"  # a number of arXiv
EQUATION = re.compile(r"\$\$((?:(?!\$\$).)*?\\tag\{([^}]*)\}.*?)\$\$", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Notebook:
    "A lesson, the index, or a guide."

    path: Path
    number: str  # "01", "03b"; empty for the index and for guides
    title: str  # as the pages show it, with the number
    module: str | None = None  # the module that it exports

    @property
    def file(self) -> str:
        "Its file, as JupyterLab lists it."
        return self.path.relative_to(NOTEBOOKS).as_posix()

    @property
    def page(self) -> str:
        "The page without its suffix, from the site's top."
        folder = "guides" if self.is_guide else "lessons"
        return f"{folder}/{self.path.stem}"

    @property
    def is_guide(self) -> bool:
        return self.path.parent != NOTEBOOKS

    @property
    def is_companion(self) -> bool:
        "Whether it belongs under the lesson before it."
        return self.number[-1:].isalpha()


def read(path: Path) -> dict[str, Any]:
    "A notebook, its sources as single strings."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def _text(path: Path, kind: str = "markdown") -> str:
    "All cells of one kind, as one text."
    cells = read(path)["cells"]
    return "\n".join(cell["source"] for cell in cells if cell["cell_type"] == kind)


def _heading(path: Path) -> str:
    first_line, *_ = _text(path).splitlines()
    return first_line.removeprefix("# ")


@cache
def lessons() -> tuple[Notebook, ...]:
    "The index, then every lesson in the order of the course."
    index = Notebook(NOTEBOOKS / "index.ipynb", "", "Start here")
    numbered = []
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        number = path.stem.partition("_")[0]
        exported = re.search(r"^#\|\s*default_exp\s+(\w+)", _text(path, "code"), re.MULTILINE)
        module = exported[1] if exported else None
        numbered.append(Notebook(path, number, f"{number} {_heading(path)}", module))
    return index, *numbered


@cache
def guides() -> tuple[Notebook, ...]:
    "Every guide, in the order in which the index names them."
    listed = re.findall(r"\(guides/(\w+)\.ipynb\)", _text(NOTEBOOKS / "index.ipynb"))
    place = {name: listed.index(name) for name in listed}
    paths = sorted(NOTEBOOKS.glob("guides/*.ipynb"), key=lambda path: place.get(path.stem, len(listed)))
    return tuple(Notebook(path, "", _heading(path)) for path in paths)


def notebooks() -> tuple[Notebook, ...]:
    return lessons() + guides()


@cache
def equations() -> dict[str, tuple[str, str]]:
    "Page and TeX of every numbered equation."
    by_number = {}
    for notebook in notebooks():
        for tex, number in EQUATION.findall(_text(notebook.path)):
            by_number[number] = (notebook.page, tex.strip())
    return by_number


@cache
def papers() -> dict[str, list[Notebook]]:
    "The arXiv numbers of the bibliography, each with the notebooks that cite it."
    bibliography = (ROOT / "docs/bibliography.md").read_text(encoding="utf-8")
    citing: dict[str, list[Notebook]] = {number: [] for number in re.findall(PAPER, bibliography)}
    for notebook in notebooks():
        text = _text(notebook.path)
        for number, citers in citing.items():
            if number in text:
                citers.append(notebook)
    return citing
