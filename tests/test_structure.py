"The house rules that can be checked by reading: order of imports, notebooks without errors, numbered equations, and exporting again changes nothing."

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
MODULES = sorted(path for path in (ROOT / "cfvae").glob("*.py") if path.stem != "_modidx")
DEVELOPMENT = {
    "nbdev",
    "fastcore",
    "execnb",
    "ghapi",
    "IPython",
    "ipywidgets",
    "jupyter",
    "jupyterlab",
    "nbformat",
    "nbclient",
    "jupytext",
    "pytest",
    "hypothesis",
}


def cells(path: Path, kind: str) -> list[str]:
    return [
        "".join(cell["source"])
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == kind
    ]


def module_of(path: Path) -> str | None:
    "The module that a notebook exports."
    found = [
        name
        for source in cells(path, "code")
        for name in re.findall(r"^#\|\s*default_exp\s+(\w+)", source, re.MULTILINE)
    ]
    assert len(found) <= 1, f"{path.name} exports to {found}"
    return found[0] if found else None


def imports(path: Path) -> list[str]:
    "Every module that a file imports, anywhere in it; our own as cfvae.name."
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(part for part in ("cfvae" if node.level else "", node.module) if part)
            found += [f"{base}.{alias.name}" for alias in node.names] if base == "cfvae" else [base]
    return found


def stars(path: Path) -> list[str]:
    return [
        node.module
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    ]


ORDER = [name for name in map(module_of, NOTEBOOKS) if name]


def test_every_notebook_exports_one_module_of_its_own():
    assert len(ORDER) == len(set(ORDER)) and ORDER[:2] == ["core", "data"]
    exported = {path.stem for path in MODULES} - {"__init__", "__main__"}
    assert exported == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_only_from_above(name):
    above = {f"cfvae.{other}" for other in ORDER[: ORDER.index(name)]} | {"cfvae.__version__"}
    own = [other for other in imports(ROOT / "cfvae" / f"{name}.py") if other.split(".")[0] == "cfvae"]
    assert set(own) <= above, f"{name} imports {sorted(set(own) - above)}, which does not stand above it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_development_imports_and_no_stars(path):
    assert not {name.split(".")[0] for name in imports(path)} & DEVELOPMENT
    assert not stars(path)


def test_guidance_is_unknown_to_the_model():
    assert "guidance" not in {name.split(".")[-1] for name in imports(ROOT / "cfvae" / "hvae.py")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_no_errors(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error", (
                f"{path.name}: {output.get('ename')}: {output.get('evalue')}"
            )
    assert path.stat().st_size < 500_000, f"{path.name} is larger than 500 KB"
    assert not any(
        re.search(r"^\s*from\s+\S+\s+import\s+\*", source, re.MULTILINE) for source in cells(path, "code")
    )


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_figure_has_alt_text(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            assert re.search(r'^#\| fig-alt: ".{20,}"$', source, re.MULTILINE), (
                f"{path.name}: a figure without alt text, drawn by\n{source}"
            )
        if cell["cell_type"] == "markdown":
            assert "![](" not in source, f"{path.name}: an image without alt text"


def docstrings(path: Path) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        ast.get_docstring(node) or ""
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, kinds)
    ]


TAGS = [
    tag
    for path in NOTEBOOKS
    for source in cells(path, "markdown")
    for tag in re.findall(r"\\tag\{([^}]*)\}", source)
]
REFERENCES = sorted(
    {
        (path.stem, number)
        for path in MODULES
        for text in docstrings(path)
        for number in re.findall(r"\((\d\d[a-z]?\.\d+)\)", text)
    }
)


@pytest.mark.parametrize(("module", "number"), REFERENCES, ids=lambda value: value)
def test_docstring_reference_has_its_equation(module, number):
    lesson = number.split(".")[0]
    own = [
        tag
        for path in NOTEBOOKS
        if path.stem.split("_")[0] == lesson
        for source in cells(path, "markdown")
        for tag in re.findall(r"\\tag\{([^}]*)\}", source)
    ]
    assert own.count(number) == 1, (
        f"{module} refers to ({number}), which lesson {lesson} numbers {own.count(number)} times"
    )


def test_equation_numbers_are_unique_and_in_their_lesson():
    assert len(TAGS) == len(set(TAGS)), sorted(tag for tag in TAGS if TAGS.count(tag) > 1)
    for path in NOTEBOOKS:
        for source in cells(path, "markdown"):
            for tag in re.findall(r"\\tag\{([^}]*)\}", source):
                assert tag.split(".")[0] == path.stem.split("_")[0], (
                    f"{path.name} numbers an equation ({tag})"
                )


def test_exporting_again_changes_nothing(tmp_path):
    pytest.importorskip("nbdev")
    for name in ("settings.ini", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "data")
    )
    shutil.copytree(
        ROOT / "cfvae", tmp_path / "cfvae", ignore=shutil.ignore_patterns("__pycache__", "weights")
    )
    before = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "cfvae").glob("*.py")}
    done = subprocess.run(
        [sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    after = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "cfvae").glob("*.py")}
    after = {name: text for name, text in after.items() if name != "_modidx.py" or name in before}
    assert [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)] == []
