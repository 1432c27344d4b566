"""`evaluate`: how good a model is, by the measures of the field."""

from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ..runs.evaluate import Evaluation, Question, evaluate as measure
from ..runs.evaluation_page import prepare_folder, write_evaluation
from ..runs.image_sets import Style
from ..runs.judging import Row, Value
from . import drawing


def read_style(mean_weight: str, var_weight: str, temperature: str) -> Style:
    "What the options of the same names say."
    style = drawing.read_style(mean_weight, var_weight, temperature)
    return Style(style.guidance, style.temperature)


def evaluate(
    question: Question,  # what is to be measured
    out: Path,  # a folder for numbers and page
) -> None:
    "Measure a model, print a table for every judge, and write numbers and page."
    prepare_folder(out)  # before the work rather than after it
    evaluation, shown = measure(question)
    print_evaluation(evaluation)
    for path in write_evaluation(evaluation, shown, out):
        print(f"written: {path}")


def print_evaluation(
    evaluation: Evaluation,  # as from `runs.evaluate.evaluate`
) -> None:
    "Print what was measured against held-out images, a table for every judge."
    question = evaluation.question
    for judge, about in evaluation.judges.items():
        print(f"n = {question.n:,} on either side, features of {judge} ({about}), data {question.data}")
        _print_table([row for row in evaluation.rows if row.judge == judge])
    print("the first line is the floor, real against real; ± is the standard error")
    if evaluation.chosen is not None:
        print(f"guidance chosen against training images: {evaluation.chosen}")


def _print_table(rows: list[Row]) -> None:
    headings = {"frechet": 1, "kernel": 1000, "precision": 100, "recall": 100, "density": 1, "coverage": 100}
    if "accuracy" in rows[0].measures:
        headings["accuracy"] = 100
    units = {1: "", 100: " %", 1000: " x1000"}

    table = Table(box=SIMPLE)
    table.add_column("images")
    for name, factor in headings.items():
        table.add_column(f"{name}{units[factor]}", justify="right")
    for row in rows:
        cells = [_cell(row.measures.get(name), factor) for name, factor in headings.items()]
        table.add_row(row.images, *cells)
    Console(width=140, highlight=False, force_jupyter=False).print(table)


def _cell(measured: Value | None, factor: int) -> str:
    if measured is None:  # samples of a model without classes were not asked for any
        return ""
    digits = 1 if factor == 100 else 2
    return f"{factor * measured.value:.{digits}f} ± {factor * measured.error:.{digits}f}"
