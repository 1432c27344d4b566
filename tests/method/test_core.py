"Seeds, devices, pixels, pictures and configs."

import dataclasses
import json
import math
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfvae.core import (
    PALETTE,
    CfvaeError,
    check,
    check_batch,
    check_classes,
    check_fields,
    check_path,
    config_from_dict,
    config_to_dict,
    count_parameters,
    finite_number,
    from_uint8,
    get_device,
    image_grid,
    make_generator,
    model_input,
    randn,
    seed_everything,
    set_style,
    show_images,
    to_uint8,
    whole_number,
    whole_numbers,
)


@dataclasses.dataclass(frozen=True)
class Example:
    widths: tuple[int, ...] = (64, 64)
    nested: tuple[tuple[int, ...], ...] = ()
    learning_rate: float = 1e-3


@dataclasses.dataclass(frozen=True)
class Strict(Example):
    def __post_init__(self):
        check_fields(self)


def test_check_raises_only_where_the_condition_fails():
    check(True, "unused")
    with pytest.raises(CfvaeError, match="size is 3"):
        check(False, "size is 3")
    assert issubclass(CfvaeError, ValueError)


@pytest.mark.parametrize("value", [1.0, "1", None, True, [1], torch.tensor(1.0), 2])
def test_a_whole_number_is_nothing_else(value):
    with pytest.raises(CfvaeError, match="^n is .*: a whole number from 3 is needed$"):
        whole_number(value, "n", 3)


def test_whole_numbers_of_every_kind():
    for value in (3, np.int64(3), np.uint8(3), torch.tensor(3)):
        assert whole_number(value, "n", 3) == 3 and type(whole_number(value, "n")) is int
    assert whole_number(-1, "n") == -1
    for values in ([1, 2], (1, 2), range(1, 3), np.array([1, 2], np.uint8), torch.tensor([1, 2])):
        found = whole_numbers(values, "indices")
        assert found.tolist() == [1, 2] and found.dtype == torch.int64
    assert whole_numbers([], "indices").dtype == torch.int64


@pytest.mark.parametrize("values", [[True, False], [0.5], ["a"], [None], None, 3, [[1]], [2**70], [1j]])
def test_whole_numbers_are_nothing_else(values):
    with pytest.raises(CfvaeError, match="^indices (are|have) .*: count them$"):
        whole_numbers(values, "indices", "count them")


IMAGES = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("x", "complaint"),
    [
        (None, "not a NoneType"),
        ([IMAGES], "not a list"),
        (IMAGES.numpy(), "not a ndarray"),
        (IMAGES.byte(), "not of uint8.*from_uint8"),
        (IMAGES.long(), "not of int64"),
        (IMAGES[0], r"a tensor of floats, \(n, 3, size, 4\), is needed, not \(3, 4, 4\)"),
        (IMAGES[:0], r"not \(0, 3, 4, 4\)"),
        (IMAGES[:, :1], r"not \(2, 1, 4, 4\)"),
        (IMAGES[:, :, :0], r"not \(2, 3, 0, 4\)"),
        (IMAGES[..., :2], r"not \(2, 3, 4, 2\)"),
        (IMAGES + 255, "finite numbers up to 16 are needed, not 255"),
        (IMAGES - 255, "not 255"),
        (IMAGES.log(), "not inf"),
        (IMAGES / 0, "not nan"),
    ],
)
def test_a_batch_is_floats_of_its_shape_and_range(x, complaint):
    with pytest.raises(CfvaeError, match=f"^images: .*{complaint}"):
        check_batch(x, (3, None, 4), "images", 16)


def test_batches_of_every_float():
    for kind in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        x = check_batch((IMAGES + 0.5).to(kind), (3, 4, 4), "images", 16)
        assert x.dtype == torch.float32 and torch.equal(x, IMAGES + 0.5)
    assert check_batch(IMAGES / 0, (3, 4, 4), "images", None).isnan().all()  # not looked at
    with pytest.raises(CfvaeError, match="not 1e.300"):  # which float32 cannot hold
        check_batch(IMAGES.double() + 1e300, (3, 4, 4), "images")


