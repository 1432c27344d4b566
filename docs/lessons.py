"""The notebooks as the site needs them: their order, their equations, and each as a page. Nothing is executed."""

import ast
import copy
import dataclasses
import json
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
NUMBER = r"\d\d[a-z]?"
PAPER = r"\b\d{4}\.\d{4,5}\b"  # a number of arXiv
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


@dataclasses.dataclass(frozen=True)
class Lesson:
    "One notebook."

    path: Path
    number: str  # "01", "01b"; empty for the index
    title: str  # as the pages show it, with the number
    module: str | None  # the module that it exports

    @property
    def page(self) -> str:
        "The page without its suffix, from the site's top."
        return f"lessons/{self.path.stem}"

    @property
    def companion(self) -> bool:
        "Whether it belongs under the lesson before it."
        return self.number[-1:].isalpha()


def read(path: Path) -> dict:
    "A notebook, its sources as single strings."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


@cache
def lessons() -> tuple[Lesson, ...]:
    "Every notebook in the order of the course, the index first."
    found = []
    for path in sorted((ROOT / "nbs").glob("*.ipynb"), key=lambda path: (path.stem != "index", path.stem)):
        text = "\n".join(cell["source"] for cell in read(path)["cells"])
        number = re.match(rf"({NUMBER})_|", path.stem)[1] or ""
        title = re.search(r"^# (.+)$", text, re.MULTILINE)[1]
        module = re.search(r"^#\|\s*default_exp\s+(\w+)", text, re.MULTILINE)
        exported = module and (ROOT / "cfvae" / f"{module[1]}.py").exists()
        found.append(
            Lesson(
                path, number, f"{number} {title}" if number else "Start here", module[1] if exported else None
            )
        )
    return tuple(found)


@cache
def equations() -> dict[str, tuple[str, str]]:
    "Page and TeX of every numbered equation."
    found = {}
    for lesson in lessons():
        for cell in read(lesson.path)["cells"]:
            if cell["cell_type"] == "markdown":
                for tex, number in re.findall(
                    r"\$\$((?:(?!\$\$).)*?\\tag\{([^}]*)\}.*?)\$\$", cell["source"], re.DOTALL
                ):
                    found[number] = (lesson.page, tex.strip())
    return found


@cache
def papers() -> dict[str, list[Lesson]]:
    "The arXiv numbers of the bibliography, each with the lessons that cite it."
    texts = {
        lesson: "\n".join(
            cell["source"] for cell in read(lesson.path)["cells"] if cell["cell_type"] == "markdown"
        )
        for lesson in lessons()
    }
    numbers = re.findall(PAPER, (ROOT / "docs/bibliography.md").read_text(encoding="utf-8"))
    return {number: [lesson for lesson, text in texts.items() if number in text] for number in numbers}


@cache
def module(name: str) -> ast.Module:
    "A module of the package, parsed."
    return ast.parse((ROOT / "cfvae" / f"{name}.py").read_text(encoding="utf-8"))


@cache
def modules() -> dict[str, dict[str, ast.AST]]:
    "What defines each public name of every module, in the order of the course."
    found = {}
    for name in filter(None, (lesson.module for lesson in lessons())):
        defined = {}
        for node in module(name).body:
            targets = (
                node.targets
                if isinstance(node, ast.Assign)
                else [node.target]
                if isinstance(node, ast.AnnAssign)
                else []
            )
            names = [
                each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)
            ] or [getattr(node, "name", "")]
            defined |= dict.fromkeys(names, node)
        found[name] = {each: defined[each] for each in ast.literal_eval(defined["__all__"].value)}
    return found


def methods(node: ast.AST) -> set[str]:
    "The names of the documented methods and properties, where it is a class."
    return {
        each.name
        for each in getattr(node, "body", [])
        if isinstance(node, ast.ClassDef) and isinstance(each, ast.FunctionDef) and ast.get_docstring(each)
    }


