"Tests of cfvae.recipes: settings by name, and recipes that survive being written down."

import dataclasses
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfvae.autoencoder import AutoencoderConfig
from cfvae.core import CfvaeError, config_to_dict
from cfvae.hvae import HierarchicalVAEConfig
from cfvae.runs.presets import preset
from cfvae.recipes import Recipe, change, recipe_from_dict


def test_change_by_name():
    recipe = preset("shapes-demo")
    both = change(recipe, {"batch_size": 16})
    assert both.autoencoder_training.batch_size == both.vae_training.batch_size == 16
    one = change(recipe, {"vae_training.batch_size": 16})
    assert one.vae_training.batch_size == 16 and one.autoencoder_training == recipe.autoencoder_training
    assert change(recipe, {"held_out": 7, "flip": True, "data": "folder:x"}) == dataclasses.replace(
        recipe, held_out=7, flip=True, data="folder:x"
    )
    assert change(recipe, {"label_drop": 0.3}).objective.label_drop == 0.3  # only one part has it
    assert change(recipe, {}) == recipe
    shapes = change(recipe, {"autoencoder.latent_channels": 6, "vae.data_channels": 6})  # only right together
    assert shapes.vae.data_channels == 6
    later = change(recipe, {"batch_size": 16, "autoencoder_training.batch_size": 8})
    assert (later.autoencoder_training.batch_size, later.vae_training.batch_size) == (8, 16)
    earlier = change(recipe, {"autoencoder_training.batch_size": 8, "batch_size": 16})
    assert earlier == later  # the more exact name decides, whatever comes first


def test_change_from_text():
    recipe = change(
        preset("shapes-demo"),
        {
            "steps": "7",
            "learning_rate": "1e-4",
            "vae.layers": "1,2,3",
            "vae.widths": "[8, 8, 8]",
            "vae.heads": "2",
            "flip": "true",
            "name": "mine",
            "final_learning_rate": "null",
            "vae_training.skip_norm": "Infinity",
            "precision": "fp32",
        },
    )
    assert (
        recipe.vae_training.steps == 7
        and recipe.vae.layers == (1, 2, 3)
        and recipe.vae.widths == (8, 8, 8)
        and recipe.vae.heads == (2, 2, 2)
    )
    assert (
        recipe.flip is True
        and recipe.name == "mine"
        and recipe.vae_training.final_learning_rate is None
        and math.isinf(recipe.vae_training.skip_norm)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lerning_rate": 1}, "did you mean.*learning_rate"),
        ({"lr": 1}, r"mean learning_rate\? learning_rate sets both stages, vae_training.learning_rate one"),
        ({"batchsize": 1}, "did you mean batch_size, autoencoder.size"),
        ({"vae_training.lr": 1}, "TrainingConfig has no field 'lr': did you mean learning_rate"),
        ({"zzz": 1}, "did you mean accumulate, attention, .*, widths"),
        ({"vae.layer": 3}, "HierarchicalVAEConfig has no field 'layer'.*layers"),
        ({"latent_channels": 8}, "autoencoder.latent_channels or vae.latent_channels"),
        ({"vea.layers": 3}, "no part 'vea'"),
        ({"objective.flip": True}, "objective.flip mirrors codes, which spoils them: use flip"),
        ({3: 4}, "settings are names and values"),
        ({"vae": 3}, "whole part.*vae.data_channels"),
        ({"held_out": 0}, "held_out is 0"),
        ({"batch_size": "many"}, "batch_size=many"),
        ({"vae.layers": "1,two,3"}, "vae.layers=1,two,3"),
        ({"vae.layers": (1, 2)}, "layers has 2 entries"),
        ({"vae.resolutions": (1, 2, 4)}, r"code is \(4, 8, 8\), but the VAE models \(4, 4, 4\)"),
        ({"sigma_q": 0}, "sigma_q is 0"),
        (
            {"schedule": "constant-per-resolution", "values": (1, 2)},
            "schedule has 2 values, but the model has 3 resolutions: give objective.values",
        ),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(CfvaeError, match=message):
        change(preset("shapes-demo"), settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": "64"},
        {"size": 16},
        {"autoencoder.latent_channels": 6},
        {"vae.resolutions": (1, 2, 4)},
        {"vae.data_channels": 3},
    ],
)
def test_what_has_to_follow_is_said_with_values_that_work(settings):
    with pytest.raises(CfvaeError, match="the VAE models") as caught:
        change(preset("shapes-demo"), settings)
    advice = re.search(r"change it too, to (\S+)=(\S+) and (\S+)=(\S+)$", str(caught.value))
    change(preset("shapes-demo"), settings | {advice[1]: advice[2], advice[3]: advice[4]})


def test_change_leaves_the_original():
    recipe = preset("shapes-demo")
    before = config_to_dict(recipe)
    change(recipe, {"steps": 3, "flip": True})
    assert config_to_dict(recipe) == before


@given(
    steps=st.integers(1, 10**6),
    rate=st.floats(1e-8, 1, allow_nan=False),
    layers=st.tuples(*[st.integers(1, 9)] * 3),
    name=st.text(),
    data=st.text(),
)
def test_json_round_trip(steps, rate, layers, name, data):
    recipe = change(
        preset("shapes-demo"),
        {"steps": steps, "learning_rate": rate, "vae.layers": layers, "name": name, "data": data},
    )
    assert recipe_from_dict(json.loads(json.dumps(config_to_dict(recipe)))) == recipe


def test_recipe_checks_itself():
    with pytest.raises(CfvaeError, match="change it too, to .* and vae.resolutions=1,8"):
        Recipe("clash", autoencoder=AutoencoderConfig(32, (16, 16)), vae=HierarchicalVAEConfig(4, (1, 4)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("shapes-demo").name = "other"
