"The shipped weights: they are what their recipes say, small, and as good as the README claims."

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

import cfvae
from cfvae.cli import app
from cfvae.core import CfvaeError, make_generator, shipped_weights
from cfvae.data import Shapes
from cfvae.evaluation import class_accuracy, measure_shapes, shapes_classifier
from cfvae.guidance import Guidance
from cfvae.hvae import HierarchicalVAE
from cfvae.runs.pixel_models import PIXEL_MODEL, PIXEL_SCHEDULES
from cfvae.objective import shifted_exponential
from cfvae.pipeline import LatentVAEPipeline
from cfvae.runs.folder import load_model
from cfvae.runs.presets import preset

WEIGHTS = Path(cfvae.__file__).parent / "weights"
N = 1000


def megabytes(name: str) -> float:
    return sum(path.stat().st_size for path in (WEIGHTS / name).rglob("*") if path.is_file()) / 1e6


@pytest.fixture(scope="module")
def pipe():
    return LatentVAEPipeline.from_pretrained("shapes")


@pytest.fixture(scope="module")
def guided(pipe):
    "As the README and the lessons draw them: a mean weight of 3."
    return (
        pipe(
            torch.arange(N) % 10,
            guidance=Guidance(3.0, 0.0),
            eps=pipe.vae.noise(N, make_generator(0)),
            output_type="pt",
        ).images
        * 2
        - 1
    )


def test_they_are_small():
    assert megabytes("shapes") < 12 and sum(map(megabytes, PIXEL_SCHEDULES)) < 4
    assert sum(megabytes(folder.name) for folder in WEIGHTS.iterdir() if folder.is_dir()) < 90
    assert max(path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")) < 45e6


@pytest.mark.parametrize(
    "path", sorted(WEIGHTS.rglob("*.safetensors")), ids=lambda path: str(path.parent.relative_to(WEIGHTS))
)
def test_they_are_half_precision_and_finite(path):
    with safe_open(path, framework="pt") as file:
        for name in file.keys():
            tensor = file.get_tensor(name)
            assert bool(tensor.isfinite().all()), name
            assert tensor.dtype == torch.float16 or not tensor.is_floating_point(), name


def test_the_table_of_weights_names_them_all():
    text = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    assert all(f"`{folder.name}`" in text for folder in WEIGHTS.iterdir() if folder.is_dir())


def test_the_pipeline_is_that_of_its_recipe(pipe):
    recipe = preset("shapes")
    assert pipe.autoencoder.config == recipe.autoencoder and pipe.vae.config == recipe.vae
    assert pipe.classes == Shapes(1).classes


def test_the_photographs_are_those_of_their_recipe():
    photographs = LatentVAEPipeline.from_pretrained("cifar10")
    recipe = preset("cifar10")
    assert photographs.autoencoder.config == recipe.autoencoder
    assert photographs.vae.config == recipe.vae
    assert photographs.classes[8] == "ship" and len(photographs.classes) == 10

    labels = torch.tensor([8, 8, 8, 8, 6, 6, 6, 6])  # ships and frogs: blue-grey against green-brown
    guidance = Guidance(2.0, 2.0)
    noise = photographs.vae.noise(len(labels), make_generator(0))
    images = photographs(labels, guidance=guidance, eps=noise, output_type="pt").images
    red, _, blue = images.mean((2, 3)).unbind(1)
    assert (blue - red)[:4].mean() > 0.05 > (blue - red)[4:].mean(), (blue - red).tolist()
    assert images.std() > 0.15


@pytest.mark.parametrize("name", PIXEL_SCHEDULES)
def test_the_pixel_models_are_those_of_their_recipe(name):
    model = HierarchicalVAE.from_pretrained(shipped_weights(name)).eval()
    assert model.config == PIXEL_MODEL
    x = Shapes(64, seed=1, size=16).batch(range(64))[0]
    assert (model.reconstruct(x) - x).square().mean() < 0.01


def test_the_reweighted_model_shares_its_nats_out():
    outside = {}
    x, schedule = Shapes(128, seed=1, size=16).batch(range(128))[0], shifted_exponential(8, 10)
    for name in PIXEL_SCHEDULES:
        model = HierarchicalVAE.from_pretrained(shipped_weights(name)).eval()
        with torch.no_grad():
            rates = model(x, generator=make_generator(0)).rates.mean(0)
        share = 100 * rates / rates.sum()
        outside[name] = ((schedule - share).clamp_min(0) + (share - 2 * schedule).clamp_min(0)).sum().item()
    assert outside["pixels-reweighted"] < 0.7 * outside["pixels-plain"], outside


def test_guided_samples_are_recognised(guided):
    assert class_accuracy(shapes_classifier(), guided, torch.arange(N) % 10) > 0.9


def test_guided_samples_keep_their_variety(guided):
    "Colours, backgrounds, sizes and positions are spread as in the data, read with the same ruler."
    real, drawn = measure_shapes(Shapes(N, seed=9).batch(range(N))[0]), measure_shapes(guided)
    for factor, kinds in (("colour", 12), ("background", 6)):
        shares = [torch.bincount(found[factor], minlength=kinds) / N for found in (real, drawn)]
        assert (shares[1] > 0.2 / kinds).all(), (factor, shares[1])
        assert 0.5 * (shares[0] - shares[1]).abs().sum() < 0.2, (factor, shares)
    for factor in ("area", "x", "y"):  # quartiles, since the ruler takes a mixed background for a huge shape
        middle, width = zip(
            *(
                (found[factor].median(), found[factor].quantile(0.75) - found[factor].quantile(0.25))
                for found in (real, drawn)
            ),
            strict=True,
        )
        assert 0.6 < width[1] / width[0] < 2, (factor, width)
        assert (middle[1] - middle[0]).abs() < 0.5 * width[0], (factor, middle)


def test_reconstructions_keep_the_class(pipe):
    x, y = Shapes(200, seed=77).batch(range(200))
    assert class_accuracy(shapes_classifier(), pipe.reconstruct(x, depth=0), y) > 0.97
    assert class_accuracy(shapes_classifier(), pipe.reconstruct(x, y), y) > 0.9


def test_a_name_stands_for_the_shipped_folder(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    eps = pipe.vae.noise(2, make_generator(0))
    assert torch.equal(
        load_model("shapes")([0, 1], eps=eps, output_type="pt").images,
        pipe([0, 1], eps=eps, output_type="pt").images,
    )
    with pytest.raises(CfvaeError, match="shapez"):
        LatentVAEPipeline.from_pretrained("shapez")
    (tmp_path / "shapes").mkdir()  # what exists at the path comes first
    with pytest.raises(CfvaeError, match="hides the one of this name"):
        LatentVAEPipeline.from_pretrained("shapes")


def test_the_command_line_draws_from_the_shipped_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(
        app, ["sample", "shapes", "--n", "4", "--out", "grid.png", "--mean-weight", "3"]
    )
    assert done.exit_code == 0 and (tmp_path / "grid.png").stat().st_size > 500, done.output
