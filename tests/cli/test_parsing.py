"Tests of cfvae.cli.parsing: what stands in one option as text."

import unicodedata

import pytest

from cfvae.cli.parsing import read_classes, read_depths, read_labels
from cfvae.core import CfvaeError


@pytest.mark.parametrize(
    "text, names",
    [
        ("cat,dog", ["cat", "dog"]),
        (" cat , dog,,", ["cat", "dog"]),
        ("tench, Tinca tinca", ["tench, Tinca tinca"]),
        ("dog,tench, Tinca tinca,cat", ["dog", "tench, Tinca tinca", "cat"]),
        ("tench,cat", ["tench", "cat"]),
        ("a,b,c,a,b", ["a,b,c", "a,b"]),
        ("  lead,lead", ["  lead", "lead"]),
        ("moon,cat", ["moon", "cat"]),
        ("", []),
        (",", []),
    ],
)
def test_a_comma_may_be_part_of_a_class(text, names):
    known = ("cat", "dog", "tench, Tinca tinca", "a,b", "a,b,c", "  lead")
    assert read_classes(text, known) == names


def test_a_class_with_a_comma_is_found_however_its_accents_are_coded():
    composed, apart = (unicodedata.normalize(form, "\u00e9t\u00e9, chaud") for form in ("NFC", "NFD"))
    for known in ((composed, "b"), (apart, "b")):
        for text in (composed, apart):
            assert read_classes(f"b,{text}", known) == ["b", text]


@pytest.mark.parametrize("text", ["", ",", "-1", "1.5", "x", "²", "٣", "9" * 5000])
def test_depths_and_labels_are_numbers(text):
    with pytest.raises(CfvaeError, match="--depths"):
        read_depths(text)
    if text.strip(","):
        with pytest.raises(CfvaeError, match="--labels"):
            read_labels(text, count=10)
    assert read_depths("1, 4 ,all") == [1, 4, None]
    assert read_labels("0, 9", count=10) == [0, 9]
