"""Tests of cfvae.published: every model has its published size, and weights give the authors' numbers.

The numbers come from files that the authors' own code wrote with random weights. They are not part of this
repository; the tests that need them look in CFVAE_FIXTURES, or in shared/fixtures beside the repository, and
are skipped where there are none."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cfvae.blocks import Attention
from cfvae.core import CfvaeError, config_to_dict, count_parameters, seed_everything
from cfvae.guidance import Guidance
from cfvae.hvae import HierarchicalVAE
from cfvae.pipeline import LatentVAEPipeline
from cfvae.published import (
    PUBLISHED,
    RELEASED,
    load_published,
    load_published_pipeline,
    published_config,
    published_names,
    read_header,
    read_weights,
)
from cfvae.recipes import recipe_from_dict
from cfvae.runs.presets import describe, preset
from cfvae.runs.published_presets import published_recipe

ROOT = Path(__file__).parents[2]
FIXTURES = Path(os.environ.get("CFVAE_FIXTURES", ROOT.parent / "shared" / "fixtures")) / "published-layout"
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="the authors' numbers are not here: set CFVAE_FIXTURES"
)
OTHER_MODE = {"published": "softmax", "softmax": "published"}
SMALL = {
    "resolution": 8,
    "c": 8,
    "c_enc": 12,
    "c_mult": [1, 1, 2],
    "dff_mult": [0, 2, 2],
    "num_classes": 3,
    "nlayers": [1, 2, 1],
    "enc_nlayers": [1, 2, 1],
    "num_attention": [0, 1, 0],
    "num_attention_heads": [0, 4, 0],
    "zdim": 2,
    "datadim": 4,
    "h_prior": True,
}


def small(attention="published", **changes) -> HierarchicalVAE:
    seed_everything(0)
    model = HierarchicalVAE(published_config(SMALL | changes, attention)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def layout(model) -> dict[str, torch.Tensor]:
    "A model's weights under the authors' names."
    weights = {}
    for name, published_name in published_names(model).items():
        weights[published_name] = model.get_parameter(name).detach().clone()
    return weights


def fixture(name) -> tuple[dict, dict[str, torch.Tensor]]:
    "The constructor arguments and the stored inputs and outputs."
    with safe_open(FIXTURES / f"{name}.weights.safetensors", "pt") as file:
        arguments = json.loads(file.metadata()["config"])
    return arguments, load_file(FIXTURES / f"{name}.io.safetensors")


def noise(io, kind) -> list[torch.Tensor]:
    return [io[key] for key in sorted(io) if key.startswith(f"{kind}/noise/")]


def close(actual, expected) -> bool:
    return torch.allclose(actual, expected, atol=1e-4, rtol=0)


# --- the authors' numbers


@needs_fixtures
@pytest.mark.parametrize("attention", OTHER_MODE)
@pytest.mark.parametrize("name", ["conditional", "unconditional"])
def test_the_authors_numbers(name, attention):
    arguments, io = fixture(name)
    labels = io.get("input/y")
    model = load_published(FIXTURES / f"{name}.weights.safetensors", arguments, attention)
    with torch.no_grad():
        out = model(io["input/x"], labels, eps=noise(io, "forward"))
    mean, raw = io[f"{attention}/forward/out"].chunk(2, dim=1)
    assert close(out.distribution.mean, mean)
    assert close(out.distribution.variance.log(), raw)
    assert close(out.rates, io[f"{attention}/forward/kl"])

    drawn = model.sample(3, labels, eps=noise(io, "sample_plain"))
    assert close(drawn, io[f"{attention}/sample_plain/out"])
    if labels is not None:
        guided = model.sample(3, labels, Guidance(1.5, 3.0), eps=noise(io, "sample_guided"))
        assert close(guided, io[f"{attention}/sample_guided/out"])

    # the modes differ, so the test can tell them apart
    other = io[f"{OTHER_MODE[attention]}/sample_plain/out"]
    assert (drawn - other).abs().max() > 1e-3


@needs_fixtures
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_the_authors_pipelines(kind, tmp_path):
    arguments, io = fixture(f"pipeline-{kind}")
    file = FIXTURES / f"pipeline-{kind}.weights.safetensors"
    assert json.loads(read_header(file)["config"]) == arguments

    pipe = load_published_pipeline(file, arguments)
    z = pipe.autoencoder.encode(io["input/images"])
    assert close(z, io["encode/latents"])
    assert close(pipe.autoencoder.decode(z), io["decode/of_encoded"])
    decoded = pipe.decode(io["input/standardised_latents"])
    assert close(decoded, io["decode/of_standardised"])

    pipe.save_pretrained(tmp_path)
    again = LatentVAEPipeline.from_pretrained(tmp_path)
    assert torch.equal(again.decode(io["input/standardised_latents"]), decoded)
    assert len(again(n=2).images) == 2


# --- sizes and recipes


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("imagenet256_kl8", 386.37),
        ("bedroom", 96.24),
        ("church", 119.14),
        ("bedroom_f8", 107.18),
        ("bedroom_f16", 99.84),
        ("church32", 119.14),
    ],
)
def test_published_parameter_counts(name, millions):
    with torch.device("meta"):
        model = HierarchicalVAE(published_config(PUBLISHED[name]))
    assert round(count_parameters(model) / 1e6, 2) == millions


def test_counts_that_need_a_word():
    with torch.device("meta"):
        imagenet = HierarchicalVAE(published_config(PUBLISHED["imagenet256_kl8"]))
        # the authors' file counts four data channels
        church = HierarchicalVAE(published_config(PUBLISHED["church256"] | {"datadim": 4}))
    assert round(count_parameters(church) / 1e6, 2) == 143.32

    drawing = 0
    for name, parameter in imagenet.named_parameters():
        if not name.startswith("encoder") and "posterior_block" not in name and ".join." not in name:
            drawing += parameter.numel()
    assert round(drawing / 1e6, 2) == 206.15


@pytest.mark.parametrize("name", [*PUBLISHED, "imagenet-256-small"])
def test_presets(name):
    recipe = preset(name)
    assert recipe.name == name and describe(name)
    assert recipe_from_dict(json.loads(json.dumps(config_to_dict(recipe)))) == recipe
    assert recipe.vae.attention_mode == "softmax"  # what is trained here attends
    assert recipe.vae_training.skip_norm == 300 * recipe.vae.data_channels * recipe.vae.resolution**2


def test_constants_of_the_papers():
    imagenet = preset("imagenet256_kl8")
    assert imagenet.vae.resolutions == (1, 4, 8, 16, 32)
    assert imagenet.vae.layers == (8, 8, 10, 12, 10)
    assert imagenet.vae.multipliers == (12, 10, 8, 6, 4)
    assert imagenet.vae_training.learning_rate == 3e-4
    assert imagenet.objective.sigma_q == 0.07
    assert imagenet.objective.label_drop == 0.1

    bedroom = preset("bedroom")
    assert (bedroom.vae_training.batch_size, bedroom.vae_training.accumulate) == (256, 4)
    assert (bedroom.objective.steepness, bedroom.objective.label_drop) == (2000, 0)

    church256 = preset("church256")
    assert church256.objective.spectral_weight == 0.25
    shares = church256.objective.shares(church256.vae.layers)
    assert shares[-1] / shares[0] == pytest.approx(256)  # most for the highest resolution
    assert shares.sum() == pytest.approx(66.7, abs=0.1)

    cifar = preset("cifar10_pixels")
    assert cifar.autoencoder.source == "pixels"
    assert (cifar.vae_training.optimizer, cifar.vae_training.final_learning_rate) == ("adamax", 3e-4)


# --- names


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_attention_heads": [0, 1, 0]}, {"h_prior": False, "num_classes": 0}, {"c_mult": [1, 1, 1]}],
)
def test_round_trip_through_the_layout(changes, tmp_path):
    model = small(**changes)
    save_file(layout(model), tmp_path / "w.safetensors")
    again = load_published(tmp_path / "w.safetensors", SMALL | changes)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
    assert not again.training
    attention = [block for block in again.modules() if isinstance(block, Attention)]
    assert all(block.mode == "published" for block in attention)


@pytest.mark.parametrize(
    ("name", "published_name"),
    [
        ("decoder.start", "initial_x"),
        ("embedding.weight", "embed.weight"),
        (
            "decoder.levels.1.0.prior_block.layers.3.weight",
            "layer_list.1.layer_list.0.prior_block.dense2.conv.weight",
        ),
        (  # a plain block ends in conv2
            "decoder.levels.2.0.posterior_block.layers.1.bias",
            "layer_list.2.layer_list.0.posterior_block.conv2.conv.bias",
        ),
        (
            "decoder.levels.2.0.shared_block.layers.1.bias",
            "layer_list.2.layer_list.0.shared_block.conv2.bias",
        ),
        (  # after two blocks and one attention layer
            "encoder.downs.1.project.weight",
            "encoder.encoder_levels.1.layer_list.3.conv_layer.weight",
        ),
        ("decoder.ups.1.project.weight", "layer_list.0.layer_list.1.conv_layer.weight"),
    ],
)
def test_some_names_by_hand(name, published_name):
    assert published_names(small())[name] == published_name


def test_one_head_projects_the_query_alone():
    names = published_names(small(num_attention_heads=[0, 1, 0])).values()
    assert any(".qproj." in name for name in names)
    assert not any(".qkvproj." in name for name in names)


def test_what_does_not_fit_is_listed():
    weights = layout(small())
    missing = {name: tensor for name, tensor in weights.items() if name != "initial_x"}
    unexpected = weights | {"extra": torch.zeros(1)}
    misshapen = weights | {"initial_x": torch.zeros(1, 16, 2, 2)}
    start = weights["initial_x"]
    shapes = r"initial_x has shape \(1, 16, 2, 2\), the config asks for \(1, 16, 1, 1\)"
    for spoiled, message in (
        (missing, "missing: initial_x"),
        (unexpected, "unexpected: extra"),
        (misshapen, shapes),
        (weights | {"initial_x": start + torch.nan}, "initial_x has numbers that are not finite"),
        (weights | {"initial_x": start.to(torch.int8)}, "initial_x is of the type int8"),
        (weights | {"vae.initial_x": start}, "hold initial_x twice, with vae. before it and without"),
        (dict(list(weights.items())[:1]), "and [0-9]+ more"),
    ):
        with pytest.raises(CfvaeError, match=message):
            load_published(spoiled, SMALL)


def test_configs_that_are_wrong():
    with pytest.raises(CfvaeError, match="zdim"):
        published_config({k: v for k, v in SMALL.items() if k != "zdim"})
    with pytest.raises(CfvaeError, match="banana"):
        published_config(SMALL | {"banana": 1})
    for changed in ({"nlayers": 5}, {"c": "8"}, {"c": 8.5}, {"c_mult": [1, None, 1]}, {"h_prior": "false"}):
        ((name, value),) = changed.items()
        with pytest.raises(CfvaeError, match=re.escape(f"the VAE: {name} is {value!r}: ")):
            published_config(SMALL | changed)
    for config in (None, 5, ["church"]):
        with pytest.raises(CfvaeError, match="there is no published model.*church"):
            load_published({}, config)
        with pytest.raises(CfvaeError, match="names and values are needed"):
            published_config(config)
    with pytest.raises(CfvaeError, match="no published model 'imagenet'"):
        load_published({}, "imagenet")
    with pytest.raises(CfvaeError, match="no released pipeline 'bedroom_f8'.*bedroom"):
        load_published_pipeline({}, "bedroom_f8")
    with pytest.raises(CfvaeError, match="lacks dae, shift, scale"):
        load_published_pipeline({}, {"vae": SMALL})


# --- files from strangers


class Unkind:
    def __reduce__(self):
        return os.mkdir, (os.environ["CFVAE_TEST_TRACE"],)


def test_a_malicious_pickle_only_raises(tmp_path, monkeypatch):
    monkeypatch.setenv("CFVAE_TEST_TRACE", str(tmp_path / "trace"))
    torch.save({"initial_x": torch.zeros(1), "bad": Unkind()}, tmp_path / "bad.pt")
    with pytest.raises(CfvaeError, match="was refused"):
        load_published(tmp_path / "bad.pt", SMALL)
    assert not (tmp_path / "trace").exists()
    torch.load(tmp_path / "bad.pt", weights_only=False)
    assert (tmp_path / "trace").exists()  # it would have worked


def test_pytorch_files_are_read_as_tensors(tmp_path):
    weights = layout(small())
    for name, content in (
        ("plain.pt", weights),
        ("wrapped.pt", {"state_dict": weights, "epoch": 3}),
        ("prefixed.pt", {f"vae.{k}": v for k, v in weights.items()}),
    ):
        torch.save(content, tmp_path / name)
        assert torch.equal(load_published(tmp_path / name, SMALL).decoder.start, weights["initial_x"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{"),
        ("cut.pt", b"PK\x03\x04nonsense"),
        ("empty.pt", b""),
    ],
)
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CfvaeError, match=name):
        read_weights(tmp_path / name)


def test_files_that_hold_no_weights(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.save({"steps": 3}, tmp_path / "numbers.pt")
    for name in ("tensor.pt", "numbers.pt"):
        with pytest.raises(CfvaeError, match="no state dict"):
            read_weights(tmp_path / name)
    with pytest.raises(CfvaeError, match="no file"):
        read_weights(tmp_path / "absent.pt")
    for path in (None, 5, ""):
        for read in (read_weights, read_header, lambda path: load_published(path, SMALL)):
            with pytest.raises(CfvaeError, match=f"the weights is {path!r}: give its path"):
                read(path)
    for weights in ({}, {1: torch.zeros(1)}, {"initial_x": np.zeros(1)}):
        with pytest.raises(CfvaeError, match="the weights are no state dict"):
            load_published(weights, SMALL)
    assert read_header(tmp_path / "numbers.pt") == {} == read_header(tmp_path / "absent.safetensors")


# --- the lesson


def test_every_named_defect_has_its_test():
    cells = json.loads((ROOT / "nbs" / "16_published_models.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "".join("".join(cell["source"]) for cell in cells)
    named = re.findall(r"`(tests/\w+/test_\w+\.py)::(test_\w+)`", text)
    assert len(named) >= 15
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {name}"


@pytest.mark.parametrize(
    "stage, complaint",
    [
        (None, "dae: the arguments are None"),
        ({}, "dae: the arguments lack class"),
        (RELEASED["church"]["dae"] | {"embed_dim": "4"}, "dae: embed_dim is '4': a whole number"),
        (RELEASED["church"]["dae"] | {"ddconfig": {"z_channels": 4}}, "dae.ddconfig: the arguments lack"),
        (RELEASED["bedroom"]["dae"] | {"n_embed": None}, "dae: n_embed is None"),
    ],
)
def test_first_stages_that_are_wrong(stage, complaint):
    config = RELEASED["church"] | {"dae": stage, "vae": SMALL}
    with pytest.raises(CfvaeError, match=complaint):
        load_published_pipeline(layout(small()), config)


def test_released_pipelines_agree_with_the_presets():
    for name, config in RELEASED.items():
        recipe = published_recipe(name)
        sizes = config["dae"]["ddconfig"]
        assert recipe.autoencoder.size == sizes["resolution"]
        assert recipe.autoencoder.latent_channels == sizes["z_channels"]
        assert recipe.autoencoder.factor == 2 ** (len(sizes["ch_mult"]) - 1)
        assert recipe.vae == published_config(config["vae"])
