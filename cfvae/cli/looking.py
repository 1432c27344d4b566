"""`presets` and `info`: what can be trained, and what is in a folder."""

import shlex
import sys
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ..files.names import printable
from ..pretrained import PretrainedConfig
from ..recipes import Recipe
from ..runs.callbacks import read_log
from ..runs.folder import load_model, load_recipe, trained_steps
from ..runs.presets import PRESETS, describe, preset
from ..runs.trained import describe_training
from .describing import count_millions, describe_models, describe_shape, list_names, saved_steps


def print_presets() -> None:
    "Print a table of the named recipes."
    table = Table(box=SIMPLE)
    table.add_column("name", no_wrap=True)
    table.add_column("image")
    table.add_column("code")
    table.add_column("layers", justify="right")
    table.add_column("parameters\n(millions)", justify="right")
    table.add_column("steps", justify="right")
    table.add_column("data, what it is meant for, and what came of it", overflow="fold")
    for name in PRESETS:
        recipe = preset(name)
        words = f"{recipe.data}\n{describe(name)}\n{describe_training(name)}"
        table.add_row(name, *_describe_sizes(recipe), words)

    terminal = sys.stdout.isatty()
    width = None if terminal else 120
    console = Console(width=width, force_terminal=terminal, highlight=False, force_jupyter=False)
    console.print(table)


def _describe_sizes(recipe: Recipe) -> list[str]:
    "A row of the table, between name and words."
    size = recipe.autoencoder.size
    first, second = count_millions(recipe.autoencoder, recipe.vae)
    steps = f"{recipe.vae_training.steps}"
    if not recipe.is_pretrained:
        steps = f"{recipe.autoencoder_training.steps}\n+ {steps}"
    return [
        describe_shape([size, size]),
        describe_shape(recipe.autoencoder.latent_shape),
        str(sum(recipe.vae.layers)),
        f"{first}\n+ {second}",
        steps,
    ]


def print_info(model: Path) -> None:
    "Print what a run or a saved pipeline holds."
    is_run = (model / "recipe.json").exists()
    lines = _describe_run(model) if is_run else _describe_pipeline(model)
    for key, value in lines.items():
        print(f"{key:<18} {printable(value)}")


def _describe_pipeline(model: Path) -> dict[str, str]:
    pipe = load_model(model)
    count = len(pipe.classes) or "none"
    return {
        "pipeline": str(model),
        **describe_models(pipe.autoencoder.config, pipe.vae.config),
        "classes": f"{count}: {list_names(pipe.classes)}",
    }


def _describe_run(run: Path) -> dict[str, str]:
    "What is known of a run, trained or not."
    recipe = load_recipe(run)
    trained = (run / "pipeline" / "pipeline.json").exists()

    classes = str(recipe.vae.num_classes or "none")
    if trained and recipe.vae.num_classes:
        classes += f": {list_names(load_model(run).classes)}"
    if isinstance(recipe.autoencoder, PretrainedConfig):
        first_stage = f"pretrained: {recipe.autoencoder.source}"
    else:
        steps = recipe.autoencoder_training.steps
        finished = (run / "autoencoder" / "model").exists()
        first_stage = _describe_progress(run / "autoencoder", steps, steps if finished else 0)
    if trained:
        place = str(run / "pipeline")
    else:
        place = f"none yet; go on with: cfvae train --out {shlex.quote(str(run))} --resume"

    return {
        "run": f"{run}, preset {recipe.name}",
        "data": recipe.data,
        **describe_models(recipe.autoencoder, recipe.vae),
        "classes": classes,
        "autoencoder": first_stage,
        "VAE": _describe_progress(run / "vae", recipe.vae_training.steps, trained_steps(run) or 0),
        "model": place,
    }


def _describe_progress(
    stage: Path,
    steps: int,  # asked for
    kept: int,  # steps of the model that is there; 0: there is none
) -> str:
    "How far a stage is: steps saved, last line of the log, checkpoints."
    saved = saved_steps(stage)
    progress = f"{max([kept, *saved])} of {steps} steps saved"
    log = read_log(stage / "log.jsonl")
    if log:
        last = log[-1]
        progress += f"; last logged: loss {last['loss']:.4g} at step {last['step']}"
    checkpoints = ", ".join(str(step) for step in saved)
    return f"{progress}; checkpoints: {checkpoints or 'none'}"
