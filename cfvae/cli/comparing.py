"""`compare`: models of several kinds, on the same data and the same training FLOPs."""

import dataclasses
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ..runs.compare.run import compare as run
from ..runs.compare.material import Plan
from ..runs.compare.training import Fields
from ..runs.presets import preset
from .parsing import split_list


def compare(
    name: str,  # of a preset
    data: str | None,  # as `open_dataset` reads it; None: the preset's
    models: str | None,  # as --models says, names with commas; None: all
    plan: Plan,  # the rest
    out: Path,  # the comparison's folder
) -> None:
    "Compare, print a table for every judge, and write numbers, figures and pictures."
    recipe = preset(name)
    if data is not None:
        recipe = dataclasses.replace(recipe, data=data)
    if models is not None:
        plan = dataclasses.replace(plan, models=tuple(split_list(models)))
    comparison = run(recipe, plan, out)
    print_comparison(comparison)
    print(f"written: {out / 'comparison.json'}")


def print_comparison(
    comparison: Fields,  # as from `runs.compare.compare`
) -> None:
    "Print every point, a table for every judge; the first lines are the floors."
    for judge in comparison["judges"]:
        print(f"n = {comparison['n']:,} on either side, features of {judge}, data {comparison['data']}")
        known = comparison["points"][0]["measures"][judge]
        measures = [name for name in ("accuracy", *known) if name in known]
        measures = list(dict.fromkeys(measures))
        table = Table(box=SIMPLE)
        table.add_column("images")
        for heading in ("GFLOP", "ms", *measures):
            table.add_column(heading, justify="right")
        for name, floor in comparison["floors"].items():
            values = floor["measures"][judge]
            table.add_row(
                name, "", "", *[_cell(values[key]["value"], values[key]["error"]) for key in measures]
            )
        for point in comparison["points"]:
            values = point["measures"][judge]
            cost = (f"{point['gflop_per_image']:.3g}", f"{1e3 * point['seconds_per_image']:.3g}")
            cells = [_cell(values[key]["mean"], values[key]["error"]) for key in measures]
            table.add_row(f"{point['model']}, {point['title']}", *cost, *cells)
        Console(width=160, highlight=False, force_jupyter=False).print(table)


def _cell(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"
