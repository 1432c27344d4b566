"""What to try after a run: commands to copy, each with its reason."""

import dataclasses
import json
import shlex
import typing
from pathlib import Path

from ..core import config_to_dict
from ..pretrained import PretrainedConfig
from ..recipes import Recipe
from .measure import Measurements
from .opened import Run
from .output import as_argument
from .presets import PRESETS
from .public import public_path, public_recipe


def next_steps(
    run: Run,  # the run
    measurements: Measurements,  # of it
) -> list[tuple[str, str]]:
    """Pairs of (reason, command), the most pressing first. Without a known preset, none that trains anew.

    A page is for others too: of absolute paths the commands have only the last name."""
    run = dataclasses.replace(run, folder=Path(public_path(run.folder)), recipe=public_recipe(run.recipe))
    steps = _repairs(run, measurements) + _experiments(run)
    steps.append(("Draw samples of your own:", _sample_command(run)))
    return [(reason, command) for reason, command in steps if command is not None]


def _repairs(run: Run, measurements: Measurements) -> list[tuple[str, str | None]]:
    steps: list[tuple[str, str | None]] = []
    vae = measurements.vae
    if vae.steps < vae.of:
        resume = shlex.join(["cfvae", "train", "--out", str(run.folder), "--resume"])
        steps.append(("The run was stopped early. Go on with it:", resume))
    if vae.skipped > 0.01 * max(vae.steps, 1):
        reason = "More than one step in a hundred was skipped. Learn more slowly:"
        slower = {"vae_training.learning_rate": run.recipe.vae_training.learning_rate / 2}
        steps.append((reason, _variant(run, "slower", slower)))
    return steps


def _experiments(run: Run) -> list[tuple[str, str | None]]:
    recipe = run.recipe
    longer = {"vae_training.steps": 2 * recipe.vae_training.steps}
    finer = {"objective.sigma_q": recipe.objective.sigma_q / 2}
    steps = [
        ("Train stage two for longer:", _variant(run, "longer", longer)),
        ("Keep finer detail, for more nats:", _variant(run, "finer", finer)),
    ]
    if recipe.conditional and not recipe.guidable:
        guided = {"objective.label_drop": 0.1, "vae.learned_prior": True}
        steps.append(("Make guidance possible:", _variant(run, "guided", guided)))
    return steps


def _sample_command(run: Run) -> str:
    guided = ["--mean-weight", "1", "--var-weight", "1"] if run.recipe.guidable else []
    return shlex.join(
        ["cfvae", "sample", as_argument(run.folder), "--n", "64", *guided, "--out", "samples.png"]
    )


def _variant(run: Run, suffix: str, settings: dict[str, typing.Any]) -> str | None:
    return train_command(run.recipe, f"{run.folder}-{suffix}", settings)


def train_command(
    recipe: Recipe,  # what was trained
    out: str | Path,  # the run folder to write
    settings: dict[str, typing.Any],  # what to do otherwise
) -> str | None:
    "The command that trains a recipe with some settings changed; None where its preset is not known."
    if recipe.name not in PRESETS:
        return None
    words = ["cfvae", "train", "--preset", recipe.name, "--data", recipe.data, "--out", str(out)]
    if isinstance(recipe.autoencoder, PretrainedConfig):
        words += ["--autoencoder", recipe.autoencoder.source]

    for key, value in {**_changed_settings(recipe), **settings}.items():
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        words += ["--set", f"{key}={text}"]
    return shlex.join(words)


def _changed_settings(recipe: Recipe) -> dict[str, typing.Any]:
    "Where a recipe differs from its preset and it counts, but for what --data and --autoencoder tell."
    told = {"data", "vae.num_classes"}  # the number of classes follows from the data
    now = _flat(recipe)
    if recipe.is_pretrained:
        told |= {f"autoencoder.{name}" for name in ("source", "latent_channels", "factor")}
        told |= {key for key in now if key.startswith(("autoencoder_loss.", "autoencoder_training."))}
    before = _flat(PRESETS[recipe.name]())
    return {key: value for key, value in now.items() if key not in told and value != before.get(key)}


def _flat(recipe: Recipe) -> dict[str, typing.Any]:
    "All settings as --set names them."
    settings: dict[str, typing.Any] = {}
    for name, value in config_to_dict(recipe).items():
        if isinstance(value, dict):
            settings |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            settings[name] = value
    return settings
