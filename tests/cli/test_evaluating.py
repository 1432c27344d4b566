"Tests of cfvae.cli.evaluating: what `evaluate` prints, writes and refuses."

import json
from pathlib import Path

import pytest
from commandline import done, refused

from cfvae.cli import evaluating


@pytest.fixture
def unmeasured(monkeypatch):
    def refuse_to_measure(question):
        raise AssertionError("measured before the options were looked at")

    monkeypatch.setattr(evaluating, "measure", refuse_to_measure)


def test_evaluate_prints_and_writes(run):
    out = done("evaluate run --data shapes:n=70 --n 64 --mean-weight 1 --device cpu --out measured/here")
    folder = Path("measured/here")
    assert sorted(path.name for path in folder.iterdir()) == ["evaluation.html", "evaluation.json"]
    numbers = json.loads((folder / "evaluation.json").read_text())
    assert numbers["question"]["style"]["guidance"] == {"mean_weight": 1.0, "var_weight": 0.0}
    assert numbers["swept"] == [] and numbers["chosen"] is None

    assert "n = 64 on either side, features of shapes-classifier" in out and "data shapes:n=70" in out
    for text in ("training images", "samples, guidance 1 / 0", "frechet", "accuracy %", " ± ", "the floor"):
        assert text in out
    floor = numbers["rows"][0]["measures"]["frechet"]
    assert f"{floor['value']:.2f} ± {floor['error']:.2f}" in out
    assert "guidance chosen" not in out


def test_evaluate_a_model_without_classes(plain):
    out = done("evaluate plain --data shapes:n=70 --n 64 --device cpu --out plain-measured")
    assert "samples, unguided" in out
    refused(
        "evaluate plain --data shapes:n=70 --n 64 --guidance-sweep --out x", "no classes that it could be"
    )


def test_options_are_read_as_for_sample(unmeasured):
    refused("evaluate shapes --data shapes --mean-weight much --out x", "--mean-weight is 'much'")
    refused("evaluate shapes --data shapes --n 0 --out x", "--n")
    refused("evaluate shapes --out x", "--data")


def test_out_is_looked_at_before_the_work(unmeasured):
    Path("taken").write_text("")
    refused("evaluate shapes --data shapes --out taken", "--out is taken, and a file is called so")
    refused("evaluate shapes --data shapes --out taken/below", "File exists")
    Path("mine").mkdir()
    Path("mine/evaluation.json").write_text('{"rows": 3}')
    refused("evaluate shapes --data shapes --out mine", "evaluation.json, which cfvae did not write")
    refused("evaluate shapes --data shapes --out new/../mine", "leads through new, which is not there")
    assert Path("mine/evaluation.json").read_text() == '{"rows": 3}'


def test_what_is_refused_by_name(run):
    refused("evaluate nowhere --data shapes --out x", "there is nothing at nowhere")
    refused("evaluate run --data shapes:n=70 --n 500 --out x", "--n is 500, but shapes has 70")
    refused("evaluate run --data shapes:n=70 --n 64 --features no.pth --out x", "no file is called so")
