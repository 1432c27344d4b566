"""`tune`: a trained model's decoder learns from what stage two hands it."""

import dataclasses
import shlex
import signal
from pathlib import Path
from typing import Any

import typer

from ..core import check, config_to_dict
from ..recipes import change, owners_of
from ..runs.callbacks import StopOnSignal
from ..runs.output import as_argument, say
from ..runs.presets import preset
from ..runs.tune import LOSS, TRAINING, Tuning, tune as tune_decoder
from .describing import newest_step

PARTS = ("autoencoder_loss", "autoencoder_training")  # of a recipe: what a tuning shares with stage one


def choose(
    model: str,  # a run folder, a saved pipeline, or a name
    data: str | None,  # the images; None: those of the run
    flip: bool,  # mirror a random half of them
    changes: dict[str, Any],  # fields of stage one's training and loss -> value
) -> Tuning:
    "What is to be tuned. Its fields are those of a recipe's stage one, and are set by the same names."
    base = dataclasses.replace(preset("shapes-demo"), autoencoder_training=TRAINING, autoencoder_loss=LOSS)
    changed = change(base, changes)
    fields = config_to_dict(base)
    others = [key for key in changes if not set(owners_of(fields, key)) & set(PARTS)]
    check(not others, f"{', '.join(others)}: only fields of {' and '.join(PARTS)} can be set here")
    return Tuning(model, data, flip, changed.autoencoder_loss, changed.autoencoder_training)


def tune(
    tuning: Tuning,  # what is to be done
    out: Path,  # a folder for the tuned model
    resume: bool,  # go on with the tuning in it
    max_minutes: float | None,  # stop after so long
) -> None:
    "Tune, and say where the model is and what to do next."
    signals = StopOnSignal()
    finished = tune_decoder(tuning, out, resume, max_minutes, signals)
    model = shlex.quote(as_argument(out / "pipeline"))
    if finished:
        say(f"done: the model is in {model}. Next: cfvae sample {model} --n 16 --out samples.png")
        return
    who = signal.Signals(signals.received).name if signals.received else "the time limit"
    step = newest_step(out / "decoder")
    say(
        f"stopped by {who}: everything up to step {step} of {tuning.training.steps} is saved; "
        "give the same command with --resume to go on"
    )
    raise typer.Exit(128 + signals.received if signals.received else 0)
