"Figures of cfvae.runs.report, evaluation_page and scaling: what is drawn is what was measured."

import types

import pytest
import torch

from cfvae.guidance import Guidance
from cfvae.runs import evaluation_page, report, scaling
from cfvae.runs.evaluate import FLOOR
from cfvae.runs.judging import SWEEP, Row, Value
from cfvae.runs.measure import Nats


def bars(axis, container=0):
    "Of one series: (middle, bottom, height) of every bar, rounded."
    found = []
    for bar in axis.containers[container]:
        middle = bar.get_x() + bar.get_width() / 2
        found.append(tuple(round(float(value), 6) for value in (middle, bar.get_y(), bar.get_height())))
    return found


# --- the report


def test_rates_stand_over_their_bands():
    nats = Nats([5.0, 1.0, 14.0], 20.0, 0.1, 3.0, [[4.0, 8.0], [2.0, 4.0], [6.0, 12.0]])
    (axis,) = report._rates_figure(nats, (1, 4, 4)).axes
    for layer, (low, high) in enumerate(nats.band):
        assert bars(axis, layer) == [(layer + 1, low, high - low)]
    assert bars(axis, 3) == [(1, 0, 5), (2, 0, 1), (3, 0, 14)]
    ticks = axis.get_xticklabels()
    assert [text.get_text() for text in ticks] == ["1\n1x1", "2\n4x4", "3\n4x4"]
    legend = [text.get_text() for text in axis.get_legend().get_texts()]
    assert legend == ["band of the schedule", "measured rate"]
    assert axis.get_xlabel() == "stochastic layer and its resolution"
    assert axis.get_ylabel() == "rate (nats per image)"
    assert len(report._rates_figure(Nats([5.0], 5.0, 0.1, 3.0, None), (1,)).axes[0].containers) == 1


def test_layers_that_keep_to_the_schedule_and_layers_that_are_empty():
    nats = Nats([4.0, 8.0, 4.1, 0.17, 0.16], 16.43, 0.1, 3.0, [[4.0, 8.0]] * 3 + [[0.2, 0.4]] * 2)
    assert report._layers_inside(nats) == 3  # both ends belong to a band
    assert report._empty_layers(nats) == [5]
    assert report._layers_inside(Nats([4.0], 4.0, 0.1, 3.0, None)) == 0


def test_shares_come_with_their_number_and_error():
    measurements = types.SimpleNamespace(
        class_accuracy={"held-out images": 0.9, "samples, without guidance": 0.5},
        run=types.SimpleNamespace(measured_images=100),
    )
    assert report._accuracies(measurements) == [
        ("held-out images", 90.0, 100, pytest.approx(3.0)),
        ("samples, without guidance", 50.0, report.JUDGED, pytest.approx(50 / report.JUDGED**0.5)),
    ]


def test_curves_leave_out_what_has_no_logarithm():
    log = [{"step": 1, "loss": 4.0, "rate": 0.0}, {"step": 2, "loss": 2.0, "rate": 1.0},
           {"step": 3, "loss": -1.0, "rate": None}]  # fmt: skip
    left, right = report._curves_figure({"autoencoder": log[:2], "vae": log}).axes
    for axis, title, unit in (
        (left, "stage one: autoencoder", "loss"),
        (right, "stage two: VAE", "nats per image"),
    ):
        curves = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axis.get_lines()}
        assert curves == {"loss": [(1, 4.0), (2, 2.0)], "rate": [(2, 1.0)]}
        assert (axis.get_title(), axis.get_ylabel(), axis.get_xlabel()) == (title, unit, "step")
        assert axis.get_yscale() == "log"
    nothing = report._curves_figure({"autoencoder": [], "vae": [{"step": 1, "loss": 0.0}]})
    assert [axis.get_legend() for axis in nothing.axes] == [None, None]


# --- the evaluation


def evaluation():
    "Numbers in place of measurements: two judges, the second sees ten times the distance."
    rows, swept = [], []
    for judge, factor in (("one", 1.0), ("two", 10.0)):
        for name, value in ((FLOOR, 0.5), ("samples, unguided", 2.0)):
            rows.append(Row(name, judge, {"frechet": Value(factor * value, factor * 0.1)}))
        for mean, variance in SWEEP:
            numbers = {
                "frechet": factor * (mean + 2 * variance),
                "precision": mean / 10,
                "recall": variance / 10,
            }
            swept.append(Row("", judge, {name: Value(value, 0.01) for name, value in numbers.items()}))
    layers = types.SimpleNamespace(rates=[3.0, 7.0], active=[1, 8], units=[4, 16])
    return types.SimpleNamespace(judges=["one", "two"], rows=rows, swept=swept, layers=layers)


