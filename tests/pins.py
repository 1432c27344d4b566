"""What results and saved files rest on, as it was pinned: pictures, constants, defaults, recipes, answers.

A change of one of them changes every number of the lessons that follows from it. Where that is meant,
`python tests/pins.py` pins what is there now, or a part of it (`python tests/pins.py values limits`), and the
difference lands with the change."""

import ast
import dataclasses
import importlib
import inspect
import json
import math
import pkgutil
import re
import sys
import types
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
import typer.main
from answers import all_answers
from PIL import Image

import cfvae
from cfvae.cli import app
from cfvae.core import CfvaeError, config_to_dict
from cfvae.data import Shapes
from cfvae.runs.presets import PRESETS, preset

PINNED = Path(__file__).parent / "pinned"
PLAIN = (bool, int, float, str, types.NoneType)
OF_THE_MACHINE = {
    "errno",
    "Image",
    "READABLE",
}  # numbers of the system; formats that this Pillow was built with
PROSE = "words"  # for others than programs: they may change
EDGES = (-1, 0, 1, 2, 3, 4, 12, 0.5, 1.5, math.inf)  # among which the limits of most fields lie


def plain(value: Any) -> Any:
    "As JSON holds it; what it cannot hold, by the name of its type."
    if isinstance(value, str) and " " in value:
        return PROSE
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(vars(value))
    return f"a {type(value).__name__}"


# --- constants, defaults and limits


def modules() -> Iterator[types.ModuleType]:
    "All of the package, but for those that run, that nbdev writes, or whose defaults are those of commands."
    for found in pkgutil.walk_packages(cfvae.__path__, "cfvae."):
        if not found.name.endswith(("__main__", "_modidx", "cli.commands")):
            yield importlib.import_module(found.name)


def constants_of(module: types.ModuleType) -> list[str]:
    "Names in capital letters that a module gives a value of its own."
    names = []
    for statement in ast.parse(inspect.getsource(module)).body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
            if isinstance(target, ast.Name) and target.id.isupper() and not used & OF_THE_MACHINE:
                names.append(target.id)
    return names


def defaults_of(function: Any) -> dict[str, Any]:
    "Parameters that have a default -> it."
    defaults = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not parameter.empty:
            defaults[name] = plain(parameter.default)
    return defaults


def functions_of(owner: Any) -> Iterator[tuple[str, Any]]:
    "All that a class defines."
    for name, item in vars(owner).items():
        function = inspect.unwrap(getattr(item, "__func__", item))
        if inspect.isfunction(function) and function.__module__ == owner.__module__:
            yield name, function


def values_of(kind: type) -> Iterator[tuple[str, Any]]:
    "What all objects of a class share, but for its methods and the defaults of its fields."
    fields = getattr(kind, "__dataclass_fields__", {})
    for name, value in vars(kind).items():
        if not name.startswith("_") and name not in fields and isinstance(value, (*PLAIN, tuple, dict)):
            yield name, value


def pin_values() -> dict[str, Any]:
    "Constants of all modules, what their classes share, and the defaults of all that they define."
    values: dict[str, Any] = {}
    for module in modules():
        values |= {f"{module.__name__}.{name}": plain(getattr(module, name)) for name in constants_of(module)}
        for name, item in vars(module).items():
            if getattr(item, "__module__", None) != module.__name__:
                continue
            place = f"{module.__name__}.{name}"
            if inspect.isfunction(item):
                values[place] = defaults_of(item)
            elif inspect.isclass(item):
                values |= {f"{place}.{name}": plain(value) for name, value in values_of(item)}
                values |= {f"{place}.{name}": defaults_of(method) for name, method in functions_of(item)}
    return {name.removeprefix("cfvae."): value for name, value in sorted(values.items()) if value != {}}


def is_accepted(kind: type, fields: dict[str, Any]) -> bool:
    try:
        kind(**fields)
    except (CfvaeError, TypeError):
        return False
    return True


