"""Models of several kinds on the same data, the same first stage and the same training FLOPs, and what their
samples are worth: one folder with all of it, which a comparison that was killed takes up again."""

import contextlib
import functools
import json
import re
import typing
from collections.abc import Sequence
from pathlib import Path

import torch

from ...checkpoints import write_synced
from ...core import check, check_path, config_to_dict, count_parameters, get_device
from ...files.lock import LOCK_FILE, OWNER_FILE, FolderLock
from ...files.names import first_few
from ...data import ImageDataset
from ...files.store import source_tag
from ...hvae import HierarchicalVAE
from ...latents import weights_fingerprint
from ...recipes import Recipe
from .contestant import Contestant, Material
from .crew import Crew
from .figures import write_figures
from .judging import Jury, Point, call_jury, is_judged, judge_point, measure_cost, measure_floors
from .material import Given, Plan, gather, open_given
from .models import MODELS
from .pictures import write_pictures
from .results import collect_points, describe_comparison, describe_model
from .training import (
    NUMBER,
    Fields,
    Job,
    Kinds,
    example_flops,
    keep,
    keep_result,
    load_trained,
    read_kept,
    read_result,
    run_job,
    steps_for,
)
from ..free import refuse_foreign
from ..judges import check_source
from ..machine import Machine, describe_machine
from ..output import say
from ..public import public_path, public_recipe
from ..train import check_recipe

SETTINGS = {"recipe", "images", "codes", "budget", "n", "features", "vae"}  # fields of settings.json
LEFTOVER = re.compile(r"settings\.json\.[0-9a-f]{16}\.tmp")  # half-written, by a process that was killed
COST = {"gflop_per_image": NUMBER, "seconds_per_image": NUMBER}
MOST_ON_A_CPU = 128  # evaluations for an image; more take hours there


def compare(
    recipe: Recipe,  # of data, first stage and VAE
    plan: Plan,  # what is compared, and how
    out: str | Path,  # a folder of its own, or that of the same comparison, which goes on
) -> Fields:
    "Train, draw and judge; what comparison.json holds. Raises `CfvaeError` where that cannot be done."
    out = check_path(out)
    check_recipe(recipe)
    _check_folder(out)
    check_source(plan.features)
    place = get_device(plan.device)
    with FolderLock(out), _fast_products():
        given = open_given(plan)
        review = functools.partial(_count_steps, plan)  # a budget that is too small is noticed at once
        material, real, others = gather(recipe, plan, given, out, review)
        contestants = _applicable(plan, material)
        for name in plan.models:
            if name not in contestants:
                say(f"{name} is left out: {MODELS[name](material).obstacle}")
        budget, flops, steps = _count_steps(plan, material)
        jury = call_jury(material, plan.features, real, place)
        _claim(out, material, plan, budget, _rests_on(material, given, jury, real, others))
        if given is not None and given.vae is not None:
            _adopt(given.vae, material, out)
        finals = _finals(plan, contestants)

        with Crew(material, plan.jobs) as crew:
            _train_all(crew, contestants, finals, steps, out)
            points = _points(contestants, finals, place)
            judges = crew if place.type == "cpu" else Crew(material, jobs=1)
            judge = functools.partial(judge_point, jury=jury, device=place, out=out)
            judges.run(judge, [point for point in points if not is_judged(point, out)])

        machine = describe_machine(place)
        costs = _measure_costs(contestants, points, place, machine, out)
        measure = functools.partial(measure_floors, material, jury, others, place)
        floors = _keep(out / "floors.json", {"real": dict}, measure)
        models = {}
        for name, contestant in contestants.items():
            jobs = [job for job in finals if job.model == name]
            models[name] = describe_model(contestant, jobs, flops[name], out)
        about = describe_comparison(material, plan, budget, jury, machine)
        comparison = {
            **about,
            "floors": floors,
            "models": models,
            "points": collect_points(points, costs, out),
        }
        write_synced(out / "comparison.json", json.dumps(comparison, indent=1).encode())
        write_figures(comparison, out)
        write_pictures(material, contestants, real, place, out)
        return comparison


