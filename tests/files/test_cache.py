"Tests of cfvae.files.cache: what is decoded once, kept, and not to be trusted."

import errno
import io
import json
import os
import re
import struct
import types

import numpy as np
import pytest
import torch
from PIL import Image
from trees import fail_writes, grow, picture, quiet

from cfvae.core import CfvaeError
from cfvae.files import cache as cache_module, decode, store
from cfvae.files.decode import decode_image
from cfvae.files.folders import list_folder
from cfvae.files.open import open_dataset

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def decodings(monkeypatch):
    "The names of the files that were decoded, in order."
    done, real = [], decode.decode_image
    monkeypatch.setattr(
        decode, "decode_image", lambda path, size: done.append(os.path.basename(path)) or real(path, size)
    )
    return done


def damage(folder, monkeypatch):
    "One file of every damaged kind, and the reason that should be given."
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(decode, "MAX_PIXELS", 10_000)
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


@pytest.mark.parametrize(
    ("values", "dtype", "told"),
    [
        ((0, 4095), "u2", "from 0 to 4095, and 65535"),
        ((0, 255), "i4", "from 0 to 255, and 65535"),
        ((70_000, 2**31 - 1), "i4", "and 65535"),
        ((0.2, 1.1), "f4", "from 0.2 to 1.1, and 255"),
        ((300, 65535), "f4", "from 300 to 65535, and 255"),
    ],
)
def test_many_bit_images_that_come_out_black_or_white_are_told(tmp_path, cache, values, dtype, told):
    grow(tmp_path / "t", ["a/1.png", "b/1.png"])
    ramp = np.linspace(*values, 400).reshape(20, 20).astype(dtype)
    for name in ("2.tif", "3.tif"):
        Image.fromarray(ramp).save(tmp_path / "t" / "b" / name)
    for _ in range(2):  # decoded, and read again
        _, notes = quiet(f"folder:{tmp_path / 't'}", cache=cache)
        (note,) = notes
        assert "2 of 4 images come out nearly black or white, such as b/2.tif" in note and told in note


def test_images_that_are_meant_to_be_black_or_white_are_not_told(tmp_path, cache):
    grow(tmp_path / "t", ["a/1.png", "b/1.png"])
    Image.new("L", (20, 20), 0).save(tmp_path / "t" / "a" / "2.png")
    Image.new("RGB", (20, 20), "white").save(tmp_path / "t" / "a" / "3.png")
    Image.fromarray(np.linspace(0, 65535, 400).reshape(20, 20).astype(np.uint16)).save(
        tmp_path / "t" / "a" / "4.png"
    )
    assert not quiet(f"folder:{tmp_path / 't'}", cache=cache)[1]


def test_a_tree_of_damaged_files_only(tmp_path, cache, monkeypatch):
    damage(tmp_path / "t", monkeypatch)
    with pytest.raises(CfvaeError, match=r"none of the 8 images can be read: bomb\.png"):
        open_dataset(f"folder:{tmp_path / 't'}", 8, cache=cache)
    assert not list((cache / "images").iterdir())


def test_a_class_without_a_readable_image_is_told(tmp_path, cache):
    root = grow(tmp_path / "t", ["a/1.png", "b/1.png", "c/1.png", "c/2.png"])
    for name in ("b/1.png", "c/1.png"):
        (root / name).write_text("not a picture")
    for _ in range(2):  # decoded, and read again
        _, told = quiet(f"folder:{root}", cache=cache)
        assert len(told) == 2 and told[1].endswith("no image of these classes can be read: b")


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
    for seed, kind in enumerate(("BMP", "JPEG2000", "GIF", "TIFF", "WEBP"), 1):
        picture(seed=seed).save(folder / f"no-ending-{kind}", kind)
    (folder / "notes.txt").write_text("BM is how a bitmap begins")
    dataset, told = quiet(f"folder:{tmp_path / 't'}", cache=cache)
    (note,) = told
    assert len(dataset) == 9 and not dataset.skipped
    assert "3 of 9 images are copies of others, as a/noending is of a/UPPER.PNG" in note


def test_a_file_that_can_be_read_by_now_is_read(root, cache, monkeypatch):
    opened = decode.Image.open

    def refuse(path, **options):
        if os.path.basename(path) == "2.png":
            raise OSError(24, "Too many open files")
        return opened(path, **options)

    monkeypatch.setattr(decode.Image, "open", refuse)
    for _ in range(2):
        assert quiet(f"folder:{root}", cache=cache)[0].skipped == [("a/2.png", "too many open files")]
    monkeypatch.undo()
    dataset, told = quiet(f"folder:{root}", cache=cache)
    assert len(dataset) == 3 and not dataset.skipped and not told


