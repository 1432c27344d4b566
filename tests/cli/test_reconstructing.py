"Tests of cfvae.cli.reconstructing: a row per depth, labels by the names of the classes."

from pathlib import Path

import numpy as np
import pytest
from commandline import done, refused
from PIL import Image

from cfvae.core import to_uint8
from cfvae.data import Shapes
from cfvae.pipeline import LatentVAEPipeline
from cfvae.runs.folder import load_model


def test_reconstruct_draws_a_row_per_depth(run):
    out = done("reconstruct run --data shapes:n=9,seed=4 --n 3 --depths 1,all --out rows.png")
    assert out == "rows.png, from top to bottom: originals, autoencoder alone, 1 layer, all layers\n"
    picture = np.asarray(Image.open("rows.png"))[::2, ::2].astype(int)
    assert picture.shape == (4 * 34 + 2, 3 * 34 + 2, 3)

    images, labels = Shapes(9, seed=4).batch([0, 3, 6])
    pipe = load_model("run")
    rows = [images] + [pipe.reconstruct(images, labels, depth) for depth in (0, 1, None)]
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            drawn = picture[2 + 34 * i : 34 + 34 * i, 2 + 34 * j : 34 + 34 * j]
            expected = to_uint8(image).permute(1, 2, 0).numpy().astype(int)
            assert abs(drawn - expected).max() <= 1


def test_a_row_of_no_layers_would_be_the_autoencoder_twice(run):
    refused("reconstruct run --data shapes:n=9,seed=4 --n 3 --depths 0,all --out rows.png", "--depths: 0 is")


def test_reconstruct_matches_classes_by_name(run, monkeypatch):
    for name, grey in (("star", 40), ("heart", 200)):
        Path("two", name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (32, 32), (grey + i, grey, grey)).save(f"two/{name}/{i}.png")
    given_labels = []
    original = LatentVAEPipeline.reconstruct

    def record(self, images, labels, depth):
        given_labels.append(labels)
        return original(self, images, labels, depth)

    with monkeypatch.context() as patch:
        patch.setattr(LatentVAEPipeline, "reconstruct", record)
        done("reconstruct run --data folder:two --n 4 --out two.png")
    assert given_labels[0] == load_model("run").class_indices(["heart", "heart", "star", "star"])

    Path("two/star").rename("two/cat")
    line = "reconstruct run --data folder:two --n 4 --out x.png"
    refused(line, "two: the model knows no class cat", "disc")
    Path("flat").mkdir()
    Image.new("RGB", (32, 32)).save("flat/a.png")
    refused("reconstruct run --data folder:flat --n 1 --out x.png", "flat: the images have no labels")


def test_reconstruct_without_classes(plain):
    done("reconstruct plain --data shapes:n=5 --n 2 --out plain.png")


@pytest.mark.parametrize(
    "line, needles",
    [
        ("--data shapes:n=9 --depths 1,two", ["--depths: 'two'", "1,4,all"]),
        ("--data shapes:n=9 --depths 4", ["depth is 4", "1 to 3"]),
        ("--data shapes:n=9 --n 10", ["--n is 10", "9 images"]),
        ("--data squares", ["squares"]),
        ("", ["--data"]),
    ],
)
def test_reconstruct_errors(run, line, needles):
    refused(f"reconstruct run {line} --out x.png", *needles)