@pytest.mark.parametrize("classes", ["ab", None, 3, [1, 2], ["a", None], {"a": 0}, ["a", "b", "a"]])
def test_classes_are_distinct_texts(classes):
    with pytest.raises(
        CfvaeError, match="^photos: (classes must be a list of names|two classes are called a)"
    ):
        check_classes(classes, "photos")
    assert check_classes(["b", "a"], "photos") == ("b", "a") and check_classes((), "photos") == ()


@pytest.mark.parametrize("path", ["", " ", None, 5, b"folder"])
def test_a_path_is_named(path):
    with pytest.raises(CfvaeError, match="^the folder is .*: give its path"):
        check_path(path)
    assert check_path(".") == check_path(Path()) == Path(".")


@pytest.mark.parametrize("path", ["a\0b", "x" * 256, Path("runs") / ("é" * 128)])
def test_a_path_is_one_that_a_disk_can_hold(path):
    with pytest.raises(CfvaeError, match="^the run is .*: a name has 255 bytes at most, and no zero byte"):
        check_path(path, "the run")
    assert check_path("x" * 255).name == "x" * 255


def test_the_home_folder_is_no_folder_called_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/somebody")
    assert check_path("~/models") == check_path(Path("~/models")) == Path("/home/of/somebody/models")
    assert check_path("models~") == Path("models~")


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 2])
def test_seed_everything_repeats_all_three_generators(seed):
    def draw():
        seed_everything(seed)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()
    seed_everything(seed + 1)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) != draw()


def test_a_generator_of_its_own_is_not_disturbed_by_others():
    first = randn((4,), make_generator(3))
    generator = make_generator(3)
    torch.rand(10)
    assert torch.equal(randn((4,), generator), first)
    assert not torch.equal(randn((4,), make_generator(4)), first)


def test_randn_without_generator_follows_the_global_seed():
    torch.manual_seed(5)
    first = randn((3, 2))
    torch.manual_seed(5)
    assert torch.equal(randn((3, 2)), first) and first.shape == (3, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cpu_generator_gives_the_same_noise_on_a_gpu():
    on_gpu = randn((5,), make_generator(0), "cuda")
    assert on_gpu.is_cuda and torch.equal(on_gpu.cpu(), randn((5,), make_generator(0)))


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 10**50, 1.5, True, "0", None])
def test_no_two_seeds_are_the_same_to_a_generator(seed):
    with pytest.raises(CfvaeError, match="the seed is "):
        make_generator(seed)
    with pytest.raises(CfvaeError, match="the seed is "):
        seed_everything(seed)
    for good in (0, 1, np.int64(7), 2**32 - 1):
        assert make_generator(good).initial_seed() == good


@pytest.mark.parametrize("name", ["gpu", "mps", "meta", "xla", "cpu:x", "", None, 1.5])
def test_devices_that_nothing_is_computed_on(name):
    with pytest.raises(CfvaeError, match=f"unknown device '{name}': use auto, cpu or cuda"):
        get_device(name)


def test_get_device():
    assert get_device("cpu").type == "cpu"
    assert get_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for wrong in (
        "gpu",
        "",
        "cuda:99",
        "cuda:256",
        "cuda:999",
    ):  # PyTorch reads the last two as cuda:0 and cuda:-25
        with pytest.raises(CfvaeError, match="use"):
            get_device(wrong)


def test_every_byte_survives_the_trip():
    every_byte = torch.arange(256, dtype=torch.uint8)
    x = from_uint8(every_byte)
    assert x.dtype == torch.float32 and x.min() == -1 and x.max() == 1
    assert torch.equal(to_uint8(x), every_byte)