def pin_limits() -> dict[str, list[Any]]:
    "Field for numbers of a dataclass that checks them -> those of EDGES that it takes, alone or as a list."
    limits = {}
    kinds = {kind for module in modules() for kind in vars(module).values() if inspect.isclass(kind)}
    for kind in sorted(kinds, key=lambda kind: (kind.__module__, kind.__name__)):
        if not kind.__module__.startswith("cfvae.") or "__post_init__" not in vars(kind):
            continue
        fields = dataclasses.fields(kind)
        required = {field.name: "mine" for field in fields if field.default is dataclasses.MISSING}
        for field in fields:
            if not re.search(r"\b(int|float)\b", str(field.type)):
                continue
            several = isinstance(field.default, tuple)
            given = {edge: (edge,) * len(field.default or "1") if several else edge for edge in EDGES}
            place = f"{kind.__module__}.{kind.__name__}.{field.name}".removeprefix("cfvae.")
            limits[place] = [
                edge for edge in EDGES if is_accepted(kind, {**required, field.name: given[edge]})
            ]
    return limits


# --- the command line


ABOUT_OPTIONS = (
    "default",
    "required",
    "multiple",
    "is_flag",
    "hidden",
    "show_default",
    "min",
    "max",
    "metavar",
)


def all_commands() -> dict[str, Any]:
    "All commands by their names, and the program itself."
    whole = typer.main.get_command(app)
    return {"cfvae": whole, **whole.commands}


def pin_commands() -> dict[str, Any]:
    "Every option of every command: what it is called, and what it takes."
    options = {}
    for name, command in all_commands().items():
        for option in command.params:
            about = {field: plain(getattr(option, field, None)) for field in ABOUT_OPTIONS}
            calls = "/".join([*option.opts, *option.secondary_opts])
            options[f"{name} {calls}"] = {k: v for k, v in about.items() if v is not None and v is not False}
    return options


# --- recipes


def pin_recipes() -> dict[str, Any]:
    "Every preset, part by part."
    parts = {}
    for name in PRESETS:
        parts |= {f"{name}.{part}": value for part, value in plain(config_to_dict(preset(name))).items()}
    return parts


# --- pictures


def tile(images: torch.Tensor) -> np.ndarray:
    "A sheet of ten images a row, (rows * size, 10 * size, 3)."
    rows = images.unflatten(0, (-1, 10)).permute(0, 3, 1, 4, 2)
    return rows.flatten(2, 3).flatten(0, 1).numpy()


def pin_pictures() -> np.ndarray:
    "A hundred of the generated pictures, in which every factor takes every value."
    return tile(Shapes(100, seed=4).images)


# --- as they were


def flatten(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    "Of dictionaries within dictionaries one, with dots in its names."
    flat = {}
    for name, value in values.items():
        flat |= flatten(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return flat


def read(name: str) -> dict[str, Any]:
    return json.loads((PINNED / f"{name}.json").read_text(encoding="utf-8"))


def differences(name: str, now: dict[str, Any]) -> list[str]:
    "A line for everything that is not as it was pinned."
    pinned = flatten(read(name))
    found = flatten(json.loads(json.dumps(now)))
    lines = []
    for key in dict.fromkeys([*pinned, *found]):
        before, after = pinned.get(key, "nothing"), found.get(key, "nothing")
        if before != after:
            lines.append(f"{key} was {before}, is {after}")
    return lines


def write(name: str, values: dict[str, Any]) -> None:
    "A line an entry."
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    (PINNED / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


PINS = {
    "values": pin_values,
    "limits": pin_limits,
    "commands": pin_commands,
    "recipes": pin_recipes,
    "answers": all_answers,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or PINS:
        write(name, PINS[name]())
    if not sys.argv[1:]:
        Image.fromarray(pin_pictures()).save(PINNED / "shapes.png", optimize=True)
