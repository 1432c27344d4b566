"Tests of cfvae.recipes: settings by name, presets that fit together, and runs that cannot be mixed up."

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import cfvae.published  # noqa: F401  (adds its presets)
from cfvae.autoencoder import Autoencoder, AutoencoderConfig
from cfvae.core import CfvaeError, config_to_dict, make_generator
from cfvae.data import ImageDataset, Shapes
from cfvae.hvae import HierarchicalVAE, HierarchicalVAEConfig
from cfvae.pretrained import PretrainedAutoencoder, PretrainedConfig, import_diffusers
from cfvae.runs.presets import PRESETS, preset
from cfvae.recipes import Recipe, change, is_pretrained, recipe_from_dict, with_pretrained
from cfvae.runs.folder import load_autoencoder, load_model, load_recipe
from cfvae.runs.train import prepare, train
from cfvae.runs.callbacks import read_log

TINY = {
    "autoencoder.size": 16,
    "autoencoder.widths": (8, 8),
    "autoencoder.groups": 4,
    "autoencoder_training.steps": 4,
    "vae.resolutions": (1, 4),
    "vae.widths": 8,
    "vae.encoder_widths": 8,
    "vae.multipliers": 1,
    "vae.layers": (1, 2),
    "vae.encoder_blocks": 1,
    "vae.attention": 0,
    "vae.heads": 2,
    "vae.latent_channels": 2,
    "vae_training.steps": 4,
    "objective.schedule": "shifted-exponential",
    "batch_size": 8,
    "warmup": 2,
    "log_every": 1,
    "checkpoint_every": 2,
    "precision": "fp32",
    "device": "cpu",
}


