"Tests of cfvae.files.open: names, paths, and what cannot be meant."

import json

import numpy as np
import pytest
import torch
from PIL import Image
from trees import grow, quiet, rgb

from cfvae.core import CfvaeError
from cfvae.data import ImageDataset, Shapes
from cfvae.files import open as opening
from cfvae.files.open import describe, open_dataset, require_classes

pytestmark = pytest.mark.filterwarnings("error")


def test_shapes_options():
    assert torch.equal(open_dataset("shapes:n=12,seed=3", 16).images, Shapes(12, 3, 16).images)
    assert torch.equal(open_dataset("shapes:seed=3,n=12", 16).images, Shapes(12, 3, 16).images)
    assert not torch.equal(
        open_dataset("shapes:n=12,seed=3", 16, train=False).images, Shapes(12, 3, 16).images
    )
    for options in ("n=ten", "n=-1", "n", "seed=1.5", "n=²", "n=" + "9" * 30):
        with pytest.raises(CfvaeError, match="must be a whole number"):
            open_dataset(f"shapes:{options}", 16)
    with pytest.raises(CfvaeError, match="n is given twice"):
        open_dataset("shapes:n=12,n=13", 16)
    with pytest.raises(CfvaeError, match="no option 'colour': it has n and seed"):
        open_dataset("shapes:colour=3", 16)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("imagenet", "unknown dataset 'imagenet': use shapes"),
        ("Folder:x", "unknown dataset"),
        ("", "unknown dataset"),
        ("cifar10:x", "unknown dataset 'cifar10:x'"),
        ("folder:", "needs a path"),
        ("folder:no/such/place", "no/such/place does not exist"),
        ("table:no/such.csv", "needs the path of a file of names and labels"),
        ("tiny-imagenet:no/such/place", "train --out RUN --resume --data tiny-imagenet:PATH"),
        ("folder:" + "x" * 5000, "does not exist"),
        ("folder:a\0b", "does not exist"),
        (
            "folder:~nosuchuser/x",
            "~nosuchuser/x names a home folder that is not there: write the path in full",
        ),
        ("tiny-imagenet:~nosuchuser", "~nosuchuser names a home folder"),
        (None, "named by a string"),
    ],
)
def test_specs_that_mean_nothing(spec, message):
    with pytest.raises(CfvaeError, match=message):
        open_dataset(spec, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "val"}, "train is 'val': True is the training split"),
        ({"cache": ""}, "the cache is ''"),
        ({"cache": None}, "the cache is None"),
    ],
)
def test_options_that_mean_nothing(root, options, message):
    with pytest.raises(CfvaeError, match=message):
        open_dataset(f"folder:{root}", 8, **options)


def test_a_path_without_its_kind_is_recognised(root):
    with pytest.raises(CfvaeError, match="did you mean folder:"):
        open_dataset(str(root), 8)


def test_the_folder_one_is_in_has_a_name(root, cache, monkeypatch):
    monkeypatch.chdir(root)
    assert open_dataset("folder:.", 8, cache=cache).name == root.name
    monkeypatch.chdir(root / "a")
    assert open_dataset("folder:..", 8, cache=cache).name == root.name


@pytest.mark.parametrize("size", [0, -1, 2.5, "32", 10**9, None, True])
def test_sizes_that_make_no_sense(root, size):
    with pytest.raises(
        CfvaeError, match=r"size is .*: a whole number (from 1|of pixels from 1 to 4096)? ?is needed"
    ):
        open_dataset(f"folder:{root}", size)


