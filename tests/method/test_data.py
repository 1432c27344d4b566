"The dataset class, the generated pictures and their entropy, the order of the data."

import itertools
import math
import tempfile
import warnings

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cfvae.core import CfvaeError, from_uint8, make_generator
from cfvae.data import (
    FACTORS,
    OUTLINES,
    ImageDataset,
    Shapes,
    ShuffledBatches,
    hold_out,
    horizontal_flip,
    render_shapes,
)
from cfvae.files.open import cifar10


@pytest.fixture
def few():
    images = torch.arange(6 * 3 * 4 * 4).remainder(256).to(torch.uint8).view(6, 3, 4, 4)
    return ImageDataset(images, [0, 1, 2, 0, -1, 2], ["a", "b", "c"], "few")


def factors_of(**choices) -> torch.Tensor:
    return torch.tensor(list(itertools.product(*(choices.get(name, (0,)) for name in FACTORS))))


def test_items_and_batches_agree(few):
    assert (len(few), few.size, few.num_classes, few.classes) == (6, 4, 3, ("a", "b", "c"))
    x, y = few.batch([5, 0, 4])
    assert x.dtype == torch.float32 and y.dtype == torch.int64 and y.tolist() == [2, 0, -1]
    for k, i in enumerate([5, 0, 4]):
        item, label = few[i]
        assert torch.equal(item, x[k]) and label == y[k]
        assert torch.equal(item, from_uint8(few.images[i]))
    assert torch.equal(few[-1][0], few[5][0])
    for outside in (6, -7):
        with pytest.raises(IndexError, match="few"):
            few[outside]


def test_a_memory_map_gives_the_same_and_is_not_written(few, tmp_path):
    np.save(tmp_path / "images.npy", few.images.numpy())
    mapped = ImageDataset(np.load(tmp_path / "images.npy", mmap_mode="r"), few.labels, few.classes, "few")
    assert mapped.fingerprint == few.fingerprint
    x, _ = mapped.batch([1, 3])
    assert torch.equal(x, few.batch([1, 3])[0])
    x.zero_()
    assert torch.equal(mapped.batch([1, 3])[0], few.batch([1, 3])[0])
    assert torch.equal(mapped.subset([3]).batch([0])[0], few.batch([3])[0])


def test_the_fingerprint_follows_the_content(few):
    pixels, labels = few.images.clone(), few.labels.clone()
    assert ImageDataset(pixels.clone(), labels, few.classes).fingerprint == few.fingerprint
    pixels[5, 2, 3, 3] ^= 1
    assert ImageDataset(pixels, labels, few.classes).fingerprint != few.fingerprint
    labels[0] = 1
    assert ImageDataset(few.images, labels, few.classes).fingerprint != few.fingerprint
    assert few.subset([0, 1]).fingerprint not in (few.fingerprint, few.subset([1, 0]).fingerprint)


def test_labels_have_to_fit(few):
    with pytest.raises(CfvaeError, match="few: 6 images but 5 labels"):
        ImageDataset(few.images, [0] * 5, ["a"], "few")
    for wrong in (3, -2):
        with pytest.raises(
            CfvaeError, match=rf"few: labels such as \[{wrong}\] are out of range: use 0 to 2"
        ):
            ImageDataset(few.images, [0, 1, 2, wrong, 0, 0], few.classes, "few")


PICTURES = torch.arange(4 * 3 * 8 * 8).remainder(256).to(torch.uint8).view(4, 3, 8, 8)


@pytest.mark.parametrize(
    "images, complaint",
    [
        (PICTURES.float() / 255, "pixels are of the type float32: use uint8 from 0 to 255"),
        (PICTURES.numpy().astype(np.uint16), "of the type uint16"),
        (PICTURES.long(), "of the type int64"),
        (PICTURES > 100, "of the type bool"),
        (PICTURES.permute(0, 2, 3, 1), r"colours last: put them first, by images.permute\(0, 3, 1, 2\)"),
        (PICTURES.permute(0, 2, 3, 1).numpy(), r"images.transpose\(0, 3, 1, 2\)"),
        (PICTURES[:, :1], r"shape \(4, 1, 8, 8\), not \(n, 3, size, size\): .*a grey one three times"),
        (PICTURES[:, 0], r"shape \(4, 8, 8\), not"),
        (PICTURES[0], "not"),
        (PICTURES[..., :6], "are no squares: crop or scale"),
        (list(PICTURES), "of the type list, not one tensor or array"),
        (torch.utils.data.TensorDataset(PICTURES), "of the type TensorDataset"),
        ("photos", "of the type str"),
        (None, "of the type NoneType"),
    ],
)
def test_images_that_are_no_bytes_in_planes_are_refused(images, complaint):
    with pytest.raises(CfvaeError, match=f"^few: .*{complaint}"):
        ImageDataset(images, [0, 1, 0, 1], ("a", "b"), "few")


