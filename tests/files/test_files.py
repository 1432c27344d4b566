"Tests of cfvae.images: every kind of file, tree and archive, good and bad, and what the cache may and may not reuse."

import errno
import io
import json
import os
import random
import stat
import tarfile
import types
import warnings
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cfvae import images
from cfvae.core import CfvaeError
from cfvae.data import ImageDataset, Shapes
from cfvae.files.folders import Folder, class_root, list_folder, scan_folder
from cfvae.files.decode import decode_image, to_rgb
from cfvae.files.tiny_imagenet import list_tiny_imagenet
from cfvae.files.open import open_dataset, require_classes
from cfvae.files.names import printable
from cfvae.files.archives import unpack

pytestmark = pytest.mark.filterwarnings("error")


def picture(width=60, height=40, seed=0):
    "A smooth picture that no flip or rotation maps onto itself."
    y, x = np.mgrid[0:height, 0:width] / height
    shift = (seed * 37 % 100) / 200
    return Image.fromarray(
        (np.stack([x / 1.5, y, 0.9 - 0.6 * y + shift * x / 1.5], -1).clip(0, 1) * 255).astype(np.uint8)
    )


def rgb(image, size=20):
    "What decoding an upright RGB picture should give, by the shortest way."
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    square = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.asarray(square).transpose(2, 0, 1).astype(int)


def distance(path, expected, size=20):
    array, _ = decode_image(path, size)
    assert array.shape == (3, size, size) and array.dtype == np.uint8
    return np.abs(array.astype(int) - expected).mean()


def grow(root, names, size=(24, 18)):
    "Write a small, distinct image for every name."
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(*size, seed=seed).save(path)
    return root


def quiet(spec, size=8, **options):
    "open_dataset, and the messages of its warnings."
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        dataset = open_dataset(spec, size, **options)
    return dataset, [str(w.message) for w in told]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


# ---- one file -------------------------------------------------------------------------------------------------------

COLOUR = {  # file name: (mode, options, tolerated mean distance)
    "a.png": ("RGB", {}, 0),
    "a.bmp": ("RGB", {}, 0),
    "a.ppm": ("RGB", {}, 0),
    "a.tif": ("RGB", {}, 0),
    "lzw.tiff": ("RGB", {"compression": "tiff_lzw"}, 0),
    "a.webp": ("RGB", {"lossless": True}, 0),
    "rgba.png": ("RGBA", {}, 0),
    "rgba.webp": ("RGBA", {"lossless": True}, 0),
    "a.jpg": ("RGB", {"quality": 95}, 3),
    "progressive.jpg": ("RGB", {"quality": 95, "progressive": True}, 3),
    "cmyk.jpg": ("CMYK", {"quality": 95}, 3),
    "cmyk.tif": ("CMYK", {}, 1),
    "ycbcr.jpg": ("YCbCr", {"quality": 95}, 3),
    "palette.png": ("P", {}, 6),
    "palette.gif": ("P", {}, 6),
    "a.jp2": ("RGB", {"irreversible": False}, 1),
}


@pytest.mark.parametrize("name", COLOUR)
def test_colour_formats_give_the_same_rgb(tmp_path, name):
    mode, options, tolerance = COLOUR[name]
    image = picture().quantize(256) if mode == "P" else picture().convert(mode)
    image.save(tmp_path / name, **options)
    assert distance(tmp_path / name, rgb(picture())) <= tolerance


@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "I", "F", "unit F", "1"])
def test_grey_modes_give_the_same_grey(tmp_path, mode):
    grey = picture().convert("L")
    values = np.asarray(grey)
    made = {
        "I;16": lambda: Image.fromarray(values.astype(np.uint16) * 257),
        "I": lambda: Image.fromarray(values.astype(np.int32) * 257),
        "F": lambda: Image.fromarray(values.astype(np.float32)),
        "unit F": lambda: Image.fromarray(values.astype(np.float32) / 255),
    }
    image = made[mode]() if mode in made else grey.convert(mode)
    path = tmp_path / ("a.tif" if mode in ("I", "F", "unit F") else "a.png")
    image.save(path)
    assert distance(path, rgb(grey.convert("RGB"))) <= (12 if mode == "1" else 1)


def test_floats_that_are_not_numbers_are_harmless():
    values = np.array([[np.nan, np.inf, -np.inf, 0.5]], np.float32)
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, 0, 0] == 0


def test_transparency_is_laid_on_white(tmp_path):
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (9, 9), (200, 0, 0, 128)).save(tmp_path / "half.png")
    Image.new("P", (9, 9), 0).save(tmp_path / "index.png", transparency=0)
    Image.new("LA", (9, 9), (0, 0)).save(tmp_path / "la.png")
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    for name in ("clear", "index", "la", "key"):
        assert (decode_image(tmp_path / f"{name}.png", 4)[0] == 255).all(), name
    assert np.abs(decode_image(tmp_path / "half.png", 4)[0][:, 0, 0].astype(int) - (227, 127, 127)).max() <= 1


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tif"])
def test_the_first_frame_of_several(tmp_path, kind):
    options = {"lossless": True} if kind == "webp" else {}
    first, rest = picture().quantize(256).convert("RGB"), [Image.new("RGB", (60, 40), "red")] * 2
    first.save(tmp_path / f"a.{kind}", save_all=True, append_images=rest, **options)
    assert distance(tmp_path / f"a.{kind}", rgb(first)) <= 2


