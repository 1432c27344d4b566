"Tests of cfvae.runs.compare: equal budgets, chosen rates, points that are kept, and what is refused."

import dataclasses
import functools
import json
import math
import shutil
from types import SimpleNamespace

import matplotlib.figure
import pytest
import torch
from recipes_for_tests import tiny

from cfvae.core import CfvaeError
from cfvae.data import FACTORS, ImageDataset, Shapes
from cfvae.files.folders import NoValidationSplit
from cfvae.latents import LatentScaler
from cfvae.pipeline import LatentVAEPipeline
from cfvae.runs.presets import preset
from cfvae.runs.compare import material as gathering
from cfvae.runs.compare.run import _applicable, _check_folder, _claim, _keep, compare
from cfvae.runs.compare.contestant import Style
from cfvae.runs.compare.crew import Crew
from cfvae.runs.compare.figures import draw_quality, draw_training
from cfvae.runs.compare.judging import draw_images
from cfvae.runs.compare.material import Given, Plan, _as_planned, _unseen, gather, open_given
from cfvae.runs.compare.models import MODELS
from cfvae.runs.compare.results import average
from cfvae.runs.compare.training import (
    TRY_SHARE,
    Job,
    choose_rate,
    held_out_loss,
    load_trained,
    read_result,
    steps_for,
)

BUDGET = 6.5e8  # FLOPs: ten steps of the transformer
EULER = Style(weight=1, steps=2, solver="euler")
STYLES = {
    "vae": (Style(), Style(weight=1)),
    "flow": (Style(steps=2, solver="euler"), EULER, Style(steps=200, solver="euler")),
}
PLAN = Plan(models=tuple(STYLES), seeds=2, n=40, budget=BUDGET, jobs=2, device="cpu")


def recipe():
    return tiny(data="shapes:n=120", held_out=16)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("comparison") / "all"


@pytest.fixture(scope="module")
def few_styles():
    "So few styles that all of them are drawn within seconds."
    with pytest.MonkeyPatch.context() as patch:
        for name, styles in STYLES.items():
            patch.setattr(MODELS[name], "styles", styles)
            patch.setattr(MODELS[name], "shown", styles[:1])
        yield


@pytest.fixture(scope="module")
def compared(out, few_styles):
    "A comparison of two models with two seeds, in two processes."
    return compare(recipe(), PLAN, out)


@pytest.fixture(scope="module")
def material(compared, out):
    return gather(recipe(), PLAN, None, out)[0]


def test_all_models_are_trained_with_the_same_flops(compared):
    assert list(compared["models"]) == list(STYLES)
    for model in compared["models"].values():
        of_a_step = 8 * model["flops_per_example"]
        for seed in model["seeds"]:
            assert abs(seed["steps"] * of_a_step - BUDGET) <= of_a_step / 2
            for attempt in seed["tries"]:
                assert attempt["steps"] == max(1, round(TRY_SHARE * seed["steps"]))


def test_of_three_rates_the_best_on_held_out_data_is_taken(compared):
    for model in compared["models"].values():
        assert [seed["seed"] for seed in model["seeds"]] == [0, 1]
        for seed in model["seeds"]:
            losses = {attempt["rate"]: attempt["loss"] for attempt in seed["tries"]}
            assert len(losses) == 3
            assert losses[seed["rate"]] == min(losses.values())


def test_curves_end_with_the_loss_of_the_kept_model(compared, material, out):
    contestant = MODELS["flow"](material)
    trained = compared["models"]["flow"]["seeds"][1]
    model = load_trained(contestant, Job("flow", seed=1), out)
    assert trained["curve"][-1] == [trained["steps"], trained["loss"]]
    assert held_out_loss(contestant, model) == pytest.approx(trained["loss"], rel=1e-3)


def test_points_hold_costs_and_measures_with_errors(compared):
    points = {(point["model"], point["name"]): point for point in compared["points"]}
    assert set(points) == {
        ("vae", "plain"),
        ("vae", "w1"),
        ("flow", "euler-2"),
        ("flow", "euler-2-w1"),  # 200 steps are not taken on a CPU
    }
    for point in points.values():
        measures = point["measures"]["shapes-classifier"]
        assert {"accuracy", "frechet", "kernel", "precision", "recall", "density", "coverage"} == set(
            measures
        )
        for value in measures.values():
            low, high = sorted(value["values"])
            assert value["mean"] == pytest.approx((low + high) / 2)
            assert value["error"] == pytest.approx((high - low) / 2)  # of the mean of two
        assert point["gflop_per_image"] > 0 and point["seconds_per_image"] > 0

    guided, plain = points["flow", "euler-2-w1"], points["flow", "euler-2"]
    assert (guided["evaluations"], plain["evaluations"]) == (4, 2)
    assert 1.3 < guided["gflop_per_image"] / plain["gflop_per_image"] < 2  # decoding is not done twice


