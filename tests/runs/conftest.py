"Tiny runs, trained once for all tests that look at runs."

from pathlib import Path

import pytest
from tiny_runs import strange_images, tiny

from cfvae.runs.train import train


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    "Three runs, to be read only: images with hostile names, Shapes without labels, and one without a VAE."
    root = tmp_path_factory.mktemp("runs")
    assert train(tiny(), strange_images(), root / "strange")
    assert train(tiny(conditional=False), "shapes:n=60", root / "unlabelled")
    assert train(tiny(), "shapes:n=60", root / "half", stage="autoencoder")
    return root
