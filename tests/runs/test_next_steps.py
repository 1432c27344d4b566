"Tests of cfvae.runs.next_steps: the commands can be copied, and make the recipe that they promise."

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
from tiny_runs import strange_images

from cfvae.cli import training
from cfvae.recipes import change, recipe_from_dict, with_pretrained
from cfvae.runs.measure import measure_run
from cfvae.runs.next_steps import next_steps, train_command
from cfvae.runs.opened import open_run
from cfvae.runs.presets import preset


def read_recipe(folder):
    return recipe_from_dict(json.loads((folder / "recipe.json").read_text()))


def test_train_command_makes_the_same_recipe(runs):
    recipe = read_recipe(runs / "strange")
    words = shlex.split(train_command(recipe, "a folder; rm -rf x", {"vae_training.steps": 8}))
    assert words[:4] == ["cfvae", "train", "--preset", "shapes-demo"]
    assert words[words.index("--out") + 1] == "a folder; rm -rf x"
    assert words[words.index("--data") + 1] == "<i>mine</i>"

    pairs = zip(words, words[1:], strict=False)
    settings = dict(word.split("=", 1) for flag, word in pairs if flag == "--set")
    again = change(preset("shapes-demo"), {**settings, "data": recipe.data})
    told_by_data = dataclasses.replace(again.vae, num_classes=recipe.vae.num_classes)
    assert dataclasses.replace(again, vae=told_by_data) == change(recipe, {"vae_training.steps": 8})


@pytest.mark.parametrize(
    "name, settings",
    [
        ("shapes-demo", {"size": 16, "vae.data_channels": 3, "vae.resolutions": (1, 4, 16), "batch_size": 8}),
        ("cifar10_pixels", {"vae_training.steps": 7}),
    ],
)
def test_train_command_of_a_borrowed_first_stage_makes_the_same_recipe(name, settings):
    recipe = with_pretrained(preset(name), "pixels", settings)
    words = shlex.split(train_command(recipe, "run", {}))
    given = dict(word.split("=", 1) for word in words if "=" in word)
    again = training.choose_recipe(name, Path("run"), False, given | {"data": recipe.data}, "pixels")
    untrained = {"autoencoder_training": recipe.autoencoder_training}
    assert dataclasses.replace(again, **untrained) == recipe
    assert words[words.index("--autoencoder") + 1] == "pixels"


def test_no_command_without_a_preset(runs):
    homemade = change(read_recipe(runs / "strange"), {"name": "homemade"})
    assert train_command(homemade, "x", {}) is None
    run = open_run(runs / "strange", "cpu", strange_images())
    measurements = measure_run(run)
    steps = next_steps(dataclasses.replace(run, recipe=homemade), measurements)
    assert [reason for reason, _ in steps] == ["Draw samples of your own:"]


def test_the_most_pressing_comes_first(runs):
    run = open_run(runs / "unlabelled", "cpu")
    measurements = measure_run(run)
    broken = dataclasses.replace(measurements.vae, steps=3, skipped=1)
    steps = next_steps(run, dataclasses.replace(measurements, vae=broken))
    assert "--resume" in steps[0][1]
    assert "learning_rate" in steps[1][1]
    assert steps[-1][1].startswith("cfvae sample")


def test_a_model_without_guidance_is_told_how(runs):
    run = open_run(runs / "strange", "cpu", strange_images())
    measurements = measure_run(run)
    assert "Make guidance possible:" not in dict(next_steps(run, measurements))
    unguided = dataclasses.replace(run, recipe=change(run.recipe, {"objective.label_drop": 0.0}))
    assert "label_drop=0.1" in dict(next_steps(unguided, measurements))["Make guidance possible:"]