def test_files_that_change_places_are_decoded_again(root, cache):
    "Of one size and one time, as those of an archive with a fixed date are."
    for name, value in (("a/1.bmp", 50), ("b/1.bmp", 200)):
        Image.new("L", (8, 8), value).save(root / name)
        os.utime(root / name, (1, 1))
    values = [int(image.max()) for image in quiet(f"folder:{root}", cache=cache)[0].images]
    os.rename(root / "a" / "1.bmp", root / "aside")
    os.rename(root / "b" / "1.bmp", root / "a" / "1.bmp")
    os.rename(root / "aside", root / "b" / "1.bmp")
    changed = [int(image.max()) for image in quiet(f"folder:{root}", cache=cache)[0].images]
    assert (values[0], values[3]) == (50, 200) == (changed[3], changed[0])


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
    assert len(decodings) == 3 and again.fingerprint == first.fingerprint
    assert file == "meta.json" or path.read_bytes() == data  # the note says when it was written


@pytest.mark.parametrize("file", ["images.npy", "labels.npy"])
def test_other_numbers_of_the_right_shape_are_noticed(root, cache, decodings, file):
    first, _ = quiet(f"folder:{root}", cache=cache)
    images = np.array(first.images)  # not the map of the file that is damaged now
    path = next((cache / "images").iterdir()) / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-16] + bytes(b ^ 1 for b in whole[-16:]))
    decodings.clear()
    again, _ = quiet(f"folder:{root}", cache=cache)
    assert len(decodings) == 3 and again.fingerprint == first.fingerprint
    assert again.labels.tolist() == first.labels.tolist() and np.array_equal(again.images, images)


@pytest.mark.parametrize("change", [{"classes": ["b", "a"]}, {"small": 1}, {"skipped": [["a/3.png", "cut"]]}])
def test_other_notes_are_noticed(root, cache, change):
    first, _ = quiet(f"folder:{root}", cache=cache)
    note = next((cache / "images").iterdir()) / "meta.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | change))
    again, told = quiet(f"folder:{root}", cache=cache)
    assert again.classes == first.classes == ("a", "b") and not again.skipped and not told


def test_a_copy_that_was_moved_is_read_and_kept(root, cache, decodings):
    quiet(f"folder:{root}", cache=cache)
    for path in next((cache / "images").iterdir()).iterdir():
        os.utime(path, (1, 1))
    decodings.clear()
    quiet(f"folder:{root}", cache=cache)
    assert decodings == []


@pytest.mark.parametrize("file", ["images.npy", "labels.npy"])
def test_a_header_with_a_wrong_byte_is_no_defect(root, cache, file):
    "numpy reads the header as Python source: a wrong byte in it can raise nearly anything."
    first, _ = quiet(f"folder:{root}", cache=cache)
    path = next((cache / "images").iterdir()) / file
    whole = path.read_bytes()
    for position in range(whole.index(b"\n") + 1):
        for byte in b"\x00(9'":
            path.write_bytes(whole[:position] + bytes([byte]) + whole[position + 1 :])
            again = cache_module._load(path.parent, 8, "images")
            assert again is None or len(again) == len(first)


@pytest.mark.parametrize(
    "content",
    ["3", "[]", "{}", '{"classes": 1}', "[" * 100000]
    + [
        json.dumps({"fingerprint": "x", "small": 0, **entry})
        for entry in (
            {"classes": ["a", "b"], "skipped": [1]},
            {"classes": ["a", "b"], "skipped": [[1, 2, 3]]},
            {"classes": ["a"], "skipped": []},
            {"classes": [1, 2], "skipped": []},
            {"classes": ["a", "b"], "skipped": [], "small": "x"},
            {"classes": ["a", "b"], "skipped": [], "extreme": 5},
        )
    ],
)
def test_a_damaged_note_is_written_again(root, cache, decodings, content):
    quiet(f"folder:{root}", cache=cache)
    note = next((cache / "images").iterdir()) / "meta.json"
    whole = note.read_text()
    note.write_text(content)
    decodings.clear()
    quiet(f"folder:{root}", cache=cache)
    again = json.loads(note.read_text())
    when = {"written": 0, "checksum": 0}
    assert len(decodings) == 3 and again | when == json.loads(whole) | when


