"At the edges of the tools: the fewest images, a third judge, a processor without a name, the held-out data."

import dataclasses
import types
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from cfvae.core import CfvaeError
from cfvae.guidance import Guidance
from cfvae.runs import evaluate, hub, judging, machine, next_steps, opened
from cfvae.runs.bench import new_pipeline
from cfvae.runs.callbacks import Checkpointer
from cfvae.runs.compare import judging as judging_points, run as comparison, training as trainings
from cfvae.runs.compare.contestant import Style
from cfvae.runs.compare.training import Job, held_out_loss
from cfvae.runs.judging import Row, Value
from cfvae.runs.presets import preset
from cfvae.runs.steps import random_codes
from cfvae.training import TrainingConfig


class Held(list):
    def batch(self, rows):
        return (torch.tensor([self[row] for row in rows]),)


def a_contestant(held_out):
    return types.SimpleNamespace(
        data=lambda held=False: Held(held_out if held else [100.0]),
        loss_fn=lambda: lambda model, batch, generator, step: (batch[0].mean(), {}),
        recipe=types.SimpleNamespace(vae_training=types.SimpleNamespace(batch_size=2)),
        metric="loss",
    )


def test_the_held_out_loss_is_the_mean_over_the_held_out_data():
    model = torch.nn.Linear(1, 1).train()
    assert held_out_loss(a_contestant([1.0, 2.0, 6.0]), model) == 3  # the last batch has one example
    assert model.training
    assert held_out_loss(a_contestant([float("inf")]), model) is None


def test_every_seed_is_judged_by_noise_of_its_own(monkeypatch, tmp_path):
    "The same for all models; no training of a comparison has such a seed."
    seeds = []
    contestant = types.SimpleNamespace(to=lambda device: contestant)
    monkeypatch.setattr(judging_points, "MODELS", {"vae": lambda material: contestant})
    monkeypatch.setattr(judging_points, "load_trained", lambda *given: contestant)
    monkeypatch.setattr(judging_points, "draw_images", lambda *given, seed: seeds.append(seed))
    monkeypatch.setattr(judging_points, "measure", lambda *given: {"measures": {"judge": {}}})
    monkeypatch.setattr(judging_points, "keep", lambda *given: None)
    monkeypatch.setattr(judging_points, "_weights", lambda *given: "a digest")
    material = types.SimpleNamespace(recipe=preset("shapes-demo"))
    jury = types.SimpleNamespace(labels=None, n=4)
    for seed in (0, 3):
        point = judging_points.Point(Job("vae", seed=seed), Style())
        judging_points.judge_point(material, point, jury, torch.device("cpu"), tmp_path)
    assert seeds == [1000, 1003]


def test_of_three_judges_the_last_one_chooses(monkeypatch):
    def judge_sets(judges, training, sets):
        for k, weights in enumerate(judging.SWEEP):
            for judge, best in zip(judges, (1, 2, 3), strict=True):
                yield Row(str(weights), judge.name, {"frechet": Value(abs(k - best), 0.1)})

    monkeypatch.setattr(judging, "judge_sets", lambda *given: list(judge_sets(*given)))
    judges = [types.SimpleNamespace(name=name) for name in ("one", "two", "three")]
    _, best = judging.sweep_guidance(None, judges, types.SimpleNamespace(images=[]), 1.0, 0)
    assert best.guidance == Guidance(*judging.SWEEP[3])


@pytest.mark.parametrize(
    ("held", "n", "refused"), [(60, 60, ""), (59, 59, "at least 60"), (61, 62, "choose 60 to 61")]
)
def test_the_fewest_images_that_can_be_judged(monkeypatch, held, n, refused):
    pipe = types.SimpleNamespace(
        to=lambda device: pipe,
        classes=(),
        autoencoder=new_pipeline(preset("shapes-demo")).autoencoder,
        guidable=False,
    )

    class Images(list):
        name, labels, classes = "photos", torch.zeros(0), ()

    monkeypatch.setattr(evaluate, "load_model", lambda model: pipe)
    monkeypatch.setattr(evaluate, "open_images", lambda *given: (Images(range(100)), Images(range(held))))
    monkeypatch.setattr(evaluate, "_warn_of_missing_classes", lambda *given: None)
    question = evaluate.Question("mine", "photos", n=n, device="cpu")
    if refused:
        with pytest.raises(CfvaeError, match=refused):
            evaluate._open(question)
    else:
        assert len(evaluate._open(question)[2]) == held


def test_what_is_timed_is_neither_shifted_nor_scaled():
    recipe = preset("shapes-demo")
    for scaler in (new_pipeline(recipe).scaler, random_codes(recipe).scaler):
        assert not scaler.shift.any() and (scaler.scale == 1).all()