ORIENTATIONS = {  # EXIF value: how a camera stores an upright picture under it
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("value", ORIENTATIONS)
def test_every_orientation_comes_out_upright(tmp_path, value, kind):
    exif = Image.Exif()
    exif[0x0112] = value
    stored = picture() if value == 1 else picture().transpose(ORIENTATIONS[value])
    stored.save(tmp_path / f"a.{kind}", exif=exif, **({"quality": 95} if kind in ("jpg", "webp") else {}))
    assert distance(tmp_path / f"a.{kind}", rgb(picture())) < 3


def test_a_damaged_exif_block_costs_only_the_note(tmp_path):
    picture().save(tmp_path / "a.jpg", quality=95, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert distance(tmp_path / "a.jpg", rgb(picture())) < 3


def test_centre_crop_of_tall_and_wide_and_tiny(tmp_path):
    for i, (width, height) in enumerate([(90, 30), (30, 90), (30, 30), (31, 30), (1, 1), (1, 51)]):
        array = np.zeros((height, width, 3), np.uint8)
        side = min(width, height)
        array[(height - side) // 2 :, (width - side) // 2 :][:side, :side] = 255
        Image.fromarray(array).save(tmp_path / f"{i}.png")
        decoded, shorter = decode_image(tmp_path / f"{i}.png", 15)
        assert shorter == side and decoded.mean() > (
            245 if side > 1 else 200
        )  # enlarging looks a little beyond the square


def test_shrinking_averages(tmp_path):
    checks = np.indices((256, 256)).sum(0) % 2 * 255
    Image.fromarray(checks.astype(np.uint8)).save(tmp_path / "a.png")
    assert np.abs(decode_image(tmp_path / "a.png", 16)[0].astype(int) - 127).max() < 10


def test_draft_keeps_the_picture_and_the_reported_size(tmp_path):
    picture(800, 640).save(tmp_path / "a.jpg", quality=95)
    assert distance(tmp_path / "a.jpg", rgb(picture(800, 640))) < 2
    assert decode_image(tmp_path / "a.jpg", 20)[1] == 640


def test_an_image_of_the_right_size_is_not_touched(tmp_path):
    picture(20, 20).save(tmp_path / "a.png")
    assert np.array_equal(
        decode_image(tmp_path / "a.png", 20)[0], np.asarray(picture(20, 20)).transpose(2, 0, 1)
    )


def test_postscript_is_never_interpreted(tmp_path):
    picture().save(tmp_path / "a.eps")
    os.rename(tmp_path / "a.eps", tmp_path / "a.jpg")
    assert images._attempt(tmp_path / "a.jpg", 8) == (None, "not an image in a known format")


# ---- damaged files --------------------------------------------------------------------------------------------------


def damage(folder, monkeypatch):
    "One file of every damaged kind, and the reason that should be given."
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    for name, kind in (("cut.jpg", "JPEG"), ("cut.png", "PNG"), ("cut.gif", "GIF")):
        file = io.BytesIO()
        picture().save(file, kind)
        (folder / name).write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not a picture")
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    picture(101, 100).save(folder / "bomb.png")
    os.symlink(folder / "gone.png", folder / "link.png")
    return {
        "cut.jpg": "truncated",
        "cut.png": "",
        "cut.gif": "",
        "empty.png": "empty file",
        "text.jpg": "not an image",
        "phone.heic": "not an image",
        "bomb.png": "more than 10,000 pixels",
        "link.png": "no such file",
    }


def test_damaged_files_are_left_out_counted_and_named_once(tmp_path, cache, monkeypatch):
    grow(tmp_path / "t", ["a/1.png", "a/2.png", "b/1.png"])
    reasons = damage(tmp_path / "t" / "a", monkeypatch)
    dataset, told = quiet(f"folder:{tmp_path / 't'}", cache=cache)
    assert len(dataset) == 3 and dataset.labels.tolist() == [0, 0, 1]
    assert [name for name, _ in dataset.skipped] == [f"a/{name}" for name in sorted(reasons)]
    for name, why in dataset.skipped:
        assert reasons[name[2:]] in why.lower() and str(tmp_path) not in why
    assert len(told) == 1 and "8 of 11 images" in told[0] and "a/bomb.png" in told[0] and "5 more" in told[0]
    again, told = quiet(f"folder:{tmp_path / 't'}", cache=cache)
    assert again.skipped == dataset.skipped and len(told) == 1
    images_left = [decode_image(tmp_path / "t" / name, 8)[0] for name in ("a/1.png", "a/2.png", "b/1.png")]
    assert np.array_equal(np.asarray(dataset.images), np.stack(images_left))


def test_pillows_own_bomb_error_is_a_reason_too(tmp_path, monkeypatch):
    picture().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert images._attempt(tmp_path / "a.png", 8)[1].startswith("more than 89,478,485 pixels")


def test_a_tree_of_damaged_files_only(tmp_path, cache, monkeypatch):
    damage(tmp_path / "t", monkeypatch)
    with pytest.raises(CfvaeError, match=r"none of the 8 images can be read: bomb\.png"):
        open_dataset(f"folder:{tmp_path / 't'}", 8, cache=cache)
    assert not list((cache / "images").iterdir())


def test_an_unreadable_file_is_reported(tmp_path, cache, monkeypatch):
    grow(tmp_path / "t", ["a/1.png", "b/1.png", "b/2.png"])
    real = Image.open
    monkeypatch.setattr(
        Image,
        "open",
        lambda path, **k: (
            real(path, **k)
            if "2.png" not in str(path)
            else (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied"))
        ),
    )
    dataset, _ = quiet(f"folder:{tmp_path / 't'}", cache=cache)
    assert dataset.skipped == [("b/2.png", "permission denied")]


def test_wrong_endings_are_no_problem(tmp_path, cache):
    picture().save(tmp_path / "x.png")
    folder = tmp_path / "t" / "a"
    folder.mkdir(parents=True)
    for name in ("really-png.jpg", "noending", "photo.dat", "UPPER.PNG"):
        (folder / name).write_bytes((tmp_path / "x.png").read_bytes())
    (folder / "notes.txt").write_text("BM is how a bitmap begins")
    dataset, told = quiet(f"folder:{tmp_path / 't'}", cache=cache)
    assert len(dataset) == 4 and not told and not dataset.skipped


def test_mutated_files_never_raise(tmp_path):
    "A few hundred mutations of valid files: an array of the right shape or a reason, never an exception."
    rng = random.Random(0)
    seeds = []
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, image, options in (
        ("JPEG", picture(), {"exif": exif}),
        ("PNG", picture().quantize(16), {}),
        ("PNG", picture().convert("RGBA"), {"exif": exif}),
        ("GIF", picture().quantize(16), {}),
        ("TIFF", picture(), {"compression": "tiff_lzw"}),
        ("WEBP", picture(), {}),
        ("BMP", picture(), {}),
    ):
        file = io.BytesIO()
        image.save(file, kind, **options)
        seeds.append(file.getvalue())
    outcomes = {True: 0, False: 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(700):
            data = bytearray(seeds[i % len(seeds)])
            for _ in range(rng.choice((1, 2, 8))):
                at = rng.randrange(min(len(data), rng.choice((64, 400, len(data)))))
                data[at] = rng.choice((0, 255, 128, data[at] ^ (1 << rng.randrange(8)), rng.randrange(256)))
            if rng.random() < 0.2:
                del data[rng.randrange(len(data)) :]
            (tmp_path / "x").write_bytes(data)
            array, info = images._attempt(tmp_path / "x", 8)
            assert (array is None and isinstance(info, str) and info) or array.shape == (3, 8, 8)
            outcomes[array is None] += 1
    assert min(outcomes.values()) > 50, outcomes


# ---- trees ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "top/", "top/train/", "train/", "Train/", "a/b/c/"])
def test_single_top_folders_are_descended(tmp_path, prefix):
    listing = list_folder(
        grow(
            tmp_path / "t",
            [f"{prefix}{name}" for name in ("dog/2.png", "dog/1.png", "cat/x/1.png", "Bee/1.png")],
        )
    )
    assert listing.classes == ("Bee", "cat", "dog") and listing.labels == (0, 1, 2, 2)
    assert [name.removeprefix(prefix) for name in listing.names] == [
        "Bee/1.png",
        "cat/x/1.png",
        "dog/1.png",
        "dog/2.png",
    ]


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "test"])
def test_splits_share_the_classes_of_training(tmp_path, val):
    root = grow(
        tmp_path / "t",
        ["train/a/1.png", "train/b/1.png", "train/c/1.png", f"{val}/c/1.png", f"{val}/a/1.png"],
    )
    assert list_folder(root).labels == (0, 1, 2)
    listing = list_folder(root, train=False)
    assert listing.classes == ("a", "b", "c") and listing.labels == (0, 2)


def test_splits_that_cannot_be_used(tmp_path):
    with pytest.raises(CfvaeError, match="no validation split.*hold_out"):
        list_folder(grow(tmp_path / "none", ["a/1.png", "b/1.png"]), train=False)
    with pytest.raises(CfvaeError, match="no validation split"):
        list_folder(grow(tmp_path / "only", ["train/a/1.png", "train/b/1.png"]), train=False)
    with pytest.raises(CfvaeError, match="training split lacks: d"):
        list_folder(
            grow(tmp_path / "more", ["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/d/1.png"]),
            train=False,
        )
    with pytest.raises(CfvaeError, match="none at all"):
        list_folder(grow(tmp_path / "flat", ["train/a/1.png", "train/b/1.png", "val/1.png"]), train=False)


def test_a_class_may_be_called_train(tmp_path):
    assert list_folder(grow(tmp_path / "t", ["train/1.png", "tram/1.png", "test/1.png"])).classes == (
        "test",
        "train",
        "tram",
    )
    flat = grow(tmp_path / "u", ["train/1.png", "test/1.png", "test/2.png"])
    assert list_folder(flat).names == ("train/1.png",) and list_folder(flat, train=False).names == (
        "test/1.png",
        "test/2.png",
    )


def test_flat_folders_have_no_labels(tmp_path, cache):
    root = grow(tmp_path / "t", ["2.png", "1.png", "edited/3.png"])
    dataset, told = quiet(f"folder:{root}", cache=cache)
    assert dataset.classes == ("all",) and dataset.labels.tolist() == [-1, -1, -1] and not told
    with pytest.raises(CfvaeError, match="without a class"):
        require_classes(dataset)


def test_one_class(tmp_path, cache):
    dataset, _ = quiet(f"folder:{grow(tmp_path / 't', ['cat/1.png', 'cat/2.png'])}", cache=cache)
    assert dataset.classes == ("cat",) and dataset.labels.tolist() == [0, 0]
    with pytest.raises(CfvaeError, match=r"one class only \(cat\)"):
        require_classes(dataset)


def test_require_classes():
    pixels = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    assert require_classes(ImageDataset(pixels, [0, 1, 1], ("a", "b", "c"))) == 3
    with pytest.raises(CfvaeError, match="images without a class.*\n.*--set conditional=false"):
        require_classes(ImageDataset(pixels, [0, 1, -1], ("a", "b", "c")))


def test_empty_folders_and_loose_images_are_named(tmp_path, cache):
    root = grow(tmp_path / "t", ["a/1.png", "b/1.png", "loose.png"])
    (root / "empty").mkdir()
    (root / "notes").mkdir()
    (root / "notes" / "x.txt").write_text("x")
    dataset, told = quiet(f"folder:{root}", cache=cache)
    assert dataset.classes == ("a", "b") and len(dataset) == 2
    assert len(told) == 2 and "empty, notes" in told[0] and "loose.png" in told[1]


def test_a_tree_without_images(tmp_path, cache):
    (tmp_path / "t" / "a").mkdir(parents=True)
    (tmp_path / "t" / "a" / "x.txt").write_text("x")
    with pytest.raises(CfvaeError, match="holds no images: expected one folder per class"):
        open_dataset(f"folder:{tmp_path / 't'}", 8, cache=cache)
    assert not cache.exists()


def test_hidden_files_are_ignored(tmp_path):
    root = grow(
        tmp_path / "t",
        ["a/1.png", "b/1.png", "__MACOSX/a/1.png", ".cache/1.png", "a/.hidden.png", "a/._1.png"],
    )
    (root / ".DS_Store").write_bytes(b"x")
    assert list_folder(root).names == ("a/1.png", "b/1.png") and list_folder(root).notes == ()


def test_links_are_followed_but_never_in_circles(tmp_path):
    root, other = grow(tmp_path / "t", ["a/1.png"]), grow(tmp_path / "other", ["1.png"])
    os.symlink(other, root / "b")
    os.symlink(other / "1.png", root / "a" / "2.png")
    os.symlink(root, root / "a" / "up")
    os.symlink(root / "a" / "self.png", root / "a" / "self.png")
    os.symlink("loop", root / "loop")
    os.mkfifo(root / "a" / "pipe.png")
    os.symlink(root / "a" / "pipe.png", root / "a" / "linked-pipe.png")
    assert list_folder(root).names == ("a/1.png", "a/2.png", "a/self.png", "b/1.png")


def test_absurdly_deep_trees_are_refused(tmp_path):
    os.makedirs(tmp_path / "/".join(["d"] * 70))
    with pytest.raises(CfvaeError, match="more than 64 deep"):
        scan_folder(tmp_path)


def test_class_root_of_hand_made_folders():
    def folder(name, *inner, n=0):
        return Folder(name, [f"{name}/{i}.png" for i in range(n)], list(inner), [])

    tree = folder(
        "",
        folder(
            "x",
            folder("x/train", folder("x/train/a", n=1)),
            folder("x/val", folder("x/val/a", n=1)),
            folder("x/docs", n=2),
        ),
    )
    assert class_root(tree).name == "x/train" and class_root(tree, train=False).name == "x/val"


names = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=20) | st.binary(
    min_size=1, max_size=20
).map(lambda b: os.fsdecode(b.replace(b"/", b"_").replace(b"\0", b"_")))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(folders=st.lists(names, min_size=1, max_size=3, unique=True), name=names)
def test_odd_names(tmp_path_factory, folders, name):
    root = tmp_path_factory.mktemp("odd")
    file = io.BytesIO()
    picture(9, 9).save(file, "PNG")
    written = set()
    for folder in folders:
        path = os.path.join(root, folder)
        if (
            folder in (".", "..")
            or len(os.fsencode(folder)) > 200
            or len(os.fsencode(name)) > 200
            or os.path.exists(path)
        ):
            continue
        os.mkdir(path)
        with open(os.path.join(path, name + ".png"), "wb") as out:
            out.write(file.getvalue())
        if not folder.startswith(".") and folder != "__MACOSX" and not name.startswith("."):
            written.add(folder)
    if not written:
        with pytest.raises(CfvaeError, match="no images"):
            list_folder(root)
        return
    with open(os.path.join(root, sorted(written)[0], "broken" + name + ".jpg"), "wb"):
        pass
    dataset, told = quiet(f"folder:{root}", cache=root / ".cache")
    assert len(dataset) == len(written) == len(dataset.classes) and len(dataset.skipped) == 1
    "".join([*told, *dataset.classes, dataset.skipped[0][0]]).encode("utf-8")  # can be printed
    assert (
        list(dataset.classes) == [printable(folder) for folder in sorted(written)]
        and "\n" not in dataset.skipped[0][0]
    )


# ---- Tiny-ImageNet --------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path):
    root = tmp_path / "tiny"
    grow(
        root / "top",
        [f"train/{code}/images/{code}_{i}.JPEG" for code in ("n3", "n1", "n2") for i in range(2)]
        + [f"val/images/val_{i}.JPEG" for i in range(4)]
        + ["test/images/test_0.JPEG"],
    )
    (root / "top" / "train" / "n1" / "n1_boxes.txt").write_text("n1_0.JPEG\t0\t0\t9\t9\n")
    (root / "top" / "wnids.txt").write_text("n3\nn2\nn1\n")
    (root / "top" / "words.txt").write_text(
        "n1\tcrane, lifting machine\nn2\tgoose\nn3\tcrane, wading bird\nn4\tsnail\n"
    )
    (root / "top" / "val" / "val_annotations.txt").write_text(
        "".join(f"val_{i}.JPEG\t{c}\t0\t0\t9\t9\n" for i, c in enumerate(("n3", "n1", "n2", "n3")))
    )
    return root


def test_tiny_imagenet_labels_agree_between_splits(tiny, cache):
    train, told = quiet(f"tiny-imagenet:{tiny}", cache=cache)
    val, _ = quiet(f"tiny-imagenet:{tiny}", train=False, cache=cache)
    assert train.classes == val.classes == ("crane (n1)", "goose", "crane (n3)")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2] and val.labels.tolist() == [2, 0, 1, 2] and not told
    assert len({train.fingerprint, val.fingerprint}) == 2
    assert (
        quiet(f"tiny-imagenet:{tiny}", cache=cache)[0].labels.tolist() == train.labels.tolist()
    )  # neither split displaced the other


def test_tiny_imagenet_through_folder_and_bare_top(tiny):
    assert list_tiny_imagenet(tiny / "top").labels == list_tiny_imagenet(tiny).labels
    assert list_folder(tiny).classes == ("n1", "n2", "n3") and list_folder(tiny).labels == (0, 0, 1, 1, 2, 2)


def test_tiny_imagenet_with_a_subset_of_classes(tiny):
    with open(tiny / "top" / "wnids.txt", "a") as file:
        file.write("n0\nn9\n")
    with open(tiny / "top" / "val" / "val_annotations.txt", "a") as file:
        file.write("val_9.JPEG\tn1\t0\t0\t9\t9\n../../train/n1/images/n1_0.JPEG\tn1\t0\t0\t9\t9\n")
    grow(tiny / "top", ["val/images/stray.JPEG"])
    listing = list_tiny_imagenet(tiny, train=False)
    assert len(listing.classes) == 3 and listing.labels == (2, 0, 1, 2)
    assert any("1 images without a known class" in note for note in listing.notes)
    assert any(
        "2 images named in val_annotations.txt are not there" in note and "val_9.JPEG" in note
        for note in listing.notes
    )


def test_tiny_imagenet_without_its_parts(tiny):
    top = tiny / "top"
    (top / "words.txt").unlink()
    assert list_tiny_imagenet(tiny).classes == ("n1", "n2", "n3")
    (top / "val" / "val_annotations.txt").write_text("val_0.JPEG n1\n")
    with pytest.raises(CfvaeError, match="val_annotations.txt: row 1 has no second column"):
        list_tiny_imagenet(tiny, train=False)
    (top / "val" / "val_annotations.txt").write_text("other.JPEG\tn1\n")
    with pytest.raises(CfvaeError, match="no image of val/images"):
        list_tiny_imagenet(tiny, train=False)
    (top / "val" / "val_annotations.txt").unlink()
    with pytest.raises(CfvaeError, match="needs the file val_annotations.txt"):
        list_tiny_imagenet(tiny, train=False)
    os.rename(top / "val", tiny.parent / "val")
    with pytest.raises(CfvaeError, match="no validation images"):
        list_tiny_imagenet(tiny, train=False)
    (top / "wnids.txt").write_text("n7\n")
    with pytest.raises(CfvaeError, match="no training images"):
        list_tiny_imagenet(tiny)
    (top / "wnids.txt").unlink()
    with pytest.raises(CfvaeError, match="no wnids.txt.*folder:PATH"):
        list_tiny_imagenet(tiny)


# ---- archives -------------------------------------------------------------------------------------------------------


def tar_of(path, *members, mode="w"):
    "An archive of (TarInfo or name, content) pairs."
    with tarfile.open(path, mode) as tar:
        for info, content in members:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def png(seed=0):
    file = io.BytesIO()
    picture(9, 9, seed).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "name", ["x.tar", "x.tar.gz", "x.tgz", "x.tar.xz", "x.txz", "x.tar.bz2", "X.ZIP", "x.zip"]
)
def test_archives_give_what_their_folder_gives(tmp_path, cache, name):
    root = grow(
        tmp_path / "src",
        ["top/train/b/1.png", "top/train/a/1.png", "top/train/a/2.png", "__MACOSX/top/._1.png"],
    )
    (root / "top" / "train" / "void").mkdir()
    if name.lower().endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for path in sorted(root.rglob("*")):
                file.write(path, path.relative_to(root))
    else:
        kind = {"r": "", "z": "gz", "2": "bz2"}.get(name[-1], "xz") if not name.endswith("xz") else "xz"
        with tarfile.open(tmp_path / name, "w:gz" if name == "x.tgz" else f"w:{kind}") as tar:
            tar.add(root, arcname=".")
    direct, _ = quiet(f"folder:{root}", cache=cache)
    packed, told = quiet(f"folder:{tmp_path / name}", cache=cache)
    assert (
        packed.classes == ("a", "b")
        and packed.labels.tolist() == [0, 0, 1]
        and len(told) == 1
        and "void" in told[0]
    )
    assert packed.fingerprint == direct.fingerprint and packed.name == name
    assert unpack(tmp_path / name, cache) == unpack(tmp_path / name, cache)
    assert len(list((cache / "unpacked").iterdir())) == 1


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