def test_real_images_are_judged_too(compared):
    floor = compared["floors"]["real"]["measures"]["shapes-classifier"]
    assert floor["accuracy"]["value"] > 0.9
    others = [point["measures"]["shapes-classifier"]["frechet"]["mean"] for point in compared["points"]]
    assert floor["frechet"]["value"] < min(others)
    assert "frechet" in compared["floors"]["autoencoder"]["measures"]["shapes-classifier"]


def test_what_was_done_is_not_done_again(compared, out):
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    redone = [
        out / "models/flow/seed-1/trained/result.json",
        out / "points/vae/seed-0/w1.json",
        out / "costs/flow/euler-2.json",
    ]
    before = [json.loads(path.read_text()) for path in redone]
    for path in redone:
        path.unlink()
    again = compare(recipe(), dataclasses.replace(PLAN, jobs=1), out)

    anew = {path for path, time in kept.items() if path.stat().st_mtime_ns != time}
    anew -= set((out / "points/flow/seed-1").iterdir())  # judged again, unless trained to the same last bit
    noted = [out / name for name in ("comparison.json", "settings.json")]
    noted += [out / "first-stage" / name for name in ("recipe.json", "data.json")]
    assert anew == {*redone, *noted}
    after = [json.loads(path.read_text()) for path in redone]
    assert after[0]["loss"] == pytest.approx(before[0]["loss"], rel=1e-3)
    for name, value in before[1]["measures"]["shapes-classifier"].items():
        assert after[1]["measures"]["shapes-classifier"][name]["value"] == pytest.approx(
            value["value"], abs=0.1
        )
    assert len(again["points"]) == len(compared["points"])


def test_figures_and_pictures_are_written(compared, out):
    for name in ("quality-shapes-classifier", "training", "pictures-vae", "pictures-flow"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for figure in (draw_quality(compared, "shapes-classifier"), draw_training(compared)):
        assert isinstance(figure, matplotlib.figure.Figure)
    assert len(draw_training(compared).axes) == len(STYLES)


def test_a_folder_of_another_comparison_or_of_other_files(compared, out, tmp_path):
    with pytest.raises(
        CfvaeError, match="a comparison with another n and another real images: give the same command"
    ):
        compare(recipe(), dataclasses.replace(PLAN, n=30), out)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CfvaeError, match="holds files but no comparison"):
        compare(recipe(), PLAN, tmp_path)
    (tmp_path / "thesis.txt").rename(tmp_path / f"settings.json.{'0a' * 8}.tmp")
    _check_folder(tmp_path)  # of a process that was killed


def test_settings_name_no_folder_of_this_machine(tmp_path):
    material = SimpleNamespace(
        recipe=tiny(data=f"folder:{tmp_path}/photos"),
        images=SimpleNamespace(fingerprint="a"),
        codes=SimpleNamespace(fingerprint="b"),
    )
    plan = Plan(vae=str(tmp_path / "run"), features=str(tmp_path / "judge"), device="cpu")
    rests_on = {"judges": {"judge": "1"}, "scaler": [[0.0], [1.0], 4.0], "real images": ["2"]}
    claim = functools.partial(_claim, tmp_path, material, budget=BUDGET)
    claim(plan=plan, rests_on={})  # as an earlier version noted it
    claim(plan=plan, rests_on=rests_on)
    assert str(tmp_path) not in (tmp_path / "settings.json").read_text()
    claim(plan=plan, rests_on=rests_on)  # it goes on
    another = dataclasses.replace(plan, vae=str(tmp_path / "other" / "run"))
    with pytest.raises(CfvaeError, match="a comparison with another vae:"):
        claim(plan=another, rests_on=rests_on)
    for name in rests_on:  # the paths are the same, and what lies there is not
        with pytest.raises(CfvaeError, match=f"a comparison with another {name}:"):
            claim(plan=plan, rests_on=rests_on | {name: ["changed"]})


def test_a_vae_that_was_trained_before(compared, material, out, few_styles, tmp_path):
    vae = load_trained(MODELS["vae"](material), Job("vae", seed=0), out)
    pipe = LatentVAEPipeline(material.autoencoder, vae, material.codes.scaler, material.codes.classes)
    pipe.save_pretrained(tmp_path / "given")
    plan = Plan(models=("vae",), seeds=2, n=40, vae=str(tmp_path / "given"), device="cpu")
    given = compare(recipe(), plan, tmp_path / "out")
    (seed,) = given["models"]["vae"]["seeds"]
    assert seed["tries"] == [] and seed["seconds"] is None
    assert len(given["points"]) == len(STYLES["vae"])
    for point in given["points"]:
        assert len(point["measures"]["shapes-classifier"]["frechet"]["values"]) == 1
        assert point["measures"]["shapes-classifier"]["frechet"]["error"] > 0  # of the samples alone