@contextlib.contextmanager
def _fast_products() -> typing.Iterator[None]:
    "Within the block a GPU multiplies float32 matrices in TF32, as it does in convolutions by default."
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _check_folder(out: Path) -> None:
    "Raises `CfvaeError` for a folder with anything but a comparison."
    check(out != Path(), "--out is empty, or the current folder: name a folder, such as runs/comparison")
    check(out.is_dir() or not out.exists(), f"{out} is a file: choose another --out")
    refuse_foreign(out, ("settings.json",), SETTINGS)
    if out.is_dir() and not (out / "settings.json").is_file():
        known = {"first-stage", "codes", LOCK_FILE, OWNER_FILE}  # what is written before the settings
        names = sorted(path.name for path in out.iterdir())
        foreign = [name for name in names if name not in known and not LEFTOVER.fullmatch(name)]
        check(
            not foreign, f"{out} holds files but no comparison ({first_few(foreign)}): choose another --out"
        )


def _applicable(plan: Plan, material: Material) -> dict[str, Contestant]:
    "The models that can be had of the data."
    contestants = {name: MODELS[name](material) for name in plan.models}
    applicable = {name: contestant for name, contestant in contestants.items() if not contestant.obstacle}
    obstacles = "; ".join({contestant.obstacle: None for contestant in contestants.values()})
    check(bool(applicable), f"no model is left to compare: {obstacles}")
    return applicable


def _count_steps(plan: Plan, material: Material) -> tuple[float, dict[str, float], dict[str, int]]:
    "The budget, the FLOPs of an example, and the steps that it pays for in every model that is trained."
    contestants = _applicable(plan, material)
    flops = {name: example_flops(contestant) for name, contestant in contestants.items()}
    budget = _budget_of_recipe(material) if plan.budget is None else plan.budget
    to_train = [name for name in contestants if name != "vae" or plan.vae is None]
    steps = {name: steps_for(contestants[name], budget, flops[name]) for name in to_train}
    return budget, flops, steps


def _finals(plan: Plan, contestants: dict[str, Contestant]) -> list[Job]:
    "The trainings that are judged: one a model and seed, and of a VAE that was trained before the one."
    finals = []
    for name in contestants:
        seeds = 1 if name == "vae" and plan.vae is not None else plan.seeds
        finals += [Job(name, seed) for seed in range(seeds)]
    return finals


def _budget_of_recipe(material: Material) -> float:
    "Training FLOPs of the recipe's stage two."
    training = material.recipe.vae_training
    return example_flops(MODELS["vae"](material)) * training.batch_size * training.steps


def _rests_on(
    material: Material, given: Given | None, jury: Jury, real: ImageDataset, others: ImageDataset
) -> Fields:
    "What results rest on besides the plan, in digests: what lies at a path may have changed since."
    scaler = material.codes.scaler
    vae = None if given is None else given.vae
    return {
        "scaler": [scaler.shift.flatten().tolist(), scaler.scale.flatten().tolist(), scaler.clip],
        "real images": [real.fingerprint, others.fingerprint],
        "judges": jury.weights,
        "VAE's weights": None if vae is None else weights_fingerprint(vae),
    }


