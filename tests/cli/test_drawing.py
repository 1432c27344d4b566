"Tests of cfvae.cli.drawing: exactly the images that were asked for, in every form."

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commandline import TINY, done, refused
from PIL import Image

from cfvae.cli.writing import open_npz, save_each, save_grid
from cfvae.core import CfvaeError
from cfvae.data import FACTORS
from cfvae.pipeline import LatentVAEPipeline
from cfvae.runs.folder import load_model

CLASSES = FACTORS["class"]


def array(name):
    with np.load(name) as file:
        assert file.files == ["arr_0"]
        return file["arr_0"]


@contextlib.contextmanager
def full_disk():
    "No file may grow beyond 100 bytes, which fails as a full disk does."
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_on_a_full_disk_the_old_picture_stays_and_no_half_one(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    picture = tmp_path / "a.png"
    save_grid(images, None, picture)
    before = picture.read_bytes()
    (tmp_path / "each").mkdir()
    with full_disk():
        with pytest.raises(OSError) as of_grid:
            save_grid(255 - images, None, picture)
        with pytest.raises(OSError) as of_each:
            save_each(images, 0, None, tmp_path / "each")
        with pytest.raises(OSError) as of_array, open_npz(tmp_path / "a.npz", (1, 1, 1, 99999)) as file:
            file.write(bytes(99999))
    named = [Path(error.value.filename).name for error in (of_grid, of_each, of_array)]
    assert named == ["a.png", "000000.png", "a.npz"]
    assert picture.read_bytes() == before
    assert not any((tmp_path / "each").iterdir()) and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["a" * 400, "甲" * 400])
def test_a_caption_as_a_class_is_cut_in_the_names_of_files(tmp_path, name):
    save_each(np.zeros((2, 4, 4, 3), np.uint8), 5, [name, name], tmp_path)
    assert [path.name[:9] for path in sorted(tmp_path.iterdir())] == [
        f"000005-{name[:2]}",
        f"000006-{name[:2]}",
    ]


def test_two_commands_do_not_mix_their_images_in_one_folder(tmp_path):
    black, white = np.zeros((2, 1, 4, 4, 3), np.uint8) + np.uint8([[[[[0]]]], [[[[255]]]]])
    save_each(black, 0, None, tmp_path)
    with pytest.raises(CfvaeError, match="another command writes into"):
        save_each(white, 0, None, tmp_path)
    assert (np.asarray(Image.open(tmp_path / "000000.png")) == 0).all()


@pytest.mark.parametrize("n", [1, 7])
def test_exactly_n_images(run, n):
    out = done(f"sample run --n {n} --batch-size 4 --out n{n}.png --out-dir n{n} --npz n{n}.npz")
    images = array(f"n{n}.npz")
    files = sorted(Path(f"n{n}").iterdir())
    assert images.shape == (n, 32, 32, 3) and images.dtype == np.uint8
    assert [path.name for path in files] == [f"{i:06d}-{CLASSES[i]}.png" for i in range(n)]
    for path, image in zip(files, images, strict=True):
        assert (np.asarray(Image.open(path)) == image).all()
    assert f"{n} image{'s' * (n > 1)} (" in out and f"in n{n}.png, n{n}, n{n}.npz" in out

    columns, rows = (3, 3) if n == 7 else (1, 1)
    picture = np.asarray(Image.open(f"n{n}.png"))
    assert picture.shape == (2 * (rows * 34 + 2), 2 * (columns * 34 + 2), 3)  # 32 pixels are drawn as 64
    assert (picture[4:68:2, 4:68:2] == images[0]).all()


def test_the_seed_decides_and_neither_n_nor_the_batch_size(run):
    done("sample run --n 6 --npz seed-a.npz")
    done("sample run --n 6 --npz seed-b.npz")
    done("sample run --n 6 --seed 1 --npz seed-c.npz")
    done("sample run --n 9 --batch-size 2 --npz seed-d.npz")
    a, b, c, d = (array(f"seed-{name}.npz").astype(int) for name in "abcd")
    assert (a == b).all() and abs(a - d[:6]).max() <= 1 and abs(a - c).max() > 1
    assert Path("seed-a.npz").read_bytes() == Path("seed-b.npz").read_bytes()


def test_precision_reaches_the_model(run):
    done("sample run --n 3 --npz fp32.npz")
    done("sample run --n 3 --precision bf16 --npz bf16.npz")
    difference = abs(array("fp32.npz").astype(int) - array("bf16.npz"))
    assert difference.any() and difference.mean() < 2


def test_classes_labels_and_what_pipe_draws(run):
    star, heart = CLASSES.index("star"), CLASSES.index("heart")
    done("sample run --n 5 --classes star,heart --npz names.npz --out-dir names")
    done(f"sample run --n 5 --labels {star},{heart} --npz numbers.npz")
    in_turn = ("star", "heart", "star", "heart", "star")
    files = sorted(path.name for path in Path("names").iterdir())
    assert files == [f"{i:06d}-{name}.png" for i, name in enumerate(in_turn)]
    assert (array("names.npz") == array("numbers.npz")).all()

    pipe = load_model("run")
    generator = torch.Generator().manual_seed(0)
    noise = [pipe.vae.noise(1, generator) for _ in range(5)]
    eps = [torch.cat(layer) for layer in zip(*noise, strict=True)]
    drawn = pipe([star, heart, star, heart, star], eps=eps, output_type="np").images
    assert (array("names.npz") == drawn).all()


