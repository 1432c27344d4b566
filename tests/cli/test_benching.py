"Tests of cfvae.cli.benching: what `bench` prints, writes and refuses."

import errno
import functools
import json
import shutil
from pathlib import Path

import pytest
from commandline import SETTINGS, done, refused
from PIL import Image

from cfvae.cli import benching
from cfvae.recipes import change
from cfvae.runs import free
from cfvae.runs.bench import bench
from cfvae.runs.presets import preset
from cfvae.runs.scaling import measure_scaling


@pytest.fixture
def quick(monkeypatch):
    "Presets of the size of a toy, measured no longer than necessary."
    settings = {**SETTINGS, "precision": "fp32"}
    monkeypatch.setattr(benching, "preset", lambda name: change(preset(name), settings))
    monkeypatch.setattr(benching.speed, "bench", functools.partial(bench, seconds=0.0))
    monkeypatch.setattr(benching, "measure_scaling", functools.partial(measure_scaling, seconds=0.0))


def refuse_to_measure(*arguments):
    raise AssertionError("measured before the options were looked at")


@pytest.fixture
def unmeasured(monkeypatch):
    monkeypatch.setattr(benching.speed, "bench", refuse_to_measure)


def test_bench_prints_a_table(quick):
    out = done("bench --device cpu")
    assert out.startswith("shapes-demo on cpu: ") and "written" not in out
    for text in ("training step", "guided sampling", "encoding", "examples/s", "TFLOP/s", "peak memory"):
        assert text in out
    for text in ("torch ", "cores", "matrix products: bf16 ", "of a step's time goes into fetching data"):
        assert text in out
    assert max(len(line) for line in out.splitlines()) <= 160


def test_bench_says_that_samples_are_codes(quick, monkeypatch):
    sizes = {
        "layers": 1,
        "widths": 8,
        "encoder_widths": 8,
        "encoder_blocks": 1,
        "multipliers": 0,
        "attention": 0,
    }
    settings = {f"vae.{name}": value for name, value in sizes.items()}
    settings["batch_size"] = 2
    monkeypatch.setattr(benching, "preset", lambda name: change(preset(name), settings))
    out = done("bench --preset church --device cpu")
    assert (
        "church on cpu" in out and "the first stage is pretrained and was left out: samples are codes" in out
    )
    assert "encoding" not in out and "guided" not in out


def test_bench_writes_numbers_and_figure(quick):
    out = done("bench --device cpu --scale --out measured/here")
    folder = Path("measured/here")
    names = ["bench-scale.json", "bench-scale.png", "bench.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in names:
        assert f"written: {folder / name}\n" in out

    numbers = json.loads((folder / "bench.json").read_text())
    assert numbers["preset"] == "shapes-demo" and numbers["training"]["batch_size"] == 8
    assert json.loads((folder / "bench-scale.json").read_text())["points"]
    with Image.open(folder / "bench-scale.png") as figure:
        assert figure.format == "PNG" and figure.width > 600
    assert (
        "how costs grow" in out and "around resolutions 1,4,8, layers 1,1,1, widths 8,8,8, batch 8\n" in out
    )


def test_a_name_that_is_wrong(unmeasured):
    refused("bench --preset shape", "there is no preset 'shape'", "shapes-demo")
    refused('bench --preset ""', "--preset is empty")
    refused("bench --device quantum", "unknown device 'quantum'")


def test_out_is_looked_at_before_the_work(unmeasured):
    refused('bench --device cpu --out ""', "--out is empty: give it a value")
    Path("taken").write_text("")
    refused("bench --device cpu --out taken", "cannot write to taken (File exists): move away the file")
    refused("bench --device cpu --out taken/below", "cannot write to taken/below (")
    for name in ("bench.json", "bench-scale.json", "bench-scale.png"):
        Path("mine").mkdir()
        Path("mine", name).write_text("mine")
        refused("bench --device cpu --out mine", f"mine holds {name}, which cfvae did not write")
        assert Path("mine", name).read_text() == "mine"
        shutil.rmtree("mine")


def test_a_folder_that_cannot_be_written_to(unmeasured, monkeypatch):
    def fail(dir):
        raise OSError(errno.EROFS, "Read-only file system", str(dir))

    monkeypatch.setattr(free.tempfile, "TemporaryFile", fail)
    refused("bench --device cpu --out fixed", "cannot write to fixed (Read-only file system): make it")


def test_a_disk_that_is_full_at_the_end(quick, monkeypatch):
    def fail(path, payload):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(benching, "write_synced", fail)
    out = refused("bench --device cpu --out full", "bench.json: No space left on device: free some space")
    assert "training step" in out  # the numbers are on the screen at least
