"Runs for the commands to look at, trained once, and a fresh folder for every module."

import contextlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commandline import TINY, done

RELEASED_VAE = {
    "resolution": 8,
    "c": 8,
    "c_enc": 8,
    "c_mult": [1, 1, 1],
    "dff_mult": [1, 1, 1],
    "num_classes": 3,
    "nlayers": [1, 1, 1],
    "enc_nlayers": [1, 1, 1],
    "num_attention": [0, 0, 0],
    "num_attention_heads": [0, 0, 0],
    "zdim": 2,
    "datadim": 4,
    "h_prior": True,
}
RELEASED_STAGE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    "All commands of a module run in one temporary folder, so that paths are short and relative."
    path = tmp_path_factory.mktemp("cli")
    with contextlib.chdir(path):
        yield path


def train_once(tmp_path_factory, name, options):
    "A trained run in a folder of its own, and what the command said."
    path = tmp_path_factory.mktemp(f"trained-{name}")
    with contextlib.chdir(path):
        said = done(f"{TINY} --out {name} {options}")
    return path / name, said


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    return train_once(tmp_path_factory, "run", "--steps 30")


@pytest.fixture(scope="session")
def trained_without_classes(tmp_path_factory):
    return train_once(tmp_path_factory, "plain", "--steps 1 --set conditional=false")


@pytest.fixture(scope="module")
def run(folder, trained):
    "A run that nobody disturbed, in `run`, and what the command said."
    path, said = trained
    shutil.copytree(path, "run")
    return SimpleNamespace(path=Path("run"), said=said)


@pytest.fixture(scope="module")
def plain(folder, trained_without_classes):
    "A run without classes, in `plain`."
    path, _ = trained_without_classes
    shutil.copytree(path, "plain")
    return Path("plain")


@pytest.fixture(scope="module")
def released(folder):
    "A small released pipeline: released.pt and, with its config inside, released.safetensors."
    pytest.importorskip("diffusers")
    from cfvae import published
    from cfvae.pretrained import import_diffusers
    from safetensors.torch import save_file

    weights = {}
    vae = published.HierarchicalVAE(published.published_config(RELEASED_VAE))
    for own_name, name in published.published_names(vae).items():
        weights[f"vae.{name}"] = vae.get_parameter(own_name).detach().clone()

    stage = import_diffusers().AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=16,
    )
    for own_name, name in published._stage_names(stage, 2).items():
        value = stage.get_parameter(own_name).detach().clone()
        if ".attn" in name and value.ndim == 2:
            value = value[:, :, None, None]
        weights[f"dae.{name}"] = value

    config = {
        "dae": {"class": "AutoencoderKL", "embed_dim": 4, "ddconfig": RELEASED_STAGE},
        "vae": RELEASED_VAE,
        "shift": 0.25,
        "scale": 4.4,
    }
    torch.save(weights | {"dae.loss.discriminator.weight": torch.zeros(3)}, "released.pt")
    save_file(weights, "released.safetensors", {"config": json.dumps(config)})
    Path("config.json").write_text(json.dumps(config))
    return config
