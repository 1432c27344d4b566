"Tests of cfvae.runs.train: which weights a run keeps, where they start, and what it may be resumed on."

import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import strange_images, tiny

from cfvae.autoencoder import Autoencoder
from cfvae.autoencoder_loss import first_stage
from cfvae.checkpoints import load_checkpoint
from cfvae.core import CfvaeError, seed_everything
from cfvae.data import ImageDataset, Shapes
from cfvae.hvae import HierarchicalVAE
from cfvae.latents import LatentDataset, LatentScaler
from cfvae.runs import train as module
from cfvae.runs.train import prepare, train, train_autoencoder, train_vae


@pytest.mark.parametrize(
    "stage, saved", [("autoencoder", "autoencoder/model"), ("vae", "pipeline/vae")], ids=["one", "two"]
)
def test_averaged_weights_are_saved(runs, stage, saved):
    weights = load_file(runs / "strange" / saved / "model.safetensors")
    _, state = load_checkpoint(runs / "strange" / stage / "checkpoints")
    raw, averaged = state["model"], state["ema"]
    assert raw.keys() == weights.keys()
    assert all(torch.equal(weights[name], averaged[f"module.{name}"]) for name in weights)
    assert any(not torch.allclose(weights[name], raw[name], rtol=1e-3) for name in weights)


class Begun(Exception):
    "Ends a run where its training would begin."


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("stage", ["one", "two"])
def test_each_stage_starts_from_its_seed(stage, seed, tmp_path, monkeypatch):
    started = []

    def begin(model, *arguments, **options):
        started.append(model.state_dict())
        raise Begun

    monkeypatch.setattr(module, "fit", begin)
    settings = {"autoencoder_training.seed": seed, "vae_training.seed": seed}
    recipe, images, held = prepare(tiny(**settings), strange_images())
    if stage == "one":
        seed_everything(seed)
        expected = first_stage(recipe.autoencoder, recipe.autoencoder_loss)
    else:
        seed_everything(seed)
        expected = HierarchicalVAE(recipe.vae)

    for other in (1, 2):  # whatever drew random numbers before
        seed_everything(other)
        with pytest.raises(Begun):
            if stage == "one":
                train_autoencoder(recipe, images, held, tmp_path, resume=False)
            else:
                codes = LatentDataset(
                    torch.zeros(4, *recipe.autoencoder.latent_shape).half().numpy(),
                    torch.zeros(4, dtype=torch.int64),
                    images.classes,
                    LatentScaler(0.0, 1.0),
                    "codes",
                )
                train_vae(recipe, Autoencoder(recipe.autoencoder), codes, held, tmp_path, resume=False)
    for weights in started:
        assert all(torch.equal(weights[name], value) for name, value in expected.state_dict().items())
    assert len(started) == 2


def test_a_run_is_not_resumed_on_other_images(runs, tmp_path):
    shutil.copytree(runs / "strange", tmp_path / "run")
    images = strange_images()
    pixels = Shapes(60, seed=3, size=16).images
    renamed = images.classes[::-1]  # the model's names would change places in the middle of its training
    for others in (
        ImageDataset(pixels, images.labels, images.classes, images.name),
        ImageDataset(images.images, images.labels, renamed, images.name, images.fingerprint),
    ):
        with pytest.raises(CfvaeError, match="begun with other images.*or other class names.*Bring the old"):
            train(tiny(), others, tmp_path / "run", resume=True)
    assert train(tiny(), strange_images(), tmp_path / "run", resume=True)


@pytest.mark.parametrize("part", ["autoencoder_training", "vae_training"])
def test_a_run_is_not_resumed_with_another_seed(runs, tmp_path, part):
    shutil.copytree(runs / "strange", tmp_path / "run")
    with pytest.raises(CfvaeError, match=f"another recipe.*{part}.seed: 0 there, 1 now"):
        train(tiny(**{f"{part}.seed": 1}), strange_images(), tmp_path / "run", resume=True)
