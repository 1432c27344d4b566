"""Docstrings as autodoc shows them, completed from the source: parameters, messages of errors, equations."""

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from typing import Any

from fastcore.docments import docments
from lessons import equations
from names import parse
from sphinx.application import Sphinx

EQUATION = re.compile(r"\((\d\d[a-z]?\.\d+)\)")
LONGEST_DEFAULT = 60  # characters
LONGEST_NAME = 40  # of what stands in the place of a value in a message
MESSAGE_ARGUMENT = {"check": 1, "CfvaeError": 0}  # which argument says what is wrong
CALLABLES = ("class", "function", "method")


def escape(text: str) -> str:
    "Plain text as reStructuredText; what stands between backticks is code."
    pieces = re.split(r"`([^`]+)`", text)
    for place, piece in enumerate(pieces):
        is_code = place % 2 == 1
        pieces[place] = f"``{piece}``" if is_code else re.sub(r"([\\*|_<>])", r"\\\1", piece)
    return "".join(pieces)


# what autodoc asks


def signature(
    app: Sphinx, what: str, name: str, obj: Any, options: object, text: str, returns: str
) -> tuple[str, None] | None:
    "Names and defaults: the types stand in the table below."
    if what not in CALLABLES or _inherits_constructor(obj):
        return None
    shown = []
    for parameter in _parameters(obj):
        default = parameter.default
        if default is not parameter.empty:
            default = _Default(default)
        shown.append(parameter.replace(annotation=parameter.empty, default=default))
    return str(inspect.Signature(shown, __validate_parameters__=False)), None


def complete(app: Sphinx, what: str, name: str, obj: Any, options: object, lines: list[str]) -> None:
    "Add the equations that a docstring cites, and the sections that numpydoc turns into tables."
    if what == "module":
        return
    text = "\n".join(lines).strip()
    lines[:] = [*escape(text).splitlines(), ""]
    cited = dict.fromkeys(EQUATION.findall(text))
    for number in cited:
        if number in equations():
            lines += _equation(number)
    if what not in CALLABLES or _inherits_constructor(obj):
        return
    lines += ["", *_parameter_section(obj)]
    if what != "class":
        lines += _return_section(obj)
    lines += [*_error_section(obj), ""]


def _equation(number: str) -> list[str]:
    _, tex = equations()[number]
    indented = [f"   {line}" for line in tex.splitlines()]
    return [".. math::", "   :no-wrap:", "", *indented, ""]


# parameters and what is returned


def _parameter_section(obj: Any) -> list[str]:
    parameters = _parameters(obj)
    if not parameters:
        return []
    comments = _comments(obj)
    lines = ["Parameters", "----------"]
    for parameter in parameters:
        line = parameter.name
        if parameter.annotation is not parameter.empty:
            line += f" : ``{_type_name(parameter.annotation)}``"
            if parameter.default is not parameter.empty:
                line += f", default ``{_Default(parameter.default)}``"
        description = _option_help(parameter) or comments.get(parameter.name, "")
        lines += [line, f"    {escape(description)}"]
    return lines


def _return_section(obj: Any) -> list[str]:
    annotation = inspect.signature(obj).return_annotation
    if annotation in (None, inspect.Signature.empty, "None"):
        return []
    description = escape(_comments(obj).get("return", ""))
    return ["", "Returns", "-------", f"``{_type_name(annotation)}``", f"    {description}"]


def _comments(obj: Any) -> dict[str, str]:
    "The comment beside each parameter."
    try:
        described = docments(_callable(obj), full=True)
    except Exception:  # built by a decorator: there is no source to read
        return {}
    return {name: about["docment"] for name, about in described.items() if about and about["docment"]}


def _callable(obj: Any) -> Any:
    "What is called when `obj` is: the constructor of a class, where it has one of its own."
    if inspect.isclass(obj) and not dataclasses.is_dataclass(obj):
        return obj.__dict__.get("__init__", obj)
    return obj


def _inherits_constructor(obj: Any) -> bool:
    return inspect.isclass(obj) and not dataclasses.is_dataclass(obj) and "__init__" not in obj.__dict__


def _parameters(obj: Any) -> list[inspect.Parameter]:
    try:
        parameters = inspect.signature(_callable(obj)).parameters.values()
    except (ValueError, TypeError):
        return []
    return [each for each in parameters if each.name != "self" and not each.name.startswith("_")]


class _Default:
    "A default as pages show it: of a long one only the kind."

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        text = getattr(self.value, "__name__", repr(self.value))
        return text if len(text) < LONGEST_DEFAULT else f"{type(self.value).__name__}(...)"


def _type_name(annotation: object) -> str:
    "A type as one writes it, without the modules it comes from."
    if hasattr(annotation, "__metadata__"):  # Annotated[type, ...]
        annotation = typing.get_args(annotation)[0]
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])", "", text)


def _option_help(parameter: inspect.Parameter) -> str:
    "The help text of a command's option."
    for about in getattr(parameter.annotation, "__metadata__", ()):
        if getattr(about, "help", None):
            return about.help
    return ""


# errors


def _error_section(obj: Any) -> list[str]:
    messages = [f"    - {escape(message)}" for message in _messages(obj)]
    return ["", "Raises", "------", "CfvaeError", *messages] if messages else []


def _messages(obj: Any) -> list[str]:
    "What the errors say that the code raises, by `check(condition, message)` or `CfvaeError(message)`."
    messages = []
    for function in _functions(obj):
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                place = MESSAGE_ARGUMENT.get(node.func.id, len(node.args))
                messages += [_message(argument) for argument in node.args[place : place + 1]]
    return [message for message in dict.fromkeys(messages) if message]


def _functions(obj: Any) -> list[ast.FunctionDef]:
    "The code of a function, or what runs when a class is called; and the module's helpers that it calls."
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(obj))).body[0]
        module = parse(obj.__module__.removeprefix("cfvae."))
    except (OSError, TypeError, SyntaxError):
        return []
    if isinstance(tree, ast.ClassDef):
        functions = [node for node in _defined(tree) if node.name in ("__init__", "__post_init__")]
    else:
        functions = [node for node in [tree] if isinstance(node, ast.FunctionDef)]
    helpers = {node.name: node for node in _defined(module) if node.name.startswith("_")}

    for function in functions:  # which grows
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id in helpers:
                functions.append(helpers.pop(node.id))
    return functions


def _defined(scope: ast.Module | ast.ClassDef) -> list[ast.FunctionDef]:
    return [node for node in scope.body if isinstance(node, ast.FunctionDef)]


def _message(node: ast.expr) -> str:
    "A message as the source has it, with names in the place of values."
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return ""
    text = ""
    for part in node.values:
        if isinstance(part, ast.FormattedValue):
            text += f"`{_value_name(part.value)}`"
        elif isinstance(part, ast.Constant):
            text += str(part.value)
    return " ".join(text.split())


def _value_name(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if len(text) < LONGEST_NAME and "`" not in text else "..."
