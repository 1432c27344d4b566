"""Trainings that know nothing of each other, in several processes; each leaves a file when it ends."""

import dataclasses
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from cfvae import __version__
from cfvae.core import check

Record = dict[str, Any]  # plain numbers, texts and lists of them, as JSON holds them


@dataclasses.dataclass(frozen=True)
class Setting:
    "What all jobs of a run share."

    work: Path  # a folder for records, pictures and codes
    device: str = "cpu"  # where models of codes are trained
    scale: float = 1.0  # of all trainings' lengths and all samples' sizes; below 1 only to try the programs

    def steps(
        self,
        full: int,  # steps of the real experiment
    ) -> int:
        "Steps at this scale."
        return max(2, round(full * self.scale))

    def count(
        self,
        full: int,  # images of the real experiment
    ) -> int:
        "Images at this scale: at least a batch."
        return max(64, round(full * self.scale))

    @property
    def records(self) -> Path:
        "Where every job leaves its record and its pictures: what was made at toy size is no other's."
        return self.work / ("records" if self.scale == 1 else f"records-at-{self.scale:g}")


@dataclasses.dataclass(frozen=True)
class Job:
    "One training, and what is measured on it."

    experiment: str  # which function runs it
    variant: str  # what is tried
    seed: int  # of weights, order of the data and noise
    seconds: float  # that it is expected to take on one core

    @property
    def name(self) -> str:
        "The stem of its files."
        words = f"{self.experiment} {self.variant} {self.seed}"
        return words.replace(" ", "-").replace("/", "-")


Experiment = Callable[[Job, Setting], Record]


def run_job(
    job: Job,  # what to do
    setting: Setting,  # how
    experiment: Experiment,  # a function of a module, so that another process can find it
) -> float:
    "Run a job in this process and write its record. Returns the seconds that it took."
    torch.set_num_threads(1)
    began = time.perf_counter()
    busy = time.process_time()
    record = experiment(job, setting)
    seconds = time.perf_counter() - began
    about = {
        "experiment": job.experiment,
        "variant": job.variant,
        "seed": job.seed,
        "seconds": round(seconds, 1),
        "processor_seconds": round(time.process_time() - busy, 1),
        "machine": machine(setting.device),
    }
    write_json(setting.records / f"{job.name}.json", about | record)
    return seconds


def machine(
    device: str,  # "cpu" or "cuda"
) -> str:
    "What the numbers were computed on, in a line."
    versions = f"PyTorch {torch.__version__.split('+')[0]}, cfvae {__version__}"
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}, {versions}"
    return f"one core of {_processor()}, {versions}"


def _processor() -> str:
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_json(
    path: Path,  # its folder is made where needed
    value: Any,  # what JSON can hold
) -> None:
    "Write a file that is never there in half. Numbers keep five digits."
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json.loads(json.dumps(value), parse_float=_rounded), indent=1)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(path)


def _rounded(text: str) -> float:
    return float(f"{float(text):.5g}")


def run_all(
    jobs: Iterable[Job],  # the most wanted first
    setting: Setting,  # for all
    experiments: dict[str, Experiment],  # by the name that jobs give
    processes: int,  # that work at a time, on one core each
    minutes: float,  # no job starts that is expected to end later
) -> None:
    "Run the jobs that have no record yet. One that fails says so, and the others go on."
    check(processes >= 1, f"--jobs is {processes}: at least one process is needed")
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the new processes as they start
    end = time.monotonic() + 60 * minutes
    waiting = [job for job in jobs if not (setting.records / f"{job.name}.json").exists()]
    running: dict[Future[float], Job] = {}
    pace = Pace()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        while True:
            while len(running) < processes and (job := pace.next(waiting, end - time.monotonic())):
                waiting.remove(job)
                running[pool.submit(run_job, job, setting, experiments[job.experiment])] = job
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                pace.note(running.pop(future), future)
    for job in waiting:
        print(f"no time for {job.name}", flush=True)


class Pace:
    "How long jobs take, compared with what was expected of them."

    def __init__(self) -> None:
        self.expected = 0.0
        self.taken = 0.0

    def next(
        self,
        waiting: list[Job],  # the most wanted first
        seconds: float,  # left
    ) -> Job | None:
        "The first job that can be expected to end in time."
        factor = self.taken / self.expected if self.expected else 1.0
        return next((job for job in waiting if factor * job.seconds <= seconds), None)

    def note(
        self,
        job: Job,  # that has ended
        future: "Future[float]",  # its seconds, or its error
    ) -> None:
        "Learn from a job, and say how it ended."
        error = future.exception()
        if error is not None:
            print(f"{job.name} failed: {type(error).__name__}: {error}", flush=True)
            return
        self.expected += job.seconds
        self.taken += future.result()
        print(f"{job.name}: {future.result():.0f} s", flush=True)
