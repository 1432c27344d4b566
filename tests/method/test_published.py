"""Tests of cfvae.published: every published model has its size, and released weights give the authors' numbers.

The numbers come from files that the authors' own code wrote with random weights. They are not part of this repository; the tests that need them
look in CFVAE_FIXTURES, or in shared/fixtures beside the repository, and are skipped where there are none."""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cfvae.blocks import Attention
from cfvae.core import CfvaeError, count_parameters, seed_everything
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
from cfvae.runs.presets import published_recipe
from cfvae.runs.presets import PRESETS, preset
from cfvae.recipes import recipe_from_dict
from cfvae.core import config_to_dict

ROOT = Path(__file__).parents[2]
FIXTURES = Path(os.environ.get("CFVAE_FIXTURES", ROOT.parent / "shared" / "fixtures")) / "published-layout"
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="the authors' numbers are not here: set CFVAE_FIXTURES"
)
MODES = ("published", "softmax")
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
    return {
        there: model.get_parameter(here).detach().clone() for here, there in published_names(model).items()
    }


def fixture(name) -> tuple[dict, dict[str, torch.Tensor]]:
    "The constructor arguments and the stored inputs and outputs."
    with safe_open(FIXTURES / f"{name}.weights.safetensors", "pt") as file:
        return json.loads(file.metadata()["config"]), load_file(FIXTURES / f"{name}.io.safetensors")


def noise(io, kind) -> list[torch.Tensor]:
    return [io[key] for key in sorted(io) if key.startswith(f"{kind}/noise/")]


# --- the authors' numbers


@needs_fixtures
@pytest.mark.parametrize("attention", MODES)
@pytest.mark.parametrize("name", ["conditional", "unconditional"])
def test_the_authors_numbers(name, attention):
    arguments, io = fixture(name)
    model, labels = (
        load_published(FIXTURES / f"{name}.weights.safetensors", arguments, attention),
        io.get("input/y"),
    )
    with torch.no_grad():
        out = model(io["input/x"], labels, eps=noise(io, "forward"))
    mean, raw = io[f"{attention}/forward/out"].chunk(2, dim=1)
    assert torch.allclose(out.distribution.mean, mean, atol=1e-4, rtol=0)
    assert torch.allclose(out.distribution.variance.log(), raw, atol=1e-4, rtol=0)
    assert torch.allclose(out.rates, io[f"{attention}/forward/kl"], atol=1e-4, rtol=0)
    assert torch.allclose(
        model.sample(3, labels, eps=noise(io, "sample_plain")),
        io[f"{attention}/sample_plain/out"],
        atol=1e-4,
        rtol=0,
    )
    if labels is not None:
        guided = model.sample(3, labels, Guidance(1.5, 3.0), eps=noise(io, "sample_guided"))
        assert torch.allclose(guided, io[f"{attention}/sample_guided/out"], atol=1e-4, rtol=0)
    other = io[f"{MODES[attention == 'published']}/sample_plain/out"]
    assert (
        model.sample(3, labels, eps=noise(io, "sample_plain")) - other
    ).abs().max() > 1e-3  # the modes differ, so the test can tell them apart


@needs_fixtures
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_the_authors_pipelines(kind, tmp_path):
    arguments, io = fixture(f"pipeline-{kind}")
    pipe = load_published_pipeline(FIXTURES / f"pipeline-{kind}.weights.safetensors", arguments)
    z = pipe.autoencoder.encode(io["input/images"])
    assert torch.allclose(z, io["encode/latents"], atol=1e-4, rtol=0)
    assert torch.allclose(pipe.autoencoder.decode(z), io["decode/of_encoded"], atol=1e-4, rtol=0)
    assert torch.allclose(
        pipe.decode(io["input/standardised_latents"]), io["decode/of_standardised"], atol=1e-4, rtol=0
    )
    pipe.save_pretrained(tmp_path)
    again = LatentVAEPipeline.from_pretrained(tmp_path)
    assert torch.equal(
        again.decode(io["input/standardised_latents"]), pipe.decode(io["input/standardised_latents"])
    )
    assert (
        len(again(n=2).images) == 2
        and json.loads(read_header(FIXTURES / f"pipeline-{kind}.weights.safetensors")["config"]) == arguments
    )


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
        church = HierarchicalVAE(
            published_config(PUBLISHED["church256"] | {"datadim": 4})
        )  # the authors' file counts four data channels
    drawing = sum(
        p.numel()
        for name, p in imagenet.named_parameters()
        if not (name.startswith("encoder") or "posterior_block" in name or ".join." in name)
    )
    assert round(drawing / 1e6, 2) == 206.15 and round(count_parameters(church) / 1e6, 2) == 143.32


