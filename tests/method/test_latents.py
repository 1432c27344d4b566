"""The scaler, and the codes on disk: equal to direct encoding, made anew when stale, never half-written."""

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
from cfvae.latents import LatentDataset, LatentScaler, weights_fingerprint
from cfvae.files.codes import encode_dataset

resource = pytest.importorskip("resource")


class Stub(nn.Module):
    "Stands in for an autoencoder: two channels, not symmetric in left and right, and it counts how often it runs."

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


# --- scaler


def test_scaler_is_the_formula_and_inverts_what_it_did_not_clip():
    z = 10 * torch.randn(50, 3, 4, 4, generator=make_generator(0))
    scaler = LatentScaler([1.0, -2.0, 0.5], [2.0, 4.0, 8.0], clip=3.0)
    shift, scale = torch.tensor([1.0, -2, 0.5]).view(1, 3, 1, 1), torch.tensor([2.0, 4, 8]).view(1, 3, 1, 1)
    torch.testing.assert_close(scaler(z), ((z - shift) / scale).clip(-3, 3))
    assert scaler(z).abs().max() == 3
    inside = scaler(z).abs() < 3
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(scaler.invert(scaler(z))[inside], z[inside])


def test_scaler_takes_numbers_for_all_channels():
    z = torch.randn(2, 4, 3, 3, generator=make_generator(0))
    torch.testing.assert_close(LatentScaler(0.25, 4.4)(z), (z - 0.25) / 4.4)


def test_measure_standardises_every_channel():
    z = torch.randn(500, 2, 4, 4, generator=make_generator(0)) * torch.tensor([3.0, 0.1]).view(
        2, 1, 1
    ) + torch.tensor([5.0, -1.0]).view(2, 1, 1)
    scaled = LatentScaler.measure(z, clip=100)(z)
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(2), atol=1e-3, rtol=0)


def test_measure_of_a_constant_channel_stays_finite():
    assert LatentScaler.measure(torch.ones(5, 2, 3, 3))(torch.ones(1, 2, 3, 3)).isfinite().all()


@pytest.mark.parametrize("scale", [0.0, -1.0, [1.0, 0.0], float("nan")])
def test_scale_must_be_positive(scale):
    with pytest.raises(CfvaeError, match="scale"):
        LatentScaler(0.0, scale)


def test_scaler_travels_in_the_state_dict():
    other = LatentScaler([0.0, 0.0], [1.0, 1.0])
    other.load_state_dict(LatentScaler([1.0, 2.0], [3.0, 4.0]).state_dict())
    assert other.shift.flatten().tolist() == [1, 2] and other.scale.flatten().tolist() == [3, 4]


# --- fingerprint


def test_fingerprint_sees_one_changed_weight_and_bfloat16():
    model = Stub()
    before = weights_fingerprint(model)
    assert before == weights_fingerprint(Stub())
    with torch.no_grad():
        model.layer.bias[0] += 1e-6
    assert weights_fingerprint(model) != before
    assert weights_fingerprint(Stub().bfloat16()) not in (before, weights_fingerprint(Stub().half()))


def test_fingerprint_sees_shapes():
    a, b = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)
    for layer in (a, b):
        nn.init.ones_(layer.weight)
    assert weights_fingerprint(a) != weights_fingerprint(b)


# --- encoding


def test_codes_equal_direct_encoding(images, tmp_path):
    model = Stub()
    latents, z = encode(model, images, tmp_path / "codes"), direct(Stub(), images)
    scaled, labels = latents.batch(range(len(images)))
    assert (
        isinstance(latents, LatentDataset) and isinstance(latents.latents, np.memmap) and len(latents) == 70
    )
    assert latents.latents.dtype == np.float16 and latents.classes == images.classes
    torch.testing.assert_close(
        torch.from_numpy(np.array(latents.latents)).float(), z, rtol=1e-3, atol=1e-3
    )  # half precision
    torch.testing.assert_close(scaled, LatentScaler.measure(z)(z), rtol=5e-3, atol=5e-3)
    assert torch.equal(labels, images.labels) and scaled.dtype == torch.float32
    torch.testing.assert_close(latents[3][0], scaled[3])
    assert latents[3][1] == int(images.labels[3]) and torch.equal(latents[-1][0], scaled[-1])
    with pytest.raises(IndexError, match="no code 70 among 70"):
        latents[70]


