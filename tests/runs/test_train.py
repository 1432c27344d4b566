"Tests of cfvae.runs.train: real runs, small ones, ended in every way."

import dataclasses
import json
import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recipes_for_tests import tiny

from cfvae.autoencoder import AutoencoderConfig
from cfvae.checkpoints import list_checkpoints
from cfvae.cli.describing import newest_step
from cfvae.core import CfvaeError, config_to_dict, make_generator
from cfvae.data import ImageDataset, Shapes
from cfvae.hvae import HierarchicalVAEConfig
from cfvae.pretrained import PretrainedAutoencoder, PretrainedConfig, import_diffusers
from cfvae.runs.presets import preset
from cfvae.recipes import change, recipe_from_dict, with_pretrained
from cfvae.runs.folder import load_autoencoder, load_model, load_recipe
from cfvae.runs.train import prepare, train
from cfvae.runs.callbacks import read_log


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


@pytest.mark.parametrize("data", [torch.utils.data.TensorDataset(torch.zeros(3)), Path("photos"), [1], None])
def test_data_of_another_kind_are_named(data, tmp_path):
    with pytest.raises(CfvaeError, match=f"the data are of the type {type(data).__name__}: give a name"):
        train(tiny(), data, tmp_path / "never")
    assert not (tmp_path / "never").exists()


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
    with pytest.raises(CfvaeError, match=r"begun with other images \(54 of them, 55 now\)"):
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


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"recipe": "shapes-demo"}, "the recipe is of the type str: .*preset"),
        ({"out": ""}, "the folder is ''"),
        ({"out": None}, "the folder is None"),
        ({"max_minutes": 0}, "max-minutes is 0"),
        ({"max_minutes": "5"}, "max-minutes is '5': a number above 0"),
    ],
)
def test_requests_that_are_refused_before_anything_is_written(tmp_path, monkeypatch, changed, complaint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CfvaeError, match=complaint):
        train(**{"recipe": tiny(), "data": "shapes:n=60", "out": tmp_path / "run"} | changed)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["all", "autoencoder"])
def test_without_checkpoints_a_finished_first_stage_is_taken_as_it_is(run, tmp_path, stage):
    shutil.copytree(run, tmp_path / "run")
    first = tmp_path / "run" / "autoencoder"
    shutil.rmtree(first / "checkpoints")
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    assert train(tiny(), "shapes:n=60", tmp_path / "run", stage=stage, resume=True)
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("gone", ["vae/checkpoints", "vae"])
def test_a_model_without_its_checkpoints_is_not_trained_over(run, tmp_path, gone):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / gone)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*") if path.is_file()}
    longer = tiny(vae_training__steps=6)
    for recipe in (tiny(), longer):
        with pytest.raises(CfvaeError, match="holds a model, but no checkpoint of its second stage"):
            train(recipe, "shapes:n=60", tmp_path / "run", resume=True)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("gone", ["", "model/model.safetensors"])
def test_a_second_stage_whose_first_is_gone_waits_for_it(run, tmp_path, gone):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    shutil.rmtree(out / "autoencoder" / "checkpoints")
    if gone:
        (out / "autoencoder" / gone).unlink()
    else:
        shutil.rmtree(out / "autoencoder")
    longer = tiny(vae_training__steps=6)
    with pytest.raises(CfvaeError, match="put it back, as a copy of .*run/pipeline/autoencoder, or"):
        train(longer, "shapes:n=60", out, resume=True)
    shutil.copytree(out / "pipeline" / "autoencoder", out / "autoencoder" / "model", dirs_exist_ok=True)
    assert train(longer, "shapes:n=60", out, resume=True)


def test_fewer_steps_than_are_done_are_refused(run):
    before = (run / "recipe.json").read_bytes()
    with pytest.raises(CfvaeError, match="4 steps of stage two are done already: --steps must be 4 or more"):
        train(tiny(vae_training__steps=2), "shapes:n=60", run, resume=True)
    assert (run / "recipe.json").read_bytes() == before


def test_a_damaged_checkpoint_counts_no_steps(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "vae" / "checkpoints" / "step-99-0123456789abcdef.pt").touch()
    with pytest.warns(UserWarning, match="step-99.* is damaged"):
        assert train(tiny(), "shapes:n=60", tmp_path / "run", resume=True)


