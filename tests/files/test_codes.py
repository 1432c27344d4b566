"""Codes on disk: equal to direct encoding, made anew when stale, never half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from cfvae.core import CfvaeError, make_generator
from cfvae.data import Shapes
from cfvae.files.codes import encode_dataset
from cfvae.latents import LatentDataset, LatentScaler, weights_fingerprint

resource = pytest.importorskip("resource")


class Stub(nn.Module):
    "Stands in for an autoencoder: two channels, not symmetric in left and right; counts its runs."

    def __init__(self, seed: int = 0):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 4, stride=4)
        nn.init.normal_(self.layer.weight, std=0.3, generator=make_generator(seed))
        nn.init.zeros_(self.layer.bias)
        self.calls = 0

    def encode(self, x):
        self.calls += 1
        return 5 * self.layer(x) + 3


@pytest.fixture(scope="module")
def images():
    return Shapes(70, size=16)


def encode(model, images, folder, **options):
    return encode_dataset(model, images, folder, progress=False, **{"batch_size": 32, **options})


def direct(model, images) -> torch.Tensor:
    with torch.no_grad():
        return model.encode(images.batch(range(len(images)))[0])


def on_disk(latents: LatentDataset) -> torch.Tensor:
    return torch.from_numpy(np.array(latents.latents)).float()


# --- encoding


def test_codes_equal_direct_encoding(images, tmp_path):
    model = Stub()
    latents = encode(model, images, tmp_path / "codes")
    assert isinstance(latents, LatentDataset) and isinstance(latents.latents, np.memmap)
    assert latents.latents.dtype == np.float16 and latents.classes == images.classes

    z = direct(Stub(), images)
    torch.testing.assert_close(on_disk(latents), z, rtol=1e-3, atol=1e-3)  # half precision
    scaled, labels = latents.batch(range(70))
    torch.testing.assert_close(scaled, LatentScaler.measure(z)(z), rtol=5e-3, atol=5e-3)
    assert torch.equal(labels, images.labels) and scaled.dtype == torch.float32
    assert len(latents) == 70 and torch.equal(latents[-1][0], scaled[-1])


def test_codes_and_scaler_do_not_depend_on_the_batch_size(images, tmp_path):
    one = encode(Stub(), images, tmp_path / "a", batch_size=7)
    other = encode(Stub(), images, tmp_path / "b", batch_size=500)
    torch.testing.assert_close(on_disk(one), on_disk(other), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(one.scaler.scale, other.scaler.scale)
    torch.testing.assert_close(one.scaler.shift, other.scaler.shift)


def test_flip_adds_the_codes_of_the_mirrored_images(images, tmp_path):
    latents = encode(Stub(), images, tmp_path / "codes", flip=True)
    x, _ = images.batch(range(70))
    with torch.no_grad():
        mirrored = Stub().encode(x.flip(-1))
    assert len(latents) == 140 and torch.equal(latents.labels, images.labels.repeat(2))
    first, second = on_disk(latents).split(70)
    torch.testing.assert_close(second, mirrored, rtol=1e-3, atol=1e-3)
    assert (second - first.flip(-1)).abs().max() > 0.5


def test_codes_are_used_again_while_nothing_changed(images, tmp_path):
    encode(Stub(), images, tmp_path / "codes")
    again = Stub()
    encode(again, Shapes(70, size=16), tmp_path / "codes")
    assert again.calls == 0


@pytest.mark.parametrize("change", ["autoencoder", "data", "flip"])
def test_stale_codes_are_made_anew(images, tmp_path, change):
    first = encode(Stub(), images, tmp_path / "codes")
    model = Stub(seed=1 if change == "autoencoder" else 0)
    data = Shapes(70, seed=1, size=16) if change == "data" else images
    second = encode(model, data, tmp_path / "codes", flip=change == "flip")
    assert model.calls >= 3 and second.fingerprint != first.fingerprint
    torch.testing.assert_close(on_disk(second)[:70], direct(model, data), rtol=1e-3, atol=1e-3)


def test_encoding_leaves_the_model_and_its_mode_alone(images, tmp_path):
    model = Stub().train()
    original = weights_fingerprint(model)
    encode(model, images, tmp_path / "codes")
    assert model.training and weights_fingerprint(model) == original
    assert all(p.grad is None for p in model.parameters())


# --- faults


@pytest.mark.parametrize(
    "damage",
    [
        "no about",
        "broken about",
        "about of another kind",
        "no codes",
        "short codes",
        "no header",
        "other codes",
    ],
)
def test_a_damaged_folder_is_made_anew(images, tmp_path, damage):
    folder = tmp_path / "codes"
    whole = np.array(encode(Stub(), images, folder).latents)
    about, codes = folder / "latents.json", folder / "latents.npy"
    if damage == "no about":
        about.unlink()
    elif damage == "broken about":
        about.write_text(about.read_text()[:20])
    elif damage == "about of another kind":
        about.write_text("[1, 2]")
    elif damage == "no codes":
        codes.unlink()
    elif damage == "other codes":
        np.save(codes, whole[:10])
    else:
        codes.write_bytes(codes.read_bytes()[: 5 if damage == "no header" else 1000])
    model = Stub()
    assert np.array_equal(np.array(encode(model, images, folder).latents), whole)
    assert model.calls == 3


def test_a_half_written_folder_of_a_killed_run_is_ignored(images, tmp_path):
    script = """
        import os, signal, sys, torch
        sys.path.insert(0, sys.argv[2])
        from test_codes import Stub, Shapes, encode

        class Dies(Stub):
            def encode(self, x):
                if self.calls == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().encode(x)

        encode(Dies(), Shapes(70, size=16), sys.argv[1])
    """
    folder = tmp_path / "codes"
    search_path = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": search_path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder), os.path.dirname(__file__)]
    died = subprocess.run(command, env=environment)
    assert died.returncode == -signal.SIGKILL
    assert (tmp_path / "codes.tmp").exists() and not folder.exists()
    model = Stub()
    assert len(encode(model, images, folder)) == 70 and model.calls == 3
    assert [p.name for p in tmp_path.iterdir()] == ["codes"]


def test_a_full_disk_is_reported_and_nothing_is_left_behind(images, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # a write beyond 2000 bytes fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(CfvaeError, match="cannot write the codes.*codes.*[Ff]ree some space"):
            encode(Stub(), images, tmp_path / "codes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    assert len(encode(Stub(), images, tmp_path / "codes")) == 70


def test_a_failing_write_keeps_the_codes_that_were_there(images, tmp_path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    first = np.array(encode(Stub(), images, tmp_path / "codes").latents)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        with pytest.raises(CfvaeError, match="No space left"):
            encode(Stub(seed=1), images, tmp_path / "codes")
    model = Stub()
    again = np.array(encode(model, images, tmp_path / "codes").latents)
    assert np.array_equal(again, first) and model.calls == 0


def test_a_folder_that_cannot_be_made_is_reported(images, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CfvaeError, match="cannot write the codes"):
        encode(Stub(), images, tmp_path / "file" / "codes")


def test_codes_that_are_not_finite_are_refused(images, tmp_path):
    model = Stub()
    with torch.no_grad():
        model.layer.bias[0] = float("nan")
    with pytest.raises(CfvaeError, match="not finite"):
        encode(model, images, tmp_path / "codes")
    assert list(tmp_path.iterdir()) == []


def test_codes_too_large_for_half_precision_are_refused(images, tmp_path):
    model = Stub()
    with torch.no_grad():
        model.layer.bias[0] = 1e6
    with pytest.raises(CfvaeError, match="half precision"):
        encode(model, images, tmp_path / "codes")


def test_what_is_on_disk_is_plain(images, tmp_path):
    latents = encode(Stub(), images, tmp_path / "codes")
    about = json.loads((tmp_path / "codes" / "latents.json").read_text())
    assert about["fingerprint"] == latents.fingerprint and about["count"] == 70
    assert len(about["shift"]) == len(about["scale"]) == 2
    assert np.load(tmp_path / "codes" / "latents.npy", allow_pickle=False).shape == (70, 2, 4, 4)
    shutil.move(tmp_path / "codes", tmp_path / "moved")
    model = Stub()
    encode(model, images, tmp_path / "moved")
    assert model.calls == 0
