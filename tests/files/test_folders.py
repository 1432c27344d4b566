"Tests of cfvae.files.folders: classes, splits, links, odd names."

import io
import os
import re
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import grow, picture, quiet

from cfvae.core import CfvaeError
from cfvae.files.archives import unpack
from cfvae.files.folders import Folder, class_root, list_folder, scan_folder
from cfvae.files.names import printable
from cfvae.files.open import open_dataset, require_classes

pytestmark = pytest.mark.filterwarnings("error")


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
    with pytest.raises(CfvaeError, match="no validation split.*put images there.*hold_out"):
        list_folder(grow(tmp_path / "none", ["a/1.png", "b/1.png"]), train=False)
    with pytest.raises(CfvaeError, match="no validation split"):
        list_folder(grow(tmp_path / "only", ["train/a/1.png", "train/b/1.png"]), train=False)
    with pytest.raises(CfvaeError, match="training split lacks: d .it has a, b"):
        list_folder(
            grow(tmp_path / "more", ["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/d/1.png"]),
            train=False,
        )
    with pytest.raises(CfvaeError, match="has no class folders: put its images .*: a, b"):
        list_folder(grow(tmp_path / "flat", ["train/a/1.png", "train/b/1.png", "val/1.png"]), train=False)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("training_set", "test_set"),
        ("training_set/training_set", "test_set/test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("Train", "Dev"),
        ("train_images", "val_images"),
        ("images_train", "images_valid"),
        ("train2017", "val2017"),
        ("trainset", "testset"),
        ("data/train", "data/eval"),
        ("x/Training Data", "x/Testing Data"),
    ],
)
def test_splits_by_their_common_names(tmp_path, train, val):
    names = [f"{train}/a/1.png", f"{train}/b/1.png", f"{val}/b/2.png"]
    root = grow(tmp_path / "t", [*names, "seg_pred/1.png"] if "seg" in train else names)
    listing = list_folder(root)
    assert listing.classes == ("a", "b") and listing.names == tuple(names[:2]) and not listing.notes
    assert listing.split == train
    held = list_folder(root, train=False)
    assert held.names == (names[2],) and held.labels == (1,) and held.split == val


def test_flat_splits_by_their_common_names(tmp_path):
    root = grow(tmp_path / "t", ["train_images/1.png", "test_images/2.png"])
    assert list_folder(root).names == ("train_images/1.png",) and list_folder(root).split == "train_images"


def test_classes_that_only_begin_like_splits_are_classes(tmp_path):
    root = grow(tmp_path / "t", ["train station/1.png", "test tube/1.png", "validator/1.png"])
    listing = list_folder(root)
    assert listing.classes == ("test tube", "train station", "validator")
    assert not listing.notes and not listing.split


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["trainA/1.png", "trainB/1.png", "testA/1.png", "testB/1.png"],
            "testA, testB, trainA and 1 more are",
        ),
        (
            [f"fold{k}/{c}/1.png" for k in (1, 2, 3) for c in "ab"],
            "fold1, fold2, fold3 are named like splits",
        ),
        (["train1/a/1.png", "train2/a/1.png"], "train1, train2 are named like splits"),
        (["a/1.png", "b/1.png", "val/a/1.png", "val/b/1.png"], "val holds folders named like the classes"),
        (
            [f"{d}/{c}/1.png" for d in ("day", "night") for c in "ab"],
            "day, night all hold the same folders, a, b",
        ),
        (["Cat/1.png", "cat/1.png", "dog/1.png"], "nearly the same are kept apart: 'Cat' and 'cat'"),
        (["caf\u00e9/1.png", "cafe\u0301/1.png", "dog/1.png"], "nearly the same are kept apart"),
        (["1/1.png", "01/1.png", "2/1.png"], "nearly the same are kept apart: '01' and '1'"),
        (["-1/1.png", "0/1.png", "1/1.png"], "-1 is taken for a class: where it stands for none, leave"),
        (["nan/1.png", "cat/1.png", "dog/1.png"], "nan is taken for a class: where it stands for none"),
        (["cat/1.png", "dog/1.png", "test/1.png"], "test is taken for a class: if it is a split, move the"),
        (
            ["1.png", "2.png", "val/3.png"],
            "images of val are taken with all others: move those into a folder",
        ),
        (["images/1.png", "masks/1.png"], "images, masks are named like parts of one data set"),
        (["train/1.png", "train_masks/1.png"], "train_masks, train are named like parts of one data set"),
        (["1.png", "x/2.png", "x/y/a/1.png", "x/y/b/1.png"], "images above x/y are left out: 1.png, x/2.png"),
        (["1.png", "train/2.png", "train/3.png"], "images above train are left out: 1.png"),
        (["a/1.png", "b/1.png", "c.zip"], "archives are left out: unpack c.zip"),
        (["1.png", "sub/a.TAR.gz"], "archives are left out: unpack sub/a.TAR.gz"),
        (["cat /1.png", "cat/1.png", "dog/1.png"], "nearly the same are kept apart: 'cat' and 'cat '"),
        ([*(f"a/{i}.png" for i in range(30)), "b/1.png", "c/1.png"], "with a single image.*: b, c"),
        ([f"{c}/1.png" for c in "abcdefghijkl"], "with a single image.*: a, b, c and 9 more"),
        (
            [*(f"a/{i}.png" for i in range(300)), "b/1.png", "b/2.png"],
            "300 of 302 images are of one class: a",
        ),
    ],
)
def test_suspicious_trees_are_told(tmp_path, names, message):
    for name in names:  # nothing is decoded here
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (note,) = list_folder(tmp_path).notes
    assert re.search(message, note)


