"""Run the stored experiments: `python nbs/results/lessons OUT --device cuda --workers 8`.

The records know nothing of each other, so they are made side by side; each experiment becomes a JSON file.
(The processes have to find these functions by name, and could not in `__main__`.)"""

import argparse
import concurrent.futures
import itertools
import json
import multiprocessing
import traceback
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from cfvae.checkpoints import write_synced
from cfvae.data import Shapes
from cfvae.evaluation import shapes_classifier, shipped_classifier
from cfvae.runs.pixel_models import PIXEL_SCHEDULES
from common import Record
from information import pull, reweighting
from pixels_and_codes import budget, steadiness
from steering import guided, settings

SEEDS = (0, 1, 2)
Task = tuple[str, Callable[..., Record], Record]  # experiment, what makes a record, with what


def _tasks() -> list[Task]:
    "Every record that is to be made, the experiments that lessons need most first."
    tasks: list[Task] = []
    for seed, name in itertools.product(SEEDS, PIXEL_SCHEDULES):
        tasks.append(("09-reweighting", reweighting, {"name": name, "seed": seed}))
    for seed, setting in itertools.product(SEEDS, settings()):
        tasks.append(("11-shapes", _guided_shapes, {"setting": setting, "seed": seed}))
    for seed, setting in itertools.product(SEEDS, settings()):
        tasks.append(("11-cifar10", _guided_photographs, {"setting": setting, "seed": seed}))

    arms: list[Record] = [
        {"side": "pixels", "with_autoencoder": True},
        {"side": "codes"},
        {"side": "pixels"},
        {"side": "pixels", "schedule": "fine first"},
        {"side": "codes, larger"},
    ]
    for seed, arm in itertools.product(SEEDS, arms):
        tasks.append(("10-budget", budget, {**arm, "seed": seed}))
    rates, sigmas = (3e-3, 1e-2, 3e-2, 1e-1), (0.035, 0.1)
    for seed, rate, side, sigma_q in itertools.product(SEEDS, rates, ("pixels", "codes"), sigmas):
        options = {"side": side, "sigma_q": sigma_q, "rate": rate, "seed": seed}
        tasks.append(("10-steadiness", steadiness, options))

    for seed, steps, steepness in itertools.product(SEEDS, (1500, 150), (1, 10, 1000)):
        tasks.append(("09-pull", pull, {"steepness": steepness, "steps": steps, "seed": seed}))
    return tasks


def _guided_shapes(setting: Record, seed: int, device: str) -> Record:
    real = Shapes(600, seed=1).batch(range(600))[0]
    return guided("shapes", setting, seed, device, shapes_classifier(), real)


def _guided_photographs(setting: Record, seed: int, device: str) -> Record:
    judge = shipped_classifier("cifar10-classifier")
    return guided("cifar10", setting, seed, device, judge, None, n=500)


def _make(task: Task, device: str) -> Record:
    "One record, with what it was made from."
    torch.set_num_threads(1)
    _, make, options = task
    return {**options, **make(**options, device=device)}


def run(
    tasks: list[Task],
    device: str,  # "cpu" or "cuda"
    workers: int,  # processes side by side
) -> Iterator[tuple[str, Record]]:
    "Every record with its experiment, in the order of the tasks. One that fails is reported and left out."
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        futures = [pool.submit(_make, task, device) for task in tasks]
        for (experiment, _, options), future in zip(tasks, futures, strict=True):
            try:
                record = future.result()
            except Exception:  # the others go on
                print(experiment, options, "failed", flush=True)
                traceback.print_exc()
                continue
            print(experiment, options, "done", flush=True)
            yield experiment, record


def _rounded(records: list[Record]) -> typing.Any:
    "To four digits: more is noise."
    return json.loads(json.dumps(records), parse_float=lambda text: float(f"{float(text):.4g}"))


def main(arguments: list[str] | None = None) -> None:
    "Run what the command line asks for."
    tasks = _tasks()
    names = sorted({task[0] for task in tasks})
    parser = argparse.ArgumentParser(prog="python nbs/results/lessons", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the JSON files")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="experiments to run")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--workers", type=int, default=1, help="processes side by side")
    options = parser.parse_args(arguments)

    chosen = [task for task in tasks if task[0] in options.only]
    options.out.mkdir(parents=True, exist_ok=True)
    made: dict[str, list[Record]] = {}
    for name, record in run(chosen, options.device, options.workers):
        records = made.setdefault(name, [])
        records.append(record)
        about = {"device": options.device, "torch": torch.__version__, "records": _rounded(records)}
        # anew with every record: whatever ends the run, what was made is kept
        write_synced(options.out / f"{name}.json", f"{json.dumps(about)}\n".encode())
    missing = len(chosen) - sum(map(len, made.values()))
    if missing:
        raise SystemExit(f"{missing} of {len(chosen)} records failed")
