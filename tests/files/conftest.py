"Places for the tests of files."

import pytest
from trees import grow


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    return grow(tmp_path / "t", ["a/1.png", "a/2.png", "b/1.png"])
