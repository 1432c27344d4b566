"Tests of cfvae.runs.tune and cfvae.tuning: what is trained, what stays, and what a folder may be used for."

import contextlib
import dataclasses
import json
import shutil

import pytest
import torch
from PIL import Image
from tiny_fits import assert_same

from cfvae.autoencoder_loss import AutoencoderLossConfig, TwoPlayers, first_stage_loss, with_discriminator
from cfvae.core import CfvaeError, make_generator
from cfvae.data import Shapes
from cfvae.pipeline import LatentVAEPipeline
from cfvae.runs.folder import load_model, note_trained
from cfvae.runs.tune import TRAINING, Tuning, tune
from cfvae.tuning import through_both

LOSS = AutoencoderLossConfig(disc_weight=0.5, disc_start=1, disc_width=8, disc_layers=1)
FIELDS = {
    "steps": 4,
    "batch_size": 4,
    "warmup": 1,
    "checkpoint_every": 2,
    "log_every": 1,
    "device": "cpu",
    "precision": "fp32",
}
DATA = "shapes:n=60"


def tuning(model, **changes) -> Tuning:
    return Tuning(
        str(model), DATA, loss=LOSS, training=dataclasses.replace(TRAINING, **{**FIELDS, **changes})
    )


@pytest.fixture(scope="module")
def tuned(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuning") / "tuned"
    assert tune(tuning(runs / "unlabelled"), out)
    return out


def test_only_the_decoder_moves(runs, tuned):
    before, after = load_model(runs / "unlabelled"), load_model(tuned)
    assert_same(before.vae.state_dict(), after.vae.state_dict())
    assert_same(before.scaler.state_dict(), after.scaler.state_dict())
    assert_same(before.autoencoder.encoder.state_dict(), after.autoencoder.encoder.state_dict())
    old, new = before.autoencoder.decoder.state_dict(), after.autoencoder.decoder.state_dict()
    assert old.keys() == new.keys()
    assert any(not torch.equal(old[name], new[name]) for name in old)
    assert all(p.requires_grad for p in after.autoencoder.parameters())


def test_what_is_kept(tuned):
    log = [json.loads(line) for line in (tuned / "decoder" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert {"adversarial", "discriminator", "psnr"} <= log[0].keys()
    assert (tuned / "decoder" / "pictures" / "step-00000004.png").is_file()


def test_a_stopped_tuning_goes_on_to_the_same_weights(runs, tuned, tmp_path, monkeypatch):
    from cfvae.runs import callbacks

    original = callbacks.JsonLog.on_step

    def on_step(self, state, metrics):
        original(self, state, metrics)
        if state.step == 3:
            raise KeyboardInterrupt

    out = tmp_path / "again"
    monkeypatch.setattr(callbacks.JsonLog, "on_step", on_step)
    with pytest.raises(KeyboardInterrupt):
        tune(tuning(runs / "unlabelled"), out)
    monkeypatch.undo()
    with pytest.raises(CfvaeError, match="already holds a tuning: go on with it by --resume"):
        tune(tuning(runs / "unlabelled"), out)
    assert tune(tuning(runs / "unlabelled"), out, resume=True)
    whole, resumed = load_model(tuned / "pipeline"), load_model(out / "pipeline")
    assert_same(whole.autoencoder.state_dict(), resumed.autoencoder.state_dict())


def test_a_time_limit_saves_and_says_so(runs, tmp_path):
    assert not tune(tuning(runs / "unlabelled", steps=1000), tmp_path / "short", max_minutes=1e-6)
    assert load_model(tmp_path / "short" / "pipeline")


@pytest.mark.parametrize(
    "change, named",
    [
        ({"seed": 1}, r"another seed \(0, not 1\): give the same again"),
        ({"batch_size": 8}, "another batch_size"),
    ],
)
def test_another_tuning_is_not_taken_up(runs, tuned, change, named):
    with pytest.raises(CfvaeError, match=named):
        tune(tuning(runs / "unlabelled", **change), tuned, resume=True)


def test_another_flip_is_not_taken_up(runs, tuned, tmp_path):
    mirrored = dataclasses.replace(tuning(runs / "unlabelled"), flip=True)
    with pytest.raises(CfvaeError, match="another flip"):
        tune(mirrored, tuned, resume=True)
    shutil.copytree(tuned, tmp_path / "older")
    note = json.loads((tuned / "tuning.json").read_text())
    del note["flip"]  # as earlier versions noted it
    (tmp_path / "older" / "tuning.json").write_text(json.dumps(note))
    assert tune(tuning(runs / "unlabelled"), tmp_path / "older", resume=True)


def test_images_without_a_class_are_refused_for_a_model_with_classes(tmp_path):
    pipe = load_model("shapes")
    classes = sorted(pipe.classes)  # as a table's are
    LatentVAEPipeline(pipe.autoencoder, pipe.vae, pipe.scaler, classes).save_pretrained(tmp_path / "model")
    rows = [{"file": f"{i}.png", "label": classes[i % 10]} for i in range(40)]
    rows[7]["label"] = None
    for row in rows:
        Image.new("RGB", (32, 32)).save(tmp_path / row["file"])
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    partly = dataclasses.replace(tuning(tmp_path / "model"), data=f"table:{tmp_path}/table.jsonl")
    with contextlib.chdir(tmp_path), pytest.raises(CfvaeError, match="has images without a class"):
        tune(partly, tmp_path / "out")


def test_another_model_is_not_taken_up(runs, tuned):
    other = dataclasses.replace(tuning("shapes"), data="shapes:n=60")
    with pytest.raises(CfvaeError, match="another model and another images: give"):
        tune(other, tuned, resume=True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"a": 1}', b"\xff\xfe{}"])
def test_a_damaged_note_is_named(runs, tuned, tmp_path, content):
    out = tmp_path / "damaged"
    shutil.copytree(tuned, out)
    (out / "tuning.json").write_bytes(content)
    with pytest.raises(CfvaeError, match=r"tuning\.json.*, which cfvae did not write or which is damaged"):
        tune(tuning(runs / "unlabelled"), out, resume=True)


def test_requests_that_cannot_be_met(runs, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(CfvaeError, match="which images"):
        tune(dataclasses.replace(tuning("shapes"), data=None), out)
    with pytest.raises(CfvaeError, match="was trained on other images"):
        tune(dataclasses.replace(tuning(runs / "unlabelled"), data="shapes:n=70"), out)
    with pytest.raises(CfvaeError, match="batch_size is 400, but shapes has"):
        tune(tuning(runs / "unlabelled", batch_size=400), out)
    foreign = tmp_path / "foreign"
    (foreign / "pipeline").mkdir(parents=True)
    with pytest.raises(CfvaeError, match="which cfvae did not write"):
        tune(tuning(runs / "unlabelled"), foreign)
    assert not out.exists() or not any(out.iterdir())


@pytest.mark.parametrize("place", ["model", "pictures"])
def test_a_folder_that_holds_something_else_is_not_filled(runs, tmp_path, place):
    shutil.copytree(runs / "unlabelled" / "pipeline", tmp_path / "model")
    (tmp_path / "pictures" / "cats").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CfvaeError, match=f"{place} holds files but no tuning"):
        tune(tuning(tmp_path / "model"), tmp_path / place)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_at_home_that_was_stopped_early(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(runs / "unlabelled", tmp_path / "run")
    note_trained(tmp_path / "run", 3)
    assert tune(dataclasses.replace(tuning("~/run"), data=None), "~/tuned")
    assert (tmp_path / "tuned" / "pipeline").is_dir()
    assert "~/run: the second stage was stopped after step 3 of 4" in capsys.readouterr().out


def test_the_decoder_is_handed_what_stage_two_draws():
    pipe = load_model("shapes")
    images, labels = Shapes(4, seed=5).batch(range(4))
    rebuild = through_both(pipe.vae, pipe.scaler)
    decoded = rebuild(pipe.autoencoder, images, (images, labels), make_generator(3))
    with torch.no_grad():
        codes = pipe.scaler(pipe.autoencoder.encode(images))
        drawn = pipe.vae(codes, labels, generator=make_generator(3)).distribution.mean
        expected = pipe.autoencoder.decode(pipe.scaler.invert(drawn))
    torch.testing.assert_close(decoded, expected)

    decoded.square().mean().backward()
    assert all(p.grad is not None for p in pipe.autoencoder.decoder.parameters())
    others = [*pipe.autoencoder.encoder.parameters(), *pipe.vae.parameters()]
    assert all(p.grad is None for p in others)


def test_the_loss_is_that_of_stage_one_with_other_pictures():
    pipe = load_model("shapes")
    batch = Shapes(4, seed=5).batch(range(4))
    model = with_discriminator(pipe.autoencoder, LOSS)
    assert isinstance(model, TwoPlayers) and model.autoencoder is pipe.autoencoder
    plain = AutoencoderLossConfig()
    assert with_discriminator(pipe.autoencoder, plain) is pipe.autoencoder
    through = first_stage_loss(plain, rebuild=through_both(pipe.vae, pipe.scaler))
    with torch.no_grad():
        itself, _ = first_stage_loss(plain)(model, batch, make_generator(0), 0)
        handed, metrics = through(model, batch, make_generator(0), 0)
    assert handed > itself and metrics["psnr"] < 40