@pytest.mark.parametrize(
    "options, mean_weight, var_weight, temperature",
    [
        ("", 0, 0, 1),
        ("--mean-weight 1.5 --var-weight 3.0", 1.5, 3, 1),
        ("--mean-weight 1,0.5,0 --temperature 0.5,0.6,0.7", (1, 0.5, 0), 0, (0.5, 0.6, 0.7)),
    ],
)
def test_guidance_and_temperature_reach_the_model(
    run, monkeypatch, options, mean_weight, var_weight, temperature
):
    calls = []
    original = LatentVAEPipeline.__call__

    def record(self, labels, n, guidance, temperature, *given, **options):
        calls.append((guidance, temperature))
        return original(self, labels, n, guidance, temperature, *given, **options)

    monkeypatch.setattr(LatentVAEPipeline, "__call__", record)
    done(f"sample run --n 2 {options} --npz guided.npz")
    ((guidance, given_temperature),) = calls
    assert (guidance.mean_weight, guidance.var_weight) == (mean_weight, var_weight)
    assert given_temperature == temperature
    assert bool(guidance) == bool(options)  # off, if not asked for


def test_model_without_classes(plain):
    done("sample plain --n 3 --out-dir plain-files")
    assert sorted(os.listdir("plain-files")) == ["000000.png", "000001.png", "000002.png"]
    refused("sample plain --classes star --out x.png", "no class 'star'", "no classes")
    refused("sample plain --labels 0 --out x.png", "without classes")
    refused("sample plain --mean-weight 1 --out x.png", "guidance needs classes")


@pytest.mark.parametrize(
    "style", ["--mean-weight 1", "--temperature -1", "--temperature 1,1", "--temperature 1e40"]
)
def test_what_the_model_cannot_do_is_refused_before_anything_is_made(plain, monkeypatch, style):
    monkeypatch.setattr(LatentVAEPipeline, "__call__", None)
    refused(f"sample plain {style} --out-dir never/files --npz never/x.npz --out never/x.png")
    assert not Path("never").exists()


@pytest.mark.parametrize(
    "line, needles",
    [
        ("", ["--out", "--out-dir", "--npz"]),
        ("--out x.png --out-dir x.png", ["x.png is given as a file and as a folder"]),
        ("--out d/x.png --out-dir d", ["--out d/x.png would be one of the images in d", "another place"]),
        ("--out x.png --seed -1 --out-dir never", ["the seed is -1"]),
        ("--out x.jpg", ["--out is x.jpg", ".png"]),
        ("--npz x.png", ["--npz is x.png", ".npz"]),
        ("--out x.png --classes star --labels 3", ["--classes and --labels"]),
        ("--out x.png --classes sun", ["'sun'", "star"]),
        ("--out x.png --classes ,", ["no class is named"]),
        ("--out x.png --labels 10", ["'10'", "0 to 9"]),
        ("--out x.png --labels -1", ["'-1'", "0 to 9"]),
        ("--out x.png --labels star", ["'star'", "0 to 9"]),
        ("--out x.png --n 0", ["'--n'", "cfvae sample --help"]),
        ("--out x.png --n many", ["'--n'"]),
        ("--out x.png --n 4097", ["4096", "--out-dir"]),
        ("--out x.png --batch-size 0", ["'--batch-size'"]),
        ("--out x.png --precision half", ["precision is 'half'", "fp32 or bf16"]),
        ("--out x.png --mean-weight a", ["--mean-weight is 'a'"]),
        ("--out x.png --var-weight nan", ["var_weight is nan"]),
        ("--out x.png --mean-weight 1,2", ["mean_weight has 2 entries"]),
        ("--out x.png --temperature -1", ["temperature"]),
        ("--out x.png --temperature 1,1", ["temperature has 2 entries"]),
        ("--out-dir run", ["run already holds files", "--out-dir"]),
    ],
)
def test_sample_errors(run, line, needles):
    refused(f"sample run {line}", *needles)
    assert not Path("x.png").exists() and not Path("never").exists()


@pytest.mark.parametrize("name", ["photo.png", "damaged.png", "mine.npz", "damaged.npz", "link.png"])
def test_a_file_that_cfvae_did_not_write_is_kept(run, name):
    Image.new("RGB", (2, 2)).save("photo.png")
    np.savez("mine.npz", np.zeros((1, 2, 2, 3), np.uint8))
    Path("damaged.png").write_bytes(Path("photo.png").read_bytes()[:50])
    Path("damaged.npz").write_bytes(Path("mine.npz").read_bytes()[:50])
    Path("link.png").unlink(missing_ok=True)
    Path("link.png").symlink_to("photo.png")
    before = Path(name).read_bytes()
    option = "--npz" if name.endswith("npz") else "--out"
    line = f"sample run --n 1 {option} {name}"
    refused(line, f"{option} is {name}, which cfvae did not write", "choose another name")
    if option == "--out":
        refused(f"reconstruct run --data shapes:n=9 --out {name}", f"--out is {name}, which")
    assert Path(name).read_bytes() == before


