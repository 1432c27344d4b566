"Pictures and answers are as they were pinned: tests/pins.py says what to do where they are not."

import numpy as np
import pytest
from answers import all_answers
from PIL import Image
from pins import PINNED, pin_pictures, read

from cfvae.data import FACTORS, Shapes


def test_pictures_are_as_they_were():
    "A machine may round a few values in a thousand otherwise, where the edge of a shape meets a sample."
    with Image.open(PINNED / "shapes.png") as sheet:
        before = np.asarray(sheet).astype(int)
    other = np.abs(before - pin_pictures()) > 0
    share = other.reshape(10, 32, 10, 32, 3).mean((1, 3, 4))  # of every picture
    assert share.max() < 0.005, f"row and column of the first: {np.argwhere(share >= 0.005)[0]}"


def test_every_factor_is_in_the_pictures():
    factors = Shapes(100, seed=4, size=8).factors
    assert [len(column.unique()) for column in factors.T] == [len(grid) for grid in FACTORS.values()]


def test_networks_answer_as_they_did():
    "Within what two machines may round otherwise."
    found = all_answers()
    before = read("answers")
    assert found.keys() == before.keys()
    for name, numbers in before.items():
        assert found[name] == pytest.approx(numbers, rel=1e-3, abs=1e-4), name
