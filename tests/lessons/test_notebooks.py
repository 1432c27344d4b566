"Every lesson, top to bottom in a kernel of its own, and after its last cell the solutions of its exercises."

import re
from pathlib import Path

import nbformat
import pytest
from execute import execute
from nbclient.exceptions import CellExecutionError

NBS = Path(__file__).parents[2] / "nbs"
NOTEBOOKS = sorted(NBS.glob("*.ipynb")) + sorted(NBS.glob("guides/*.ipynb"))


FOLDED = re.compile(r"<details>(.*?)</details>", re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def solution(text: str) -> str:
    "The Python of the first folded solution in a text."
    folded = FOLDED.search(text)
    return "\n".join(PYTHON.findall(folded[1])) if folded else ""


def exercises(notebook) -> list[tuple[nbformat.NotebookNode, str]]:
    "Every exercise's check cell, with the Python of the solution that is folded below it."
    cells = notebook.cells
    return [
        (cell, solution(below.source))
        for cell, below in zip(cells, cells[1:], strict=False)
        if cell.cell_type == "code" and re.search(r"^verdict\(", cell.source, re.MULTILINE)
    ]


def said(cell: nbformat.NotebookNode) -> str:
    "The last line that a cell has printed."
    printed = "".join(output.get("text", "") for output in cell.outputs)
    return printed.strip().rpartition("\n")[2]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_its_exercises_tell_right_from_not_yet(path):
    notebook = nbformat.read(path, as_version=4)
    asked = exercises(notebook)
    again = [nbformat.v4.new_code_cell(check.source) for check, _ in asked]
    for (_, code), check in zip(asked, again, strict=True):
        notebook.cells += [nbformat.v4.new_code_cell(code), check]
    try:
        execute(notebook, path.parent)
    except CellExecutionError as error:
        pytest.fail(str(error), pytrace=False)
    assert [said(check).partition(":")[0] for check, _ in asked] == ["not yet"] * len(asked)
    assert [said(check) for check in again] == ["right"] * len(again)


@pytest.mark.parametrize(
    "path",
    [path for path in NOTEBOOKS if path.parent == NBS and path.stem != "index"],
    ids=lambda path: path.stem,
)
def test_has_three_exercises_to_attempt(path):
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    questions = re.findall(r"^\*\*\d\. .+?\*\*", text.partition("## Exercises")[2], re.MULTILINE)
    asked = exercises(notebook)
    assert len(questions) == len(asked) >= 3
    assert all(code for _, code in asked), f"{path.name}: a check without a solution below it"