def test_cifar10_is_resized_once(cache, monkeypatch):
    source = ImageDataset(Shapes(6, 0, 32).images, list(range(6)), tuple("abcdef"), "cifar10")
    asked = []
    monkeypatch.setattr(opening, "cifar10", lambda root, train: asked.append((root, train)) or source)
    assert open_dataset("cifar10", 32, cache=cache) is source
    small = open_dataset("cifar10", 16, cache=cache, train=False)
    assert (
        small.images.shape == (6, 3, 16, 16)
        and small.labels.tolist() == list(range(6))
        and small.classes == source.classes
    )
    expected = rgb(Image.fromarray(source.images[2].permute(1, 2, 0).numpy()), 16)
    assert np.array_equal(np.asarray(small.images[2]), expected)
    before = json.loads(next((cache / "images").glob("*/meta.json")).read_text())
    assert (
        open_dataset("cifar10", 16, cache=cache, train=False).fingerprint
        == small.fingerprint
        == before["fingerprint"]
    )
    assert asked == [(str(cache), True), (str(cache), False), (str(cache), False)]


def test_cifar10_without_a_network_points_to_folder(cache, monkeypatch):
    def refuse(root, train):
        raise CfvaeError(
            "cifar10: the download failed. Give the images as a folder instead: --data folder:PATH"
        )

    monkeypatch.setattr(opening, "cifar10", refuse)
    with pytest.raises(CfvaeError, match="folder:PATH"):
        open_dataset("cifar10", 32, cache=cache)


def test_describe_says_what_was_found(tmp_path, cache):
    root = grow(tmp_path / "t", ["training_set/a/1.png", "training_set/a/2.png", "training_set/b/1.png"])
    grow(root, ["test_set/a/1.png"])
    (root / "training_set" / "b" / "2.png").touch()
    dataset, _ = quiet(f"folder:{root}", cache=cache)
    expected = "t: 3 images, 2 classes: a (2), b (1); from the folder training_set; 1 file skipped"
    assert describe(dataset) == expected
    held, _ = quiet(f"folder:{root}", cache=cache, train=False)
    assert describe(held) == "t: 1 image, 2 classes: a (1), b (0); from the folder test_set"


@pytest.mark.parametrize(
    ("values", "dtype", "told"),
    [
        (
            (7, 4095),
            np.uint16,
            "0.tif has more than 8 bits: its numbers run from 7 to 4095, and 65535 is taken",
        ),
        ((0, 0.5), np.float32, "0.tif has more than 8 bits: its numbers run from 0 to 0.5, and 1 is taken"),
        ((0, 200.5), np.float32, "its numbers run from 0 to 200.5, and 255 is taken as white"),
    ],
)
def test_describe_tells_the_range_of_images_of_many_bits(tmp_path, cache, values, dtype, told):
    (tmp_path / "t").mkdir()
    for number in range(2):
        Image.fromarray(np.resize(np.array(values, dtype), (8, 8))).save(tmp_path / "t" / f"{number}.tif")
    for _ in range(2):  # decoded, and out of the cache
        dataset, _ = quiet(f"folder:{tmp_path / 't'}", cache=cache)
        assert told in describe(dataset)


def test_describe_takes_any_dataset(tmp_path, cache):
    assert describe(Shapes(20, 0, 16)).startswith("shapes: 20 images, 10 classes: ")
    assert describe(Shapes(20, 0, 16)).endswith("and 4 more")
    pixels = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    mixed = ImageDataset(pixels, [0, -1, -1], ("a", "b"))
    assert describe(mixed) == "images: 3 images, 2 classes: a (1), b (0); 2 without a class"
    flat, _ = quiet(f"folder:{grow(tmp_path / 't', ['1.png', '2.png'])}", cache=cache)
    assert describe(flat) == "t: 2 images, without classes"


def test_require_classes():
    pixels = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    assert require_classes(ImageDataset(pixels, [0, 1, 1], ("a", "b", "c"))) == 3
    with pytest.raises(CfvaeError, match="images has no images: give some"):
        require_classes(ImageDataset(pixels[:0], [], ("a", "b")))
    with pytest.raises(CfvaeError, match="images without a class.*\n.*--set conditional=false"):
        require_classes(ImageDataset(pixels, [0, 1, -1], ("a", "b", "c")))