@pytest.mark.parametrize(
    "labels, complaint",
    [
        (torch.eye(4)[:, :2], r"shape \(4, 2\): .* one class index an image \(argmax\(1\)"),
        (np.eye(4), r"shape \(4, 4\)"),
        (3, r"shape \(\)"),
        (["a", "b", "a", "b"], "no numbers: whole numbers are needed"),
        (None, "no numbers"),
        ([0, None, 1, 0], "no numbers"),
        ([2**80, 0, 0, 0], "no numbers"),
        ([0.5, 1.7, 0.0, 1.0], "of the type float32: whole numbers"),
        ([True, False, True, True], "of the type bool"),
    ],
)
def test_labels_that_are_no_indices_are_refused(labels, complaint):
    with pytest.raises(CfvaeError, match=f"^few: .*{complaint}"):
        ImageDataset(PICTURES, labels, ("a", "b"), "few")


@pytest.mark.parametrize("take", [ImageDataset.batch, ImageDataset.subset])
@pytest.mark.parametrize(
    "indices",
    [
        PICTURES[:, 0, 0, 0] > 100,
        [True, False, True, False],
        np.array([True, False]),
        [0.9, 1.9],
        torch.zeros(2, 2).long(),
        ["a"],
        None,
    ],
)
def test_masks_and_fractions_are_no_indices(take, indices):
    data = ImageDataset(PICTURES, [0, 1, 0, 1], ("a", "b"))
    with pytest.raises(CfvaeError, match=r"^indices .*mask.nonzero\(\).flatten\(\)"):
        take(data, indices)


@pytest.mark.parametrize("take", [ImageDataset.batch, ImageDataset.subset])
@pytest.mark.parametrize("index", [6, 99, -7])
def test_rows_that_are_not_there_are_no_indices(few, take, index):
    with pytest.raises(CfvaeError, match=rf"indices such as \[{index}\] are out of range: there are 6 rows"):
        take(few, [0, index])


@pytest.mark.parametrize("index", [slice(0, 3), "a", 1.5, True])
def test_an_item_is_asked_for_by_a_whole_number(few, index):
    with pytest.raises(CfvaeError, match="the index is .*: a whole number is needed"):
        few[index]


def test_images_come_from_the_cpu():
    with pytest.raises(CfvaeError, match=r"few: the images are on meta: give them on the CPU; dataset.to"):
        ImageDataset(PICTURES.to("meta"), [0, 1, 0, 1], ("a", "b"), "few")


def test_a_device_that_is_not_there(few):
    with pytest.raises(CfvaeError, match="unknown device 'gpu'"):
        few.to("gpu")


def test_indices_of_every_whole_type_are_taken(few):
    mask = few.labels == 2
    for indices in (
        [2, 5],
        (2, 5),
        np.array([2, 5], np.uint8),
        range(2, 6, 3),
        mask.nonzero().flatten(),
        [-4, -1],
    ):
        assert torch.equal(few.batch(indices)[0], few.batch([2, 5])[0])
    assert len(few.subset([])) == 0


def test_every_class_has_a_name_of_its_own():
    with pytest.raises(CfvaeError, match="few: two classes are called b"):
        ImageDataset(PICTURES, [0, 1, 0, 1], ("a", "b", "b"), "few")


@pytest.mark.parametrize("classes", ["ab", 2, None, [0, 1]])
def test_classes_are_a_list_of_names(classes):
    with pytest.raises(CfvaeError, match="few: classes must be a list of names"):
        ImageDataset(PICTURES, [0, 1, 0, 1], classes, "few")


def test_labels_of_every_whole_type_are_taken():
    column = pandas.Series([1, 0, 1, 0, -1])[1:]  # as of a table of which some rows were chosen
    unwritable = np.array([0, 1, 0, -1])
    unwritable.flags.writeable = False
    several = [np.int64(0), 1, torch.tensor(0), -1]
    for labels in (np.array([0, 1, 0, -1], np.int8), several, (0, 1, 0, -1), column, unwritable):
        assert ImageDataset(PICTURES, labels, ("a", "b")).labels.tolist() == [0, 1, 0, -1]


def test_pictures_of_zeros_and_ones_are_remarked_on():
    cut = (PICTURES.float() / 255).to(torch.uint8)
    with pytest.warns(UserWarning, match="few: no pixel is brighter than 1 of 255: multiply"):
        ImageDataset(cut, [0, 1, 0, 1], ("a", "b"), "few")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageDataset(PICTURES, [0, 1, 0, 1], ("a", "b"), "few")
        ImageDataset(cut, [0, 1, 0, 1], ("a", "b"), "few", fingerprint="known")


