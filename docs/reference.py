"""The API reference: one page a module, its docstrings completed from the source (docments, messages of errors, equations)."""

import ast
import dataclasses
import functools
import inspect
import re
import textwrap
import typing

from fastcore.docments import docments
from lessons import ROOT, equations, lessons, module, modules

EQUATION = re.compile(r"\((\d\d[a-z]?\.\d+)\)")


def pages() -> dict[str, str]:
    "The source of every page of the reference."
    made = {lesson.module: _page(lesson) for lesson in lessons() if lesson.module}
    return made | {"index": _index()}


def _index() -> str:
    rows = "".join(
        f"   * - :doc:`cfvae.{lesson.module} <{lesson.module}>`\n     - {_escape(ast.get_docstring(module(lesson.module)))}\n     - :doc:`{lesson.title} </{lesson.page}>`\n"
        for lesson in lessons()
        if lesson.module
    )
    return (
        f"{_title('Reference')}Every public name of the package, module by module, in the order in which the lessons build them. Each module imports only from those above it.\n\n"
        f".. list-table::\n   :header-rows: 1\n   :widths: 22 48 30\n\n   * - module\n     - what it holds\n     - built in\n{rows}\n"
        ".. toctree::\n   :hidden:\n\n" + "".join(f"   {name}\n" for name in modules())
    )


def _page(lesson) -> str:
    body = ""
    for name, node in modules()[lesson.module].items():
        if isinstance(node, ast.ClassDef):
            bases = "   :show-inheritance:\n" if node.bases else ""
            body += f".. autoclass:: {name}\n   :members:\n   :special-members: __call__\n{bases}\n"
        elif isinstance(node, ast.FunctionDef):
            body += f".. autofunction:: {name}\n\n"
        else:
            body += _constant(name, node, lesson.module)
    return (
        f"{_title(f'cfvae.{lesson.module}')}.. rst-class:: lead\n\n{_escape(ast.get_docstring(module(lesson.module)))}\n\nBuilt in lesson :doc:`{lesson.title} </{lesson.page}>`.\n\n"
        f".. module:: cfvae.{lesson.module}\n\n{body}"
    )