def tiny(**settings) -> Recipe:
    return change(
        preset("shapes-demo"), {**TINY, **{key.replace("__", "."): value for key, value in settings.items()}}
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "A folder of PNG files in two classes, whose names need care."
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name, low in (("a & b", 0), ("zebra", 150)):
        (root / name).mkdir()
        for i in range(12):
            Image.fromarray(random.integers(low, low + 100, (20, 24, 3), dtype=np.uint8)).save(
                root / name / f"{i}.png"
            )
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A finished run on Shapes."
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train(tiny(), "shapes:n=60", out)
    return out


# --- recipes and settings


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
        ({"vae.layer": 3}, "HierarchicalVAEConfig has no field 'layer'.*layers"),
        ({"latent_channels": 8}, "autoencoder.latent_channels or vae.latent_channels"),
        ({"vea.layers": 3}, "no part 'vea'"),
        ({"vae": 3}, "whole part.*vae.data_channels"),
        ({"held_out": 0}, "held_out is 0"),
        ({"batch_size": "many"}, "batch_size=many"),
        ({"vae.layers": "1,two,3"}, "vae.layers=1,two,3"),
        ({"vae.layers": (1, 2)}, "layers has 2 entries"),
        ({"vae.resolutions": (1, 2, 4)}, r"code is \(4, 8, 8\), but the VAE models \(4, 4, 4\)"),
        ({"sigma_q": 0}, "sigma_q is 0"),
        (
            {"schedule": "constant-per-resolution", "values": (1, 2)},
            "schedule has 2 values, but the model has 3",
        ),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(CfvaeError, match=message):
        change(preset("shapes-demo"), settings)


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


def test_unknown_fields_in_a_file(tmp_path):
    fields = config_to_dict(preset("shapes-demo"))
    with pytest.raises(CfvaeError, match="Recipe has no field 'colour'"):
        recipe_from_dict({**fields, "colour": "red"})
    with pytest.raises(CfvaeError, match="HierarchicalVAEConfig has no field 'depth'"):
        recipe_from_dict({**fields, "vae": {**fields["vae"], "depth": 3}})
    with pytest.raises(CfvaeError, match="not a run folder"):
        load_recipe(tmp_path)
    (tmp_path / "recipe.json").write_text('{"name": ')
    with pytest.raises(CfvaeError, match="cannot be read"):
        load_recipe(tmp_path)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_fits_together(name):
    recipe = preset(name)
    assert recipe.name == name and (PRESETS[name].__doc__ or "").strip()
    assert recipe_from_dict(json.loads(json.dumps(config_to_dict(recipe)))) == recipe
    with torch.device("meta"):
        vae, code = HierarchicalVAE(recipe.vae), torch.zeros(2, *recipe.autoencoder.latent_shape)
        if not is_pretrained(recipe):
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


def test_unknown_preset():
    with pytest.raises(CfvaeError, match="no preset 'shape-demo'.*shapes-demo"):
        preset("shape-demo")


# --- preparing


def test_prepare_divides_and_counts():
    prepared, images, held = prepare(tiny(), Shapes(50, size=16))
    assert prepared.vae.num_classes == 10 and (len(images), len(held)) == (
        45,
        5,
    )  # at most a tenth is held out
    _, images, held = prepare(tiny(held_out=3), Shapes(50, size=16))
    assert (len(images), len(held)) == (47, 3)
    assert torch.equal(held.labels, prepare(tiny(held_out=3), Shapes(50, size=16))[2].labels)
    assert prepare(tiny(conditional=False), Shapes(50, size=16))[0].vae.num_classes == 0


def test_prepare_without_labels():
    pixels = torch.zeros(20, 3, 16, 16, dtype=torch.uint8)
    for bare in (
        ImageDataset(pixels, [-1] * 20, ()),
        ImageDataset(pixels, [0] * 20, ("all",)),
        ImageDataset(pixels, [-1] + [0] * 19, ("a", "b")),
    ):
        with pytest.raises(CfvaeError, match="labels are needed"):
            prepare(tiny(), bare)
        assert prepare(tiny(conditional=False), bare)[0].vae.num_classes == 0
    with pytest.raises(CfvaeError, match="one image is not enough"):
        prepare(tiny(conditional=False), ImageDataset(pixels[:1], [0], ("a", "b")))
    with pytest.raises(CfvaeError, match="16 pixels wide, the recipe wants 32"):
        prepare(preset("shapes-demo"), Shapes(20, size=16))


# --- whole runs


def test_a_run_on_shapes(run):
    recipe, pipe = load_recipe(run), load_model(run)
    assert recipe == tiny(data="shapes:n=60") and len(pipe.classes) == 10
    for stage in ("autoencoder", "vae"):
        assert [line["step"] for line in read_log(run / stage / "log.jsonl")] == [1, 2, 3, 4]
        assert list((run / stage / "pictures").glob("*.png")) and list(
            (run / stage / "checkpoints").glob("step-4-*.pt")
        )
    rates = read_log(run / "vae" / "log.jsonl")[-1]["rates"]
    assert len(rates) == 3
    assert pipe([0, 5, 9], output_type="np").images.shape == (3, 16, 16, 3)
    copied = load_model(run / "pipeline")
    assert all(torch.equal(a, b) for a, b in zip(pipe.vae.parameters(), copied.vae.parameters(), strict=True))
    assert all(
        torch.equal(a, b)
        for a, b in zip(pipe.autoencoder.parameters(), load_autoencoder(run).parameters(), strict=True)
    )


def test_a_run_on_a_folder(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the decoded images are kept below the working folder
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(tiny(held_out=4, flip=True), f"folder:{photos}", "run")
    pipe = load_model("run")
    assert pipe.classes == ("a & b", "zebra") and pipe.vae.config.num_classes == 2
    assert np.load("run/latents/latents.npy", mmap_mode="r").shape == (
        2 * 22,
        4,
        4,
        4,
    )  # mirrored images have codes of their own


def test_unlabelled_folder(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CfvaeError, match="labels are needed.*\n.*--set conditional=false"):
        train(tiny(), f"folder:{photos / 'zebra'}", "run")
    assert not (tmp_path / "run").exists()  # refused before anything was written
    assert train(tiny(conditional=False), f"folder:{photos / 'zebra'}", "run")
    pipe = load_model("run")
    assert pipe.classes == () and pipe(n=3, output_type="np").images.shape == (3, 16, 16, 3)


def test_a_dataset_in_memory(tmp_path):
    assert train(
        tiny(objective__schedule="none", objective__label_drop=0, vae__learned_prior=False),
        Shapes(40, seed=3, size=16),
        tmp_path / "run",
    )
    assert load_recipe(tmp_path / "run").data == "shapes"


def test_refusals(run, tmp_path):
    with pytest.raises(CfvaeError, match="already holds a run.*--resume"):
        train(tiny(), "shapes:n=60", run)
    with pytest.raises(CfvaeError, match=r"another recipe \(vae.layers: \[1, 2\] there, \[2, 2\] now"):
        train(tiny(vae__layers=(2, 2)), "shapes:n=60", run, resume=True)
    with pytest.raises(CfvaeError, match="data: shapes:n=60 there, shapes:n=61 now"):
        train(tiny(), "shapes:n=61", run, resume=True)
    with pytest.raises(CfvaeError, match="stage is 'both'"):
        train(tiny(), "shapes:n=60", tmp_path / "x", stage="both")
    with pytest.raises(CfvaeError, match="batch_size is 64, but shapes has 54"):
        train(tiny(batch_size=64), "shapes:n=60", tmp_path / "y")
    assert train(
        tiny(log_every=2, checkpoint_every=3), "shapes:n=60", run, resume=True
    )  # how often something is written may differ


def test_a_run_that_failed_early_is_no_hindrance(tmp_path):
    with pytest.raises(CfvaeError, match="batch_size"):
        train(tiny(batch_size=64), "shapes:n=60", tmp_path / "run", stage="autoencoder")
    assert train(tiny(), "shapes:n=60", tmp_path / "run", stage="autoencoder")


def test_stages_apart(run, tmp_path):
    with pytest.raises(CfvaeError, match="no finished autoencoder"):
        train(tiny(), "shapes:n=60", tmp_path / "run", stage="vae")
    with pytest.raises(CfvaeError, match="no finished autoencoder"):
        load_autoencoder(tmp_path / "run")
    assert train(tiny(), "shapes:n=60", tmp_path / "run", stage="autoencoder", resume=True)
    with pytest.raises(CfvaeError, match="no model yet"):
        load_model(tmp_path / "run")
    assert train(tiny(), "shapes:n=60", tmp_path / "run", stage="vae", resume=True)
    ours, theirs = load_model(run).vae.state_dict(), load_model(tmp_path / "run").vae.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)  # in two parts or in one


def test_time_limit_and_resume(run, tmp_path):
    assert train(tiny(), "shapes:n=60", tmp_path / "run", max_minutes=1e-9) is False
    assert len(read_log(tmp_path / "run" / "autoencoder" / "log.jsonl")) == 1
    assert train(tiny(), "shapes:n=60", tmp_path / "run", resume=True) is True
    ours, theirs = load_model(run).vae.state_dict(), load_model(tmp_path / "run").vae.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)  # stopped and resumed, or not
    with pytest.raises(CfvaeError, match="max-minutes is 0"):
        train(tiny(), "shapes:n=60", tmp_path / "other", max_minutes=0)


