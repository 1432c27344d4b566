"Tests of cfvae.cli.comparing: what `compare` asks for, prints and refuses."

from pathlib import Path

import pytest
from commandline import done, refused

from cfvae.cli import comparing


def point(model, title, value):
    measures = {name: {"mean": value, "error": 0.01, "values": [value]} for name in ("frechet", "accuracy")}
    cost = {"gflop_per_image": 0.125, "seconds_per_image": 0.002}
    return {"model": model, "title": title, **cost, "measures": {"a-judge": measures}}


COMPARISON = {
    "n": 50,
    "data": "shapes:n=90",
    "judges": ["a-judge"],
    "floors": {
        "real": {
            "measures": {"a-judge": {name: {"value": 0.5, "error": 0.02} for name in ("frechet", "accuracy")}}
        }
    },
    "points": [point("flow", "16 Euler steps, guidance 1", 0.75)],
}


@pytest.fixture
def asked(monkeypatch):
    "What the command asks `runs.compare` for; nothing is trained."
    calls = []

    def run(recipe, plan, out):
        calls.append((recipe, plan, out))
        return COMPARISON

    monkeypatch.setattr(comparing, "run", run)
    return calls


def test_compare_prints_a_table_for_every_judge(asked):
    said = done("compare --preset shapes-demo --out both")
    assert "n = 50 on either side, features of a-judge, data shapes:n=90" in said
    for text in ("GFLOP", "frechet", "accuracy", "0.500 ± 0.020", "flow, 16 Euler steps", "0.750 ± 0.010"):
        assert text in said
    assert said.endswith(f"written: {Path('both') / 'comparison.json'}\n")


def test_options_become_the_plan(asked):
    done("compare --preset shapes-demo --data shapes:n=90 --models flow,vae --seeds 2 --n 60 --out x")
    done(
        "compare --preset cifar10 --budget 1.5 --jobs 4 --first-stage cifar10 --vae run --device cpu --out y"
    )
    (recipe, plan, out), (_, second, _) = asked
    assert recipe.data == "shapes:n=90" and out == Path("x")
    assert plan.models == ("flow", "vae") and (plan.seeds, plan.n) == (2, 60)
    assert plan.budget is None and plan.first_stage is None and plan.vae is None
    assert second.budget == 1.5e15 and second.jobs == 4 and second.device == "cpu"
    assert (second.first_stage, second.vae) == ("cifar10", "run")
    assert len(second.models) == 5


def test_names_that_are_wrong(asked):
    refused("compare --preset shape --out x", "there is no preset 'shape'")
    refused("compare --preset shapes-demo --models vae,gan --out x", "there is no model 'gan' to compare")
    refused("compare --preset shapes-demo --n 5 --out x", "n is 5: at least 20")
    assert asked == []


def test_the_current_folder_is_refused():
    refused('compare --preset shapes-demo --out "."', "name a folder, such as runs/comparison")