@pytest.mark.parametrize("kinds", [["bus/front", "car/front"], ["bus", "car"]])
@pytest.mark.parametrize("above", ["", "vehicles/"])
def test_what_stands_beside_a_split_is_told(tmp_path, kinds, above):
    names = [*kinds, "train/front", "train/rear"]
    grow(tmp_path, [f"{above}{name}/{i}.png" for name in names for i in range(2)])
    (note,) = list_folder(tmp_path).notes
    assert note.startswith(f"folders beside {above}train are left out: bus, car; if {above}train is a class")


def test_of_several_validation_splits_the_other_one_is_told(tmp_path):
    root = grow(
        tmp_path,
        [f"{split}/{name}/1.png" for split in ("train", "val14", "val2014", "val2017") for name in "ab"],
    )
    (note,) = list_folder(root, train=False).notes
    assert note.startswith("folders beside val2014 are left out: val2017")
    assert not list_folder(root).notes


def test_honest_trees_are_not_suspected(tmp_path):
    names = [f"n{k}/images/{i}.png" for k in range(3) for i in range(3)]
    assert list_folder(grow(tmp_path / "t", names)).notes == ()
    assert list_folder(grow(tmp_path / "u", ["a/1.png", "a/2.png", "b/1.png"])).notes == ()


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


def test_archives_in_place_of_classes_are_to_be_unpacked(tmp_path):
    for name in ("n2.tar", "n1.tar"):
        (tmp_path / name).touch()
    with pytest.raises(CfvaeError, match="holds no images: unpack the archives in it .n1.tar, n2.tar"):
        list_folder(tmp_path)


@pytest.mark.parametrize("ending", ["jxl", "TGA", "psd", "exr", "CR2", "svg"])
def test_pictures_of_unknown_formats_are_named(tmp_path, cache, ending):
    root = grow(tmp_path / "t", ["a/1.png", "b/1.png"])
    (root / "a" / f"2.{ending}").write_bytes(b"of some program")
    dataset, told = quiet(f"folder:{root}", cache=cache)
    assert dataset.skipped == [(f"a/2.{ending}", "not an image in a known format")] and len(told) == 1


def test_hidden_files_are_ignored(tmp_path):
    root = grow(
        tmp_path / "t",
        ["a/1.png", "b/1.png", "__MACOSX/a/1.png", ".cache/1.png", "a/.hidden.png", "a/._1.png"]
        + ["a/@eaDir/1.png/THUMB.jpg", "$RECYCLE.BIN/2.png"],
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


def test_a_link_takes_no_class_away(tmp_path):
    root = grow(tmp_path / "t", ["a/1.png", "z/1.png", "z/2.png", ".store/c/1.png"])
    (root / "a" / "link").symlink_to("../z")
    (root / "c").symlink_to(".store/c")
    listing = list_folder(root)
    assert listing.classes == ("a", "c", "z") and listing.labels == (0, 1, 2, 2)


def test_of_a_folder_and_a_link_to_it_the_folder_stays(tmp_path):
    root = grow(tmp_path / "src", ["dog/1.png", "emu/1.png", "emu/2.png"])
    os.symlink("emu", root / "ant")
    listing = list_folder(root)
    assert listing.classes == ("dog", "emu") and len(listing.names) == 3
    assert "links to folders that are there already are left out: ant" in listing.notes


def test_runs_are_no_data(tmp_path):
    root = grow(tmp_path / "src", ["dog/1.png", "emu/1.png", "run/vae/pictures/step-1.png", "run/grid.png"])
    for name in ("recipe.json", "run.lock"):
        (root / "run" / name).touch()
    assert list_folder(root).classes == ("dog", "emu")


def test_copies_in_the_cache_are_no_data(tmp_path, cache):
    root = grow(tmp_path / "t", ["cats/1.png", "dogs/1.png"])
    archive = shutil.make_archive(str(tmp_path / "x"), "zip", root)
    inside = unpack(archive, root / "cache")
    assert list_folder(root).classes == ("cats", "dogs") == list_folder(inside).classes


def test_two_folders_that_are_shown_by_one_name_are_refused_by_it(tmp_path):
    grow(tmp_path / "t", ["a\x1b/1.png", "a\\x1b/1.png", "b/1.png"])
    with pytest.raises(CfvaeError, match=re.escape(r"two classes are called a\x1b")):
        open_dataset(f"folder:{tmp_path / 't'}", 8, cache=tmp_path / "cache")


def test_absurdly_deep_trees_are_refused(tmp_path):
    os.makedirs(tmp_path / "/".join(["d"] * 70))
    with pytest.raises(CfvaeError, match="more than 64 deep"):
        scan_folder(tmp_path)


def test_class_root_of_hand_made_folders():
    def folder(name, *inner, n=0):
        return Folder(name, [f"{name}/{i}.png" for i in range(n)], list(inner), [], [])

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


def test_messages_call_a_folder_by_its_name_or_else_by_its_path(tmp_path):
    for name, called in (("photos", "photos"), (None, str(tmp_path))):
        with pytest.raises(CfvaeError, match=f"^{re.escape(called)} holds no images"):
            list_folder(tmp_path, name=name)