PIXELS = {
    "autoencoder": PretrainedConfig("pixels", 16, 3, 1, 0.0, 1.0),
    "vae": HierarchicalVAEConfig(3, (1, 4, 16), 8, 8, 1, 1, 1, latent_channels=2),
}


def test_a_run_on_pixels(tmp_path):
    "No first stage: the codes are the images, unscaled, and only the second stage is trained."
    recipe = dataclasses.replace(
        tiny(vae__layers=(1, 2), autoencoder_training__batch_size=64), **PIXELS
    )  # a batch that would be too large for the first stage
    assert recipe_from_dict(json.loads(json.dumps(config_to_dict(recipe)))) == recipe
    assert train(recipe, "shapes:n=60", tmp_path / "run")
    pipe, images = load_model(tmp_path / "run"), Shapes(60, size=16).batch(range(4))[0]
    assert (
        pipe.autoencoder.config.source == "pixels"
        and torch.equal(pipe.encode(images), images)
        and not (tmp_path / "run" / "autoencoder").exists()
    )
    assert (
        load_recipe(tmp_path / "run").autoencoder == recipe.autoencoder
        and len(pipe(labels=[0, 1]).images) == 2
    )
    with pytest.raises(CfvaeError, match="nothing to train in stage one"):
        train(recipe, "shapes:n=60", tmp_path / "other", stage="autoencoder")
    assert not (tmp_path / "other").exists()


