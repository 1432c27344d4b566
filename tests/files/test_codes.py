"""Codes on disk: equal to direct encoding, made anew when stale, never half-written."""

import errno
import json
import os
import re
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
from cfvae.files.codes import encode_dataset, encode_share
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


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8", True])
def test_batches_of_no_images(images, tmp_path, batch_size):
    with pytest.raises(CfvaeError, match="batch_size is .*: a whole number from 1 is needed"):
        encode(Stub(), images, tmp_path / "codes", batch_size=batch_size)
    assert not (tmp_path / "codes").exists()


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


def overwrite(path, offset, content):
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(data)


def change_fields(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


DAMAGES = {
    "no codes": lambda about, codes: codes.unlink(),
    "empty": lambda about, codes: codes.write_bytes(b""),
    "short": lambda about, codes: codes.write_bytes(codes.read_bytes()[:1000]),
    "no header": lambda about, codes: codes.write_bytes(codes.read_bytes()[:5]),
    "other codes": lambda about, codes: np.save(codes, np.load(codes)[:10]),
    "another type": lambda about, codes: np.save(codes, np.load(codes).view(np.int16)),
    "another shape": lambda about, codes: np.save(codes, np.load(codes).reshape(70, 2, 2, 8)),
    "an archive": lambda about, codes: np.savez(codes.open("wb"), codes=np.ones(3)),
    "bytes in the middle": lambda about, codes: overwrite(codes, 2000, bytes(1000)),
    "one bit": lambda about, codes: overwrite(codes, 3000, bytes([codes.read_bytes()[3000] ^ 1])),
    "another shift": lambda about, codes: change_fields(about, shift=[0.5, 0.5]),
    "one shift for two channels": lambda about, codes: change_fields(about, shift=[0.5]),
    "a count that is none": lambda about, codes: change_fields(about, count=None),
    "no checksum": lambda about, codes: change_fields(about, sha256=None),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_codes_are_made_anew(images, tmp_path, damage):
    folder = tmp_path / "codes"
    first = encode(Stub(), images, folder)
    whole = np.array(first.latents)
    damage(folder / "latents.json", folder / "latents.npy")
    model = Stub()
    again = encode(model, images, folder)
    assert model.calls == 3 and np.array_equal(np.array(again.latents), whole)
    assert torch.equal(again.scaler.shift, first.scaler.shift)


@pytest.mark.parametrize("position", [0, 6, 8, 20, 60, 72, 90])
def test_a_header_with_a_wrong_byte_is_no_defect(images, tmp_path, position):
    folder = tmp_path / "codes"
    whole = np.array(encode(Stub(), images, folder).latents)
    overwrite(folder / "latents.npy", position, b"\xff")
    assert np.array_equal(np.array(encode(Stub(), images, folder).latents), whole)


def as_first_version(about):
    "Write latents.json as 0.1 did, without mark and checksum."
    fields = json.loads(about.read_text())
    first = {name: fields[name] for name in ("fingerprint", "count", "shift", "scale")}
    about.write_text(json.dumps(first))


def test_codes_of_the_first_version_are_used(images, tmp_path):
    folder = tmp_path / "codes"
    encode(Stub(), images, folder)
    as_first_version(folder / "latents.json")
    model = Stub()
    encode(model, images, folder)
    assert model.calls == 0
    encode(Stub(seed=1), images, folder)  # and they may be replaced
    assert "sha256" in json.loads((folder / "latents.json").read_text())


@pytest.mark.parametrize(
    "fields",
    [
        {"shift": [1e9, 0]},
        {"shift": [float("nan"), 0]},
        {"shift": [True, 0]},
        {"shift": ["0", 0]},
        {"shift": 0.5},
        {"shift": None},
        {"scale": [float("inf"), 1]},
        {"scale": [1, 0]},
        {"scale": [1, -1]},
        {"scale": [1, 10**400]},
    ],
)
def test_a_shift_or_scale_that_cannot_be_is_measured_anew(images, tmp_path, fields):
    folder = tmp_path / "codes"
    first = encode(Stub(), images, folder)
    as_first_version(folder / "latents.json")
    change_fields(folder / "latents.json", **fields)
    again = encode(Stub(), images, folder)
    assert torch.equal(again.scaler.shift, first.scaler.shift)
    assert torch.equal(again.scaler.scale, first.scaler.scale)


# --- what is not ours


FOREIGN = {
    "numbers of another program": {"latents.npy": b"measured for weeks"},
    "a description of another program": {"latents.json": b'{"format": 3, "shift": [1]}'},
    "a fingerprint of another program": {"latents.json": b'{"fingerprint": "mine"}'},
    "no description": {"latents.json": b"[1, 2]", "latents.npy": b"mine"},
    "a cut description": {"latents.json": b'{"fingerprint": "0f', "latents.npy": b"mine"},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_foreign_files_are_refused_and_kept(images, tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    model = Stub()
    with pytest.raises(CfvaeError, match=r"latents\.\w+ that cfvae did not write.*choose another folder"):
        encode(model, images, tmp_path)
    assert model.calls == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_a_folder_in_place_of_codes_is_refused_before_the_work(images, tmp_path):
    encode(Stub(), images, tmp_path)
    (tmp_path / "latents.npy").unlink()
    (tmp_path / "latents.npy").mkdir()
    about = (tmp_path / "latents.json").read_bytes()
    model = Stub()
    with pytest.raises(CfvaeError, match="that cfvae did not write"):
        encode(model, images, tmp_path)
    assert model.calls == 0 and (tmp_path / "latents.json").read_bytes() == about


def test_no_images_have_no_codes(images, tmp_path):
    with pytest.raises(CfvaeError, match="has no images: give some to encode"):
        encode(Stub(), images.subset([]), tmp_path / "codes")


def test_a_way_back_out_of_a_folder_that_is_not_there_hides_nothing(images, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "latents.npy").write_text("mine")
    with pytest.raises(CfvaeError, match=r"mine leads through .*new, which is not there"):
        encode(Stub(), images, tmp_path / "new" / ".." / "mine")
    assert (tmp_path / "mine" / "latents.npy").read_text() == "mine"


def test_neighbours_and_other_files_are_left_alone(images, tmp_path):
    (tmp_path / "codes.tmp").mkdir()
    (tmp_path / "codes.tmp" / "thesis.tex").write_text("mine")
    (tmp_path / "codes").mkdir()
    (tmp_path / "codes" / "latents.npy.tmp").write_text("mine")
    encode(Stub(), images, tmp_path / "codes")
    encode(Stub(seed=1), images, tmp_path / "codes")
    assert (tmp_path / "codes.tmp" / "thesis.tex").read_text() == "mine"
    assert (tmp_path / "codes" / "latents.npy.tmp").read_text() == "mine"


# --- two processes, and one that dies


class Interferes(Stub):
    "Does something between its second batch and its third."

    def __init__(self, action, seed=0):
        super().__init__(seed)
        self.action = action

    def encode(self, x):
        if self.calls == 2:
            self.action()
        return super().encode(x)


def test_a_second_process_is_refused_while_the_first_encodes(images, tmp_path):
    folder = tmp_path / "codes"
    second = Stub(seed=1)

    def meanwhile():
        with pytest.raises(CfvaeError, match="codes is in use by another run.*choose another folder"):
            encode(second, images, folder)

    first = Interferes(meanwhile)
    codes = np.array(encode(first, images, folder).latents)
    assert first.calls == 3 and second.calls == 0
    assert np.array_equal(codes, direct(Stub(), images).half().numpy())
    assert sorted(os.listdir(folder)) == ["latents.json", "latents.npy"]


def test_codes_mixed_up_by_two_are_noticed(images, tmp_path, monkeypatch):
    "Where locks do not work: codes of the one beside the description of the other."
    for name, seed in (("a", 0), ("b", 1)):
        encode(Stub(seed), images, tmp_path / name)
    shutil.copy(tmp_path / "a" / "latents.npy", tmp_path / "b" / "latents.npy")
    model = Stub(seed=1)
    encode(model, images, tmp_path / "b")
    assert model.calls == 3


def test_codes_in_use_stay_what_they_are_when_others_replace_them(images, tmp_path):
    in_use = encode(Stub(), images, tmp_path / "codes")
    before = np.array(in_use.latents)
    encode(Stub(seed=1), images, tmp_path / "codes")
    assert np.array_equal(np.array(in_use.latents), before)


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
    left = [name for name in os.listdir(folder) if re.fullmatch(r"latents\.npy\.\w{16}\.tmp", name)]
    assert len(left) == 1 and not (folder / "latents.json").exists()
    model = Stub()
    assert len(encode(model, images, folder)) == 70 and model.calls == 3
    assert sorted(os.listdir(folder)) == ["latents.json", "latents.npy"]
    assert os.listdir(tmp_path) == ["codes"]


def test_a_full_disk_is_reported_and_nothing_is_left_behind(images, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # a write beyond 2000 bytes fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(CfvaeError, match="cannot write the codes.*codes.*free some space"):
            encode(Stub(), images, tmp_path / "codes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "codes").iterdir()) == []
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


def test_a_disk_that_is_read_only_is_not_called_full(images, tmp_path, monkeypatch):
    def read_only(descriptor):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "fsync", read_only)
    with pytest.raises(
        CfvaeError, match=r"\(Read-only file system\): make it writable, or choose another folder"
    ):
        encode(Stub(), images, tmp_path / "codes")


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
    assert list((tmp_path / "codes").iterdir()) == []


def test_codes_too_large_for_half_precision_are_refused(images, tmp_path):
    model = Stub()
    with torch.no_grad():
        model.layer.bias[0] = 1e6
    with pytest.raises(CfvaeError, match="half precision"):
        encode(model, images, tmp_path / "codes")


def test_what_is_on_disk_is_plain(images, tmp_path):
    latents = encode(Stub(), images, tmp_path / "codes")
    about = json.loads((tmp_path / "codes" / "latents.json").read_text())
    assert about["format"] == "cfvae codes 1" and about["fingerprint"] == latents.fingerprint
    assert about["count"] == 70 and about["shape"] == [70, 2, 4, 4] and about["dtype"] == "<f2"
    assert len(about["shift"]) == len(about["scale"]) == 2
    assert np.load(tmp_path / "codes" / "latents.npy", allow_pickle=False).shape == (70, 2, 4, 4)
    shutil.move(tmp_path / "codes", tmp_path / "moved")
    model = Stub()
    encode(model, images, tmp_path / "moved")
    assert model.calls == 0


# --- several processes


@pytest.mark.parametrize("flip", [False, True])
def test_shares_of_several_processes_are_the_whole(images, tmp_path, flip):
    model = Stub()
    whole = encode(model, images, tmp_path / "whole", flip=flip)
    for rank in (2, 0, 1):
        encode_share(model, images, tmp_path / "joined", flip, rank, shares=3)
    calls = model.calls
    joined = encode(model, images, tmp_path / "joined", flip=flip, shares=3)
    assert model.calls == calls  # nothing is encoded twice
    assert torch.equal(on_disk(joined), on_disk(whole)) and joined.fingerprint == whole.fingerprint
    assert torch.equal(joined.labels, whole.labels)
    assert torch.allclose(joined.scaler.shift, whole.scaler.shift, rtol=1e-4)
    assert torch.allclose(joined.scaler.scale, whole.scaler.scale, rtol=1e-4)

    left = {path.name for path in (tmp_path / "joined").iterdir()}
    assert left == {"latents.npy", "latents.json"}
    encode_share(model, images, tmp_path / "joined", flip, rank=1, shares=3)  # all is there
    assert model.calls == calls and not (tmp_path / "joined" / "shares").exists()


def test_one_bar_is_enough_for_several_processes(images, tmp_path, capsys):
    for rank in (1, 0):
        encode_share(Stub(), images, tmp_path / "codes", flip=False, rank=rank, shares=2)
        assert ("encoding" in capsys.readouterr().err) == (rank == 0)


def test_codes_go_into_a_folder_that_is_named(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CfvaeError, match="the folder is ''"):
        encode_dataset(Stub(), images, "")
    assert not list(tmp_path.iterdir())
