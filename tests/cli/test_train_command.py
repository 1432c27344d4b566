"Tests of cfvae.cli.training: runs that end, that are stopped, that are refused."

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from commandline import TINY, at_step, call, done, refused
from PIL import Image
from safetensors.torch import load_file

from cfvae import data, evaluation
from cfvae.checkpoints import load_checkpoint
from cfvae.cli import training
from cfvae.core import CfvaeError
from cfvae.data import Shapes
from cfvae.runs import train as runs_train
from cfvae.training import TrainingConfig


def test_train_says_where_the_model_is_and_what_to_do_next(run):
    last = run.said.splitlines()[-1]
    assert last == "done: the model is in run/pipeline. Next: cfvae sample run --n 16 --out samples.png"
    recipe = json.loads(Path("run/recipe.json").read_text())
    for part in ("autoencoder_training", "vae_training"):
        assert recipe[part]["steps"] == 30
        assert recipe[part]["precision"] == "fp32"
        assert recipe[part]["batch_size"] == 8
    assert recipe["data"] == "shapes:n=60" and recipe["vae"]["layers"] == [1, 1, 1]


def test_an_existing_run_is_kept(run):
    before = Path("run/recipe.json").read_bytes()
    refused(f"{TINY} --out run --steps 30", "run already holds a run", "--resume")
    refused(
        "train --out run --resume --set autoencoder_training.steps=31",
        "begun with another recipe",
        "steps: 30 there, 31 now",
    )
    refused("train --out run --resume --preset cifar10", "begun with the preset shapes-demo, not cifar10")
    assert Path("run/recipe.json").read_bytes() == before
    unlearned = "train --out run --resume --set checkpoint_every=7"  # changes nothing that is learned
    assert "done" in done(unlearned)


def test_stages_limits_and_resuming():
    # --resume in an empty place begins
    out = done(f"{TINY} --out parts --steps 4 --resume --max-minutes 0.00001 --seed 3")
    assert "stopped by the time limit: everything up to step 1 of 4 (autoencoder) is saved" in out
    assert "go on with: cfvae train --out parts --resume" in out
    out = done("info parts")
    assert "1 of 4 steps saved" in out
    assert "0 of 4 steps saved; checkpoints: none" in out
    assert "none yet; go on with: cfvae train --out parts --resume" in out
    refused("sample parts --out x.png", "parts holds no model yet")
    refused("train --out parts --resume --stage vae", "parts has no finished autoencoder")

    out = done("train --out parts --resume --stage autoencoder")
    assert "the autoencoder is in parts/autoencoder/model. Next: cfvae train --out parts --resume" in out
    refused("train --out parts --resume --stage autoencoder --steps 3", "--steps are those of stage two")
    assert json.loads(Path("parts/recipe.json").read_text())["vae_training"]["steps"] == 4
    assert not Path("parts/vae").exists()
    assert "done: the model is in parts/pipeline" in done("train --out parts --resume")
    assert json.loads(Path("parts/recipe.json").read_text())["vae_training"]["seed"] == 3


def test_a_run_can_be_trained_longer(run):
    "And its first stage stays as it is: the codes are its."
    shutil.copytree("run", "longer")
    first = Path("longer/autoencoder/model/model.safetensors").read_bytes()
    assert "done" in done("train --out longer --resume --steps 33")
    recipe = json.loads(Path("longer/recipe.json").read_text())
    assert recipe["autoencoder_training"]["steps"] == 30 and recipe["vae_training"]["steps"] == 33
    assert load_checkpoint("longer/vae/checkpoints")[0] == 33
    assert Path("longer/autoencoder/model/model.safetensors").read_bytes() == first


def test_a_run_that_lost_its_recipe_says_so(run):
    (run.path / "recipe.json").unlink()
    refused("train --out run --resume", "run holds no recipe.json")
    refused("train --out nothing-there --resume", "which recipe?")


