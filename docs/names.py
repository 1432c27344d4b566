"""The package's modules and their public names, read from the source; which of them a piece of code means."""

import ast
import re
from functools import cache
from pathlib import Path

from lessons import ROOT, lessons

PACKAGE = ROOT / "cfvae"
TOOLS = ("files", "runs", "cli")  # sub-packages of plain Python, each importing only from those before it
NAME = re.compile(r"((?:\w+\.)*\w+)(\(.*\))?", re.DOTALL)  # dotted, perhaps with arguments behind it


def method_modules() -> list[str]:
    "The modules that lessons build, in the order of the course."
    return [lesson.module for lesson in lessons() if lesson.module]


def tool_modules(package: str) -> list[str]:
    "The modules of a sub-package that have public names: `files.archives`, `runs.compare.crew`, ..."
    names = []
    for path in sorted((PACKAGE / package).rglob("*.py")):
        module = path.parent if path.stem == "__init__" else path.with_suffix("")
        names.append(".".join(module.relative_to(PACKAGE).parts))
    return [name for name in names if _public(name)]


def source_file(module: str) -> Path:
    path = PACKAGE / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def parse(module: str) -> ast.Module:
    return ast.parse(source_file(module).read_text(encoding="utf-8"))


def about(module: str) -> str:
    "What a module or a sub-package says of itself."
    return ast.get_docstring(parse(module)) or ""


@cache
def modules() -> dict[str, dict[str, ast.stmt]]:
    "What defines each public name of every module: those of the lessons first, then the tools."
    names = method_modules()
    for package in TOOLS:
        names += tool_modules(package)
    return {name: _public(name) for name in names}


@cache
def _public(module: str) -> dict[str, ast.stmt]:
    "What a module defines and lists in `__all__`, or without such a list gives no underscore."
    defined: dict[str, ast.stmt] = {}
    for node in parse(module).body:
        for name in _defined_names(node):
            defined[name] = node
    if "__all__" not in defined:
        return {name: node for name, node in defined.items() if not name.startswith("_")}
    listing = defined["__all__"]
    assert isinstance(listing, ast.Assign)
    listed = ast.literal_eval(listing.value)
    return {name: defined[name] for name in listed if name in defined}


def _defined_names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets: list[ast.expr] = []
    if isinstance(node, ast.AnnAssign):
        targets = [node.target]
    elif isinstance(node, ast.Assign):
        targets = node.targets
    names = []
    for target in targets:
        parts = target.elts if isinstance(target, ast.Tuple) else [target]
        names += [part.id for part in parts if isinstance(part, ast.Name)]
    return names


def methods(node: ast.stmt) -> set[str]:
    "The names of the documented methods and properties, where it is a class."
    if not isinstance(node, ast.ClassDef):
        return set()
    inner = [each for each in node.body if isinstance(each, ast.FunctionDef)]
    return {each.name for each in inner if ast.get_docstring(each)}


def find_name(
    text: str,  # as it stands in the prose: `ELBO`, `cfvae.elbo.ELBO`, `ELBO.rate`, `kl_divergence(q, p)`
    home: str | None = None,  # the module that the prose is about: its names come first
) -> tuple[str, str] | None:
    "Page and anchor of what a piece of code names. None where it names nothing, or nothing certain."
    match = NAME.fullmatch(text)
    if match is None:
        return None
    parts = match[1].split(".")
    is_qualified = len(parts) > 1
    if is_qualified and parts[0] == "cfvae":
        parts = parts[1:]
    module = _leading_module(parts)
    if is_qualified and module:
        depth = module.count(".") + 1
        return _place(module, parts[depth:])
    if is_qualified and len(parts) == 1 and parts[0] in TOOLS:
        return "api/index", f"cfvae-{parts[0]}"

    owner = _owner(parts[0], home)
    if owner is None:
        return None
    is_call = match[2] is not None
    may_be_a_word = _is_tool(owner) and _is_plain_word(parts[0]) and not is_call
    return None if may_be_a_word else _place(owner, parts)


def _leading_module(parts: list[str]) -> str | None:
    "The longest module's name that the parts begin with."
    for length in (2, 1):
        name = ".".join(parts[:length])
        if name in modules():
            return name
    return None


def _owner(name: str, home: str | None) -> str | None:
    "The module that defines a bare name. Elsewhere than at home, a command's is a word of the command line."
    owners = [module for module, public in modules().items() if name in public]
    if home in owners:
        return home
    owners = [module for module in owners if not _is_command(module)]
    return owners[0] if len(owners) == 1 else None


def _is_tool(module: str) -> bool:
    return module.split(".")[0] in TOOLS


def _is_command(module: str) -> bool:
    return module.split(".")[0] == "cli"


def _is_plain_word(name: str) -> bool:
    "Whether it may as well be an ordinary word: `train`, `shapes`."
    return name.islower() and "_" not in name


def _place(module: str, parts: list[str]) -> tuple[str, str] | None:
    "Page and anchor of a module's name and perhaps its method; of the module where no parts are left."
    page = f"api/{module}"
    if not parts:
        return page, f"module-cfvae.{module}"
    name = parts[0]
    if name not in modules()[module]:
        return None
    anchor = f"cfvae.{module}.{name}"
    if len(parts) > 1 and parts[1] in methods(modules()[module][name]):
        anchor += f".{parts[1]}"
    return page, anchor
