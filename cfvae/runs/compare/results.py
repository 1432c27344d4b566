"""What comparison.json holds, put together from the files of a comparison."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from ...core import config_to_dict
from .contestant import Contestant, Material
from .judging import Jury, Point
from .material import Plan
from .training import Fields, Job, read_kept, read_result
from ..machine import Machine
from ..public import public_path, public_recipe


def describe_comparison(
    material: Material,  # what all models share
    plan: Plan,  # what was compared, and how
    budget: float,  # training FLOPs of a model
    jury: Jury,  # who judged
    machine: Machine,  # where samples were drawn
) -> Fields:
    "What all numbers rest on."
    recipe = public_recipe(material.recipe)
    named = {"first_stage": plan.first_stage, "vae": plan.vae, "features": plan.features}
    public = {name: public_path(path) if path else path for name, path in named.items()}
    return {
        "preset": recipe.name,
        "data": recipe.data,
        "recipe": config_to_dict(recipe),
        "plan": dataclasses.asdict(plan) | public,
        "machine": dataclasses.asdict(machine),
        "budget": budget,
        "n": jury.n,
        "judges": list(jury.features),
    }


def describe_model(
    contestant: Contestant,  # its kind
    jobs: Sequence[Job],  # its trainings with the whole budget, one a seed
    flops: float,  # of an example in training
    out: Path,  # the comparison's folder
) -> Fields:
    "What was trained, with the tries of every seed."
    seeds = []
    for job in jobs:
        tries = [read_result(attempt, out) for attempt in job.tries(contestant)]
        trained = read_result(job, out) or {}
        seeds.append({"seed": job.seed, "tries": [attempt for attempt in tries if attempt], **trained})
    return {"title": contestant.title, "unit": contestant.unit, "flops_per_example": flops, "seeds": seeds}


def collect_points(
    points: Sequence[Point],  # all that were judged
    costs: dict[tuple[str, str], Fields],  # of every model and style
    out: Path,  # the comparison's folder
) -> list[Fields]:
    "An entry for each model and style: cost, and every measure with its standard error."
    collected = []
    for (model, style), cost in costs.items():
        same = [point for point in points if (point.job.model, point.style.name) == (model, style)]
        results = [read_kept(out / point.path, {"measures": dict}) for point in same]
        drawn = same[0].style
        about = {"model": model, "name": style, "title": drawn.title, "style": dataclasses.asdict(drawn)}
        collected.append({**about, **cost, "measures": average(results)})
    return collected


def average(
    results: Sequence[Fields],  # of every seed, as a point's file holds it
) -> Fields:
    """Mean and standard error of every judge's measures.

    With several seeds the error is that of their mean; with one, that of its samples alone."""
    judges: Fields = {}
    for judge, measures in results[0]["measures"].items():
        judges[judge] = {}
        for name, first in measures.items():
            values = [result["measures"][judge][name]["value"] for result in results]
            error = first["error"]
            if len(values) > 1:
                error = statistics.stdev(values) / len(values) ** 0.5
            judges[judge][name] = {"mean": statistics.fmean(values), "error": error, "values": values}
    return judges