MALICIOUS = {
    "absolute": ("/{tmp}/escaped.png", "outside its folder"),
    "climbing": ("../escaped.png", "outside its folder"),
    "climbing inside": ("a/../../../escaped.png", "outside its folder"),
    "windows climbing": ("a\\..\\..\\escaped.png", "outside its folder"),
    "windows drive": ("C:\\escaped.png", "outside its folder"),
    "windows share": ("\\\\host\\share\\escaped.png", "outside its folder"),
    "symlink": (special("link", tarfile.SYMTYPE, "{tmp}"), "is a link"),
    "relative symlink": (special("link", tarfile.SYMTYPE, ".."), "is a link"),
    "hard link": (special("link", tarfile.LNKTYPE, "{tmp}/secret"), "is a link"),
    "fifo": (special("pipe", tarfile.FIFOTYPE), "is a device"),
    "device": (special("zero", tarfile.CHRTYPE), "is a device"),
}


@pytest.mark.parametrize("kind", MALICIOUS)
def test_malicious_tars_write_nothing(tmp_path, kind):
    info, message = MALICIOUS[kind]
    box = tmp_path / "box"
    box.mkdir()
    (box / "secret").write_text("secret")
    if isinstance(info, str):
        info = tarfile.TarInfo(info.replace("/{tmp}", str(box)))
    else:
        info = special(info.name, info.type, info.linkname.replace("{tmp}", str(box)))
    archive = tar_of(tmp_path / "evil.tar", ("a/1.png", png()), (info, b""), ("link/escaped.png", png()))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(CfvaeError, match=message) as caught:
        open_dataset(f"folder:{archive}", 8, cache=box / "cache")
    assert "evil.tar: member '" in str(caught.value) and (
        info.name in str(caught.value) or "\\\\" in str(caught.value)
    )
    assert set(tmp_path.rglob("*")) - before == {box / "cache", box / "cache" / "unpacked"}


