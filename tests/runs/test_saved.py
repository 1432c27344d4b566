"Tests of cfvae.runs.saved: on a full disk, or killed, the model that was there stays whole."

import os
import resource
import signal

import pytest
import torch

from cfvae.autoencoder import Autoencoder, AutoencoderConfig
from cfvae.core import CfvaeError
from cfvae.pipeline import load_local
from cfvae.runs.folder import load_model
from cfvae.runs.saved import save_whole

SIZES = AutoencoderConfig(size=8, widths=(8,), patch=2, groups=4, latent_channels=2)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def full_disk():
    "No file may grow beyond 2000 bytes, which fails as a full disk does."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


def test_what_is_saved_is_loaded(tmp_path):
    model = Autoencoder(SIZES)
    (tmp_path / ".model.0123456789abcdef.tmp").mkdir()  # what a killed process left
    (tmp_path / ".model.mine").mkdir()
    save_whole(model, tmp_path / "model")
    save_whole(model, tmp_path / "model")
    again = load_local(Autoencoder, tmp_path / "model")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert sorted(os.listdir(tmp_path)) == [".model.mine", "model"]


def test_a_full_disk_keeps_the_earlier_model(runs, full_disk):
    run = runs / "unlabelled"
    before = contents(run)
    for model, place in (
        (Autoencoder(SIZES), run / "autoencoder" / "model"),
        (load_model(run), run / "pipeline"),
    ):
        with pytest.raises(
            CfvaeError, match="cannot write the model to .*[Ff]ile too large.*free some space"
        ):
            save_whole(model, place)
    assert contents(run) == before
    assert not list(run.rglob("*.tmp"))