@given(st.floats(allow_nan=True, allow_infinity=True, width=32))
def test_to_uint8_rounds_clips_and_survives_nan(value):
    got = to_uint8(torch.tensor([value])).item()
    expected = 0 if value != value else round((min(max(value, -1.0), 1.0) + 1) * 127.5)
    assert abs(got - expected) <= (0 if value in (-1.0, 1.0) or value != value else 1)


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 13),
    columns=st.none() | st.integers(1, 6),
    padding=st.integers(0, 3),
    scale=st.integers(1, 3),
)
def test_image_grid_places_every_image(n, columns, padding, scale):
    images = from_uint8(torch.arange(1, n + 1, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 4, 5))
    picture = image_grid(images, columns, padding, scale)
    columns = columns or int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    assert picture.size == (
        scale * (columns * (5 + padding) + padding),
        scale * (rows * (4 + padding) + padding),
    )
    pixels = np.asarray(picture)
    for i in range(n):
        top, left = (i // columns) * (4 + padding) + padding, (i % columns) * (5 + padding) + padding
        assert (pixels[scale * top : scale * (top + 4), scale * left : scale * (left + 5)] == i + 1).all()
    assert set(np.unique(pixels)) <= set(range(1, n + 1)) | {255}


def test_pictures_that_are_no_numbers_are_told_of():
    images = torch.zeros(2, 3, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_uint8(images * 1e30)
        image_grid(images)
    images[1, 0, 2, 2] = float("nan")
    with pytest.warns(UserWarning, match="not finite.*guidance"):
        image_grid(images)
    with pytest.warns(UserWarning, match="not finite"):
        to_uint8(torch.tensor([0.0, float("inf")]))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"scale": 0}, "scale is 0: a whole number from 1"),
        ({"scale": -1}, "scale is -1"),
        ({"scale": 1.5}, "scale is 1.5"),
        ({"padding": -3}, "padding is -3: a whole number from 0"),
        ({"padding": 1.5}, "padding is 1.5"),
    ],
)
def test_grids_that_cannot_be_drawn(options, complaint):
    with pytest.raises(CfvaeError, match=complaint):
        image_grid(torch.zeros(2, 3, 4, 4), **options)


@pytest.mark.parametrize(
    ("n", "options", "complaint"),
    [
        (0, {}, r"images: .*not \(0, 3, 4, 4\)"),
        (3, {"titles": ["a", "b"]}, "2 titles for 3 images"),
        (3, {"titles": "abc"}, "titles are a str"),
        (3, {"titles": torch.arange(3)}, "titles are a Tensor"),
        (3, {"size": 0}, "size is 0: a number of inches"),
        (3, {"size": math.nan}, "size is nan"),
        (3, {"columns": -1}, "columns is -1"),
        (3, {"columns": 0}, "columns is 0"),
    ],
)
def test_figures_that_cannot_be_drawn(n, options, complaint):
    with pytest.raises(CfvaeError, match=complaint):
        show_images(torch.zeros(n, 3, 4, 4), **options)


@pytest.mark.parametrize(
    ("images", "columns", "complaint"),
    [
        (torch.zeros(0, 3, 4, 4), None, "images: .*not"),
        (torch.zeros(2, 1, 4, 4), None, "images: .*not"),
        (torch.zeros(3, 4, 4), None, "images: .*not"),
        (torch.zeros(2, 3, 0, 4), None, "images: .*not"),
        (torch.zeros(2, 3, 4, 4).byte(), None, "images: .*not of uint8"),
        (torch.zeros(2, 3, 4, 4), 0, "columns is 0: a whole number from 1"),
        (torch.zeros(2, 3, 4, 4), -1, "columns is -1"),
        (torch.zeros(2, 3, 4, 4), 1.5, "columns is 1.5"),
    ],
)
def test_pictures_of_what_is_no_pictures(images, columns, complaint):
    for draw in (image_grid, show_images):
        with pytest.raises(CfvaeError, match=complaint):
            draw(images, columns=columns)


def test_show_images_draws_each_image_with_its_title():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_hex

    set_style()
    figure = show_images(torch.zeros(5, 3, 4, 4), titles=list("abcde"), columns=3, title="all")
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c", "d", "e", ""]
    assert [len(axis.images) for axis in figure.axes] == [1] * 5 + [0]
    assert (np.asarray(figure.axes[0].images[0].get_array()) == to_uint8(torch.zeros(1)).item()).all()
    assert figure.get_suptitle() == "all"
    assert [to_hex(c) for c in plt.rcParams["axes.prop_cycle"].by_key()["color"]] == list(PALETTE)
    plt.close("all")


def test_config_survives_json():
    config = Example(widths=(1, 2), nested=((1,), (2, 3)))
    assert config_from_dict(Example, json.loads(json.dumps(config_to_dict(config)))) == config