def test_every_set_has_a_bar_and_real_images_a_line():
    figure = evaluation_page._draw_frechet(evaluation())
    for axis, judge, factor in zip(figure.axes, ("one", "two"), (1.0, 10.0), strict=True):
        (bars,) = (part for part in axis.containers if hasattr(part, "patches"))
        assert [bar.get_width() for bar in bars] == [2.0 * factor, 0.5 * factor]  # the first row is on top
        assert axis.get_title() == judge and axis.get_xlabel() == "Frechet distance"
        (segments, *_) = bars.errorbar.lines[2]
        assert segments.get_segments()[0][:, 0] == pytest.approx([1.9 * factor, 2.1 * factor])
        assert [line.get_xdata()[0] for line in axis.get_lines() if line.get_linestyle() == ":"] == [
            0.5 * factor
        ]
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == ["samples, unguided", FLOOR]
    assert [text.get_text() for text in figure.axes[1].get_yticklabels()] in ([], ["", ""])


def test_distances_are_counted_on_one_scale():
    distances = {"held-out images": torch.tensor([0.1, 0.2, 0.2]), "samples": torch.tensor([0.0, 0.4])}
    (axis,) = evaluation_page._draw_histogram(distances).axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == list(distances)
    left, right = axis.dataLim.intervalx
    assert (left, right) == pytest.approx((0.0, 0.4))
    assert axis.dataLim.y1 == 2 and axis.get_ylabel() == "images"


def test_rates_and_active_units_of_every_layer():
    left, right = evaluation_page._draw_rates(evaluation()).axes
    assert bars(left) == [(1, 0, 3), (2, 0, 7)]
    assert bars(right) == [(1, 0, 25), (2, 0, 50)] and right.get_ylim() == (0, 100)
    assert left.get_ylabel() == "rate (nats per image)" and right.get_ylabel() == "active units (%)"
    assert left.get_xlabel() == right.get_xlabel() == "stochastic layer"


def test_the_sweep_over_both_weights_and_over_one():
    figure = evaluation_page._draw_sweep(evaluation())
    tops, bottoms = figure.axes[:2], figure.axes[2:]
    weights = ([0, 0.5, 1, 2, 3], [0, 1, 2, 3])
    for top, bottom, judge, factor in zip(tops, bottoms, ("one", "two"), (1.0, 10.0), strict=True):
        lines = [part.lines[0] for part in top.containers]
        assert [list(line.get_xdata()) for line in lines] == list(weights)
        both, alone = ([factor * 3 * w for w in weights[0]], [factor * w for w in weights[1]])
        assert [list(line.get_ydata()) for line in lines] == [pytest.approx(both), pytest.approx(alone)]
        assert [part.get_label() for part in top.containers] == ["both weights", "weight of the means alone"]
        assert top.get_title() == judge and top.get_ylabel() == "Frechet distance"
        lower = [
            (part.lines[0].get_linestyle(), list(part.lines[0].get_ydata())) for part in bottom.containers
        ]
        precision = [pytest.approx([w / 10 for w in some]) for some in weights]
        recall = [pytest.approx([w / 10 for w in weights[0]]), pytest.approx([0, 0, 0, 0])]
        assert lower == [("-", precision[0]), (":", recall[0]), ("-", precision[1]), (":", recall[1])]
        assert bottom.get_xlabel() == "guidance weight"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["both weights", "weight of the means alone"]


# --- how costs grow