def test_a_run_follows_its_images_to_another_place():
    for name, grey in (("a", 50), ("b", 200)):
        Path("here", name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (32, 32), (grey, 10 * i, 0)).save(f"here/{name}/{i}.png")
    done(f"{TINY} --out moved --steps 2 --data folder:here --stage autoencoder")
    Path("here").rename("there")
    refused("train --out moved --resume", "here does not exist")
    assert "done" in done("train --out moved --resume --data folder:there")
    assert json.loads(Path("moved/recipe.json").read_text())["data"] == "folder:there"

    Path("there/a/0.png").unlink()
    refused("train --out moved --resume --data folder:there", "begun with other images")
    Path("moved/data.json").unlink()  # then nothing but the name of the place is known
    refused("train --out moved --resume --data shapes:n=60", "data: folder:there there, shapes:n=60 now")


def test_what_is_to_be_typed_next_works_for_a_folder_with_a_dash():
    out = done(f"{TINY} --out=--dash --steps 1")
    (command,) = [line.partition("Next: cfvae ")[2] for line in out.splitlines() if "Next: " in line]
    assert command.startswith("sample ./--dash ")
    done(command)


def test_set_goes_before_the_short_options():
    changes = training.collect_changes({"steps": 3, "seed": None}, ["steps=4", "data=folder:a=b"])
    assert changes == {"steps": "4", "data": "folder:a=b"}


def test_ctrl_c_saves(monkeypatch):
    at_step(monkeypatch, "vae 3", lambda: signal.raise_signal(signal.SIGINT))
    code, out, err = call(f"{TINY} --out interrupted --steps 6")
    assert code == 130 and "Traceback" not in err
    last = out.splitlines()[-1]
    assert "stopped by Ctrl-C: everything up to step 3 of 6 (vae) is saved" in last
    assert "go on with: cfvae train --out interrupted --resume" in last
    assert load_checkpoint("interrupted/vae/checkpoints")[0] == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_between_the_stages(monkeypatch, number):
    monkeypatch.setattr(runs_train, "encode_dataset", lambda *a, **options: signal.raise_signal(number))
    before = signal.getsignal(signal.SIGTERM)
    code, out, err = call(f"{TINY} --out between{number} --steps 2")
    assert code == 128 + number and "Traceback" not in err
    assert "everything up to step 2 of 2 (autoencoder) is saved" in out
    assert signal.getsignal(signal.SIGTERM) == before
    shutil.rmtree(f"between{number}/autoencoder/checkpoints")  # of no use any more
    assert (
        f"stage one is saved; go on with: cfvae train --out between{number}"
        in call(f"train --out between{number} --resume")[1]
    )


def test_signal_at_the_last_step_of_a_stage(monkeypatch):
    at_step(monkeypatch, "autoencoder 2", lambda: signal.raise_signal(signal.SIGTERM))
    code, out, _ = call(f"{TINY} --out last --steps 2")
    assert code == 143 and "everything up to step 2 of 2 (autoencoder) is saved" in out
    assert not Path("last/vae").exists()