def test_a_half_written_copy_is_not_used(root, cache, monkeypatch):
    real = cache_module.store_images

    def die(folder, *arguments):
        real(folder, *arguments)
        (folder / "meta.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_module, "store_images", die)
    with pytest.raises(KeyboardInterrupt):
        open_dataset(f"folder:{root}", 8, cache=cache)
    assert not list((cache / "images").iterdir())
    monkeypatch.setattr(cache_module, "store_images", real)
    left = cache / "images" / ".partial-x"  # what kill -9 leaves
    left.mkdir()
    (left / "images.npy").write_bytes(b"half")
    assert len(quiet(f"folder:{root}", cache=cache)[0]) == 3


def test_a_full_disk_while_decoding(root, cache, monkeypatch):
    fail_writes(monkeypatch)
    with pytest.raises(CfvaeError, match="No space left on device.: free some space, or make it a link"):
        open_dataset(f"folder:{root}", 8, cache=cache)
    assert not list((cache / "images").iterdir())


def test_too_little_space_is_known_beforehand(root, cache, monkeypatch, decodings):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=3 * 3 * 64 - 1))
    with pytest.raises(
        CfvaeError, match="no space for .* in .*cache/images: .* free some, or make it a link"
    ):
        open_dataset(f"folder:{root}", 8, cache=cache)
    assert not decodings and not list((cache / "images").iterdir())


def test_a_cache_that_cannot_be_written(root, tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(CfvaeError, match="cannot write .*: move away the file .*, or make it a link"):
        open_dataset(f"folder:{root}", 8, cache=tmp_path / "file")


def test_two_at_once(root, cache, monkeypatch):
    "Another process finishes first: its copy is used and ours vanishes."
    real = cache_module.store_images

    def slow(folder, *arguments):
        monkeypatch.setattr(cache_module, "store_images", real)
        quiet(f"folder:{root}", cache=cache)
        real(folder, *arguments)

    monkeypatch.setattr(cache_module, "store_images", slow)
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


def logo(x, y):
    "White, and all else transparent."
    alpha = np.where((x - y) ** 2 < 50, 255, 0)
    return Image.fromarray(np.stack([alpha] * 4, -1).astype(np.uint8))


def deep_colours(x, y, top):
    "A TIFF file with three numbers of 16 bits a pixel, which Pillow reads but does not write."
    values = (np.stack([x, y, x], -1) / 20 * top).astype("<u2")
    fields = [(256, 20), (257, 20), (258, 110), (259, 1), (262, 2), (273, 116), (277, 3), (278, 20)]
    entries = [struct.pack("<HHII", tag, 3, 3 if tag == 258 else 1, value) for tag, value in fields]
    head = b"II*\0" + struct.pack("<IH", 8, len(fields)) + b"".join(entries) + b"\0" * 4
    return head + struct.pack("<3H", 16, 16, 16) + values.tobytes()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("logo.png", logo, "3 of 5 images come out nearly black or white.*logo.png: it is transparent"),
        (
            "deep.tif",
            lambda x, y: deep_colours(x, y, 4095),
            "nearly black.*from 0 to 4095, and 65535 is taken as white; scale",
        ),
        ("deep.tif", lambda x, y: deep_colours(x, y, 65535), None),
        ("unit.tif", lambda x, y: Image.fromarray(np.float32(x / 10 - 1)), r"numbers outside.*from -1 to "),
        ("wide.tif", lambda x, y: Image.fromarray(np.float32(x * 200)), "outside.*3800, and 255 is taken"),
        ("over.tif", lambda x, y: Image.fromarray(np.float32(x * 13.3 - 0.4)), None),
    ],
)
def test_what_is_lost_of_an_image_is_told(tmp_path, cache, name, content, told):
    root = grow(tmp_path / "t", ["b/1.png", "b/2.png"])
    (root / "a").mkdir()
    for number in range(3):
        y, x = np.mgrid[0:20, 0:20]
        made = content(x, (y + number) % 20)
        path = root / "a" / f"{number}{name}"
        made.save(path) if isinstance(made, Image.Image) else path.write_bytes(made)
    for _ in range(2):  # decoded, and read again
        notes = [note for note in quiet(f"folder:{root}", 20, cache=cache)[1] if "enlarged" not in note]
        notes = [note for note in notes if "copies of others" not in note]
        assert len(notes) == (told is not None) and (told is None or re.search(told, notes[0]))


def test_a_tree_of_nothing_but_masks_is_told(tmp_path, cache):
    root = grow(tmp_path / "t", ["a/1.png"])
    for name in ("2.png", "3.png"):
        Image.fromarray(np.arange(400).reshape(20, 20).astype(np.uint8) % 20).save(root / "a" / name)
    assert not any("nearly black" in note for note in quiet(f"folder:{root}", cache=cache)[1])
    (root / "a" / "1.png").unlink()
    notes = quiet(f"folder:{root}", cache=cache)[1]
    assert any("2 of 2 images come out nearly black or white: are these the right" in note for note in notes)
