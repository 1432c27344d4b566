"Tests of cfvae.files.tiny_imagenet: its layout, whole and with parts missing."

import os

import pytest
from trees import grow, quiet

from cfvae.core import CfvaeError
from cfvae.files.folders import list_folder
from cfvae.files.tiny_imagenet import list_tiny_imagenet

pytestmark = pytest.mark.filterwarnings("error")


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
    assert any("without training images are left out: n0, n9" in note for note in listing.notes)
    assert any(
        "2 images named in val_annotations.txt are not there" in note and "val_9.JPEG" in note
        for note in listing.notes
    )


@pytest.mark.parametrize("name", ["wnids.txt", "words.txt", "val/val_annotations.txt"])
def test_a_mark_at_the_beginning_of_a_table_is_no_part_of_it(tiny, name):
    expected = list_tiny_imagenet(tiny, train=False)
    path = tiny / "top" / name
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list_tiny_imagenet(tiny, train=False) == expected


@pytest.mark.parametrize("name", ["words.txt", "val/val_annotations.txt"])
def test_tables_that_contradict_themselves(tiny, name):
    path = tiny / "top" / name
    first = path.read_text().partition("\t")[0]
    path.write_text(path.read_text() + f"{first}\tanother\n")
    with pytest.raises(CfvaeError, match=f"{path.name}: row . says of {first} something else"):
        list_tiny_imagenet(tiny, train=False)


def test_a_class_without_a_word_is_called_by_its_code(tiny):
    (tiny / "top" / "words.txt").write_text("n1\t\nn2\t , goose\nn3\tcrane\n")
    assert list_tiny_imagenet(tiny).classes == ("n1", "n2", "crane")


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