def find_name(text: str, home: str | None = None) -> tuple[str, str] | None:
    "Page and anchor of what a piece of code names: `ELBO`, `cfvae.elbo.ELBO`, `ELBO.rate`, `kl_divergence(q, p)`. A name of several modules is `home`'s, or unclear: None."
    match = re.fullmatch(r"((?:\w+\.)*\w+)(\(.*\))?", text, re.DOTALL)
    parts = match[1].split(".") if match else []
    qualified = len(parts) > 1 and (parts[0] == "cfvae" or parts[0] in modules())
    parts = parts[parts[:1] == ["cfvae"] :]
    if qualified and parts[0] in modules():
        owners = [parts.pop(0)]
        if not parts:
            return f"api/{owners[0]}", f"module-cfvae.{owners[0]}"
    else:  # a bare name of a command is a word of the command line, not a function
        owners = [
            module
            for module, names in modules().items()
            if module != "cli" and parts[:1] and parts[0] in names
        ]
        owners = [home] if home in owners else owners
    if len(owners) != 1 or not parts or parts[0] not in modules()[owners[0]]:
        return None
    if (
        not qualified
        and not match[2]
        and len(parts) == 1
        and parts[0] in ("shapes", "cifar10", "train", *modules().get("cli", ()))
    ):
        return None  # presets, commands: words of the command line too
    shown = parts[:2] if len(parts) > 1 and parts[1] in methods(modules()[owners[0]][parts[0]]) else parts[:1]
    return f"api/{owners[0]}", ".".join(["cfvae", owners[0], *shown])


def page(lesson: Lesson) -> dict:
    "The notebook of a lesson as MyST-NB reads it: directives become tags, figures get their alt text, widgets a word on how to run them."
    notebook = read(lesson.path)
    cells = [
        made
        for cell in notebook["cells"]
        for made in (_code(cell, lesson) if cell["cell_type"] == "code" else [cell])
    ]
    cells[0]["source"] = re.sub(
        r"\A# .+\n+((?:>.*\n?)*)",
        lambda match: f"# {lesson.title}\n\n{match[1]}\n{_about(lesson)}\n",
        cells[0]["source"],
    )
    if below := [
        other.path.stem
        for other in lessons()
        if other.companion and other.number[:2] == lesson.number and other is not lesson
    ]:
        cells.append(
            {
                "cell_type": "markdown",
                "id": "companions",
                "metadata": {},
                "source": "\n".join(["```{toctree}", ":hidden:", *below, "```"]),
            }
        )
    return notebook | {
        "cells": cells,
        "metadata": notebook["metadata"]
        | {"language_info": {"name": "python", "pygments_lexer": "ipython3"}},
    }


def _code(cell: dict, lesson: Lesson) -> list[dict]:
    "The cell without its directives, and a note for every widget in its place. Nothing for a cell that only names the module."
    directives = re.findall(r"^#\|\s*(.+?)\s*$", cell["source"], re.MULTILINE)
    cell = copy.deepcopy(cell)
    cell["source"] = re.sub(r"^#\|.*\n?", "", cell["source"], flags=re.MULTILINE).strip("\n")
    if not cell["source"]:
        return []
    cell["metadata"]["tags"] = [
        *cell["metadata"].get("tags", []),
        *(TAGS[d] for d in directives if d in TAGS),
    ]
    for directive in directives:
        if match := re.fullmatch(r'fig-alt:\s*"(.*)"', directive):
            cell["metadata"]["mystnb"] = {"image": {"alt": match[1]}}
    outputs = [output for output in cell["outputs"] if WIDGET not in output.get("data", {})]
    note = {
        "cell_type": "markdown",
        "id": f"{cell['id']}-run",
        "metadata": {},
        "source": f"```{{div}} kernel-note\nThe sliders move in JupyterLab: `make lab`, then open `{lesson.path.name}`.\n```",
    }
    return [cell | {"outputs": outputs}, *([note] if len(outputs) < len(cell["outputs"]) else [])]


def _about(lesson: Lesson) -> str:
    "What stands below a lesson's title: what it builds, how to run it."
    if not lesson.number:
        return ""
    builds = f"Builds [`cfvae.{lesson.module}`](../api/{lesson.module}.rst). " if lesson.module else ""
    kind = "A companion about plumbing: a first reading may skip it. " if lesson.companion else ""
    return f"```{{div}} about\n{kind}{builds}To run it: `make lab`, then open `{lesson.path.name}`.\n```\n"