def test_an_autoencoder_alone_as_first_stage(material, tmp_path):
    "Its scaler is fitted on the codes; a pipeline brings its own."
    assert open_given(Plan(first_stage="cifar10-stage-one")).autoencoder.config.size == 32
    material.autoencoder.save_pretrained(tmp_path / "alone")
    plan = dataclasses.replace(PLAN, first_stage=str(tmp_path / "alone"))
    alone, _, _ = gather(recipe(), plan, open_given(plan), tmp_path / "out")
    assert alone.codes.fingerprint == material.codes.fingerprint
    assert not (tmp_path / "out/first-stage").exists()
    assert torch.equal(alone.codes.scaler.shift, material.codes.scaler.shift)
    brought = Given(material.autoencoder, LatentScaler(0.5, 2.0))
    assert gather(recipe(), PLAN, brought, tmp_path / "out")[0].codes.scaler is brought.scaler
    with pytest.raises(CfvaeError, match="shapes-classifier: .*settings are missing"):
        open_given(Plan(first_stage="shapes-classifier"))


def test_a_first_stage_of_another_recipe_is_not_taken(compared, out, tmp_path):
    "It was trained by a comparison that was killed before it could note its settings."
    shutil.copytree(out / "first-stage", tmp_path / "first-stage")
    for other in (tiny(data="shapes:n=130", held_out=16), tiny(data="shapes:n=120", held_out=16, seed=1)):
        with pytest.raises(CfvaeError, match="first-stage was begun with (other images|another recipe)"):
            gather(other, PLAN, None, tmp_path)


def pictures(n: int, labels=None) -> ImageDataset:
    labels = torch.arange(n) % 10 if labels is None else labels
    return ImageDataset(Shapes(n, size=16).images, labels, FACTORS["class"], "pictures")


def unseen(monkeypatch, train, held, split, **plan):
    "What is judged of data with so many images, and a validation split or none."

    def open_dataset(spec, size, train):
        if split is None:
            raise NoValidationSplit("there is none")
        return split

    monkeypatch.setattr(gathering, "open_dataset", open_dataset)
    return _unseen(recipe(), train, held, Plan(**plan))


@pytest.mark.parametrize(
    ("train", "split", "n", "judged"),
    [(100, 60, 50, 50), (100, 60, 70, 60), (30, 60, 50, 30), (30, 100, 50, 50), (30, 90, 50, 45)],
)
def test_as_many_real_images_as_there_are_others(monkeypatch, train, split, n, judged):
    real, others = unseen(monkeypatch, pictures(train), None, pictures(split), n=n)
    assert len(real) == len(others) == judged


def test_real_images_that_cannot_be_judged_by(monkeypatch):
    few = "9 held-out images and 90 to train on are there, but to judge takes 20 of each"
    with pytest.raises(CfvaeError, match=few):
        unseen(monkeypatch, pictures(90), pictures(9), None)
    partly = pictures(60, [-1] + [0] * 59)
    with pytest.raises(CfvaeError, match="pictures: held-out images have no class"):
        unseen(monkeypatch, pictures(90), None, partly)
    with pytest.raises(NoValidationSplit):  # nobody knows what a VAE without a run has seen
        monkeypatch.setattr(
            gathering, "open_images", lambda model, *about: gathering.open_dataset(*about, False)
        )
        unseen(monkeypatch, pictures(90), pictures(30), None, vae="shapes")


@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_draws_images_and_hears_labels(material, name):
    contestant = MODELS[name](material)
    assert contestant.obstacle == ""
    torch.manual_seed(0)
    model = contestant.build().eval().requires_grad_(False)
    for parameter in model.parameters():  # layers that begin as zero would hide the labels
        parameter += 0.1 * torch.randn_like(parameter)
    style = EULER if name == "flow" else Style(weight=1)
    drawn = [draw_images(contestant, model, torch.tensor(labels), 2, style, 0) for labels in ([3, 4], [3, 5])]
    assert drawn[0].shape == (2, 3, 16, 16)
    assert torch.equal(drawn[0][0], drawn[1][0]) and not torch.equal(drawn[0][1], drawn[1][1])
    loss = held_out_loss(contestant, model)
    assert loss is not None and loss == held_out_loss(contestant, model)


