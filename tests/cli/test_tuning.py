"Tests of cfvae.cli.tuning: a tuning from the command line, its settings, and how it is stopped."

import json
import signal
from pathlib import Path

import pytest
from commandline import at_step, call, done, refused

SIZES = "--steps 4 --set batch_size=4 --set warmup=1 --set disc_width=8 --set disc_layers=1 --device cpu"


def test_tune_a_run_and_draw_from_it(run):
    out = done(f"tune run --out tuned {SIZES} --precision fp32 --seed 3")
    assert "done: the model is in tuned/pipeline. Next: cfvae sample tuned/pipeline" in out
    done("sample tuned/pipeline --n 4 --out samples.png")
    note = json.loads(Path("tuned/tuning.json").read_text())
    assert note["seed"] == 3 and note["loss"]["disc_width"] == 8
    refused(f"tune run --out tuned {SIZES}", "tuned already holds a tuning", "--resume")


@pytest.mark.parametrize(
    "settings, needle",
    [
        ("--set vae.layers=2", "vae.layers: only fields of autoencoder_loss and autoencoder_training"),
        ("--set flip=true --set sigma_q=0.1", "flip, sigma_q: only fields of autoencoder_loss"),
        ("--set autoencoder_training.steps=0", "steps is 0"),
        ("--set disc_start=9", "disc_start is 9, but stage one ends at step 4"),
        ("--data shapes:n=70", "was trained on other images"),
        ("--max-minutes -1", "max-minutes is -1"),
    ],
)
def test_what_cannot_be_tuned(run, settings, needle):
    refused(f"tune run --out refused {SIZES} {settings}", needle)
    assert not Path("refused/pipeline").exists()


def test_a_run_is_no_place_for_a_tuning(run):
    before = sorted(Path("run").rglob("*"))
    refused(f"tune run --out run {SIZES}", "run holds a run: choose another --out")
    assert sorted(Path("run").rglob("*")) == before


def test_a_signal_saves_and_the_line_says_how_to_go_on(run, monkeypatch):
    at_step(monkeypatch, "decoder 2", lambda: signal.raise_signal(signal.SIGTERM))
    code, out, _ = call(f"tune run --out stopped {SIZES}")
    assert code == 143 and "stopped by SIGTERM: everything up to step 2 of 4 is saved" in out
    monkeypatch.undo()
    assert "done" in done(f"tune run --out stopped {SIZES} --resume")