def test_hold_out_divides_without_loss_or_overlap():
    data = Shapes(40, size=8)
    rest, held = hold_out(data, 10, seed=3)
    assert (len(rest), len(held)) == (30, 10)
    pixels = sorted(image.numpy().tobytes() for image in torch.cat([rest.images, held.images]))
    assert pixels == sorted(image.numpy().tobytes() for image in data.images)
    assert torch.equal(hold_out(data, 10, seed=3)[1].images, held.images)
    assert not torch.equal(hold_out(data, 10, seed=4)[1].images, held.images)
    for n in (0, 40, 2.5):
        with pytest.raises(CfvaeError, match="cannot hold out|n is 2.5"):
            hold_out(data, n)


def test_shapes_are_a_function_of_n_seed_and_size():
    a, b = Shapes(20, seed=1, size=16), Shapes(20, seed=1, size=16)
    assert (
        torch.equal(a.images, b.images)
        and torch.equal(a.factors, b.factors)
        and a.fingerprint == b.fingerprint
    )
    assert torch.equal(Shapes(20, seed=1, size=8).factors, a.factors)  # the same scenes at every size
    prints = {
        s.fingerprint
        for s in (a, Shapes(20, seed=2, size=16), Shapes(21, seed=1, size=16), Shapes(20, seed=1, size=8))
    }
    assert len(prints) == 4
    assert torch.equal(a.labels, a.factors[:, 0]) and a.classes == FACTORS["class"]
    assert a.images.shape == (20, 3, 16, 16) and a.images.dtype == torch.uint8


def test_shapes_do_not_depend_on_how_they_are_drawn_in_parts():
    data = Shapes(1030, size=8)  # more than two parts
    assert torch.equal(render_shapes(data.factors[1000:], 8), data.images[1000:])


def test_every_factor_is_drawn_equally_often():
    factors = Shapes(20_000, size=8).factors
    for j, grid in enumerate(FACTORS.values()):
        n, p = len(factors), 1 / len(grid)
        counts = factors[:, j].bincount(minlength=len(grid))
        assert len(counts) == len(grid) and (counts - n * p).abs().max() < 5 * math.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("arguments", [{"n": 0}, {"n": 1.5}, {"n": "3"}, {"size": 7}, {"size": 8.5}])
def test_shapes_refuse_what_cannot_be_drawn(arguments):
    with pytest.raises(CfvaeError, match="Shapes: "):
        Shapes(**{"n": 1, **arguments})


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("name", list(OUTLINES))
def test_round_outlines_ignore_rotation_and_all_others_show_it(name, size):
    factors = factors_of(
        **{"class": (list(OUTLINES).index(name),), "rotation": range(8), "size": (0, 3), "position": (12, 23)}
    )
    pictures = render_shapes(factors, size).flatten(1)
    distinct = len(pictures.unique(dim=0))
    assert distinct == (4 if name in ("disc", "ring") else 32)


FIRST = torch.zeros(1, len(FACTORS), dtype=torch.int64)
BEYOND = FIRST + torch.diag(torch.tensor([len(grid) for grid in FACTORS.values()]))


@pytest.mark.parametrize("factors", [FIRST - 1, *BEYOND.split(1), FIRST.float(), FIRST[:, 1:], FIRST[0]])
def test_factors_outside_their_grids_are_no_picture(factors):
    with pytest.raises(CfvaeError, match=r"^factors: int64 \(n, 7\) is needed"):
        render_shapes(factors, 16)


def test_entropy_equals_the_entropy_counted_on_a_part_of_the_grid():
    classes = [list(OUTLINES).index(name) for name in ("disc", "heart", "star", "ring", "hourglass")]
    factors = factors_of(
        **{
            "class": classes,
            "rotation": range(8),
            "position": (0, 7, 24),
            "colour": (1, 11),
            "background": (0, 5),
            "shading": (0, 3),
        }
    )
    _, counts = render_shapes(factors, 16).flatten(1).unique(dim=0, return_counts=True)
    p = counts.double() / counts.sum()
    assert -(p * p.log()).sum().item() == pytest.approx(math.log(len(factors)) - 0.4 * math.log(8), abs=1e-9)
    whole = sum(math.log(len(grid)) for grid in FACTORS.values())
    assert Shapes.entropy() == pytest.approx(whole - 0.2 * math.log(8), abs=1e-12)
    assert Shapes.entropy() == pytest.approx(14.2343, abs=1e-4)


def test_no_two_colours_lights_or_backgrounds_look_alike():
    factors = factors_of(
        **{"class": (4,), "colour": range(12), "size": (1,), "background": range(6), "shading": range(4)}
    )
    assert len(render_shapes(factors, 32).flatten(1).unique(dim=0)) == 12 * 6 * 4