def _claim(out: Path, material: Material, plan: Plan, budget: float, rests_on: Fields) -> None:
    "Note what all results rest on. Raises `CfvaeError` where those that are there rest on something else."
    recipe = config_to_dict(public_recipe(material.recipe))
    for part in ("autoencoder_training", "vae_training"):
        del recipe[part]["device"]
    settings = {
        "recipe": recipe,
        "images": material.images.fingerprint,
        "codes": material.codes.fingerprint,
        "budget": budget,
        "n": plan.n,
        "features": _public_tag(plan.features),
        "vae": plan.vae and _public_tag(plan.vae),
        **rests_on,
    }
    settings = json.loads(json.dumps(settings))
    path = out / "settings.json"
    earlier = read_kept(path, dict.fromkeys(SETTINGS, object)) if path.is_file() else {}
    earlier = settings | earlier  # an earlier version noted less
    changed = [name for name in settings if settings[name] != earlier[name]]
    check(
        not changed,
        f"{out} holds a comparison with another {' and another '.join(changed)}: "
        "give the same command again to go on with it, or choose another --out",
    )
    write_synced(path, json.dumps(settings, indent=1).encode())


def _public_tag(path: str) -> str:
    "Of a path through this machine its last name, and a digest that tells it from others of that name."
    return path if public_path(path) == path else source_tag(Path(path))


def _adopt(vae: HierarchicalVAE, material: Material, out: Path) -> None:
    "Put a VAE that was trained before in the place of one trained here."
    training = material.recipe.vae_training
    result: Fields = {
        "rate": training.learning_rate,
        "steps": training.steps,
        "batch_size": training.batch_size,
        "loss": None,
        "curve": [],
        "parameters": count_parameters(vae),
        "seconds": None,  # it was trained elsewhere
        "peak_memory": None,
    }
    keep_result(Job("vae", seed=0), result, vae, out)


# --- trainings and points


def _train_all(
    crew: Crew[Material],
    contestants: dict[str, Contestant],
    finals: Sequence[Job],
    steps: dict[str, int],
    out: Path,
) -> None:
    "First all tries, then the trainings with the rates that they chose; what is there is not done again."
    pending = [job for job in finals if read_result(job, out) is None]
    tries = [attempt for job in pending for attempt in job.tries(contestants[job.model])]
    task = functools.partial(run_job, steps=steps, out=out)
    crew.run(task, [attempt for attempt in tries if read_result(attempt, out) is None])
    crew.run(task, pending)


def _points(contestants: dict[str, Contestant], finals: Sequence[Job], place: torch.device) -> list[Point]:
    "Every way to draw from every trained model, the longest first."
    points = []
    for job in finals:
        contestant = contestants[job.model]
        points += [Point(job, style) for style in contestant.styles if contestant.can_draw(style)]
    if place.type == "cpu":
        short = [point for point in points if point.style.evaluations <= MOST_ON_A_CPU]
        if len(short) < len(points):
            say(f"more than {MOST_ON_A_CPU} evaluations an image are drawn on a GPU only")
        points = short
    return sorted(points, key=lambda point: -point.style.evaluations)


def _measure_costs(
    contestants: dict[str, Contestant],
    points: Sequence[Point],
    place: torch.device,
    machine: Machine,
    out: Path,
) -> dict[tuple[str, str], Fields]:
    "For every model and style what an image costs, on a machine that does nothing else."
    here = {"machine": f"{machine.name}, {machine.threads} threads"}
    costs = {}
    for point in points:
        name = point.job.model
        if point.job.seed == 0:
            measure = functools.partial(_measure_cost, contestants[name], point, place, out)
            path = out / "costs" / name / f"{point.style.name}.json"
            costs[name, point.style.name] = _keep(path, COST, measure, here)
    return costs


def _measure_cost(contestant: Contestant, point: Point, place: torch.device, out: Path) -> Fields:
    model = load_trained(contestant, point.job, out).to(place)
    return measure_cost(contestant, model, point.style)


def _keep(
    path: Path, needed: Kinds, measure: typing.Callable[[], Fields], here: Fields | None = None
) -> Fields:
    "What was measured before, under the same circumstances, or is measured now and kept with them."
    kept = read_kept(path, needed) if path.is_file() else None
    here = here or {}
    if kept is not None and here.items() <= kept.items():
        return kept
    fields = measure() | here
    keep(path, fields)
    return fields
