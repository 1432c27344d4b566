"Seeds, devices, pixels, pictures and configs."

import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfvae.core import (
    PALETTE,
    CfvaeError,
    check,
    config_from_dict,
    config_to_dict,
    count_parameters,
    from_uint8,
    get_device,
    image_grid,
    make_generator,
    randn,
    seed_everything,
    set_style,
    show_images,
    to_uint8,
)


@dataclasses.dataclass(frozen=True)
class Example:
    widths: tuple[int, ...] = (64, 64)
    nested: tuple[tuple[int, ...], ...] = ()
    learning_rate: float = 1e-3


def test_check_raises_only_where_the_condition_fails():
    check(True, "unused")
    with pytest.raises(CfvaeError, match="size is 3"):
        check(False, "size is 3")
    assert issubclass(CfvaeError, ValueError)


@pytest.mark.parametrize("seed", [0, 7, -1, 2**40])
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


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 10**50])
def test_a_seed_has_64_bits(seed):
    with pytest.raises(CfvaeError, match="the seed is too large: a whole number of 64 bits"):
        make_generator(seed)
    for good in (0, -1, 2**63 - 1, -(2**63)):
        assert make_generator(good).initial_seed() % 2**64 == good % 2**64


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
