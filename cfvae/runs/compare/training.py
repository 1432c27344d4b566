"""The trainings of a comparison: equal budgets in FLOPs, three learning rates each, done once and kept."""

import dataclasses
import hashlib
import json
import math
import time
import typing
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from ...baselines import training_flops
from ...checkpoints import write_synced
from ...core import CfvaeError, check, count_parameters, get_device, make_generator, seed_everything
from ...latents import weights_fingerprint
from ...training import Callback, Metrics, TrainingState, fit
from .contestant import Contestant, Material
from .models import MODELS
from ..folder import read_fields
from ..machine import finish, forget_peak, peak_memory
from ..output import say
from ..recorded import RecordedStep

TRY_SHARE = 0.1  # of the budget, for each learning rate that is tried
CHECKSUM = "sha256"  # field of a kept file: of all its others
WEIGHTS = "weights"  # field of a result: digest of the model beside it
CURVE_POINTS = 10  # held-out losses that are noted while a model is trained; 2 of a try
COUNTED = 4  # examples in the step whose FLOPs are counted

Fields = dict[str, typing.Any]
NUMBER = int | float  # of JSON
Kinds = typing.Mapping[str, typing.Any]  # name of a field -> its type, as `isinstance` takes it


@dataclasses.dataclass(frozen=True)
class Job:
    "One training: a model with a seed, for a tenth of the budget at one of its rates, or for all of it."

    model: str  # a key of `MODELS`
    seed: int
    rate: float | None = None  # a learning rate that is tried; None: the whole budget, at the best of them

    @property
    def folder(self) -> Path:
        "Where its result is kept, below the comparison's folder."
        name = "trained" if self.rate is None else f"rate-{self.rate:g}"
        return Path("models") / self.model / f"seed-{self.seed}" / name

    def tries(
        self,
        contestant: Contestant,  # the model's kind
    ) -> list["Job"]:
        "The same model and seed at every rate that is tried."
        return [dataclasses.replace(self, rate=rate) for rate in contestant.rates]


# --- budgets


def example_flops(
    contestant: Contestant,  # the model
) -> float:
    "FLOPs of a training step for one example, forward and backward, counted."
    seed_everything(0)
    batch = contestant.data().batch(range(COUNTED))
    return training_flops(contestant.build(), contestant.loss_fn(), batch)


def steps_for(
    contestant: Contestant,  # the model
    budget: float,  # FLOPs
    flops: float,  # of an example
) -> int:
    "Training steps that a budget pays for. Raises `CfvaeError` where it pays for fewer than ten."
    batch_size = contestant.recipe.vae_training.batch_size
    steps = round(budget / (flops * batch_size))
    check(steps >= 10, f"{contestant.title}: the budget pays for {steps} steps, give a larger --budget")
    return steps


# --- one training