def test_codes_and_scaler_do_not_depend_on_the_batch_size(images, tmp_path):
    one, other = (
        encode(Stub(), images, tmp_path / "a", batch_size=7),
        encode(Stub(), images, tmp_path / "b", batch_size=500),
    )
    np.testing.assert_allclose(
        np.array(one.latents, np.float32), np.array(other.latents, np.float32), rtol=2e-3, atol=2e-3
    )
    torch.testing.assert_close(one.scaler.scale, other.scaler.scale)
    torch.testing.assert_close(one.scaler.shift, other.scaler.shift)


def test_flip_adds_the_codes_of_the_mirrored_images(images, tmp_path):
    latents = encode(Stub(), images, tmp_path / "codes", flip=True)
    x, _ = images.batch(range(70))
    with torch.no_grad():
        mirrored = Stub().encode(x.flip(-1))
    assert len(latents) == 140 and torch.equal(latents.labels, images.labels.repeat(2))
    second = torch.from_numpy(np.array(latents.latents[70:])).float()
    torch.testing.assert_close(second, mirrored, rtol=1e-3, atol=1e-3)
    assert (second - torch.from_numpy(np.array(latents.latents[:70])).float().flip(-1)).abs().max() > 0.5


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
    torch.testing.assert_close(
        torch.from_numpy(np.array(second.latents[:70])).float(),
        direct(Stub(int(change == "autoencoder")), data),
        rtol=1e-3,
        atol=1e-3,
    )


def test_encoding_leaves_the_model_and_its_mode_alone(images, tmp_path):
    model = Stub().train()
    before = weights_fingerprint(model)
    encode(model, images, tmp_path / "codes")
    assert (
        model.training
        and weights_fingerprint(model) == before
        and all(p.grad is None for p in model.parameters())
    )


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
        from test_latents import Stub, Shapes, encode

        class Dies(Stub):
            def encode(self, x):
                if self.calls == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().encode(x)

        encode(Dies(), Shapes(70, size=16), sys.argv[1])
    """
    folder = tmp_path / "codes"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OMP_NUM_THREADS": "1",
    }
    died = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(folder), os.path.dirname(__file__)],
        env=environment,
    )
    assert died.returncode == -signal.SIGKILL
    assert (tmp_path / "codes.tmp").exists() and not folder.exists()
    model = Stub()
    assert len(encode(model, images, folder)) == 70 and model.calls == 3
    assert [p.name for p in tmp_path.iterdir()] == ["codes"]


def test_a_full_disk_is_reported_and_nothing_is_left_behind(images, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (2000, hard)
    )  # a write beyond 2000 bytes fails, as on a full disk
    try:
        with pytest.raises(CfvaeError, match="cannot write the codes.*codes.*[Ff]ree some space"):
            encode(Stub(), images, tmp_path / "codes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    assert len(encode(Stub(), images, tmp_path / "codes")) == 70


def test_a_failing_write_keeps_the_codes_that_were_there(images, tmp_path, monkeypatch):
    first = np.array(encode(Stub(), images, tmp_path / "codes").latents)
    with monkeypatch.context() as patched:
        patched.setattr(
            os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        with pytest.raises(CfvaeError, match="No space left"):
            encode(Stub(seed=1), images, tmp_path / "codes")
    model = Stub()
    assert (
        np.array_equal(np.array(encode(model, images, tmp_path / "codes").latents), first)
        and model.calls == 0
    )


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
    assert (
        about["fingerprint"] == latents.fingerprint
        and about["count"] == 70
        and len(about["shift"]) == len(about["scale"]) == 2
    )
    assert np.load(tmp_path / "codes" / "latents.npy", allow_pickle=False).shape == (70, 2, 4, 4)
    shutil.move(tmp_path / "codes", tmp_path / "moved")
    model = Stub()
    encode(model, images, tmp_path / "moved")
    assert model.calls == 0
