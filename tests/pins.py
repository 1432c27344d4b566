"""What results and saved files rest on, as it was pinned: pictures, constants, defaults, recipes, answers.

A change of one of them changes every number of the lessons that follows from it. Where that is meant,
`python tests/pins.py` pins what is there now, and the difference lands with the change."""

import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
import types
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer.main
from answers import all_answers
from PIL import Image

import cfvae
from cfvae.cli import app
from cfvae.core import config_to_dict
from cfvae.data import Shapes
from cfvae.runs.presets import PRESETS, preset

PINNED = Path(__file__).parent / "pinned"
PLAIN = (bool, int, float, str, types.NoneType)


def plain(value: Any) -> Any:
    "As JSON holds it; what it cannot hold, by the name of its type."
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(vars(value))
    return f"a {type(value).__name__}"


# --- constants and defaults of the method


def defaults_of(function: Any) -> dict[str, Any]:
    "Parameters that have a default -> it."
    defaults = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not parameter.empty:
            defaults[name] = plain(parameter.default)
    return defaults


def functions_of(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    "All that a module defines, methods included, with the names they go by in it."
    for name, item in vars(module).items():
        if getattr(item, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(item):
            yield name, item
        elif inspect.isclass(item):
            for method, function in vars(item).items():
                function = inspect.unwrap(getattr(function, "__func__", function))
                if inspect.isfunction(function) and function.__module__ == module.__name__:
                    yield f"{name}.{method}", function


def pin_values() -> dict[str, Any]:
    "Constants of the method's modules, and the defaults of all that they define."
    values: dict[str, Any] = {}
    for found in pkgutil.iter_modules(cfvae.__path__):
        if found.ispkg or found.name.startswith("_"):
            continue
        module = importlib.import_module(f"cfvae.{found.name}")
        for name in re.findall(r"^([A-Z][A-Z_]+)\b.* = ", inspect.getsource(module), re.MULTILINE):
            values[f"{found.name}.{name}"] = plain(getattr(module, name))
        for name, function in functions_of(module):
            defaults = defaults_of(function)
            if defaults:
                values[f"{found.name}.{name}"] = defaults
    return dict(sorted(values.items()))


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


def pin_commands() -> dict[str, Any]:
    "Every option of every command: what it is called, and what it takes."
    options = {}
    for name, command in typer.main.get_command(app).commands.items():
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


if __name__ == "__main__":
    write("values", pin_values())
    write("recipes", pin_recipes())
    write("commands", pin_commands())
    write("answers", all_answers())
    Image.fromarray(pin_pictures()).save(PINNED / "shapes.png", optimize=True)
