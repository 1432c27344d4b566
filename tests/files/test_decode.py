"Tests of cfvae.files.decode: every format, mode, orientation and damage that a file may have."

import io
import os
import random
import struct
import tracemalloc
import warnings

import numpy as np
import pytest
from PIL import Image
from trees import distance, picture, rgb

from cfvae.files import decode
from cfvae.files.decode import decode_image, many_bit_range, to_rgb, try_decode

pytestmark = pytest.mark.filterwarnings("error")


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
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 0, 0, 128]


def many_bit_pictures():
    "A picture of every many-bit mode, with values below, in and above the range."
    rng = np.random.default_rng(0)
    shape = (37, 23)
    for mode, dtype in (("I;16", "<u2"), ("I;16B", ">u2"), ("I;16L", "<u2"), ("I", "i4")):
        values = rng.integers(0, 65536, shape).astype(dtype)
        yield Image.frombytes(mode, shape[::-1], values.tobytes())
    yield Image.fromarray(rng.integers(-(2**31), 2**31 - 1, shape).astype(np.int32))
    for scale, shift in ((1, 0), (2, -1), (300, -20), (1e6, 0)):
        values = (rng.random(shape) * scale + shift).astype(np.float32)
        values[-1, -3:] = np.nan, np.inf, -np.inf
        yield Image.fromarray(values)
        yield Image.fromarray(np.minimum(np.nan_to_num(values), 1))


def test_many_bits_in_blocks_are_many_bits_at_once(monkeypatch):
    for image in many_bit_pictures():
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
        top = (1 if values.max() <= 1 else 255) if image.mode == "F" else 65535
        at_once = np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)
        for pixels in (1, 100, 10**9):
            monkeypatch.setattr(decode, "BLOCK_PIXELS", pixels)
            assert np.array_equal(np.asarray(to_rgb(image))[..., 0], at_once), (image.mode, pixels)


@pytest.mark.parametrize("dtype", ["u2", "i4", "f4"])
def test_many_bits_take_no_more_memory_than_colour(dtype):
    image = Image.fromarray(np.zeros((2000, 2000), dtype))
    tracemalloc.start()
    try:
        to_rgb(image)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2000 * 2000 + 32 * decode.BLOCK_PIXELS


def test_the_range_of_many_bits(tmp_path):
    Image.fromarray(np.array([[7, 4095]], np.uint16)).save(tmp_path / "x.png")
    assert (
        str(many_bit_range(tmp_path / "x.png"))
        == "its numbers run from 7 to 4095, and 65535 is taken as white"
    )
    Image.fromarray(np.array([[0.25, 1.5]], np.float32)).save(tmp_path / "x.tif")
    expected = "its numbers run from 0.25 to 1.5, and 255 is taken as white"
    assert str(many_bit_range(tmp_path / "x.tif")) == expected
    picture().save(tmp_path / "y.png")
    assert many_bit_range(tmp_path / "y.png") is None and many_bit_range(tmp_path / "gone.png") is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_may_have_white_at_0(tmp_path, dtype):
    "Pillow writes no such file of 16 bits, but its field 262 can be changed in one that it wrote."
    ramp = np.linspace(0, np.iinfo(dtype).max, 64).reshape(8, 8).astype(dtype)
    Image.fromarray(ramp).save(tmp_path / "plain.tif")
    plain = (tmp_path / "plain.tif").read_bytes()
    black_at_0, white_at_0 = (struct.pack("<HHIHH", 262, 3, 1, value, 0) for value in (1, 0))
    assert plain.count(black_at_0) == 1
    (tmp_path / "negative.tif").write_bytes(plain.replace(black_at_0, white_at_0))
    pictures = [decode_image(tmp_path / f"{name}.tif", 8)[0] for name in ("plain", "negative")]
    assert np.array_equal(pictures[1], 255 - pictures[0])
    if dtype == np.uint16:
        assert str(many_bit_range(tmp_path / "negative.tif")).endswith("and 65535 is taken as black")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_nobody_waits_for_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    os.mkdir(tmp_path / "folder.png")
    for name in ("pipe.png", "folder.png"):
        assert try_decode(tmp_path / name, 8) == (None, "not a file")
        assert many_bit_range(tmp_path / name) is None


def test_transparency_is_laid_on_white(tmp_path):
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (9, 9), (200, 0, 0, 128)).save(tmp_path / "half.png")
    Image.new("P", (9, 9), 0).save(tmp_path / "index.png", transparency=0)
    Image.new("LA", (9, 9), (0, 0)).save(tmp_path / "la.png")
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    for name in ("clear", "index", "la", "key"):
        assert (decode_image(tmp_path / f"{name}.png", 4)[0] == 255).all(), name
    assert np.abs(decode_image(tmp_path / "half.png", 4)[0][:, 0, 0].astype(int) - (227, 127, 127)).max() <= 1


def test_a_transparent_grey_of_many_bits_is_white(tmp_path):
    grey = Image.fromarray(np.full((8, 8), 30_000, np.uint16))
    for transparent, expected in ((30_000, 255), (30_001, 117)):
        grey.save(tmp_path / "x.png", transparency=transparent)
        assert (decode_image(tmp_path / "x.png", 4)[0] == expected).all()


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
    assert try_decode(tmp_path / "a.jpg", 8) == (None, "not an image in a known format")


def test_pillows_own_bomb_error_is_a_reason_too(tmp_path, monkeypatch):
    picture().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert try_decode(tmp_path / "a.png", 8)[1].startswith("more than 89,478,485 pixels")


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
            array, info = try_decode(tmp_path / "x", 8)
            assert (array is None and isinstance(info, str) and info) or array.shape == (3, 8, 8)
            outcomes[array is None] += 1
    assert min(outcomes.values()) > 50, outcomes