def test_a_file_of_ours_or_an_empty_one_is_replaced(run):
    "As `mktemp` makes one."
    for file in ("again.png", "again.npz"):
        Path(file).touch()
    for seed in (0, 1):
        done(f"sample run --n 1 --seed {seed} --out again.png --npz again.npz")
    done("sample run --n 1 --seed 1 --npz once.npz")
    assert (array("again.npz") == array("once.npz")).all()
    done("reconstruct run --data shapes:n=9 --n 1 --out again.png")


def test_the_home_folder_that_a_shell_leaves_unexpanded(run, monkeypatch):
    Path("home").mkdir()
    shutil.copytree(run.path, "home/run")
    monkeypatch.setenv("HOME", str(Path("home").resolve()))
    done("sample ~/run --n 1 --out=~/one.png")
    assert Path("home/one.png").is_file() and not Path("~").exists()


def test_a_run_that_never_dropped_a_label_is_not_guided(run):
    shutil.copytree(run.path, "never")
    recipe = json.loads(Path("never/recipe.json").read_text())
    recipe["objective"]["label_drop"] = 0.0
    Path("never/recipe.json").write_text(json.dumps(recipe))
    refused("sample never --n 2 --mean-weight 2 --out a.png", "label_drop 0", "without guidance")
    refused("evaluate never --data shapes --n 20 --guidance-sweep --out judged", "label_drop 0")
    done("sample never --n 2 --out a.png")


@pytest.mark.parametrize("place", ["dropless", "dropless/pipeline", "dropless-tuned"])
def test_nor_is_what_was_made_of_it(run, place):
    if not Path("dropless").exists():
        done(f"{TINY} --out dropless --steps 1 --set objective.label_drop=0")
        done("tune dropless --out dropless-tuned --steps 1 --set batch_size=8")
    refused(f"sample {place} --n 2 --mean-weight 2 --out a.png", "label_drop 0", "without guidance")
    refused(f"evaluate {place} --data shapes --n 20 --guidance-sweep --out judged", "label_drop 0")


@pytest.mark.parametrize(
    "line",
    [
        "reconstruct nosuch --data shapes --out fresh/x.png",
        "reconstruct run --data folder:nosuch --out fresh/x.png",
        "sample run --n 2 --temperature 1,2 --npz fresh/x.npz",
        "evaluate nosuch --data shapes --out fresh",
        "evaluate run --data shapes:n=70 --n 71 --out fresh",
        "compare --preset shapes-demo --data folder:nosuch --out fresh",
        "compare --preset shapes-demo --vae nosuch --out fresh",
        "export-onnx nosuch --out fresh",
        "bench --preset nosuch --out fresh",
    ],
)
def test_what_is_refused_leaves_no_folder_behind(run, line):
    refused(line)
    assert not Path("fresh").exists()


def test_more_than_a_disk_can_hold_is_refused_at_once(plain, monkeypatch):
    refused("sample plain --n 1000000000 --npz x.npz", "--n")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=32 * 32 * 3 * 5 - 1))
    monkeypatch.setattr(LatentVAEPipeline, "__call__", None)
    refused("sample plain --n 5 --npz x.npz", "no space for x.npz", "draw fewer images")
    assert not list(Path().glob("x.npz*"))


def test_neighbours_of_an_array_are_kept(plain):
    Path("s.npz.tmp").write_text("mine")
    done("sample plain --n 1 --npz s.npz")
    assert array("s.npz").shape == (1, 32, 32, 3)
    assert Path("s.npz.tmp").read_text() == "mine"


STOPPED = """
import os, sys
from pathlib import Path
from cfvae.cli.writing import open_npz

with open_npz(Path("stopped.npz"), (2, 4, 4, 3)) as file:
    file.write(bytes(48))
    os.kill(os.getpid(), int(sys.argv[1]))
    file.write(bytes(48))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_stopped_drawing_leaves_nothing_half_written(folder, number):
    ended = subprocess.run([sys.executable, "-c", STOPPED, str(int(number))], stderr=subprocess.DEVNULL)
    by_exit_code = ended.returncode == 128 + number
    assert by_exit_code or (number == signal.SIGINT and ended.returncode == -number)
    assert not list(Path().glob("stopped.npz*"))


def test_signals_do_afterwards_what_they_did(folder):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with open_npz(Path("ignored.npz"), (1, 1, 1, 3)) as file:
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            os.kill(os.getpid(), signal.SIGHUP)  # ignored, as under nohup
            file.write(bytes(3))
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    assert array("ignored.npz").shape == (1, 1, 1, 3)