def _constant(name: str, node: ast.Assign | ast.AnnAssign, home: str) -> str:
    "A constant with its value, where that is short, and the comment beside it; a dict with its keys; an option of the commands with its help."
    value = (
        ast.unparse(node.value)
        if isinstance(node.value, ast.Constant | ast.Tuple)
        and not isinstance(getattr(node, "targets", [None])[0], ast.Tuple)
        else ""
    )
    helps = [
        each.value.value
        for each in ast.walk(node.value)
        if isinstance(each, ast.keyword) and each.arg == "help"
    ]
    keys = [each.value for each in getattr(node.value, "keys", ()) if isinstance(each, ast.Constant)]
    line = re.search(
        rf"^{name}\b[^\n]*?  # (.+)$",
        (ROOT / "cfvae" / f"{home}.py").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    about = [
        *helps,
        *([line[1][0].upper() + line[1][1:] + "."] if line else []),
        *([f"Keys: {', '.join(f'`{key}`' for key in keys)}."] if keys else []),
    ]
    return f".. py:data:: {name}\n{f'   :value: {value}' if 0 < len(value) < 90 else ''}\n\n" + "".join(
        f"   {_escape(text)}\n\n" for text in about
    )


def _title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n\n"


def _escape(text: str) -> str:
    "Plain text as reStructuredText; what stands between backticks is code."
    pieces = re.split(r"`([^`]+)`", text)
    return "".join(
        f"``{piece}``" if index % 2 else re.sub(r"([\\*|_<>])", r"\\\1", piece)
        for index, piece in enumerate(pieces)
    )


def _type(annotation: object) -> str:
    "A type as one writes it, without the modules it comes from."
    text = (
        annotation
        if isinstance(annotation, str)
        else inspect.formatannotation(
            typing.get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
        )
    )
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", text)


def _callable(obj: object) -> object:
    "What is called when `obj` is: the constructor of a class, where it has one of its own."
    if not inspect.isclass(obj):
        return obj
    return obj.__dict__.get("__init__", obj) if not dataclasses.is_dataclass(obj) else obj


def _parameters(obj: object) -> list[inspect.Parameter]:
    try:
        found = inspect.signature(_callable(obj)).parameters.values()
    except (ValueError, TypeError):
        return []
    return [p for p in found if p.name != "self" and not p.name.startswith("_")]


class _Default:
    "A default as pages show it: of a long one only the kind."

    def __init__(self, value: object):
        self.value = value

    def __repr__(self) -> str:
        text = getattr(self.value, "__name__", repr(self.value))
        return text if len(text) < 60 else f"{type(self.value).__name__}(...)"


def signature(app, what, name, obj, options, text, returns):
    "Names and defaults: the types stand in the table below."
    if what not in ("class", "function", "method") or _inherits_constructor(obj):
        return None
    shown = [
        p.replace(annotation=p.empty, default=p.default if p.default is p.empty else _Default(p.default))
        for p in _parameters(obj)
    ]
    return str(inspect.Signature(shown, __validate_parameters__=False)), None


def _inherits_constructor(obj: object) -> bool:
    return inspect.isclass(obj) and not dataclasses.is_dataclass(obj) and "__init__" not in obj.__dict__


def docstring(app, what, name, obj, options, lines):
    "Complete a docstring: parameters and what is returned from the comments beside them, raised errors from the code, equations from the lessons."
    if what == "module":
        return
    text = "\n".join(lines).strip()
    numbers = [number for number in dict.fromkeys(EQUATION.findall(text)) if number in equations()]
    lines[:] = [*_escape(text).splitlines(), ""]
    for number in numbers:
        lines += [
            ".. math::",
            "   :no-wrap:",
            "",
            *(f"   {line}" for line in equations()[number][1].splitlines()),
            "",
        ]
    if what in ("class", "function", "method") and not _inherits_constructor(obj):
        lines += _sections(obj, what)


def _sections(obj: object, what: str) -> list[str]:
    "Parameters, Returns and Raises as numpydoc reads them."
    try:
        comments = docments(_callable(obj), full=True)
    except Exception:  # built by a decorator: there is no source to read
        comments = {}
    lines = []
    if parameters := _parameters(obj):
        lines += ["Parameters", "----------"]
        for p in parameters:
            default = "" if p.default is p.empty else f", default ``{_Default(p.default)}``"
            lines += [
                f"{p.name} : ``{_type(p.annotation)}``{default}" if p.annotation is not p.empty else p.name
            ]
            lines += [f"    {_escape(_help(p) or (comments.get(p.name) or {}).get('docment') or '')}"]
    returned = inspect.signature(obj).return_annotation if what != "class" else None
    if returned not in (None, inspect.Signature.empty, "None"):
        lines += [
            "",
            "Returns",
            "-------",
            f"``{_type(returned)}``",
            f"    {_escape((comments.get('return') or {}).get('docment') or '')}",
        ]
    if messages := _messages(obj):
        lines += [
            "",
            "Raises",
            "------",
            "CfvaeError",
            *(f"    - {_escape(message)}" for message in messages),
        ]
    return ["", *lines, ""]


def _help(parameter: inspect.Parameter) -> str:
    "The help text of a command's option."
    return next(
        (
            meta.help
            for meta in getattr(parameter.annotation, "__metadata__", ())
            if getattr(meta, "help", None)
        ),
        "",
    )


@functools.cache
def _messages(obj: object) -> list[str]:
    "What the errors say that the code itself raises: `check(condition, message)` and `raise CfvaeError(message)`."
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(obj))).body[0]
    except (OSError, TypeError, SyntaxError):
        return []
    parts = (
        [
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name in ("__init__", "__post_init__")
        ]
        if inspect.isclass(obj)
        else [tree]
    )
    calls = [
        node
        for part in parts
        for node in ast.walk(part)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    found = [
        call.args[{"check": 1, "CfvaeError": 0}[call.func.id]]
        for call in calls
        if call.func.id in ("check", "CfvaeError") and len(call.args) > (call.func.id == "check")
    ]
    return [text for text in map(_message, found) if text]


def _message(node: ast.expr) -> str:
    "A message as the source has it, with names in the place of values."
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return ""
    return " ".join(
        "".join(
            part.value if isinstance(part, ast.Constant) else f"`{_short(part.value)}`"
            for part in node.values
        ).split()
    )


def _short(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if len(text) < 40 and "`" not in text else "..."