def test_the_edge_of_a_disc_is_smooth_and_its_area_right():
    factors = factors_of(**{"class": (0,), "size": range(4), "position": range(25)})
    white_on_dark = render_shapes(torch.where(torch.arange(7) == 1, 11, factors), 32)[:, 0].double()
    low, high = white_on_dark.amin((1, 2)), white_on_dark.amax((1, 2))
    assert all(len(image.unique()) > 20 for image in white_on_dark)  # in between there are many greys
    from cfvae.data import _coverage

    radius = torch.tensor(FACTORS["size"])[factors[:, 2]].double()
    exact = 0.81 * math.pi * radius**2 / 4
    assert ((_coverage(factors, 32).double().mean((1, 2)) / exact - 1).abs() < 0.01).all() and (
        high > low + 100
    ).all()


def test_light_brightens_its_side():
    left, right, top, bottom = render_shapes(
        factors_of(**{"class": (4,), "colour": (11,), "size": (3,), "position": (12,), "shading": range(4)}),
        32,
    )[:, 0].int()
    assert left[16, 8] > left[16, 24] and right[16, 24] > right[16, 8]
    assert top[8, 16] > top[24, 16] and bottom[24, 16] > bottom[8, 16]


def test_cifar10_failing_is_an_error_with_a_way_out():
    with tempfile.NamedTemporaryFile() as file, pytest.raises(CfvaeError, match="--data folder:PATH"):
        cifar10(root=file.name)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 40), batch=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 3)
)
def test_an_epoch_shows_every_image_at_most_once_whatever_the_order_of_asking(n, batch, seed, epoch):
    batch = min(n, batch)
    steps = range(epoch * (n // batch), (epoch + 1) * (n // batch))
    order = ShuffledBatches(n, batch, seed)
    batches = {step: order.batch(step) for step in reversed(steps)}
    seen = [i for step in steps for i in batches[step]]
    assert len(seen) == len(set(seen)) == n // batch * batch and set(seen) <= set(range(n))
    assert all(ShuffledBatches(n, batch, seed).batch(step) == batches[step] for step in steps)


def test_the_order_changes_with_seed_and_epoch():
    order = ShuffledBatches(50, 50, seed=0)
    passes = [tuple(order.batch(step)) for step in range(3)] + [
        tuple(ShuffledBatches(50, 50, seed=1).batch(0))
    ]
    assert len(set(passes)) == 4


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_the_batch(world):
    whole = ShuffledBatches(30, 8, seed=5)
    parts = [ShuffledBatches(30, 8, seed=5, rank=rank, world=world) for rank in range(world)]
    for step in range(7):
        shares = [part.batch(step) for part in parts]
        assert {len(share) for share in shares} == {8 // world}
        assert sorted(sum(shares, [])) == sorted(whole.batch(step))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch_size": 11}, "10 images"),
        ({"batch_size": 0}, "choose 1 to 10"),
        ({"batch_size": 2.5}, "batch_size is 2.5: a whole number"),
        ({"n": "10"}, "n is '10': a whole number"),
        ({"batch_size": 5, "world": 2}, "2 processes"),
        ({"world": 0}, "world is 0: a whole number from 1"),
        ({"world": 2, "rank": 2}, "rank is 2, but there are 2 processes: choose 0 to 1"),
        ({"world": 2, "rank": -1}, "rank is -1"),
    ],
)
def test_impossible_batches_are_refused(sizes, message):
    with pytest.raises(CfvaeError, match=message):
        ShuffledBatches(**{"n": 10, "batch_size": 4, **sizes})


@pytest.mark.parametrize("step", [-1, 0.5])
def test_steps_count_from_0(step):
    with pytest.raises(CfvaeError, match="step is .*: a whole number from 0"):
        ShuffledBatches(10, 2).batch(step)


def test_only_a_batch_is_flipped():
    with pytest.raises(CfvaeError, match=r"shape \(3, 8, 8\): a batch is needed"):
        horizontal_flip(torch.zeros(3, 8, 8))


def test_flip_mirrors_about_half_and_leaves_its_input_alone():
    x = torch.rand(4000, 1, 1, 3, generator=make_generator(0))
    before = x.clone()
    flipped = horizontal_flip(x, make_generator(1))
    assert torch.equal(x, before)
    mirrored = (flipped == x.flip(-1)).flatten(1).all(1)
    same = (flipped == x).flatten(1).all(1)
    assert (mirrored ^ same).all()
    assert abs(int(mirrored.sum()) - 2000) < 4 * math.sqrt(1000)
    assert torch.equal(horizontal_flip(x, make_generator(1)), flipped)
