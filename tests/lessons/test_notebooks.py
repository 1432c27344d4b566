"Every lesson, top to bottom in a kernel of its own, and after its last cell the solutions of its exercises."

import re
from pathlib import Path

import nbformat
import pytest
from execute import execute
from nbclient.exceptions import CellExecutionError

NBS = Path(__file__).parents[2] / "nbs"
NOTEBOOKS = sorted(NBS.glob("*.ipynb")) + sorted(NBS.glob("guides/*.ipynb"))


def solutions(notebook) -> list[str]:
    "The Python blocks of the folded solutions, in order."
    folded = [
        block
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for block in re.findall(r"<details>(.*?)</details>", cell.source, re.DOTALL)
    ]
    return [
        code
        for block in folded
        for code in re.findall(r"^```python\n(.*?)^```", block, re.DOTALL | re.MULTILINE)
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_with_its_solutions(path):
    notebook = nbformat.read(path, as_version=4)
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in solutions(notebook)]
    try:
        execute(notebook, path.parent)
    except CellExecutionError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.mark.parametrize(
    "path",
    [path for path in NOTEBOOKS if path.parent == NBS and path.stem != "index"],
    ids=lambda path: path.stem,
)
def test_has_exercises_with_solutions(path):
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    exercises = text.partition("## Exercises")[2]
    assert (
        len(re.findall(r"^(?:\*\*\d\.|\d\. \*\*)", exercises, re.MULTILINE)) >= 3 and "<details>" in exercises
    )
    assert any("assert" in code for code in solutions(notebook)), f"{path.name}: no solution checks itself"
