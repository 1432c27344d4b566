"""The pages of the API reference: one a module, which autodoc fills; `docstrings` completes what it finds."""

import ast
import re

from docstrings import escape
from lessons import Notebook, lessons
from names import TOOLS, about, modules, source_file, tool_modules

LONGEST_VALUE = 40  # characters of a constant's value that a page shows, on one line of a phone
INTRODUCTION = """\
Every public name of the package. What the lessons build comes first, module by module, in their order:
each module imports only from those above it. The tools follow.
"""
METHOD_TABLE = """\
.. list-table::
   :header-rows: 1
   :widths: 27 45 28

   * - module
     - what it holds
     - built in
"""
TOOLS_TEXT = """\
What a run needs besides the method, in plain Python: no lesson builds it, and the guides tell how to use it.
Each package imports only from the method and from the packages above it.

"""
TOOL_TABLE = """\
.. list-table::
   :header-rows: 1
   :widths: 36 64

   * - module
     - what it holds
"""


def pages() -> dict[str, str]:
    "The source of every page of the reference."
    sources = {"index": _index()}
    built_in = {lesson.module: lesson for lesson in lessons()}
    for module in modules():
        sources[module] = _page(module, built_in.get(module))
    return sources


def _index() -> str:
    text = title("Reference") + INTRODUCTION + "\n" + title("The method", "-") + METHOD_TABLE
    for lesson in lessons():
        if lesson.module:
            text += _row(lesson.module) + f"     - :doc:`{lesson.title} </{lesson.page}>`\n"
    text += "\n" + title("Tools", "-") + TOOLS_TEXT
    for package in TOOLS:
        text += title(f"cfvae.{package}", "~") + _first_paragraph(package) + "\n\n" + TOOL_TABLE
        for module in tool_modules(package):
            text += _row(module)
        text += "\n"
    return text + ".. toctree::\n   :hidden:\n\n" + "".join(f"   {module}\n" for module in modules())


def _row(module: str) -> str:
    return f"   * - :doc:`cfvae.{module} <{module}>`\n     - {_first_paragraph(module)}\n"


def _first_paragraph(module: str) -> str:
    paragraph = about(module).split("\n\n")[0]
    return escape(" ".join(paragraph.split()))


def _page(module: str, lesson: Notebook | None) -> str:
    text = title(f"cfvae.{module}") + f".. rst-class:: lead\n\n{escape(about(module))}\n\n"
    if lesson:
        text += f"Built in lesson :doc:`{lesson.title} </{lesson.page}>`.\n\n"
    text += f".. module:: cfvae.{module}\n\n"
    for name, node in modules()[module].items():
        if isinstance(node, ast.ClassDef):
            bases = "   :show-inheritance:\n" if node.bases else ""
            text += f".. autoclass:: {name}\n   :members:\n   :special-members: __call__\n{bases}\n"
        elif isinstance(node, ast.FunctionDef):
            text += f".. autofunction:: {name}\n\n"
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            text += _constant(name, node, module)
    return text


def _constant(name: str, node: ast.Assign | ast.AnnAssign, module: str) -> str:
    "A constant with its value, where that is short, and what is known about it."
    text = f".. py:data:: {name}\n"
    several = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)
    if isinstance(node.value, ast.Constant | ast.Tuple) and not several:
        value = ast.unparse(node.value)
        if len(value) < LONGEST_VALUE:
            text += f"   :value: {value}\n"
    for paragraph in [*_helps(node.value), *_comment(name, module), *_keys(node.value)]:
        text += f"\n   {escape(paragraph)}\n"
    return text + "\n"


def _helps(value: ast.expr | None) -> list[str]:
    "The help text, where it is an option of the commands."
    keywords = [part for part in ast.walk(value) if isinstance(part, ast.keyword)] if value else []
    texts = [keyword.value for keyword in keywords if keyword.arg == "help"]
    return [str(text.value) for text in texts if isinstance(text, ast.Constant)]


def _comment(name: str, module: str) -> list[str]:
    "The comment beside the definition, as a sentence."
    source = source_file(module).read_text(encoding="utf-8")
    match = re.search(rf"^{name}\b[^\n]*?  # (.+)$", source, re.MULTILINE)
    if match is None:
        return []
    comment = match[1]
    return [comment[0].upper() + comment[1:] + "."]


def _keys(value: ast.expr | None) -> list[str]:
    "The keys, where it is a dict."
    if not isinstance(value, ast.Dict):
        return []
    keys = [str(key.value) for key in value.keys if isinstance(key, ast.Constant)]
    names = ", ".join(f"`{key}`" for key in keys)
    return [f"Keys: {names}."] if keys else []


def title(text: str, underline: str = "=") -> str:
    return f"{text}\n{underline * len(text)}\n\n"