class HeldOutLoss(Callback):
    "Notes, while a model is trained, how its average does on data that it does not see."

    def __init__(
        self,
        contestant: Contestant,  # the model's kind
        points: int,  # how often, evenly spread
    ) -> None:
        self.contestant = contestant
        self.points = points
        self.curve: list[tuple[int, float | None]] = []  # steps done, held-out loss; None: not a number

    def on_step(self, state: TrainingState, metrics: Metrics) -> None:
        every = max(1, state.config.steps // self.points)
        if state.step % every == 0 or state.step == state.config.steps:
            self.curve.append((state.step, held_out_loss(self.contestant, state.ema.module)))


@torch.no_grad()
def held_out_loss(
    contestant: Contestant,  # the model's kind
    model: nn.Module,  # trained
) -> float | None:
    "The mean over the held-out data, always with the same noise; None where it is not a number."
    data = contestant.data(held=True)
    loss_fn = contestant.loss_fn()
    device = next(model.parameters()).device
    generator = make_generator(0, device)
    was_training = model.training
    model.eval()
    total = 0.0
    size = contestant.recipe.vae_training.batch_size
    for start in range(0, len(data), size):
        rows = range(start, min(start + size, len(data)))
        batch = tuple(part.to(device) for part in data.batch(rows))
        loss, metrics = loss_fn(model, batch, generator, 0)
        total += len(rows) * float(metrics.get(contestant.metric, loss))
    model.train(was_training)
    mean = total / len(data)
    return mean if math.isfinite(mean) else None


def run_job(
    material: Material,  # on what
    job: Job,  # what to train
    steps: dict[str, int],  # that the budget allows every model
    out: Path,  # the comparison's folder
) -> None:
    "Train, and keep the averaged model and what was measured on the way, result.json last."
    contestant = MODELS[job.model](material)
    rate = choose_rate(contestant, job, out) if job.rate is None else job.rate
    length = steps[job.model] if job.rate is None else max(1, round(TRY_SHARE * steps[job.model]))
    config = contestant.training(length, rate, job.seed)
    device = get_device(config.device)

    seed_everything(job.seed)
    model = contestant.build()
    held_out = HeldOutLoss(contestant, points=CURVE_POINTS if job.rate is None else 2)
    forget_peak(device)
    start = time.perf_counter()
    try:
        state = fit(model, contestant.data(), contestant.loss_fn(), config, [held_out], RecordedStep())
        model = typing.cast(nn.Module, state.ema.module)
    except CfvaeError as error:  # too many steps in a row were skipped
        if job.rate is None:
            reason = str(error).partition("\n")[0]
            way_out = "leave it out by --models, or choose another --preset or --budget"
            raise CfvaeError(f"{job.model}, seed {job.seed}, at {rate:.2g}: {reason}\n{way_out}") from None
        held_out.curve.append((length, None))
    finish(device)

    result: Fields = {
        "rate": rate,
        "steps": length,
        "batch_size": config.batch_size,
        "loss": held_out.curve[-1][1],  # None: it diverged
        "curve": held_out.curve,
        "parameters": count_parameters(model),
        "seconds": time.perf_counter() - start,
        "peak_memory": peak_memory(device) if device.type == "cuda" else None,
    }
    keep_result(job, result, model if job.rate is None else None, out)
    _report(job, result)


def keep_result(
    job: Job,  # what was trained
    result: Fields,  # what was measured on the way
    model: nn.Module | None,  # the trained model; None: a try, whose model is not kept
    out: Path,  # the comparison's folder
) -> None:
    "Write both, result.json last: where it is, the training is done."
    folder = out / job.folder
    if model is not None:
        folder.mkdir(parents=True, exist_ok=True)
        save_model(model.cpu(), str(folder / "model.safetensors"))
        result = {**result, WEIGHTS: weights_fingerprint(model)}
    keep(folder / "result.json", result)


def keep(
    path: Path,  # of a file below the comparison's folder
    fields: Fields,  # what it is to hold
) -> None:
    "Write what was measured, with a checksum: a value that is damaged later is not taken for a result."
    path.parent.mkdir(parents=True, exist_ok=True)
    marked = {**fields, CHECKSUM: _checksum(fields)}
    write_synced(path, json.dumps(marked, indent=1, allow_nan=False).encode())


def _checksum(fields: Fields) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _report(job: Job, result: Fields) -> None:
    loss = "diverged" if result["loss"] is None else f"held-out loss {result['loss']:.5g}"
    length = f"{result['steps']:,} steps" if job.rate is None else f"a try of {result['steps']:,} steps"
    say(f"{job.model}, seed {job.seed}: {length} at {result['rate']:.2g}, {loss} ({result['seconds']:.0f} s)")


def read_result(
    job: Job,  # what was trained
    out: Path,  # the comparison's folder
) -> Fields | None:
    "What was measured; None where the training has not been finished."
    path = out / job.folder / "result.json"
    return read_kept(path, {"rate": NUMBER, "loss": NUMBER | None}) if path.is_file() else None


def read_kept(
    path: Path,  # of a file that the comparison wrote earlier
    needed: Kinds,  # fields that it has
) -> Fields:
    "What was kept. Raises `CfvaeError` for a damaged file."
    way_out = "remove it, and the same command makes it again"
    fields = read_fields(path, way_out)
    noted = fields.pop(CHECKSUM, None)  # an earlier version noted none
    whole = noted is None or noted == _checksum(fields)
    check(whole, f"{path} cannot be read (it was changed after it was written): {way_out}")
    missing = ", ".join(sorted(needed - fields.keys()))
    check(not missing, f"{path} cannot be read (it has no {missing}): {way_out}")
    wrong = ", ".join(sorted(name for name, kind in needed.items() if not isinstance(fields[name], kind)))
    check(not wrong, f"{path} cannot be read ({wrong} of another kind than it should be): {way_out}")
    return fields


def load_trained(
    contestant: Contestant,  # the model's kind
    job: Job,  # a final one that is done
    out: Path,  # the comparison's folder
) -> nn.Module:
    "The trained model, on the CPU, to draw from only. Raises `CfvaeError` for a damaged file."
    model = contestant.build()
    folder = out / job.folder
    path = folder / "model.safetensors"
    way_out = f"remove {folder}, and the same command trains it again"
    try:
        load_model(model, str(path))
    except Exception as error:  # as varied as the ways in which a file can be damaged
        raise CfvaeError(f"{path} cannot be read ({type(error).__name__}): {way_out}") from error
    noted = (read_result(job, out) or {}).get(WEIGHTS)
    check(noted in (None, weights_fingerprint(model)), f"{path} is not the model that was trained: {way_out}")
    return model.eval().requires_grad_(False)


def choose_rate(
    contestant: Contestant,  # the model's kind
    job: Job,  # a training whose tries are done
    out: Path,  # the comparison's folder
) -> float:
    "The rate with the lowest held-out loss. Raises `CfvaeError` where all diverged."
    losses = {}
    for attempt in job.tries(contestant):
        result = read_result(attempt, out)
        if result is not None and result["loss"] is not None:
            losses[result["rate"]] = result["loss"]
    check(bool(losses), f"{job.model}: training diverged at every learning rate that was tried")
    return min(losses, key=losses.__getitem__)
