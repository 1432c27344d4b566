"Tests of cfvae.runs.scaling: which sizes are measured, and the figure of them."

import json

import pytest
import torch
from recipes_for_tests import tiny

from cfvae.core import CfvaeError
from cfvae.runs import scaling
from cfvae.runs.presets import PRESETS, preset
from cfvae.runs.scaling import base_recipe, draw_scaling, measure_scaling

AXES = ["layers", "width", "resolution", "batch"]
SIZES = {"layers": [2, 3, 6, 12], "width": [8, 16], "resolution": [2, 4, 8], "batch": [2, 4, 8, 16]}


@pytest.fixture
def quick(monkeypatch):
    "Costs without any work: a step takes as many milliseconds as the model has layers."

    def measure(recipe, device, seconds):
        return float(sum(recipe.vae.layers)), 1.0

    monkeypatch.setattr(scaling, "_measure_point", measure)


def test_every_axis_is_varied_alone(quick):
    scaled = measure_scaling(tiny(), "cpu")
    sizes = {axis: [point.size for point in scaled.points if point.axis == axis] for axis in AXES}
    assert sizes == SIZES
    steps = {point.step_milliseconds for point in scaled.points if point.axis != "layers"}
    assert steps == {3.0} and scaled.left_out == []
    assert scaled.batch_size == 8 and scaled.vae.layers == (1, 2)


def test_measured_points_are_positive_and_json(monkeypatch):
    monkeypatch.setattr(scaling, "_AXES", {"layers": scaling._AXES["layers"]})
    scaled = measure_scaling(tiny(), "cpu", seconds=0.0)
    numbers = json.loads(json.dumps(scaled.to_dict(), allow_nan=False))
    assert len(numbers["points"]) == 4 and numbers["machine"]["device"] == "cpu"
    for point in numbers["points"]:
        assert point["step_milliseconds"] > 0 and point["sample_milliseconds"] > 0


def test_the_base_is_measured_once(monkeypatch):
    recipes = []

    def measure(recipe, device, seconds):
        recipes.append(recipe)
        return 1.0, 1.0

    monkeypatch.setattr(scaling, "_measure_point", measure)
    scaled = measure_scaling(tiny(), "cpu")
    assert len(recipes) == len(set(recipes)) < len(scaled.points)


def test_what_does_not_fit_into_memory_is_left_out(monkeypatch):
    def measure(recipe, device, seconds):
        if recipe.vae_training.batch_size > 8:
            raise torch.OutOfMemoryError
        return 1.0, 1.0

    monkeypatch.setattr(scaling, "_measure_point", measure)
    scaled = measure_scaling(tiny(), "cpu")
    assert scaled.left_out == ["batch 16"]
    assert [point.size for point in scaled.points if point.axis == "batch"] == [2, 4, 8]


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_has_a_base_and_sizes_around_it(name):
    recipe = preset(name)
    for device in ("cpu", "cuda"):
        base = base_recipe(recipe, torch.device(device))
        sizes = scaling._sizes(base)
        assert {axis for axis, _, _ in sizes} == set(AXES)
        assert [changed for _, _, changed in sizes].count(base) >= 4
        if device == "cpu":
            assert base.vae.resolutions == (1, 4, 8) and base.vae_training.batch_size <= 16
            assert max(base.vae.widths) <= 32 and max(base.vae.layers) <= 4
        else:
            assert base.vae == recipe.vae
            assert base.vae_training.batch_size == recipe.vae_training.batch_size


def test_figure_has_a_panel_for_every_axis(quick):
    figure = draw_scaling(measure_scaling(tiny(), "cpu"))
    assert len(figure.axes) == 4
    for panel in figure.axes:
        assert len(panel.lines) == 2 and panel.get_xlabel()
    assert figure.get_suptitle().startswith("shapes-demo on ")


def test_a_base_that_was_made_smaller_is_said_to_be(quick):
    scaled = measure_scaling(preset("cifar10"), "cpu")
    assert scaled.smaller and draw_scaling(scaled).get_suptitle().startswith("a smaller cifar10 on ")
    with pytest.raises(CfvaeError, match="the recipe is of the type str"):
        measure_scaling("cifar10", "cpu")
