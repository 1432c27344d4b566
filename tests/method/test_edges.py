"At the edges of the method: the least and the largest numbers, no generator, whose line a warning names."

import inspect
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from cfvae.autoencoder_loss import AutoencoderLossConfig, first_stage_loss, load_lpips
from cfvae.blocks import SpectralTerm
from cfvae.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from cfvae.core import CfvaeError, to_uint8
from cfvae.data import ImageDataset, horizontal_flip
from cfvae.evaluation import _nearest_background
from cfvae.files.open import open_dataset
from cfvae.hvae import finite_number
from cfvae.training import _repeatable, bf16_is_fast


@pytest.mark.parametrize("scale", [1e-13, 1e-6, 1e6])
def test_the_singular_value_of_a_tiny_weight_is_as_exact(scale):
    "The weights before a prior start smaller by 1e-10, and are watched like the others."
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, 3)
    term = SpectralTerm(layer).eval()
    plain, scaled = term(layer.weight), term(scale * layer.weight)
    assert scaled.item() == pytest.approx(scale * plain.item(), rel=1e-4, abs=0)


def test_without_a_generator_the_global_one_says_what_is_mirrored():
    x = torch.arange(64.0).view(32, 1, 1, 2)
    torch.manual_seed(3)
    once = horizontal_flip(x)
    assert not torch.equal(once, horizontal_flip(x))
    torch.manual_seed(3)
    assert torch.equal(once, horizontal_flip(x))


def test_the_largest_float_is_finite():
    largest = torch.finfo(torch.float32).max
    assert (
        finite_number(largest, "temperature") == largest
        and finite_number(-largest, "temperature") == -largest
    )
    with pytest.raises(CfvaeError, match="temperature is 3.4"):
        finite_number(1.001 * largest, "temperature")


def test_backgrounds_are_told_by_the_corners_alone():
    backgrounds = torch.linspace(-1, 1, 3).view(3, 1, 1).expand(3, 3, 16)
    images = backgrounds[..., None].repeat(1, 1, 1, 16)
    images[:, :, 3:-3] = images[:, :, :, 3:-3] = torch.tensor([1.0, -1.0, -1.0]).view(
        3, 1, 1, 1
    )  # a large shape
    assert _nearest_background(images, backgrounds).tolist() == [0, 1, 2]


@pytest.mark.parametrize("fast", [True, False])
def test_mixed_precision_is_for_processors_that_have_it(monkeypatch, fast):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    assert bf16_is_fast(torch.device("cpu")) == fast
    assert not bf16_is_fast(torch.device("meta"))


def test_cudnn_repeats_itself_in_training_and_is_as_before_afterwards(monkeypatch):
    cudnn = torch.backends.cudnn
    for deterministic, benchmark in ((False, True), (True, False)):
        monkeypatch.setattr(cudnn, "deterministic", deterministic)
        monkeypatch.setattr(cudnn, "benchmark", benchmark)
        with pytest.raises(KeyboardInterrupt), _repeatable():
            assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
            raise KeyboardInterrupt
        assert (cudnn.deterministic, cudnn.benchmark) == (deterministic, benchmark)


def test_what_tells_pictures_apart_does_not_learn():
    net = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Dropout()).train()
    first_stage_loss(AutoencoderLossConfig(perceptual_weight=1.0), perceptual_net=net)
    assert not any(part.training for part in net.modules())
    assert not any(weight.requires_grad for weight in net.parameters())


def test_the_perceptual_network_is_asked_for_quietly(monkeypatch):
    asked = []
    lpips = types.SimpleNamespace(LPIPS=lambda **options: asked.append(options) or nn.Identity())
    monkeypatch.setitem(sys.modules, "lpips", lpips)
    load_lpips()
    assert asked == [{"net": "vgg", "verbose": False}]


def not_finite(tmp_path: Path):
    to_uint8(torch.tensor([float("nan")]))


def nearly_black(tmp_path: Path):
    ImageDataset(torch.ones(2, 3, 4, 4, dtype=torch.uint8), [0, 0], ["a"])


def damaged_checkpoint(tmp_path: Path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"a": torch.zeros(1)})
    list_checkpoints(tmp_path)[-1].write_bytes(b"")
    load_checkpoint(tmp_path)


def small_pictures(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4), "red").save(tmp_path / name / "a.png")
    open_dataset(f"folder:{tmp_path}", 16, cache=tmp_path / "cache")


@pytest.mark.parametrize("cause", [not_finite, nearly_black, damaged_checkpoint, small_pictures])
def test_a_warning_names_the_line_that_asked(tmp_path, cause):
    "And not a line inside the package, from which nobody learns what to change."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cause(tmp_path)
    lines, first = inspect.getsourcelines(cause)
    assert {Path(warning.filename).name for warning in caught} == {Path(__file__).name}
    assert all(first < warning.lineno < first + len(lines) for warning in caught)
