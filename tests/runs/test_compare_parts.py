"Tests of cfvae.runs.compare without training: sizes, settings, ways to draw, figures drawn from numbers."

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file, save_model

from cfvae.core import CfvaeError, count_parameters
from cfvae.data import Shapes
from cfvae.hvae import HierarchicalVAE, HierarchicalVAEConfig
from cfvae.runs.compare import judging
from cfvae.runs.compare.contestant import Material, Style
from cfvae.runs.compare.figures import COLOURS, draw_panels, draw_quality, draw_training
from cfvae.runs.compare.material import Plan
from cfvae.runs.compare.models import MODELS
from cfvae.runs.compare.run import compare
from cfvae.runs.compare.pictures import _choose, draw_rows
from cfvae.runs.compare.training import Job, keep, keep_result, load_trained
from cfvae.runs.compare.transformers import shrink
from cfvae.runs.presets import preset


class Codes:
    "What a model asks of codes while nothing is trained."

    scaler = torch.nn.Identity()


def contestant(name, of="shapes-demo"):
    "A model of a comparison, on a preset."
    recipe = preset(of)
    images, held = Shapes(4, size=32), Shapes(3, size=32)
    return MODELS[name](Material(recipe, torch.nn.Identity(), images, held, Codes(), Codes()))


def test_the_folder_may_be_a_text(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(CfvaeError, match="taken is a file: choose another --out"):
        compare(preset("shapes-demo"), Plan(), str(tmp_path / "taken"))
    with pytest.raises(CfvaeError, match="the folder is 3: give its path"):
        compare(preset("shapes-demo"), Plan(), 3)


# --- models


def damaged(path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def with_another_number(path) -> None:
    weights = load_file(path)
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, path)


def of_other_sizes(path) -> None:
    save_model(torch.nn.Linear(2, 2), str(path))


@pytest.mark.parametrize("spoil", [damaged, of_other_sizes, Path.unlink, with_another_number])
def test_a_trained_model_that_is_not_the_one_that_was_kept_is_named(tmp_path, spoil):
    vae = contestant("vae")
    job = Job("vae", seed=0)
    path = tmp_path / job.folder / "model.safetensors"
    keep_result(job, {"rate": 1e-3, "loss": 2.0}, vae.build(), tmp_path)
    load_trained(vae, job, tmp_path)
    spoil(path)
    wrong = "is not the model that was trained" if spoil is with_another_number else "cannot be read .*"
    with pytest.raises(CfvaeError, match=f"{path} {wrong}: remove {path.parent}, and the same"):
        load_trained(vae, job, tmp_path)


@pytest.mark.parametrize(
    ("of", "width", "depth"), [("shapes-demo", 128, 6), ("cifar10", 384, 8), ("tiny-imagenet-64", 672, 8)]
)
def test_a_transformer_is_about_as_large_as_the_vae(of, width, depth):
    flow = contestant("flow", of)
    recipe = flow.recipe
    sizes = flow.sizes(*recipe.autoencoder.latent_shape[:2])
    assert (sizes.width, sizes.depth, sizes.heads) == (width, depth, width // 32)
    assert (sizes.data_channels, sizes.resolution) == recipe.autoencoder.latent_shape[:2]
    assert sizes.num_classes == recipe.vae.num_classes
    with torch.device("meta"):
        counts = [count_parameters(model) for model in (flow.build(), HierarchicalVAE(recipe.vae))]
    assert 0.8 < counts[0] / counts[1] < 1.25


def test_rates_are_tried_around_one_of_the_model():
    assert contestant("vae").rates == pytest.approx((2e-3, 4e-3, 8e-3))
    assert contestant("flow").rates == pytest.approx((0.6 / 256, 0.6 / 128, 0.6 / 64))  # by its width


def test_the_vae_of_pixels_has_two_resolutions_more():
    model = contestant("pixel-vae")
    uneven = dataclasses.replace(
        model.recipe.vae, widths=(96, 80, 64), encoder_widths=(80, 72, 60), multipliers=(0, 1, 2)
    )
    model.recipe = dataclasses.replace(model.recipe, vae=uneven)
    assert model.build().config == HierarchicalVAEConfig(
        data_channels=3,
        resolutions=(1, 4, 8, 16, 32),
        widths=(96, 80, 64, 32, 16),
        encoder_widths=(80, 72, 60, 32, 16),
        multipliers=(0, 1, 2, 2, 2),
        layers=(2, 4, 2, 1, 1),
        encoder_blocks=1,
        attention=0,
        heads=(4, 4, 4, 1, 1),
        num_classes=10,
    )
    assert model.training(1000, 1e-3, 0).skip_norm == 300 * 3 * 32**2
    image = torch.zeros(1, 3, 32, 32)
    assert model.decode(image) is image


def test_training_is_the_recipes_so_long_and_at_this_rate():
    base = preset("shapes-demo").vae_training
    training = contestant("vae").training(200, 1e-2, 3)
    assert training == dataclasses.replace(
        base, steps=200, learning_rate=1e-2, final_learning_rate=1e-4, warmup=20, seed=3
    )
    assert contestant("vae").training(5000, 1e-2, 0).warmup == 50
    assert contestant("flow").training(200, 1e-2, 3).skip_norm == math.inf


def test_bins_of_the_autoregressive_models():
    codes = contestant("autoregressive")
    codes.scaler.clip = 4.0
    assert dataclasses.astuple(codes.build().config.quantiser) == (64, -4.0, 4.0)
    pixels = contestant("pixel-autoregressive")
    config = pixels.build().config
    assert dataclasses.astuple(config.quantiser) == (64, -1.0, 1.0)
    assert (config.data_channels, config.resolution) == (3, 16)
    images = Shapes(3, size=32).batch(range(3))[0]
    small = shrink(images)
    assert torch.allclose(small, images.unflatten(2, (16, 2)).unflatten(4, (16, 2)).mean((3, 5)), atol=1e-6)
    assert pixels.decode(small).shape == images.shape
    assert (len(pixels.data()), len(pixels.data(held=True)), pixels.data().size) == (4, 3, 16)


def test_who_models_pixels_sees_images():
    model = contestant("pixel-vae")
    assert model.data() is model.material.images and model.data(held=True) is model.material.held
    model = contestant("vae")
    assert model.data() is model.material.codes and model.data(held=True) is model.material.held_codes


def test_the_first_stage_goes_where_samples_are_drawn():
    model = contestant("vae")
    model.autoencoder, model.scaler = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    assert model.to(torch.device("meta")) is model
    assert model.autoencoder.weight.device.type == model.scaler.weight.device.type == "meta"


# --- ways to draw

EULER = [f"euler-{steps}" for steps in (1, 2, 4, 8, 16, 64, 250)]
STYLES = {
    "vae": "plain w1 w2 w3 w1-t0.9 w2-t0.9 t0.9 t0.8".split(),
    "flow": [
        *EULER,
        *(f"{name}-w1" for name in EULER),
        *"euler-16-w2 euler-64-w2 euler-16-w3 heun-2 heun-8 heun-2-w1 heun-8-w1".split(),
    ],
    "autoregressive": "plain w1 w2 t0.9".split(),
    "pixel-vae": "plain w1 w2 w3 w2-t0.9".split(),
    "pixel-autoregressive": "plain w1 w2 t0.9".split(),
}
SHOWN = {
    "vae": "plain w1 w2 w2-t0.9".split(),
    "flow": "euler-1-w1 euler-4-w1 euler-16-w1 euler-64-w1".split(),
    "autoregressive": "plain w1 w2".split(),
}


def test_ways_to_draw_of_every_model():
    assert {name: [style.name for style in kind.styles] for name, kind in MODELS.items()} == STYLES
    for name, shown in SHOWN.items():
        assert [style.name for style in MODELS[name].shown] == shown


@pytest.mark.parametrize(
    ("style", "title", "evaluations"),
    [
        (Style(), "unguided", 1),
        (Style(weight=2, temperature=0.9), "guidance 2, temperature 0.9", 2),
        (Style(steps=1, solver="euler"), "1 Euler step, unguided", 1),
        (Style(weight=1, steps=8, solver="heun"), "8 Heun steps, guidance 1", 32),
    ],
)
def test_a_way_to_draw_in_words_and_evaluations(style, title, evaluations):
    assert (style.title, style.evaluations) == (title, evaluations)


@pytest.mark.parametrize("change", [{"conditional": False}, {"objective": {"label_drop": 0.0}}])
def test_guidance_needs_labels_that_were_dropped(change):
    for name in ("vae", "flow"):
        model = contestant(name)
        assert model.can_draw(Style(weight=1)) and model.can_draw(Style())
        new = {key: dataclasses.replace(model.recipe.objective, **value) if isinstance(value, dict) else value
               for key, value in change.items()}  # fmt: skip
        model.recipe = dataclasses.replace(model.recipe, **new)
        assert not model.can_draw(Style(weight=1)) and model.can_draw(Style())


def test_what_is_compared_unless_one_says_otherwise():
    plan = Plan()
    assert plan.models == tuple(MODELS) and (plan.seeds, plan.n, plan.jobs) == (3, 1000, 1)
    assert (plan.budget, plan.first_stage, plan.vae, plan.features) == (None, None, None, "own")
    assert Plan(n=20).n == 20


# --- costs


class Counted:
    "A model of a comparison whose work is known: a product of 64 FLOPs an image and step, 6 to decode."

    def __init__(self, seconds):
        self.recipe = preset("shapes-demo")
        self.calls = []

    def to(self, device):
        return self

    def draw(self, model, labels, n, style, generator):
        assert labels.tolist() == [i % 10 for i in range(n)]
        self.calls.append((n, style.steps))
        x = torch.ones(n, 4)
        for _ in range(max(1, style.steps)):
            x = x @ torch.ones(4, 8) @ torch.ones(8, 4) / 32
        return x

    def decode(self, drawn):
        return drawn @ torch.ones(4, 3)


@pytest.mark.parametrize("steps", [0, 1, 2, 50])
def test_costs_of_many_steps_follow_from_two(steps, monkeypatch):
    monkeypatch.setattr(judging, "TIMED_SECONDS", 0.01)
    model = Counted(0)
    style = Style(weight=1, steps=steps, solver="euler" if steps else "")
    cost = judging.measure_cost(model, torch.nn.Linear(1, 1), style)
    assert cost["gflop_per_image"] == pytest.approx((128 * max(1, steps) + 24) / 1e9)
    assert cost["evaluations"] == 2 * max(1, steps) and cost["timed_batch"] == 16
    assert 0 < cost["seconds_per_image"] < 0.1
    assert (16, steps) in model.calls and max(taken for n, taken in model.calls if n != 16) <= 2


def test_images_are_drawn_in_parts_and_cut_to_the_range(monkeypatch):
    monkeypatch.setitem(judging.BATCH, "cpu", 3)
    model = Counted(0)
    model.draw = lambda net, labels, n, style, generator: model.calls.append(n) or torch.full((n, 4), 9.0)
    images = judging.draw_images(model, torch.nn.Linear(1, 1), None, 7, Style(), 0)
    assert model.calls == [3, 3, 1] and torch.equal(images, torch.ones(7, 3))


def test_noise_is_drawn_batch_by_batch():
    "So a batch of another size would draw other images: the stored comparisons rest on these."
    assert judging.BATCH == {"cpu": 125, "cuda": 1000}


# --- figures


def point(model, gflop, value, **style):
    fields = {"weight": 0.0, "temperature": 1.0, "steps": 0, "solver": "", **style}
    measures = {name: {"mean": value, "error": 0.01} for name in ("accuracy", "frechet", "precision")}
    return {"model": model, "gflop_per_image": gflop, "style": fields, "measures": {"judge": measures}}


def floor(value):
    return {"measures": {"judge": {"frechet": {"value": value}, "accuracy": {"value": 1 - value}}}}


def trained(rate):
    tries = [{"batch_size": 10, "curve": [[5, 3.0], [10, None]]}]
    return {"batch_size": 10, "curve": [[50, 2.0], [100, 1.5 * rate]], "tries": tries}


COMPARISON = {
    "data": "shapes",
    "n": 1500,
    "judges": ["judge"],
    "floors": {"real": floor(0.25), "autoencoder": floor(0.5)},
    "models": {
        "vae": {"title": "the VAE", "unit": "nats", "flops_per_example": 1e12, "seeds": [trained(1.0)]},
        "flow": {"title": "the flow", "unit": "error", "flops_per_example": 2e12,
                 "seeds": [trained(1.0), trained(2.0)]},
    },
    "points": [
        point("vae", 2.0, 0.4, weight=1.0),
        point("vae", 1.0, 0.6),
        point("vae", 1.0, 0.7, temperature=0.9),
        point("flow", 8.0, 0.5, steps=16, solver="euler"),
        point("flow", 4.0, 0.8, steps=1, solver="euler"),
        point("flow", 6.0, 0.3, steps=2, solver="heun", weight=1.0),
    ],
}  # fmt: skip


def lines(panel, colour):
    "Points of the joined lines of a colour, as (dashes, xs, ys)."
    drawn = [line for line in panel.get_lines() if line.get_color() == colour and line.get_alpha() == 0.6]
    return sorted((line.get_linestyle(), *map(list, line.get_data())) for line in drawn)


def test_quality_stands_over_the_cost_of_an_image():
    figure = draw_quality(COMPARISON, "judge")
    panels = figure.axes
    labels = ["recognised as their class", "Fréchet distance (less is better)", "precision"]
    assert [panel.get_ylabel() for panel in panels[:3]] == labels
    assert [panel.axison for panel in panels] == [True, True, True, False]  # nobody measured recall
    for panel in panels[:3]:
        assert panel.get_xscale() == "log" and "GFLOP for an image" in panel.get_xlabel()
        assert lines(panel, COLOURS["vae"]) == [("-", [1.0], [0.7]), ("-", [1.0, 2.0], [0.6, 0.4])]
        assert lines(panel, COLOURS["flow"]) == [("-", [4.0, 8.0], [0.8, 0.5]), ("--", [6.0], [0.3])]
        assert [text.get_text() for text in panel.texts] == ["1", "16"]  # steps of Euler's method, unguided
        above = [text.get_transform().transform(text.get_position())[1] for text in panel.texts]
        assert min(above) > panel.bbox.y1  # where no marker is
        assert {"1", "2", "5"} <= {label.get_text() for label in panel.get_xticklabels()}
    levels = {line.get_linestyle(): line.get_ydata()[0] for line in panels[1].get_lines() if len(
        line.get_xdata()) == 2 and line.get_color() == "0.35"}  # fmt: skip
    assert levels == {"--": 0.25, ":": 0.5}
    assert figure.get_suptitle() == "shapes, judged by judge, n = 1,500, 2 seeds"


def test_a_panel_of_several_names_its_judge():
    points = [{**point, "measures": {**point["measures"], "other": point["measures"]["judge"]}} for point in
              COMPARISON["points"]]  # fmt: skip
    floors = {name: {"measures": {"judge": {}, "other": {}}} for name in COMPARISON["floors"]}
    comparison = {**COMPARISON, "points": points, "floors": floors}
    figure = draw_panels(comparison, [("judge", "accuracy"), ("other", "frechet")])
    labels = ["recognised as their class\njudge", "Fréchet distance (less is better)\nother"]
    assert [panel.get_ylabel() for panel in figure.axes] == labels
    assert figure.get_suptitle() == "shapes, judged by judge and other, n = 1,500, 2 seeds"


def test_markers_tell_guidance_and_hollow_ones_what_is_unusual():
    panel = draw_quality(COMPARISON, "judge").axes[0]
    markers = {}
    for bars in panel.containers:
        dot = bars.lines[0]
        (x,), (y,) = dot.get_data()
        markers[x, round(float(y), 3)] = (dot.get_marker(), dot.get_markerfacecolor() != "white")
        (segment,) = bars.lines[2][0].get_segments()
        assert segment[:, 1] == pytest.approx([y - 0.01, y + 0.01])
    assert markers == {
        (2.0, 0.4): ("s", True),
        (1.0, 0.6): ("o", True),
        (1.0, 0.7): ("o", False),
        (8.0, 0.5): ("o", True),
        (4.0, 0.8): ("o", True),
        (6.0, 0.3): ("s", False),
    }


def test_the_legend_names_models_weights_and_floors():
    (legend,) = draw_quality(COMPARISON, "judge").legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "the VAE",
        "the flow",
        "unguided",
        "guidance 1",
        "guidance 2",
        "guidance 3",
        "above: Euler steps of the unguided flow",
        "temperature below 1, or Heun's method",
        "other real images",
        "the same, through the autoencoder",
    ]
    handles = legend.legend_handles
    assert [handle.get_marker() for handle in handles[:8]] == ["o", "o", "o", "s", "^", "D", "$8$", "o"]
    assert [handle.get_linestyle() for handle in handles[8:]] == ["--", ":"]


def test_training_is_drawn_against_flops():
    figure = draw_training(COMPARISON)
    left, right = figure.axes
    assert (left.get_title(), left.get_ylabel()) == ("the VAE", "nats")
    unit = {"training (PFLOP)": 1e15, "training (TFLOP)": 1e12}[figure.get_supxlabel()]
    flops = [[x * unit for x in line.get_xdata()] for line in right.get_lines()]
    of_a_step = 10 * 2e12  # ten examples
    tried, kept = pytest.approx([5 * of_a_step]), pytest.approx([50 * of_a_step, 100 * of_a_step])
    assert flops == [tried, kept, tried, kept]
    losses = [(line.get_color(), list(line.get_ydata())) for line in right.get_lines()]
    pale, own = ("0.75", [3.0]), COLOURS["flow"]  # what diverged is left out
    assert losses == [pale, (own, [2.0, 1.5]), pale, (own, [2.0, 3.0])]
    assert [line.get_xdata()[-1] * unit for line in left.get_lines()] == pytest.approx([5e13, 1e15])
    four = {**COMPARISON, "models": dict.fromkeys(list(COLOURS)[:4], COMPARISON["models"]["vae"])}
    assert [panel.axison for panel in draw_training(four).axes] == 4 * [True] + 2 * [False]


def test_a_model_that_was_trained_again_is_judged_again(tmp_path):
    point = judging.Point(Job("vae", seed=0), Style())
    result = {"rate": 1e-3, "loss": 2.0}
    for weights, judged in (("old", True), ("new", False)):
        keep(tmp_path / point.job.folder / "result.json", {**result, "weights": weights})
        assert not judging.is_judged(dataclasses.replace(point, style=Style(weight=1)), tmp_path)
        if weights == "old":
            keep(tmp_path / point.path, {"measures": {}, "weights": weights})
        assert judging.is_judged(point, tmp_path) == judged


def test_pictures_stand_in_rows_with_names_below():
    rows = {"real images": torch.zeros(10, 3, 32, 32), "unguided": torch.ones(10, 3, 32, 32)}
    figure = draw_rows(rows, list("abcdefghij"), "the VAE")
    above, below = figure.axes
    assert [panel.get_ylabel() for panel in figure.axes] == ["real images", "unguided"]
    assert figure.get_suptitle() == "the VAE"
    assert [text.get_text() for text in below.get_xticklabels()] == list("abcdefghij")
    strip = np.asarray(below.images[0].get_array())
    width = strip.shape[1] / 10
    assert width > 60  # small pictures are enlarged
    assert below.get_xticks() == pytest.approx([(k + 0.5) * width for k in range(10)])
    assert len(above.get_xticks()) == 0 and np.asarray(above.images[0].get_array()).max() > 100


def test_real_images_are_shown_by_class_as_far_as_there_are_any():
    data = Shapes(60, size=8)
    labels = torch.arange(10)
    shown = _choose(data, labels)
    for column, label in enumerate(labels.tolist()):
        first = (data.labels == label).nonzero()[0].item()
        assert torch.equal(shown[column], data[first][0])
    assert torch.equal(_choose(data, None), data.batch(range(10))[0])
    few = data.subset(range(3))
    known = set(few.labels.tolist())
    white = [bool((picture == 1).all()) for picture in _choose(few, labels)]
    assert white == [label not in known for label in range(10)]  # no picture of another class