@pytest.mark.parametrize(
    ("table", "processor", "name"),
    [
        ("model name\t: A Processor\nmodel name\t: another", "x86", "A Processor"),
        ("bogus", "x86", "x86"),
        ("", "", "arm64"),
    ],
)
def test_a_processor_is_called_what_the_system_calls_it(monkeypatch, tmp_path, table, processor, name):
    (tmp_path / "cpuinfo").write_text(table)
    monkeypatch.setattr(
        machine, "Path", lambda path: tmp_path / Path(path).name if table else tmp_path / "none"
    )
    monkeypatch.setattr(machine.platform, "processor", lambda: processor)
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    assert machine._cpu_name() == name


def test_a_try_that_diverges_has_no_loss(monkeypatch, tmp_path):
    def diverge(model, data, loss_fn, config, callbacks, take_step):
        callbacks[0].curve.append((3, 0.5))
        raise CfvaeError("too many steps were skipped")

    kept = []
    contestant = a_contestant([1.0])
    contestant.training = lambda steps, rate, seed: TrainingConfig(steps, device="cpu")
    contestant.build = lambda: torch.nn.Linear(1, 1)
    monkeypatch.setattr(trainings, "MODELS", {"vae": lambda material: contestant})
    monkeypatch.setattr(trainings, "fit", diverge)
    monkeypatch.setattr(
        trainings, "keep_result", lambda job, result, model, out: kept.append((result, model))
    )
    run_job = trainings.run_job
    run_job(None, Job("vae", seed=0, rate=1e-3), {"vae": 100}, tmp_path)
    ((result, model),) = kept
    assert (result["curve"], result["loss"], model) == ([(3, 0.5), (10, None)], None, None)
    assert result["steps"] == 10  # a tenth of the budget
    monkeypatch.setattr(trainings, "choose_rate", lambda *given: 1e-3)
    with pytest.raises(CfvaeError, match="vae, seed 0, at 0.001: too many steps were skipped"):
        run_job(None, Job("vae", seed=0), {"vae": 100}, tmp_path)


def test_only_what_is_left_out_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(comparison, "say", told.append)
    most = comparison.MOST_ON_A_CPU
    for steps, count, lines in ((most, 1, 0), (most + 1, 0, 1)):
        one = types.SimpleNamespace(styles=[Style(steps=steps, solver="euler")], can_draw=lambda style: True)
        for place, drawn, said in (("cpu", count, lines), ("cuda", 1, 0)):
            told.clear()
            points = comparison._points({"flow": one}, [Job("flow", seed=0)], torch.device(place))
            assert (len(points), len(told)) == (drawn, said)


def test_samples_without_classes_are_four_rows(monkeypatch):
    drawn = []
    monkeypatch.setattr(opened, "draw", lambda run, labels, n, guidance: drawn.append((labels, n)))
    for classes in ((), ("a", "b"), tuple("abcdefghijkl")):
        run = types.SimpleNamespace(pipe=types.SimpleNamespace(classes=classes))
        opened.draw_classes(run, Guidance())
    (none, n), (two, of_two), (ten, of_ten) = drawn
    assert none is None and (n, of_two, of_ten) == (32, 16, 80)
    assert two.tolist() == 8 * [0] + 8 * [1] and ten.unique().tolist() == list(range(10))


def test_what_a_report_proposes(monkeypatch):
    recipe = dataclasses.replace(preset("shapes-demo"), data="folder:/home/me/photos")
    monkeypatch.setattr(next_steps, "_repairs", lambda run, measurements: [])
    run = opened.Run(Path("/home/me/run"), recipe, None, None, True, {})
    proposed = dict(next_steps.next_steps(run, None))
    assert f"vae_training.steps={2 * recipe.vae_training.steps}" in proposed["Train stage two for longer:"]
    assert (
        f"objective.sigma_q={recipe.objective.sigma_q / 2}" in proposed["Keep finer detail, for more nats:"]
    )
    assert "folder:photos" in proposed["Train stage two for longer:"]
    assert not [command for command in proposed.values() if "/home" in command]


def test_one_checkpoint_may_be_all_that_stays(tmp_path):
    assert Checkpointer(tmp_path, every=1, keep=1).keep == 1


def test_the_hub_is_told_what_kind_of_model_it_is():
    card = hub.model_card(new_pipeline(preset("shapes-demo")), "data", "recipe", {}, "limits", "me/cats")
    assert ModelCard(card).data.to_dict() == {
        "library_name": "cfvae",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["vae", "hierarchical-vae", "latent", "pytorch"],
    }
