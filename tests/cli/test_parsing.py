"Tests of cfvae.cli.parsing: what stands in one option as text."

import pytest

from cfvae.cli.parsing import read_classes


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