def test_a_run_on_a_pretrained_autoencoder(tmp_path):
    pytest.importorskip("diffusers")
    sizes = {
        "block_out_channels": (32, 32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "latent_channels": 4,
    }
    import_diffusers().AutoencoderKL(**sizes).save_pretrained(tmp_path / "kl")
    recipe = with_pretrained(tiny(), str(tmp_path / "kl"))
    assert recipe.autoencoder.latent_shape == (4, 4, 4)
    assert train(recipe, "shapes:n=60", tmp_path / "run")
    pipe = load_model(tmp_path / "run")
    assert isinstance(pipe.autoencoder, PretrainedAutoencoder) and isinstance(
        load_autoencoder(tmp_path / "run"), PretrainedAutoencoder
    )
    codes = pipe.encode(Shapes(60, size=16).batch(range(60))[0])
    assert (
        codes.mean((0, 2, 3)).abs().max() < 0.3 and abs(codes.std() - 1) < 0.2
    )  # measured, channel by channel
    known = dataclasses.replace(
        recipe, autoencoder=dataclasses.replace(recipe.autoencoder, shift=0.25, scale=4.4)
    )
    assert train(known, "shapes:n=60", tmp_path / "known")
    assert load_model(tmp_path / "known").scaler.scale.flatten().tolist() == pytest.approx([4.4])
    with pytest.raises(CfvaeError, match="another recipe"):
        train(known, "shapes:n=60", tmp_path / "run", resume=True)
    with pytest.raises(CfvaeError, match=r"code is \(4, 4, 4\), but the VAE models \(4, 8, 8\)"):
        with_pretrained(
            dataclasses.replace(
                tiny(),
                autoencoder=AutoencoderConfig(16, (8,), groups=4),
                vae=HierarchicalVAEConfig(4, (1, 8), 8, 8, 1, 1, 1),
            ),
            str(tmp_path / "kl"),
        )
    open_source = dataclasses.replace(recipe, autoencoder=dataclasses.replace(recipe.autoencoder, source=""))
    with pytest.raises(CfvaeError, match="which autoencoder"):
        train(open_source, "shapes:n=60", tmp_path / "open")


def test_load_model_says_what_is_missing(tmp_path):
    with pytest.raises(CfvaeError, match="there is nothing at"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CfvaeError, match="neither a run folder"):
        load_model(tmp_path)


def test_recipe_checks_itself():
    with pytest.raises(CfvaeError, match="change one of them"):
        Recipe("clash", autoencoder=AutoencoderConfig(32, (16, 16)), vae=HierarchicalVAEConfig(4, (1, 4)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("shapes-demo").name = "other"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_on_a_gpu(tmp_path):
    assert train(tiny(device="cuda", precision="bf16"), "shapes:n=60", tmp_path / "run")
    images = (
        load_model(tmp_path / "run").to("cuda")([0, 1], generator=make_generator(0), output_type="pt").images
    )
    assert images.isfinite().all()


def test_an_adversarial_first_stage_trains_and_resumes(tmp_path):
    recipe = tiny(
        autoencoder__size=32,
        autoencoder__widths=(8, 8, 8),
        autoencoder_loss__adversarial=0.5,
        autoencoder_loss__adversarial_from=2,
        autoencoder_loss__discriminator_width=8,
        autoencoder_loss__discriminator_layers=1,
    )
    assert recipe_from_dict(json.loads(json.dumps(config_to_dict(recipe)))) == recipe
    assert train(recipe, "shapes:n=60", tmp_path / "whole")
    assert not train(recipe, "shapes:n=60", tmp_path / "parts", max_minutes=1e-6)
    assert train(recipe, "shapes:n=60", tmp_path / "parts", resume=True)
    whole, parts = (load_model(tmp_path / name).autoencoder for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    assert not any("discriminator" in name for name in whole.state_dict())  # the second player stays behind
    log = read_log(tmp_path / "whole" / "autoencoder" / "log.jsonl")
    assert "discriminator" not in log[0] and "discriminator" in log[1]
    with pytest.raises(CfvaeError, match="adversarial_from is 50001, but stage one ends at step 4"):
        tiny(autoencoder_loss__adversarial=0.5)
    with pytest.raises(CfvaeError, match="another recipe"):
        train(
            change(recipe, {"autoencoder_loss.adversarial": 0.0}),
            "shapes:n=60",
            tmp_path / "whole",
            resume=True,
        )