def test_models_of_pixels_are_for_small_pictures(material):
    photographs = dataclasses.replace(material, recipe=dataclasses.replace(material.recipe, flip=True))
    for name, kind in MODELS.items():
        assert bool(kind(photographs).obstacle) == name.startswith("pixel")
    with pytest.raises(
        CfvaeError, match="no model is left to compare: models of pixels are compared on small"
    ):
        _applicable(Plan(models=("pixel-vae",)), photographs)


def test_a_budget_too_small_is_noticed_before_anything_is_trained(tmp_path):
    with pytest.raises(CfvaeError, match="the budget pays for 0 steps, give a larger --budget"):
        compare(recipe(), dataclasses.replace(PLAN, models=tuple(MODELS), budget=1e4), tmp_path / "poor")
    assert not [
        path for path in (tmp_path / "poor").rglob("*") if path.suffix in (".pt", ".safetensors", ".npy")
    ]


def test_a_budget_that_is_too_small(material):
    with pytest.raises(CfvaeError, match="flow matching: the budget pays for 2 steps"):
        steps_for(MODELS["flow"](material), budget=160.0, flops=10.0)


def test_training_that_diverges_at_every_rate(material, tmp_path):
    contestant = MODELS["vae"](material)
    job = Job("vae", seed=0)
    for attempt in job.tries(contestant):
        (tmp_path / attempt.folder).mkdir(parents=True)
        result = {"rate": attempt.rate, "loss": None}
        (tmp_path / attempt.folder / "result.json").write_text(json.dumps(result))
    with pytest.raises(CfvaeError, match="vae: training diverged at every learning rate"):
        choose_rate(contestant, job, tmp_path)
    assert read_result(job, tmp_path) is None


def test_a_vae_of_other_sizes_than_the_presets_brings_its_first_stage():
    ours = recipe()
    theirs = preset("shapes-demo")
    assert ours.autoencoder.latent_shape != theirs.autoencoder.latent_shape
    given = SimpleNamespace(
        autoencoder=SimpleNamespace(config=ours.autoencoder), vae=SimpleNamespace(config=ours.vae)
    )
    planned = _as_planned(theirs, Plan(vae="theirs"), given)
    assert (planned.autoencoder, planned.vae) == (ours.autoencoder, ours.vae)


def test_names_and_numbers_that_are_wrong():
    with pytest.raises(CfvaeError, match="there is no model 'gan' to compare: choose of vae, flow"):
        Plan(models=("gan",))
    with pytest.raises(CfvaeError, match="n is 5: at least 20"):
        Plan(n=5)
    for budget in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(CfvaeError, match="budget is .*: (give a number above 0|a finite number)"):
            Plan(budget=budget)
    with pytest.raises(CfvaeError, match=r"models is 'vae': give a list of names, such as \('vae',\)"):
        Plan(models="vae")
    for name, value in {"seeds": "3", "n": 20.5, "jobs": True, "device": None, "features": 1}.items():
        with pytest.raises(CfvaeError, match=f"Plan.{name} is "):
            Plan(**{name: value})
    with pytest.raises(CfvaeError, match="the recipe is of the type str"):
        compare("shapes-demo", Plan(), "out")


def test_costs_of_another_machine_are_measured_again(tmp_path):
    costs = iter([{"gflop": 1}, {"gflop": 2}])
    for machine, gflop in (("a", 1), ("a", 1), ("b", 2), ("b", 2)):
        kept = _keep(tmp_path / "c.json", {}, functools.partial(next, costs), {"machine": machine})
        assert kept == {"gflop": gflop, "machine": machine}


def test_errors_of_one_seed_are_those_of_its_samples():
    result = {"measures": {"judge": {"frechet": {"value": 2.0, "error": 0.25}}}}
    assert average([result])["judge"]["frechet"] == {"mean": 2.0, "error": 0.25, "values": [2.0]}


def test_a_crew_of_one_works_here_in_order():
    done = []
    with Crew("shared", jobs=1) as crew:
        crew.run(lambda shared, item: done.append((shared, item)), [3, 1])
    assert done == [("shared", 3), ("shared", 1)]


def test_processes_of_a_crew_end_by_ctrl_c_without_a_trace():
    with Crew("import signal; assert signal.getsignal(2) is signal.SIG_DFL", jobs=2) as crew:
        crew.run(exec, [{}])


def test_a_process_of_a_crew_that_is_killed():
    with (
        Crew("import os; os._exit(9)", jobs=2) as crew,
        pytest.raises(CfvaeError, match="was killed, .*fewer --jobs"),
    ):
        crew.run(exec, [{}])