def test_a_run_that_failed_at_its_first_step_is_no_hindrance(monkeypatch):
    def fail(*options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(runs_train, "train_autoencoder", fail)
        refused(f"{TINY} --out large --steps 1", "out of memory", "batch_size", "accumulate")
    assert Path("large/recipe.json").exists()
    done(f"{TINY} --out large --steps 1 --stage autoencoder --set batch_size=4")


@pytest.mark.parametrize(
    "line, needles",
    [
        ("--preset shapes-dmeo", ["no preset 'shapes-dmeo'", "shapes-demo"]),
        ("", ["--preset", "cfvae presets"]),
        ("--preset shapes-demo --set batchsize=3", ["batchsize", "batch_size"]),
        ("--preset shapes-demo --set vae.widht=3", ["widht", "widths"]),
        ("--preset shapes-demo --set batch_size=many", ["batch_size=many"]),
        ("--preset shapes-demo --set batch_size", ["--set batch_size", "key=value"]),
        ("--preset shapes-demo --set learning_rate=-1", ["learning_rate is -1"]),
        ("--preset shapes-demo --steps 0", ["steps is 0"]),
        ("--preset shapes-demo --steps ten", ["'--steps'"]),
        ("--preset shapes-demo --stage second", ["stage is 'second'"]),
        ("--preset shapes-demo --max-minutes 0", ["max-minutes is 0"]),
        ("--preset shapes-demo --precision fp8", ["fp8", "bf16"]),
        ("--preset shapes-demo --device tpu9", ["tpu9"]),
        ("--preset shapes-demo --data nothing", ["nothing", "folder:PATH"]),
        ("--preset shapes-demo --data folder:nowhere", ["nowhere does not exist"]),
        (
            "--preset shapes-demo --data shapes:n=20",
            ["batch_size is 32", "18 training images", "autoencoder_training.batch_size=18"],
        ),
        ("--preset shapes-demo --tremolo", ["--tremolo", "cfvae train --help"]),
    ],
)
def test_train_errors_leave_nothing_behind(line, needles):
    refused(f"train --out other {line}", *needles)
    assert not Path("other").exists()


def test_a_model_that_is_somebodys_is_no_place_for_a_judge():
    Path("theirs").mkdir()
    Path("theirs/config.json").write_text('{"model_type": "bert"}')
    Path("theirs/model.safetensors").write_text("mine")
    refused("train-features --out theirs", "theirs holds config.json, model.safetensors", "did not write")
    assert Path("theirs/model.safetensors").read_text() == "mine"


def test_train_features(monkeypatch):
    for module in (evaluation, data, training):
        monkeypatch.setattr(module, "Shapes", lambda n, seed: Shapes(min(n, 64), seed))
    short = TrainingConfig(steps=2, batch_size=8, device="cpu", precision="fp32")
    monkeypatch.setattr(evaluation, "SHAPES_TRAINING", short)
    assert "of 64 held-out images are recognised" in done("train-features --out judge")
    weights = load_file("judge/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


FITTING = {"vae.data_channels": "3", "vae.resolutions": "1,16,32"}  # the pixels of the demo's images


@pytest.mark.parametrize("more", [{}, {"size": "32"}, {"autoencoder.factor": "1"}, {"batch_size": "8"}])
def test_a_borrowed_first_stage_and_what_has_to_fit_it_are_set_at_once(more):
    recipe = training.choose_recipe("shapes-demo", Path("new"), False, FITTING | more, "pixels")
    assert recipe.is_pretrained and recipe.autoencoder.latent_shape == (3, 32, 32)
    assert recipe.vae.resolutions == (1, 16, 32)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "change it too, to vae.data_channels=3 and vae.resolutions=1,16,32"),
        (
            FITTING | {"autoencoder.patch": "1"},
            "'autoencoder.patch' is a setting of the first stage that pixels",
        ),
        (FITTING | {"blocks": "2"}, "'blocks' is a setting of the first stage that pixels replaces"),
        (FITTING | {"autoencoder.latent_channels": "6"}, "latent_channels=6, but that of .* pixels is 3"),
        (FITTING | {"autoencoder.source": "other"}, "autoencoder.source=other, but that of .* is pixels"),
        (FITTING | {"autoencoder.widht": "6"}, "PretrainedConfig has no field 'widht'"),
        (
            FITTING | {"autoencoder_training.steps": "6"},
            "'autoencoder_training.steps': the first stage is bor",
        ),
        (FITTING | {"perceptual_weight": "1"}, "'perceptual_weight': the first stage is borrowed"),
    ],
)
def test_settings_of_the_stage_that_a_borrowed_one_replaces_are_refused_by_name(settings, message):
    with pytest.raises(CfvaeError, match=message):
        training.choose_recipe("shapes-demo", Path("new"), False, settings, "pixels")