def test_an_unknown_field_names_those_that_sound_alike():
    with pytest.raises(CfvaeError, match="'learning_rat': did you mean learning_rate"):
        config_from_dict(Example, {"learning_rat": 1})
    with pytest.raises(CfvaeError, match="learning_rate, nested, widths"):
        config_from_dict(Example, {"zzz": 1})


def test_a_config_made_in_python_is_looked_at_as_one_from_a_file():
    made = Strict([np.int64(1), 2], ([1], (2, 3)), np.float32(0.5))
    assert (
        made
        == Strict(widths=(1, 2), nested=((1,), (2, 3)), learning_rate=0.5)
        == Strict((1, 2), made.nested, 0.5)
    )
    assert type(made.widths[0]) is int and type(made.learning_rate) is float
    assert Strict(widths=8).widths == (8,)
    for fields in (
        {"widths": 1.5},
        {"widths": None},
        {"learning_rate": "x"},
        {"learning_rate": float("inf")},
    ):
        with pytest.raises(CfvaeError) as in_python:
            Strict(**fields)
        with pytest.raises(CfvaeError) as from_file:
            config_from_dict(Strict, fields)
        assert str(in_python.value) == str(from_file.value) and f"Strict.{next(iter(fields))} is" in str(
            in_python.value
        )


def test_count_parameters_leaves_out_what_is_frozen():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    assert count_parameters(model) == 3 * 4 + 4 + 4 + 1
    model[0].requires_grad_(False)
    assert count_parameters(model) == 5


def test_a_single_image_and_rows_of_twelve():
    import matplotlib.pyplot as plt

    one = show_images(torch.zeros(1, 3, 4, 4), size=2.0)
    assert len(one.axes) == 1 and one.get_size_inches().tolist() == [2.0, 2.0]
    many = show_images(torch.zeros(13, 3, 4, 4), titles=[str(i) for i in range(13)], size=1.0)
    assert many.get_size_inches() == pytest.approx((12, 2 * 1.2))
    first, last = many.axes[0].get_subplotspec(), many.axes[12].get_subplotspec()
    assert (first.get_gridspec().ncols, last.rowspan.start, last.colspan.start) == (12, 1, 0)
    assert not any(axis.axison for axis in many.axes)
    assert many.axes[0].images[0].get_interpolation() == "nearest"
    plt.close("all")


@pytest.mark.parametrize("value", ["1", None, 1j, [1.0], math.nan, math.inf, 1e39, 10**400, torch.ones(2)])
def test_a_finite_number_is_nothing_else(value):
    with pytest.raises(CfvaeError, match="^beta is .*: finite numbers are needed"):
        finite_number(value, "beta")


def test_finite_numbers_of_every_kind():
    for value in (2, 2.0, np.float32(2), np.int64(2), torch.tensor(2.0)):
        assert finite_number(value, "beta", 2) == 2.0
    with pytest.raises(CfvaeError, match="^beta is -0.1: it must be 0 or more$"):
        finite_number(-0.1, "beta", 0)


def test_a_seed_may_come_from_an_array():
    for seed in (np.int64(7), torch.tensor(7)):
        seed_everything(seed)
        drawn = random.random(), np.random.rand(), torch.rand(1).item()
        seed_everything(7)
        assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())


@pytest.mark.parametrize("x", [torch.full((2,), 200, dtype=torch.uint8), np.zeros(2), torch.zeros(2).bool()])
def test_what_is_bytes_already_does_not_come_out_white(x):
    with pytest.raises(CfvaeError, match="to_uint8 takes a tensor of floats"):
        to_uint8(x)


@pytest.mark.parametrize("kind", [torch.float16, torch.float32, torch.float64])
def test_what_comes_in_becomes_what_the_weights_are(kind):
    model = torch.nn.Linear(3, 2).to(kind)
    for x in (torch.ones(4, 3).double(), torch.ones(4, 3).half(), torch.ones(0, 3)):
        assert model_input(model, x, (3,), "codes").dtype == kind
    for wrong in (torch.ones(4, 3).byte(), torch.ones(4, 2), torch.ones(3), [[1.0] * 3], np.ones((4, 3))):
        with pytest.raises(CfvaeError, match=r"^codes: a tensor of floats, \(n, 3\), is needed, not"):
            model_input(model, wrong, (3,), "codes")