@pytest.mark.parametrize(
    "name, mode, message",
    [
        ("../escaped.png", stat.S_IFREG, "outside its folder"),
        ("/escaped.png", stat.S_IFREG, "outside its folder"),
        ("C:/escaped.png", stat.S_IFREG, "outside its folder"),
        ("..\\escaped.png", stat.S_IFREG, "outside its folder"),
        ("link", stat.S_IFLNK, "is a link"),
        ("pipe", stat.S_IFIFO, "is a device"),
    ],
)
def test_malicious_zips_write_nothing(tmp_path, name, mode, message):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.writestr("a/1.png", png())
        info = zipfile.ZipInfo("x")
        info.filename, info.external_attr, info.create_system = name, (mode | 0o644) << 16, 3
        file.writestr(info, str(tmp_path))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(CfvaeError, match=message):
        unpack(tmp_path / "evil.zip", tmp_path / "box" / "cache")
    assert set(tmp_path.rglob("*")) - before == {
        tmp_path / "box",
        tmp_path / "box" / "cache",
        tmp_path / "box" / "cache" / "unpacked",
    }


@pytest.mark.parametrize("kind", ["tar.xz", "tar.gz", "zip"])
def test_archive_bombs_are_stopped(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(images, "BOMB_FLOOR", 200_000)
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a/1.bmp", bytes(5_000_000))
    else:
        tar_of(tmp_path / f"bomb.{kind}", ("a/1.bmp", bytes(5_000_000)), mode=f"w:{kind[4:]}")
    with pytest.raises(CfvaeError, match="member 'a/1.bmp'.*looks like a bomb"):
        unpack(tmp_path / f"bomb.{kind}", tmp_path / "cache")
    assert not list((tmp_path / "cache" / "unpacked").iterdir())


def test_a_bomb_of_empty_members(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "BOMB_FLOOR", 20_000)
    tar_of(tmp_path / "many.tar.xz", *((f"{i}.png", b"") for i in range(1000)), ("x.png", b"x"), mode="w:xz")
    with pytest.raises(CfvaeError, match="bomb"):
        unpack(tmp_path / "many.tar.xz", tmp_path / "cache")


def test_an_encrypted_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a.png", png())
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(CfvaeError, match="'a.png' is encrypted"):
        unpack(tmp_path / "x.zip", tmp_path / "cache")


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tar.xz", "x.zip"])
def test_damaged_archives(tmp_path, cache, name):
    content = [(f"{c}/{i}.png", random.Random(i).randbytes(3000)) for c in "ab" for i in range(4)]
    if name == "x.zip":
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for member, data in content:
                file.writestr(member, data)
    else:
        tar_of(tmp_path / name, *content, mode={"x.tar": "w", "x.tar.gz": "w:gz", "x.tar.xz": "w:xz"}[name])
    whole = (tmp_path / name).read_bytes()
    flipped = bytearray(whole)
    at = whole.index(b"a/3.png") if name == "x.tar" else len(whole) // 2
    flipped[at + 3] ^= 0x55
    for data in (b"", b"rubbish" * 100, whole[: len(whole) // 2], bytes(flipped)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CfvaeError, match=f"{name}.*damaged"):
            unpack(tmp_path / name, cache)
    assert not list((cache / "unpacked").iterdir())


def test_files_that_are_no_archives(tmp_path, cache):
    for name in ("x.rar", "x.7z", "x.png", "noending"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(CfvaeError, match="neither a folder nor one of .tar, .tar.xz"):
            open_dataset(f"folder:{tmp_path / name}", 8, cache=cache)


def test_a_new_version_of_an_archive_replaces_the_old(tmp_path, cache):
    archive = tar_of(tmp_path / "x.tar", ("a/1.png", png()), ("b/1.png", png(1)))
    tar_of(tmp_path / "y.tar", ("a/1.png", png()))
    first, other = unpack(archive, cache), unpack(tmp_path / "y.tar", cache)
    tar_of(archive, ("a/1.png", png()), ("c/1.png", png(2)))
    os.utime(archive, ns=(1, 1))
    second = unpack(archive, cache)
    assert second != first and sorted((cache / "unpacked").iterdir()) == sorted([second, other])
    assert list_folder(second).classes == ("a", "c")


# ---- the cache ------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    return grow(tmp_path / "t", ["a/1.png", "a/2.png", "b/1.png"])


@pytest.fixture
def decodings(monkeypatch):
    "The names of the files that were decoded, in order."
    done, real = [], images.decode_image
    monkeypatch.setattr(
        images, "decode_image", lambda path, size: done.append(os.path.basename(path)) or real(path, size)
    )
    return done


def test_the_copy_is_reused_and_memory_mapped(root, cache, decodings):
    first, _ = quiet(f"folder:{root}", cache=cache)
    assert len(decodings) == 3
    again, _ = quiet(f"folder:{root}", cache=cache)
    assert (
        len(decodings) == 3 and again.fingerprint == first.fingerprint and isinstance(again.images, np.memmap)
    )
    assert again.size == 8 and again.classes == ("a", "b") and torch.equal(first.labels, again.labels)
    assert torch.equal(first.batch([0, 2])[0], again.batch([0, 2])[0])
    quiet(f"folder:{root}", 4, cache=cache)
    assert len(decodings) == 6 and len(list((cache / "images").iterdir())) == 2


@pytest.mark.parametrize("change", ["content", "time", "new", "gone", "renamed", "class renamed"])
def test_a_changed_tree_is_decoded_again(root, cache, decodings, change):
    first, _ = quiet(f"folder:{root}", cache=cache)
    decodings.clear()
    if change == "content":
        picture(24, 18, seed=9).save(root / "a" / "1.png")
    elif change == "time":
        os.utime(root / "a" / "1.png", ns=(1, 1))
    elif change == "new":
        picture(24, 18, seed=9).save(root / "a" / "3.png")
    elif change == "gone":
        (root / "a" / "1.png").unlink()
    elif change == "renamed":
        os.rename(root / "a" / "1.png", root / "a" / "9.png")
    else:
        os.rename(root / "a", root / "A")
    second, _ = quiet(f"folder:{root}", cache=cache)
    assert len(decodings) == len(second) and (second.fingerprint == first.fingerprint) == (change == "time")
    assert len(list((cache / "images").iterdir())) == 1  # the old copy is gone
    assert first.batch([0])[0].shape == (1, 3, 8, 8)  # and yet still readable by who has it open


def test_the_fingerprint_knows_labels_and_pixels(tmp_path, cache):
    def of(name, *files):
        return quiet(f"folder:{grow(tmp_path / name, files)}", cache=cache)[0].fingerprint

    assert of("x", "a/1.png", "b/1.png") == of("y", "a/1.png", "b/1.png") != of("z", "a/1.png", "c/1.png")


@pytest.mark.parametrize("file", ["images.npy", "labels.npy", "meta.json"])
@pytest.mark.parametrize("harm", ["cut", "gone", "empty", "rubbish"])
def test_a_damaged_copy_is_decoded_again(root, cache, decodings, file, harm):
    first, _ = quiet(f"folder:{root}", cache=cache)
    path = next((cache / "images").iterdir()) / file
    data = path.read_bytes()
    path.unlink()
    if harm != "gone":
        path.write_bytes({"cut": data[:-1], "empty": b"", "rubbish": b"rubbish" * 20}[harm])
    decodings.clear()
    again, _ = quiet(f"folder:{root}", cache=cache)
    assert len(decodings) == 3 and again.fingerprint == first.fingerprint and path.read_bytes() == data


def test_a_half_written_copy_is_not_used(root, cache, monkeypatch):
    real = images._store

    def die(folder, *arguments):
        real(folder, *arguments)
        (folder / "meta.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "_store", die)
    with pytest.raises(KeyboardInterrupt):
        open_dataset(f"folder:{root}", 8, cache=cache)
    assert not list((cache / "images").iterdir())
    monkeypatch.setattr(images, "_store", real)
    left = cache / "images" / ".partial-x"  # what kill -9 leaves
    left.mkdir()
    (left / "images.npy").write_bytes(b"half")
    assert len(quiet(f"folder:{root}", cache=cache)[0]) == 3


class Full(io.BytesIO):
    "A file on a disk that is full after some bytes."

    def write(self, data):
        if self.tell() + len(data) > 300:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def fail_writes(monkeypatch):
    monkeypatch.setattr(
        images, "open", lambda path, mode="r": Full() if "w" in mode else open(path, mode), raising=False
    )


def test_a_full_disk_while_decoding(root, cache, monkeypatch):
    fail_writes(monkeypatch)
    with pytest.raises(CfvaeError, match="no space left on the disk.*another cache folder"):
        open_dataset(f"folder:{root}", 8, cache=cache)
    assert not list((cache / "images").iterdir())


def test_a_full_disk_while_unpacking(tmp_path, cache, monkeypatch):
    archive = tar_of(tmp_path / "x.tar", ("a/1.bmp", bytes(5000)))
    fail_writes(monkeypatch)
    with pytest.raises(CfvaeError, match="no space left on the disk"):
        unpack(archive, cache)
    assert not list((cache / "unpacked").iterdir())


def test_too_little_space_is_known_beforehand(root, cache, monkeypatch, decodings):
    monkeypatch.setattr(images.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=3 * 3 * 64 - 1))
    with pytest.raises(CfvaeError, match="no space for .*choose another cache folder"):
        open_dataset(f"folder:{root}", 8, cache=cache)
    assert not decodings and not list((cache / "images").iterdir())


def test_a_cache_that_cannot_be_written(root, tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(CfvaeError, match="cannot write .*choose another cache folder"):
        open_dataset(f"folder:{root}", 8, cache=tmp_path / "file")


def test_two_at_once(root, cache, monkeypatch):
    "Another process finishes first: its copy is used and ours vanishes."
    real = images._store

    def slow(folder, *arguments):
        monkeypatch.setattr(images, "_store", real)
        quiet(f"folder:{root}", cache=cache)
        real(folder, *arguments)

    monkeypatch.setattr(images, "_store", slow)
    assert len(quiet(f"folder:{root}", cache=cache)[0]) == 3
    assert len(list((cache / "images").iterdir())) == 1


def test_small_images_are_enlarged_with_one_warning(tmp_path, cache):
    root = grow(tmp_path / "t", ["a/1.png", "b/1.png"])
    picture(40, 40).save(root / "b" / "2.png")
    dataset, told = quiet(f"folder:{root}", 32, cache=cache)
    assert dataset.size == 32 and len(told) == 1 and "2 of 3 images are smaller than 32 pixels" in told[0]


def test_many_images_keep_their_order(tmp_path, cache, monkeypatch):
    root = tmp_path / "t"
    for i in range(600):
        path = root / f"c{i % 3}" / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i % 256, i // 256, 7)).save(path)
    dataset, _ = quiet(f"folder:{root}", 4, cache=cache)
    listing = list_folder(root)
    values = [int(name[-8:-4]) for name in listing.names]
    assert dataset.images[:, 0, 0, 0].tolist() == [v % 256 for v in values] and dataset.images[
        :, 1, 0, 0
    ].tolist() == [v // 256 for v in values]
    assert dataset.labels.tolist() == [v % 3 for v in values]


# ---- open_dataset ---------------------------------------------------------------------------------------------------


def test_shapes_options():
    assert torch.equal(open_dataset("shapes:n=12,seed=3", 16).images, Shapes(12, 3, 16).images)
    assert torch.equal(open_dataset("shapes:seed=3,n=12", 16).images, Shapes(12, 3, 16).images)
    assert not torch.equal(
        open_dataset("shapes:n=12,seed=3", 16, train=False).images, Shapes(12, 3, 16).images
    )
    for options in ("n=ten", "n=-1", "n", "seed=1.5", "n=²", "n=" + "9" * 30):
        with pytest.raises(CfvaeError, match="must be a whole number"):
            open_dataset(f"shapes:{options}", 16)
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
        ("tiny-imagenet:no/such/place", "does not exist"),
        ("folder:" + "x" * 5000, "does not exist"),
        ("folder:a\0b", "does not exist"),
        (None, "named by a string"),
    ],
)
def test_specs_that_mean_nothing(spec, message):
    with pytest.raises(CfvaeError, match=message):
        open_dataset(spec, 8)


def test_a_path_without_its_kind_is_recognised(root):
    with pytest.raises(CfvaeError, match="did you mean folder:"):
        open_dataset(str(root), 8)


@pytest.mark.parametrize("size", [0, -1, 2.5, "32", 10**9, None, True])
def test_sizes_that_make_no_sense(root, size):
    with pytest.raises(CfvaeError, match="must be a whole number of pixels from 1 to 4096"):
        open_dataset(f"folder:{root}", size)


def test_cifar10_is_resized_once(cache, monkeypatch):
    source = ImageDataset(Shapes(6, 0, 32).images, list(range(6)), tuple("abcdef"), "cifar10")
    asked = []
    monkeypatch.setattr(images, "cifar10", lambda root, train: asked.append((root, train)) or source)
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

    monkeypatch.setattr(images, "cifar10", refuse)
    with pytest.raises(CfvaeError, match="folder:PATH"):
        open_dataset("cifar10", 32, cache=cache)