@pytest.mark.parametrize("name", [*PUBLISHED, "imagenet-256-small"])
def test_presets(name):
    recipe = preset(name)
    assert (
        recipe.name == name
        and recipe_from_dict(json.loads(json.dumps(config_to_dict(recipe)))) == recipe
        and PRESETS[name].__doc__
    )
    assert recipe.vae.attention_mode == "softmax"  # what is trained here attends
    assert recipe.vae_training.skip_norm == 300 * recipe.vae.data_channels * recipe.vae.resolution**2


def test_constants_of_the_papers():
    imagenet, bedroom, church256, cifar = (
        preset(name) for name in ("imagenet256_kl8", "bedroom", "church256", "cifar10_pixels")
    )
    assert (imagenet.vae.resolutions, imagenet.vae.layers, imagenet.vae.multipliers) == (
        (1, 4, 8, 16, 32),
        (8, 8, 10, 12, 10),
        (12, 10, 8, 6, 4),
    )
    assert (
        imagenet.vae_training.learning_rate,
        imagenet.objective.sigma_q,
        imagenet.objective.label_drop,
    ) == (3e-4, 0.07, 0.1)
    assert (
        bedroom.vae_training.batch_size,
        bedroom.vae_training.accumulate,
        bedroom.objective.steepness,
        bedroom.objective.label_drop,
    ) == (256, 4, 2000, 0)
    shares = church256.objective.shares(church256.vae.layers)
    assert shares[-1] / shares[0] == pytest.approx(256) and shares.sum() == pytest.approx(
        66.7, abs=0.1
    )  # most for the highest resolution
    assert (
        cifar.vae_training.optimizer,
        cifar.vae_training.final_learning_rate,
        cifar.autoencoder.source,
    ) == ("adamax", 3e-4, "pixels")


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
    assert not again.training and all(
        block.mode == "published" for block in again.modules() if isinstance(block, Attention)
    )


def test_some_names_by_hand():
    names = published_names(small())
    assert names["decoder.start"] == "initial_x" and names["embedding.weight"] == "embed.weight"
    assert (
        names["decoder.levels.1.0.prior_block.layers.3.weight"]
        == "layer_list.1.layer_list.0.prior_block.dense2.conv.weight"
    )
    assert (
        names["decoder.levels.2.0.posterior_block.layers.1.bias"]
        == "layer_list.2.layer_list.0.posterior_block.conv2.conv.bias"
    )  # a plain block ends in conv2
    assert (
        names["decoder.levels.2.0.shared_block.layers.1.bias"]
        == "layer_list.2.layer_list.0.shared_block.conv2.bias"
    )
    assert (
        names["encoder.downs.1.project.weight"] == "encoder.encoder_levels.1.layer_list.3.conv_layer.weight"
    )  # after two blocks and one attention layer
    assert names["decoder.ups.1.project.weight"] == "layer_list.0.layer_list.1.conv_layer.weight"


def test_what_does_not_fit_is_listed():
    weights = layout(small())
    for spoil, needle in (
        (lambda w: w.pop("initial_x"), "missing: initial_x"),
        (lambda w: w.update(extra=torch.zeros(1)), "not known: extra"),
        (
            lambda w: w.update(initial_x=torch.zeros(1, 16, 2, 2)),
            r"initial_x has shape \(1, 16, 2, 2\), the config asks for \(1, 16, 1, 1\)",
        ),
    ):
        spoiled = dict(weights)
        spoil(spoiled)
        with pytest.raises(CfvaeError, match=needle):
            load_published(spoiled, SMALL)
    with pytest.raises(CfvaeError, match="and [0-9]+ more"):
        load_published({}, SMALL)


def test_configs_that_are_wrong():
    with pytest.raises(CfvaeError, match="zdim"):
        published_config({k: v for k, v in SMALL.items() if k != "zdim"})
    with pytest.raises(CfvaeError, match="banana"):
        published_config(SMALL | {"banana": 1})
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
    assert read_header(tmp_path / "numbers.pt") == {} == read_header(tmp_path / "absent.safetensors")


# --- the lesson


def test_every_named_defect_has_its_test():
    cells = json.loads((ROOT / "nbs" / "16_published_models.ipynb").read_text(encoding="utf-8"))["cells"]
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", "".join("".join(cell["source"]) for cell in cells))
    assert len(named) >= 15
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file} has no {name}"


def test_released_pipelines_agree_with_the_presets():
    for name, config in RELEASED.items():
        first = published_recipe(name).autoencoder
        dd = config["dae"]["ddconfig"]
        assert (first.size, first.latent_channels, first.factor) == (
            dd["resolution"],
            dd["z_channels"],
            2 ** (len(dd["ch_mult"]) - 1),
        )
        assert dataclasses.asdict(published_config(config["vae"])) == dataclasses.asdict(
            published_recipe(name).vae
        )
