"Tests of cfvae.runs.presets: every named recipe fits together."

import json

import pytest
import torch

from cfvae.autoencoder import Autoencoder
from cfvae.core import CfvaeError, config_to_dict
from cfvae.hvae import HierarchicalVAE
from cfvae.runs.presets import PRESETS, preset
from cfvae.runs.trained import TRAINED, Trained, describe_training
from cfvae.recipes import recipe_from_dict


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_fits_together(name):
    recipe = preset(name)
    assert recipe.name == name and (PRESETS[name].__doc__ or "").strip()
    assert recipe_from_dict(json.loads(json.dumps(config_to_dict(recipe)))) == recipe
    with torch.device("meta"):
        vae, code = HierarchicalVAE(recipe.vae), torch.zeros(2, *recipe.autoencoder.latent_shape)
        if not recipe.is_pretrained:
            autoencoder = Autoencoder(recipe.autoencoder)
            code = autoencoder.encode(torch.zeros(2, 3, recipe.autoencoder.size, recipe.autoencoder.size))
            assert autoencoder.decode(code).shape[-1] == recipe.autoencoder.size
        features = vae.encoder(code, torch.zeros(2, recipe.vae.widths[0]) if recipe.vae.num_classes else None)
    assert (
        tuple(code.shape[1:])
        == recipe.autoencoder.latent_shape
        == (recipe.vae.data_channels, recipe.vae.resolution, recipe.vae.resolution)
    )
    assert [tuple(f.shape[1:]) for f in features] == [
        (w, r, r) for w, r in zip(recipe.vae.encoder_widths, recipe.vae.resolutions, strict=True)
    ]
    shares = recipe.objective.shares(recipe.vae.layers)
    assert shares is None or len(shares) == sum(recipe.vae.layers)
    for training in (recipe.autoencoder_training, recipe.vae_training):
        assert training.skip_from >= training.warmup  # no skipping before gradients have settled


def test_only_presets_have_been_trained():
    assert TRAINED.keys() <= PRESETS.keys()
    one_hour = Trained("a slide rule", 60, "nothing")
    assert str(one_hour) == "Trained in 60 min on a slide rule: nothing."
    assert describe_training("church") == "Not trained."
    assert describe_training("cifar10") == str(TRAINED["cifar10"])


def test_unknown_preset():
    with pytest.raises(CfvaeError, match="no preset 'shape-demo'.*shapes-demo"):
        preset("shape-demo")
