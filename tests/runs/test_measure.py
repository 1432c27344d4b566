"Tests of cfvae.runs.opened and measure: the right images, shared noise, numbers that mean what they say."

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from tiny_runs import STRANGE, strange_images, tiny

from cfvae.autoencoder import Autoencoder
from cfvae.core import CfvaeError, make_generator
from cfvae.data import ImageDataset, Shapes
from cfvae.guidance import Guidance
from cfvae.hvae import HierarchicalVAE
from cfvae.latents import LatentScaler
from cfvae.pipeline import LatentVAEPipeline
from cfvae.runs import measure
from cfvae.runs.measure import Measurements, measure_run
from cfvae.runs.opened import Run, draw, first_layers, open_run, shown_depths, strength_name, strengths


@pytest.fixture(scope="module")
def strange(runs) -> Run:
    return open_run(runs / "strange", "cpu", strange_images())


@pytest.fixture(scope="module")
def measured(strange) -> Measurements:
    return measure_run(strange)


# --- opening


def test_runs_that_cannot_be_opened(runs, tmp_path):
    with pytest.raises(CfvaeError, match="no model yet"):
        open_run(runs / "half")
    with pytest.raises(CfvaeError, match="not a run folder"):
        open_run(tmp_path)


def test_other_images_are_noticed(runs, strange):
    assert strange.same_images
    labels = torch.arange(60) % 3
    other = ImageDataset(Shapes(60, seed=3, size=16).images, labels, STRANGE, "mine")
    assert not open_run(runs / "strange", "cpu", other).same_images
    renamed = ImageDataset(strange_images().images, labels, ("a", "b", "c"), "mine")
    with pytest.raises(CfvaeError, match="other classes than .*bring back the data .*mend pipeline.json"):
        open_run(runs / "strange", "cpu", renamed)


def test_missing_images_are_named(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CfvaeError, match="<i>mine</i>"):  # the recipe knows only a name that opens nothing
        open_run(runs / "strange", device="cpu")


# --- drawing


def test_first_layers(strange):
    vae = strange.pipe.vae
    labels = torch.tensor([0, 1, 2])
    noise = vae.noise(3, make_generator(1))
    kept = first_layers(noise, 2)
    assert torch.equal(kept[0], noise[0])
    assert torch.equal(kept[1], noise[1])
    assert noise[2].any() and not kept[2].any()

    whole = vae.sample(3, labels, eps=noise)
    assert torch.equal(vae.sample(3, labels, eps=first_layers(noise, 3)), whole)
    first = vae.sample(3, labels, eps=first_layers(noise, 1))
    cold_above = vae.sample(3, labels, eps=noise, temperature=(1.0, 0.0))
    assert torch.allclose(first, cold_above, atol=1e-6)


def test_shown_depths():
    assert shown_depths((2, 3, 3)) == [1, 2, 5, 8]
    assert shown_depths((1, 4)) == [1, 5]


def test_same_noise_at_every_strength(strange):
    labels = torch.arange(6) % 3
    plain = draw(strange, labels, 6, Guidance())
    assert plain.min() >= -1 and plain.max() <= 1
    assert torch.equal(plain, draw(strange, labels, 6, Guidance()))
    hardly_guided = draw(strange, labels, 6, Guidance(1e-9, 0))  # by the guided path
    assert torch.allclose(plain, hardly_guided, atol=1e-5)


def test_strengths():
    names = [strength_name(guidance) for guidance in strengths(tiny())]
    assert names == ["without guidance", "guidance 1 / 1", "guidance 2 / 2"]
    for settings in ({"conditional": False}, {"objective.label_drop": 0.0}, {"vae.learned_prior": False}):
        assert len(strengths(tiny(**settings))) == 1


# --- measuring


def test_numbers_are_measured(measured, strange):
    assert measured.class_accuracy is None and measured.entropy is None  # not Shapes
    assert measured.run.held_out_images == measured.run.measured_images == 6
    assert measured.run.parameters.vae == sum(p.numel() for p in strange.pipe.vae.parameters())
    assert measured.vae.steps == measured.vae.of == 4
    assert measured.depths.keys() == {"1", "3"} and measured.depths["3"] == 0
    assert list(measured.spread) == ["without guidance", "guidance 1 / 1", "guidance 2 / 2"]


def test_nats_add_up(measured):
    nats = measured.nats
    assert len(nats.rates) == 3
    assert math.isclose(nats.rate, sum(nats.rates), rel_tol=1e-4)
    low, high = zip(*nats.band, strict=True)
    assert math.isclose(sum(low), 0.667 * nats.rate, rel_tol=1e-3)
    assert math.isclose(sum(high), 2 * sum(low), rel_tol=1e-6)


def test_order_does_not_matter(measured, strange):
    torch.rand(7)  # the global generator has moved on
    assert measure._nats(strange) == measured.nats
    assert measure._depth_distances(strange) == measured.depths
    assert measure._spreads(strange) == measured.spread
    assert measure_run(strange) == measured


def test_keys_of_the_json(measured, runs):
    "The keys of report.json, in their order: programs read them."
    numbers = measured.to_dict()
    assert list(numbers) == ["run", "autoencoder", "vae", "psnr", "spread", "depths", "nats"]
    facts = "preset data found classes held_out_images same_images seeds parameters trained_on pretrained"
    assert list(numbers["run"]) == facts.split()
    assert numbers["run"]["seeds"] == [0, 0]
    log = "steps of skipped examples_per_second fell_in_last_tenth loss"
    assert list(numbers["autoencoder"]) == [*log.split(), "psnr"]
    assert list(numbers["vae"]) == [*log.split(), "distortion", "rate"]
    assert list(numbers["psnr"]) == ["autoencoder", "whole_model"]
    assert list(numbers["nats"]) == ["rates", "rate", "rate_error", "distortion", "band"]
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers


def test_numbers_of_shapes(measured):
    judged = dataclasses.replace(measured, class_accuracy={"held-out images": 1.0}, entropy=11.9)
    numbers = judged.to_dict()
    sections = ["run", "autoencoder", "vae", "psnr", "spread", "class_accuracy", "depths", "nats", "entropy"]
    assert list(numbers) == sections
    assert numbers["class_accuracy"] == {"held-out images": 1.0} and numbers["entropy"] == 11.9


def test_numbers_that_json_has_no_word_for(measured):
    stage = dataclasses.replace(measured.vae, fell_in_last_tenth=-math.inf, last={"loss": math.nan})
    numbers = dataclasses.replace(measured, vae=stage).to_dict()
    assert numbers["vae"]["fell_in_last_tenth"] is None and numbers["vae"]["loss"] is None


def test_entropy():
    assert math.isclose(measure._known_entropy(tiny()), Shapes.entropy() - math.log(10))
    assert math.isclose(measure._known_entropy(tiny(conditional=False)), Shapes.entropy())


def test_judged_samples_and_images(monkeypatch):
    "On Shapes at the judge's size, every row of the table is the share that the judge recognises."
    monkeypatch.setattr(measure, "JUDGED", 20)
    recipe = tiny(**{"autoencoder.size": 32, "vae.resolutions": (1, 8), "vae.num_classes": 10})
    held = Shapes(12, seed=4)
    autoencoder = Autoencoder(recipe.autoencoder)
    vae = HierarchicalVAE(recipe.vae)
    pipe = LatentVAEPipeline(autoencoder, vae, LatentScaler(0.0, 1.0), held.classes)
    run = Run(Path("nowhere"), recipe, pipe, held, True, {})
    assert run.is_shapes
    real = held.batch(range(12))[0]
    accuracies = measure._class_accuracies(run, real)
    assert accuracies["held-out images"] == accuracies["their reconstructions"] == 1.0
    assert list(accuracies)[2:] == [f"samples, {strength_name(guidance)}" for guidance in strengths(recipe)]


def test_what_a_log_says_of_a_stage(strange):
    "Twenty lines: the last tenth is two, and the tenth before it two more."
    log = [
        {"step": 10 * i, "loss": 100.0 - i, "skipped": i // 5, "examples_per_second": float(i), "rate": 7.0}
        for i in range(1, 21)
    ]
    run = dataclasses.replace(strange, logs={"autoencoder": log[:3], "vae": log}, trained=log[-1]["step"])
    stage = measure._stage(run, "vae")
    assert (stage.steps, stage.of, stage.skipped, stage.examples_per_second) == (200, 4, 4, 10.5)
    assert stage.fell_in_last_tenth == pytest.approx(1 - 80.5 / 82.5)
    assert stage.last == {"loss": 80.0, "rate": 7.0}
    short = measure._stage(run, "autoencoder")
    assert short.fell_in_last_tenth == pytest.approx(
        1 - 97 / 98
    )  # of three lines the last and the one before

    nothing = measure._stage(dataclasses.replace(run, logs={"vae": []}), "vae")
    assert math.isnan(nothing.skipped) and nothing.last == {}
    assert math.isnan(nothing.examples_per_second) and math.isnan(nothing.fell_in_last_tenth)


@pytest.mark.parametrize("losses", [(0.0, 0.0), (-1.0, -2.0), (1.0, -2.0)])
def test_a_loss_that_is_not_above_0_has_no_share(strange, losses):
    log = [
        {"step": i, "loss": loss, "skipped": 0, "examples_per_second": 1.0} for i, loss in enumerate(losses)
    ]
    stage = measure._stage(dataclasses.replace(strange, logs={"vae": log}), "vae")
    assert math.isnan(stage.fell_in_last_tenth)


def test_steps_are_those_that_the_model_has_seen(runs, tmp_path):
    "The log goes on beyond them where a run was killed, and ends before them where it was stopped."
    shutil.copytree(runs / "strange", tmp_path / "run")
    for trained, logged in ((3, 3), (4, 4), (6, 4)):
        (tmp_path / "run/vae/trained.json").write_text(json.dumps({"step": trained}))
        run = open_run(tmp_path / "run", "cpu", strange_images())
        assert run.logs["vae"][-1]["step"] == logged and measure._stage(run, "vae").steps == trained
    (tmp_path / "run/vae/trained.json").unlink()  # a run of an earlier version
    assert measure._stage(open_run(tmp_path / "run", "cpu", strange_images()), "vae").steps == 4


def test_spread_is_that_of_one_class(strange, monkeypatch):
    "Eight samples of a class: pixels of the first row differ by 2 in the mean, of the second not at all."
    first = torch.tensor([-1.0, 1.0] * 4)
    images = torch.cat([first, torch.full((8,), 5.0)]).view(16, 1, 1, 1).expand(-1, 3, 2, 2)
    monkeypatch.setattr(measure, "draw_classes", lambda run, guidance: images)
    for spread in measure._spreads(strange).values():
        assert spread == pytest.approx(first.std().item() / 2)


def test_distances_of_depths_are_to_the_whole_sample(strange, monkeypatch):
    rows = {1: torch.zeros(2, 3, 2, 2), 4: torch.full((2, 3, 2, 2), 3.0), 8: torch.full((2, 3, 2, 2), 4.0)}
    monkeypatch.setattr(measure, "draw_depths", lambda run: rows)
    assert measure._depth_distances(strange) == {"1": 4.0, "4": 1.0, "8": 0.0}
