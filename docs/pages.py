"""A notebook as a page that MyST-NB reads. Nothing is executed."""

import copy
import re
from typing import Any

from lessons import Notebook, lessons, read

Cell = dict[str, Any]
WIDGET = "application/vnd.jupyter.widget-view+json"
TAGS = {  # an nbdev directive, and the cell tag that says the same to MyST-NB
    "hide": "remove-cell",
    "export": "exported",
    "exporti": "exported",
    "echo: false": "remove-input",
    "output: false": "remove-output",
    "code-fold: true": "hide-input",
    "eval: false": "skip-execution",
}
TERM = re.compile(r"\[([^\]]+)\]\(\.\./docs/glossary\.md#([\w-]+)\)")  # a link of a notebook to the glossary
HEAD = re.compile(r"\A# .+\n+(?P<subtitle>(?:>.*\n?)*)")  # of the first cell
ABOUT_COMPANION = "A companion: a first reading may skip it. "
ABOUT_GUIDE = "A guide: how to use it, without theory. "


def page(notebook: Notebook) -> dict[str, Any]:
    """The notebook, changed for the site.

    Directives become tags, figures get their alt text, widgets a word on how to run them."""
    content = read(notebook.path)
    cells: list[Cell] = []
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cells += code_cells(cell, notebook)
        else:
            cells.append(cell | {"source": _relink(cell["source"], notebook)})
    cells[0]["source"] = _with_about(cells[0]["source"], notebook)
    cells += _companions(notebook)
    language = {"name": "python", "pygments_lexer": "ipython3"}
    return content | {"cells": cells, "metadata": content["metadata"] | {"language_info": language}}


def code_cells(cell: Cell, notebook: Notebook) -> list[Cell]:
    """The cell without its directives, and behind it a note where a widget was.

    Nothing for a cell that only names the module."""
    directives = re.findall(r"^#\|\s*(.+?)\s*$", cell["source"], re.MULTILINE)
    cell = copy.deepcopy(cell)
    cell["source"] = re.sub(r"^#\|.*\n?", "", cell["source"], flags=re.MULTILINE).strip("\n")
    if not cell["source"]:
        return []

    tags = [TAGS[directive] for directive in directives if directive in TAGS]
    cell["metadata"]["tags"] = cell["metadata"].get("tags", []) + tags
    for directive in directives:
        if alt := re.fullmatch(r'fig-alt:\s*"(.*)"', directive):
            cell["metadata"]["mystnb"] = {"image": {"alt": alt[1]}}

    shown = [output for output in cell["outputs"] if WIDGET not in output.get("data", {})]
    had_widget = len(shown) < len(cell["outputs"])
    cell["outputs"] = shown
    if not had_widget:
        return [cell]
    to_run = f"The sliders move in JupyterLab: `make lab`, then open `{notebook.file}`."
    return [cell, _markdown(f"{cell['id']}-run", f"```{{div}} kernel-note\n{to_run}\n```")]


def _markdown(name: str, source: str) -> Cell:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": source}


def _relink(text: str, notebook: Notebook) -> str:
    "Terms lead to the glossary. In nbs/ the guides lie inside the folder of lessons, on the site beside it."
    text = TERM.sub(lambda term: f"{{term}}`{term[1]} <{term[2].replace('-', ' ')}>`", text)
    text = text.replace("](../docs/glossary.md)", "](../glossary.md)")
    if notebook.is_guide:
        return text.replace("](../", "](../lessons/")
    return text.replace("](guides/", "](../guides/")


def _with_about(source: str, notebook: Notebook) -> str:
    "The first cell, with its numbered title and a line on what the notebook builds below the subtitle."
    about = _about(notebook)
    return HEAD.sub(lambda head: f"# {notebook.title}\n\n{head['subtitle']}\n{about}\n", source, count=1)


def _about(notebook: Notebook) -> str:
    if not notebook.number and not notebook.is_guide:
        return ""
    kind = ""
    if notebook.is_guide:
        kind = ABOUT_GUIDE
    elif notebook.is_companion:
        kind = ABOUT_COMPANION
    module = notebook.module
    builds = f"Builds [`cfvae.{module}`](../api/{module}.rst). " if module else ""
    return f"```{{div}} about\n{kind}{builds}To run it: `make lab`, then open `{notebook.file}`.\n```\n"


def _companions(notebook: Notebook) -> list[Cell]:
    "A cell that puts the companions of a lesson below it."
    below = []
    for other in lessons():
        if other.is_companion and other.number[:2] == notebook.number:
            below.append(other.path.stem)
    if not below:
        return []
    return [_markdown("companions", "\n".join(["```{toctree}", ":hidden:", *below, "```"]))]