def test_costs_are_drawn_on_one_scale():
    points = []
    for axis in scaling._AXES:
        points += [scaling.Point(axis, size, 2.0 * size, 3.0 * size) for size in (2, 4)]
    machine = types.SimpleNamespace(name="a machine")
    given = types.SimpleNamespace(points=points, machine=machine, preset="shapes-demo", smaller=False)
    figure = scaling.draw_scaling(given)
    assert figure.get_suptitle() == "shapes-demo on a machine" and figure.get_supylabel() == "milliseconds"
    assert len({panel.get_ylim() for panel in figure.axes}) == 1  # so that panels can be compared
    figure.axes[0].set_ylim(1, 7)
    for panel, axis in zip(figure.axes, scaling._AXES.values(), strict=True):
        assert panel.get_ylim() == (1, 7)
        assert [list(line.get_ydata()) for line in panel.get_lines()] == [[4, 8], [6, 12]]
        assert [list(line.get_xdata()) for line in panel.get_lines()] == [[2, 4], [2, 4]]
        assert (panel.get_xscale(), panel.get_yscale(), panel.get_xlabel()) == ("log", "log", axis.label)
        assert [text.get_text() for text in panel.get_xticklabels()] == ["2", "4"]
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["a training step", "a batch of samples"]


# --- rows of pictures


@pytest.fixture
def seen(monkeypatch):
    "Images of every grid as they were given, in place of the grids: (images, columns)."
    grids = []
    for page in (report, evaluation_page):
        monkeypatch.setattr(page, "image_grid", lambda images, columns: grids.append((images, columns)))
        monkeypatch.setattr(page, "data_uri", lambda picture: "a picture")
    return grids


def flat(*greys):
    "One picture of each grey."
    return torch.tensor(greys).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def test_rows_of_the_report(seen, monkeypatch):
    class Held(list):
        def batch(self, rows):
            return flat(*(self[row] for row in rows)), "labels"

    run = types.SimpleNamespace(
        held=Held([0.0, 0.1, 0.2]),
        pipe=types.SimpleNamespace(
            classes=("cat", "dog"),
            reconstruct=lambda images, labels=None, depth=None: images + (1 if depth == 0 else 2),
        ),
        recipe=types.SimpleNamespace(conditional=True),
    )
    assert report._reconstructions(run).names == ["held-out image", "autoencoder alone", "whole model"]
    images, columns = seen[-1]
    assert columns == 3 and torch.allclose(images, flat(0, 0.1, 0.2, 1, 1.1, 1.2, 2, 2.1, 2.2))

    monkeypatch.setattr(report, "strengths", lambda recipe: [Guidance(), Guidance(1.0, 1.0)])
    monkeypatch.setattr(report, "draw_classes", lambda run, guidance: flat(*range(16)))
    plain, guided = report._samples(run)
    assert plain.names == ("cat", "dog") and seen[-1][1] == 8
    assert (plain.caption, guided.caption) == ("Without guidance", "Guidance 1 / 1")
    run.pipe.classes = ()
    assert report._samples(run)[0].names == ["sample"] * 4

    monkeypatch.setattr(report, "draw_depths", lambda run: {1: flat(1, 2), 5: flat(3, 4)})
    assert report._depths(run).names == ["first 1 of 5", "first 5 of 5"]
    assert torch.equal(seen[-1][0], flat(1, 2, 3, 4)) and seen[-1][1] == 2


def test_rows_of_the_evaluation(seen):
    names = ["cat"] * 40
    sets = {name: types.SimpleNamespace(images=flat(*(100 * i + torch.arange(40.0)).tolist()), classes=names)
            for i, name in enumerate(("held-out images", evaluation_page.ALONE, evaluation_page.WHOLE,
                                      "samples, unguided"))}  # fmt: skip
    sets["samples, guided"] = types.SimpleNamespace(images=flat(*range(40)), classes=None)
    distances = {"held-out images": torch.zeros(40), "samples, guided": torch.arange(40, 0, -1.0)}
    neighbours = {"samples, guided": flat(*range(1000, 1040))}
    shown = types.SimpleNamespace(sets=sets, distances=distances, neighbours=neighbours)

    unguided, guided = evaluation_page._samples(shown)
    assert unguided.caption == "Samples, unguided, the classes in turn: cat"
    assert guided.caption == "Samples, guided"
    assert torch.equal(seen[0][0], sets["samples, unguided"].images[:30]) and seen[0][1] == 10

    assert "of samples, guided, the 10 nearest" in evaluation_page._nearest(shown).caption
    nearest = list(range(39, 29, -1))
    assert torch.equal(seen[-1][0], flat(*nearest, *(1000 + i for i in nearest))) and seen[-1][1] == 10

    assert evaluation_page._reconstructions(shown).caption.startswith("From top to bottom: held-out images, ")
    assert torch.equal(seen[-1][0], flat(*range(10), *range(100, 110), *range(200, 210)))
