"""`train` and `train-features`: from images to a model, stopped and taken up again."""

import contextlib
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from accelerate import PartialState

from .. import evaluation
from ..core import CfvaeError, check
from ..data import Shapes
from ..pipeline import load_local
from ..recipes import Recipe, change, with_pretrained
from ..runs.callbacks import ProgressBar, StopOnSignal, stop_signals
from ..runs.folder import load_recipe, only_model_is_kept
from ..runs.free import refuse_foreign
from ..runs.output import as_argument, say
from ..runs.presets import preset
from ..runs.saved import save_whole
from ..runs.train import train as train_run
from .describing import newest_step


def collect_changes(
    short: Mapping[str, Any],  # what the short options say; None: not given
    settings: Sequence[str],  # what --set says, as key=value
) -> dict[str, Any]:
    "All changes to the recipe as one dictionary. Where both name a field, --set decides."
    changes = {key: value for key, value in short.items() if value is not None}
    for setting in settings:
        readable = "=" in setting.strip("=")
        check(readable, f"--set {setting}: write it as key=value, for instance --set batch_size=16")
        key, _, value = setting.partition("=")
        changes[key] = value
    return changes


def choose_recipe(
    name: str | None,  # of a preset; may be left out where a run goes on
    out: Path,  # the run folder
    resume: bool,  # go on with the run in it
    changes: dict[str, Any],  # field of the recipe -> value
    autoencoder: str | None = None,  # the source of a pretrained first stage, in place of the recipe's own
    stage: str = "all",  # what is to be trained
) -> Recipe:
    """The recipe to train: the run's own where one goes on, else a preset; with changes.

    Where a run goes on, steps are those of stage two, which learns from the codes of a finished stage one."""
    if resume and (out / "recipe.json").exists():
        changes = {"vae_training.steps" if key == "steps" else key: value for key, value in changes.items()}
        recipe = load_recipe(out)
        check(
            stage != "autoencoder" or "vae_training.steps" not in changes,
            "with --resume, --steps are those of stage two, and stage one keeps the steps that it was begun "
            "with: leave --steps out, or choose another --out",
        )
        begun = f"{out} was begun with the preset {recipe.name}, not {name}"
        check(name in (None, recipe.name), f"{begun}: leave --preset out, or choose another --out")
    elif name is not None:
        recipe = preset(name)
    else:
        lost = resume and out.is_dir() and any(out.iterdir())
        way_out = "put it back, or choose another --out"
        check(not lost, f"{out} holds no recipe.json, without which no run goes on: {way_out}")
        raise CfvaeError("which recipe? Give --preset NAME; `cfvae presets` lists them")

    if autoencoder is None:
        return change(recipe, changes)
    return with_pretrained(recipe, autoencoder, changes)  # at once: what is changed has to fit it


def train(
    recipe: Recipe,  # what to train
    out: Path,  # the run folder
    stage: str,  # all, autoencoder or vae
    resume: bool,  # go on with the run in the folder
    max_minutes: float | None,  # stop after so long
) -> None:
    "Train, and say where the model is and what to do next."
    folder = shlex.quote(as_argument(out))
    resume_command = f"cfvae train --out {folder} --resume"
    train_or_exit(recipe, out, resume_command, stage, resume, max_minutes)
    if not PartialState().is_main_process:
        return
    if stage == "autoencoder":
        say(f"done: the autoencoder is in {out / 'autoencoder' / 'model'}. Next: {resume_command}")
    else:
        next_command = f"cfvae sample {folder} --n 16 --out samples.png"
        say(f"done: the model is in {out / 'pipeline'}. Next: {next_command}")


def train_or_exit(
    recipe: Recipe,  # what to train
    out: Path,  # the run folder
    resume_command: str,  # what to type to go on
    stage: str = "all",  # all, autoencoder or vae
    resume: bool = False,  # go on with the run in the folder
    max_minutes: float | None = None,  # stop after so long
) -> None:
    """Train. Where the run is stopped early, say so and leave with the signal's exit code (0 for the time
    limit)."""
    signals = StopOnSignal()
    with _interrupt_on_signal(signals):
        try:
            finished = train_run(recipe, recipe.data, out, stage, resume, max_minutes, signals)
        except KeyboardInterrupt:
            finished = False
            signals.received = signals.received or signal.SIGINT
    if not finished:
        say(_describe_stop(recipe, out, signals.received, resume_command))
        raise typer.Exit(128 + signals.received if signals.received else 0)


@contextlib.contextmanager
def _interrupt_on_signal(signals: StopOnSignal) -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt as Ctrl-C does. `StopOnSignal` watches during the steps only; between the
    stages, while the images are encoded, this does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if signals.received is None:  # a terminal that closes may send more than one
            signals.received = number
            raise KeyboardInterrupt

    earlier_handlers = {}
    for number in stop_signals():
        if number != signal.SIGINT:
            earlier_handlers[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in earlier_handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _describe_stop(recipe: Recipe, out: Path, number: int | None, resume_command: str) -> str:
    "One line about a run that was stopped: by whom, what is saved, how to go on."
    if number is None:
        who = "the time limit"
    elif number == signal.SIGINT:
        who = "Ctrl-C"
    elif number == getattr(signal, "SIGHUP", None):
        who = "SIGHUP (the terminal was closed)"
    else:
        who = signal.Signals(number).name

    for stage, config in (("vae", recipe.vae_training), ("autoencoder", recipe.autoencoder_training)):
        step = newest_step(out / stage)
        if step > 0:
            saved = f"everything up to step {step} of {config.steps} ({stage}) is saved"
            return f"stopped by {who}: {saved}; go on with: {resume_command}"
    if only_model_is_kept(out):
        return f"stopped by {who}: stage one is saved; go on with: {resume_command}"
    return f"stopped by {who}: nothing was saved yet; give the same command again"


def train_features(out: Path) -> None:
    "Train the judge of the shapes models into a folder, and say how good the saved one is."
    refuse_foreign(out, ("config.json", "model.safetensors", "README.md"), {"size", "widths", "num_classes"})
    out.mkdir(parents=True, exist_ok=True)
    progress = ProgressBar("classifier", ("loss", "accuracy"))
    classifier = evaluation.train_shapes_classifier([progress])
    save_whole(classifier.cpu().half(), out)

    held_out = Shapes(2000, seed=12345)  # training had another seed
    images, labels = held_out.batch(range(len(held_out)))
    saved = load_local(evaluation.Classifier, out)
    accuracy = evaluation.class_accuracy(saved, images, labels)
    print(f"the classifier is in {out}: {accuracy:.1%} of {len(images)} held-out images are recognised")