def test_steps_of_a_damaged_checkpoint_are_taken_again_and_noted_as_they_were_taken(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    list_checkpoints(tmp_path / "run" / "vae" / "checkpoints")[-1].write_bytes(b"")
    assert newest_step(tmp_path / "run" / "vae") == 2
    with pytest.warns(UserWarning, match="step-4.* is damaged"):
        assert train(tiny(learning_rate=0.5), "shapes:n=60", tmp_path / "run", resume=True)
    noted = load_recipe(tmp_path / "run")
    assert noted.vae_training.learning_rate == 0.5  # of steps 3 and 4
    assert noted.autoencoder_training == tiny().autoencoder_training


def test_a_finished_run_notes_what_it_was_trained_with(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    after = tiny(vae_training__learning_rate=123.0, autoencoder_training__learning_rate=77.0)
    assert train(after, "shapes:n=60", tmp_path / "run", resume=True)
    assert load_recipe(tmp_path / "run") == load_recipe(run)

    longer = dataclasses.replace(after, vae_training=tiny(vae_training__steps=5).vae_training)
    assert train(longer, "shapes:n=60", tmp_path / "run", resume=True)
    noted = load_recipe(tmp_path / "run")
    assert noted.vae_training == longer.vae_training
    assert noted.autoencoder_training == load_recipe(run).autoencoder_training


def test_a_model_that_diverged_is_not_saved(tmp_path):
    wild = tiny(autoencoder_training__learning_rate=1e38, autoencoder_training__skip_norm=math.inf)
    message = (
        r"training diverged: .* were not saved\. Lower autoencoder_training\.learning_rate: .* beginning"
    )
    with pytest.raises(CfvaeError, match=message):
        train(wild, "shapes:n=60", tmp_path / "run")
    assert not (tmp_path / "run" / "autoencoder" / "model").exists()
    assert not list_checkpoints(tmp_path / "run" / "autoencoder" / "checkpoints")


def test_a_good_run_that_diverges_as_it_goes_on_keeps_model_and_checkpoints(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    kept = {}
    for part in ("pipeline", "vae/checkpoints"):
        kept |= {path: path.read_bytes() for path in (tmp_path / "run" / part).rglob("*") if path.is_file()}
    recipe = load_recipe(run)
    steps = recipe.vae_training.steps
    changes = {"vae_training.steps": steps + 8, "vae_training.learning_rate": 1e38}
    wild = change(recipe, changes | {"vae_training.skip_norm": math.inf, "vae_training.checkpoint_every": 2})
    with pytest.raises(CfvaeError, match=rf"Lower vae_training\.learning_rate: .* goes on from step {steps}"):
        train(wild, "shapes:n=60", tmp_path / "run", resume=True)
    assert all(path.read_bytes() == content for path, content in kept.items())

    calmer = change(load_recipe(tmp_path / "run"), {"vae_training.learning_rate": 1e-4})
    assert train(calmer, "shapes:n=60", tmp_path / "run", resume=True)


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
        autoencoder_loss__disc_weight=0.5,
        autoencoder_loss__disc_start=2,
        autoencoder_loss__disc_width=8,
        autoencoder_loss__disc_layers=1,
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
    with pytest.raises(CfvaeError, match="disc_start is 50001, but stage one ends at step 4"):
        tiny(autoencoder_loss__disc_weight=0.5)
    with pytest.raises(CfvaeError, match="another recipe"):
        train(
            change(recipe, {"autoencoder_loss.disc_weight": 0.0}),
            "shapes:n=60",
            tmp_path / "whole",
            resume=True,
        )


def test_what_advice_tells_to_change_may_change_on_resume(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    before = load_recipe(run)
    steps = before.vae_training.steps + 2
    calmer = change(before, {"learning_rate": 1e-4, "skip_norm": 1e6, "vae_training.steps": steps})
    assert train(calmer, "shapes:n=60", tmp_path / "run", resume=True)
    after = load_recipe(tmp_path / "run")
    assert after.vae_training.learning_rate == 1e-4 and after.vae_training.steps == steps  # it is recorded
    assert read_log(tmp_path / "run/vae/log.jsonl")[-1]["step"] == steps
    said = capsys.readouterr().out
    assert "changed settings" in said and "learning_rate" in said
    assert "shapes: 60 images, 10 classes" in said
