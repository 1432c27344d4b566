"Tests of cfvae.cli: what every command prints, writes and returns; every error in one or two lines; and runs that are really killed."

import contextlib
import errno
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cfvae import cli, data, evaluation, recipes, training
from cfvae.checkpoints import list_checkpoints, load_checkpoint
from cfvae.cli import main
from cfvae.core import count_parameters, to_uint8
from cfvae.data import FACTORS, Shapes
from cfvae.runs.presets import PRESETS, preset
from cfvae.recipes import change
from cfvae.runs.folder import load_autoencoder, load_model

CLASSES = FACTORS["class"]
SIZES = (
    "--set autoencoder.widths=8,8 --set vae.widths=8 --set vae.encoder_widths=8 --set vae.layers=1 --set vae.encoder_blocks=1 "
    "--set batch_size=8 --set warmup=5 --set ema_decay=0.9 --set checkpoint_every=5 --set log_every=1 --precision fp32 --device cpu"
)
TINY = f"train --preset shapes-demo --data shapes:n=60 {SIZES}"


def call(line):
    "Exit code, output and error output of a command, run in this process."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(shlex.split(line))
    return code, out.getvalue(), err.getvalue()


def done(line):
    "The output of a command that has to succeed."
    code, out, err = call(line)
    assert code == 0, err
    return out


def refused(line, *needles):
    "Whatever the mistake is: code 2, and one or two lines on the error stream that hold the needles."
    code, out, err = call(line)
    assert code == 2, (code, out, err)
    message = err[err.index("error: ") :]
    assert len(message.splitlines()) <= 2 and "Traceback" not in err and "╭" not in err
    for needle in needles:
        assert needle in message, message
    return out


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    "All commands run in one temporary folder, so that paths are short and relative."
    before, here = os.getcwd(), tmp_path_factory.mktemp("cli")
    os.chdir(here)
    yield here
    os.chdir(before)


@pytest.fixture(scope="module")
def run(folder):
    "A run that nobody disturbed, and what the command said."
    return types.SimpleNamespace(path=Path("run"), said=done(f"{TINY} --out run --steps 30"))


@pytest.fixture(scope="module")
def plain(folder):
    "A run without classes."
    done(f"{TINY} --out plain --steps 1 --set conditional=false")
    return Path("plain")


def at_step(monkeypatch, where, action):
    "Call `action` after a step, named as in 'vae 3'."
    original = training.JsonLog.on_step

    def on_step(self, state, metrics):
        original(self, state, metrics)
        if f"{self.path.parent.name} {state.step}" == where:
            action()

    monkeypatch.setattr(training.JsonLog, "on_step", on_step)


# the process


def test_help_needs_no_torch():
    code = "import sys; from cfvae.cli import main; assert main([]) == main(['train', '--help']) == 0; sys.exit(3 if 'torch' in sys.modules else 0)"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert seen.returncode == 0, seen.stderr
    assert "--max-minutes" in seen.stdout
    for command in (
        "presets",
        "info",
        "train",
        "encode",
        "reconstruct",
        "sample",
        "demo",
        "train-features",
        "import-weights",
        "push",
        "export-onnx",
    ):
        assert f" {command} " in seen.stdout


def test_module_usage_error_and_closed_pipe():
    seen = subprocess.run(
        [sys.executable, "-m", "cfvae", "trian"], capture_output=True, text=True, timeout=300
    )
    assert seen.returncode == 2 and seen.stdout == ""
    assert seen.stderr == "error: No such command 'trian'. Did you mean 'train'?\nSee cfvae --help\n"
    reader, writer = os.pipe()
    os.close(reader)
    seen = subprocess.run(
        [sys.executable, "-m", "cfvae", "--version"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    os.close(writer)
    assert seen.stderr == "" and seen.returncode == 1


def test_version():
    from cfvae import __version__

    assert done("--version") == f"cfvae {__version__}\n"


# looking


def test_presets_counts_parameters():
    out = done("presets")
    recipe = preset("shapes-demo")
    for model, config in ((recipes.Autoencoder, recipe.autoencoder), (recipes.HierarchicalVAE, recipe.vae)):
        assert f"{count_parameters(model(config)) / 1e6:.2f}" in out
    for name in PRESETS:
        assert name in out
    assert "386.37" in out and "pretrained" in out and "pixels" in out  # the published models are among them
    for text in (
        "32 x 32",
        "4 x 8 x 8",
        str(recipe.vae_training.steps),
        PRESETS["shapes-demo"].__doc__.split()[0],
    ):
        assert text in out


SMALL = {
    "resolution": 8,
    "c": 8,
    "c_enc": 8,
    "c_mult": [1, 1, 1],
    "dff_mult": [1, 1, 1],
    "num_classes": 3,
    "nlayers": [1, 1, 1],
    "enc_nlayers": [1, 1, 1],
    "num_attention": [0, 0, 0],
    "num_attention_heads": [0, 0, 0],
    "zdim": 2,
    "datadim": 4,
    "h_prior": True,
}
STAGE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
}


@pytest.fixture(scope="module")
def released(folder):
    "A small released pipeline with random weights, as released.pt and, with its config inside, released.safetensors."
    pytest.importorskip("diffusers")
    from safetensors.torch import save_file

    from cfvae import published
    from cfvae.pretrained import import_diffusers

    vae = published.HierarchicalVAE(published.published_config(SMALL))
    kl = import_diffusers().AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=16,
    )
    weights = {
        f"vae.{there}": vae.get_parameter(here).detach().clone()
        for here, there in published.published_names(vae).items()
    }
    for here, there in published._stage_names(kl, 2).items():
        value = kl.get_parameter(here).detach().clone()
        weights[f"dae.{there}"] = value[:, :, None, None] if ".attn" in there and value.ndim == 2 else value
    config = {
        "dae": {"class": "AutoencoderKL", "embed_dim": 4, "ddconfig": STAGE},
        "vae": SMALL,
        "shift": 0.25,
        "scale": 4.4,
    }
    torch.save(weights | {"dae.loss.discriminator.weight": torch.zeros(3)}, "released.pt")
    save_file(weights, "released.safetensors", {"config": json.dumps(config)})
    Path("config.json").write_text(json.dumps(config))
    return config


def test_import_weights(released):
    out = done("import-weights released.pt --config config.json --out models/a")
    assert "models/a" in out and "16 x 16" in out and "3: 1 at 1 x 1, 1 at 4 x 4, 1 at 8 x 8" in out
    Path("names.txt").write_text("cat\ndog\n\nemu\n")
    done(
        "import-weights released.safetensors --classes names.txt --out models/b"
    )  # the config is in the file
    assert load_model("models/a").classes == ("0", "1", "2") and load_model("models/b").classes == (
        "cat",
        "dog",
        "emu",
    )
    assert load_model("models/a").scaler.scale.item() == pytest.approx(4.4)
    done("sample models/b --n 2 --classes emu --mean-weight 1.5 --out emus.png")
    assert "parameters" in done("info models/a")
    before = Path("models/a/vae/model.safetensors").read_bytes()
    refused("import-weights released.pt --config config.json --out models/a", "models/a", "already")
    assert Path("models/a/vae/model.safetensors").read_bytes() == before


def test_import_weights_refuses(released):
    refused("import-weights nowhere.pt --config church --out models/c", "nowhere.pt")
    refused("import-weights released.pt --out models/c", "--config")
    refused("import-weights released.pt --config chruch --out models/c", "chruch", "church")
    Path("bad.json").write_text("{")
    refused("import-weights released.pt --config bad.json --out models/c", "bad.json", "JSON")
    Path("cut.safetensors").write_bytes(Path("released.safetensors").read_bytes()[:100])
    refused("import-weights cut.safetensors --out models/c", "cut.safetensors cannot be read")
    refused("import-weights released.pt --config config.json --attention none --out models/c", "attention")
    code, _, err = call(
        "import-weights released.pt --config church --out models/c"
    )  # the list of what does not fit has several lines
    assert code == 2 and "the weights do not fit the config" in err and "Traceback" not in err
    assert not Path("models/c").exists()


def test_train_with_an_imported_first_stage(released):
    if not Path("models/a").exists():
        done("import-weights released.pt --config config.json --out models/a")
    sizes = "--set vae.resolutions=1,4,8 --set vae.widths=8 --set vae.encoder_widths=8 --set vae.layers=1 --set vae.encoder_blocks=1 --set autoencoder.size=16 --set autoencoder.patch=1"
    options = f"{sizes} --steps 2 --set batch_size=8 --set vae_training.warmup=1 --precision fp32 --device cpu --data shapes:n=40"
    done(f"train --preset shapes-demo --autoencoder models/a/autoencoder --out borrowed {options}")
    assert load_model("borrowed").scaler.scale.item() == pytest.approx(4.4)  # the scale came with the folder
    assert "pretrained: models/a/autoencoder" in done("info borrowed")
    done("sample borrowed --n 2 --out borrowed.png")
    done("encode borrowed --data shapes:n=10 --out borrowed-codes")
    refused(f"train --preset shapes-demo --autoencoder no/where --out other {options}", "no/where")
    refused("train --preset church --out other --data shapes", "--autoencoder")
    assert not Path("other").exists()


def test_push_prints_the_card_or_says_why_not(run, monkeypatch):
    card = done("push run me/shapes --card-only")
    assert "# shapes" in card and "shapes:n=60" in card and "30 of 30" in card and "## Limits" in card
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("push run me/shapes", "me/shapes could not be published")
    refused("push nowhere me/shapes", "nowhere")
    refused("sample hub:me/shapes --out x.png", "gave no model me/shapes")


def test_export_onnx(plain):
    pytest.importorskip("onnx")
    out = done("export-onnx plain --out graph")
    about = json.loads(Path("graph/model.json").read_text())
    assert (
        "graph/model.onnx" in out
        and Path("graph/model.onnx").stat().st_size > 10_000
        and "noise" in json.dumps(about)
        and "labels" not in json.dumps(about.get("inputs", ""))
    )
    Path("a-file").write_text("kept")
    refused("export-onnx plain --out a-file", "a-file")
    refused("export-onnx nowhere --out graph", "nowhere")
    assert Path("a-file").read_text() == "kept"


def test_info_of_a_finished_run_and_of_its_pipeline(run):
    out = done("info run")
    log = [json.loads(line) for line in Path("run/vae/log.jsonl").read_text().splitlines()]
    assert (
        f"30 of 30 steps saved; last logged: loss {log[-1]['loss']:.4g} at step 30; checkpoints: 25, 30"
        in out
    )
    for text in (
        "shapes:n=60",
        "shapes-demo",
        "32 x 32",
        "4 x 8 x 8",
        "3: 1 at 1 x 1, 1 at 4 x 4, 1 at 8 x 8",
        "10: disc, ring",
        "run/pipeline",
    ):
        assert text in out
    pipe = load_model("run")
    sizes = f"autoencoder {count_parameters(pipe.autoencoder) / 1e6:.2f} M, VAE {count_parameters(pipe.vae) / 1e6:.2f} M"
    assert (
        sizes in out and sizes in done("info run/pipeline") and "10: disc, ring" in done("info run/pipeline")
    )


def test_info_of_strange_places(run):
    Path("empty").mkdir()
    refused("info empty", "empty is neither a run folder", "recipe.json")
    refused("info nowhere", "nothing at nowhere")
    Path("broken").mkdir()
    Path("broken/recipe.json").write_text('{"name": "x", "widht": 3}')
    refused("info broken", "broken/recipe.json cannot be read", "widht")
    Path("broken/recipe.json").write_text("[1, 2")
    refused("info broken", "broken/recipe.json cannot be read")


# training


def test_train_says_where_the_model_is_and_what_to_do_next(run):
    assert (
        run.said.splitlines()[-1]
        == "done: the model is in run/pipeline. Next: cfvae sample run --n 16 --out samples.png"
    )
    written = json.loads(Path("run/recipe.json").read_text())
    for part in ("autoencoder_training", "vae_training"):
        assert (
            written[part]["steps"] == 30
            and written[part]["precision"] == "fp32"
            and written[part]["batch_size"] == 8
        )
    assert written["data"] == "shapes:n=60" and written["vae"]["layers"] == [1, 1, 1]


def test_an_existing_run_is_kept(run):
    before = Path("run/recipe.json").read_bytes()
    refused(f"{TINY} --out run --steps 30", "run already holds a run", "--resume")
    refused("train --out run --resume --steps 31", "begun with another recipe", "steps: 30 there, 31 now")
    refused("train --out run --resume --preset cifar10", "begun with the preset shapes-demo, not cifar10")
    assert Path("run/recipe.json").read_bytes() == before
    assert "done" in done(
        "train --out run --resume --set checkpoint_every=7"
    )  # changes nothing that is learned


def test_stages_limits_and_resuming():
    assert (
        "stopped by the time limit: everything up to step 1 of 4 (autoencoder) is saved; go on with: cfvae train --out parts --resume"
        in done(f"{TINY} --out parts --steps 4 --resume --max-minutes 0.00001 --seed 3")
    )  # --resume in an empty place begins
    out = done("info parts")
    assert (
        "1 of 4 steps saved" in out
        and "0 of 4 steps saved; checkpoints: none" in out
        and "none yet; go on with: cfvae train --out parts --resume" in out
    )
    refused("sample parts --out x.png", "parts holds no model yet")
    refused("train --out parts --resume --stage vae", "parts has no finished autoencoder")
    assert "the autoencoder is in parts/autoencoder/model. Next: cfvae train --out parts --resume" in done(
        "train --out parts --resume --stage autoencoder"
    )
    assert not Path("parts/vae").exists()
    assert "done: the model is in parts/pipeline" in done("train --out parts --resume")
    assert json.loads(Path("parts/recipe.json").read_text())["vae_training"]["seed"] == 3


def test_ctrl_c_saves(monkeypatch):
    at_step(monkeypatch, "vae 3", lambda: signal.raise_signal(signal.SIGINT))
    code, out, err = call(f"{TINY} --out interrupted --steps 6")
    assert code == 130 and "Traceback" not in err
    assert (
        "stopped by Ctrl-C: everything up to step 3 of 6 (vae) is saved; go on with: cfvae train --out interrupted --resume"
        in out.splitlines()[-1]
    )
    assert load_checkpoint("interrupted/vae/checkpoints")[0] == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_between_the_stages(monkeypatch, number):
    monkeypatch.setattr(recipes, "encode_dataset", lambda *arguments, **options: signal.raise_signal(number))
    before = signal.getsignal(signal.SIGTERM)
    code, out, err = call(f"{TINY} --out between{number} --steps 2")
    assert (
        code == 128 + number
        and "everything up to step 2 of 2 (autoencoder) is saved" in out
        and "Traceback" not in err
    )
    assert signal.getsignal(signal.SIGTERM) == before


def test_signal_at_the_last_step_of_a_stage(monkeypatch):
    at_step(monkeypatch, "autoencoder 2", lambda: signal.raise_signal(signal.SIGTERM))
    code, out, _ = call(f"{TINY} --out last --steps 2")
    assert code == 143 and "everything up to step 2 of 2 (autoencoder) is saved" in out
    assert not Path("last/vae").exists()


def test_a_run_that_failed_at_its_first_step_is_no_hindrance(monkeypatch):
    def fail(*options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(recipes, "train_autoencoder", fail)
        refused(f"{TINY} --out large --steps 1", "out of memory", "batch_size", "accumulate")
    assert Path("large/recipe.json").exists()
    done(f"{TINY} --out large --steps 1 --stage autoencoder --set batch_size=4")


@pytest.mark.parametrize(
    "line, needles",
    [
        ("--preset shapes-dmeo", ["no preset 'shapes-dmeo'", "shapes-demo"]),
        ("", ["--preset", "cfvae presets"]),
        ("--preset shapes-demo --set batchsize=3", ["batchsize", "batch_size"]),
        ("--preset shapes-demo --set vae.widht=3", ["widht", "widths"]),
        ("--preset shapes-demo --set batch_size=many", ["batch_size=many"]),
        ("--preset shapes-demo --set batch_size", ["--set batch_size", "key=value"]),
        ("--preset shapes-demo --set learning_rate=-1", ["learning_rate is -1"]),
        ("--preset shapes-demo --steps 0", ["steps is 0"]),
        ("--preset shapes-demo --steps ten", ["'--steps'"]),
        ("--preset shapes-demo --stage second", ["stage is 'second'"]),
        ("--preset shapes-demo --max-minutes 0", ["max-minutes is 0"]),
        ("--preset shapes-demo --precision fp8", ["fp8", "bf16"]),
        ("--preset shapes-demo --device tpu9", ["tpu9"]),
        ("--preset shapes-demo --data nothing", ["nothing", "folder:PATH"]),
        ("--preset shapes-demo --data folder:nowhere", ["nowhere does not exist"]),
        (
            "--preset shapes-demo --data shapes:n=20",
            ["batch_size is 32", "18 training images", "autoencoder_training.batch_size=18"],
        ),
        ("--preset shapes-demo --tremolo", ["--tremolo", "cfvae train --help"]),
    ],
)
def test_train_errors_leave_nothing_behind(line, needles):
    refused(f"train --out other {line}", *needles)
    assert not Path("other").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(run):
    for line in (
        "train --preset shapes-demo --out other",
        "sample run --out other.png",
        "reconstruct run --data shapes:n=9 --out other.png",
        "encode run --data shapes:n=9 --out other",
    ):
        refused(f"{line} --device cuda", "'cuda' was asked for", "--device cpu")
    assert not Path("other").exists() and not Path("other.png").exists()


def test_places_that_cannot_be_written(run):
    Path("file").write_text("in the way")
    refused(f"{TINY} --out file/run", "cannot use file/run", "choose a folder")
    refused("sample run --out file/x.png", "file", "check the path")
    refused("encode run --data shapes:n=9 --out file", "file is a file")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the administrator may write anywhere")
def test_read_only_folder(run):
    Path("locked").mkdir()
    Path("locked").chmod(0o500)
    refused(f"{TINY} --out locked/run", "cannot use locked/run", "Permission denied")
    refused("sample run --out locked/x.png", "locked/x.png: Permission denied: choose a place")
    refused("encode run --data shapes:n=9 --out locked/codes", "cannot write the codes to locked/codes")


# what no command expects


@pytest.mark.parametrize(
    "error, code, needle",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), 2, "--batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "out of memory"),
        (MemoryError(), 2, "out of memory"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.png"),
            2,
            "x.png: No space left on device: free some space",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "x.png"),
            2,
            "x.png: Read-only file system: choose a place",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_exceptions_become_messages(run, monkeypatch, error, code, needle):
    def fail(*options, **more):
        raise error

    monkeypatch.setattr(cli, "_draw", fail)
    found, _, err = call("sample run --npz failed.npz")
    assert found == code and needle in err and "Traceback" not in err and len(err.splitlines()) <= 2
    assert not list(Path(".").glob("failed*"))  # not even half of it
    for line in ("--debug sample run --npz failed.npz", "sample run --npz failed.npz --debug"):
        found, _, err = call(line)
        assert found == code and needle in err and "Traceback" in err


def test_warnings_are_one_line(run):
    Path("photos/star").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save("photos/star/a.png")
    Path("photos/star/b.png").write_bytes(b"")
    code, _, err = call("encode run --data folder:photos --out photo-codes")
    assert code == 0
    lines = [line for line in err.splitlines() if "b.png" in line]
    assert len(lines) == 1 and lines[0].startswith("warning: ") and "cannot be read" in lines[0]


# drawing


def array(name):
    with np.load(name) as file:
        assert file.files == ["arr_0"]
        return file["arr_0"]


@pytest.mark.parametrize("n", [1, 7])
def test_exactly_n_images(run, n):
    out = done(f"sample run --n {n} --batch-size 4 --out n{n}.png --out-dir n{n} --npz n{n}.npz")
    images, files = array(f"n{n}.npz"), sorted(Path(f"n{n}").iterdir())
    assert images.shape == (n, 32, 32, 3) and images.dtype == np.uint8
    assert [path.name for path in files] == [f"{i:06d}-{CLASSES[i]}.png" for i in range(n)]
    assert all(
        (np.asarray(Image.open(path)) == image).all() for path, image in zip(files, images, strict=True)
    )
    assert f"{n} image{'s' * (n > 1)} (" in out and f"in n{n}.png, n{n}, n{n}.npz" in out
    columns, rows = (3, 3) if n == 7 else (1, 1)
    picture = np.asarray(Image.open(f"n{n}.png"))
    assert picture.shape == (2 * (rows * 34 + 2), 2 * (columns * 34 + 2), 3)  # 32 pixels are drawn as 64
    assert (picture[4:68:2, 4:68:2] == images[0]).all()


def test_the_seed_decides_and_neither_n_nor_the_batch_size(run):
    for name, options in (
        ("a", "--n 6"),
        ("b", "--n 6"),
        ("c", "--n 6 --seed 1"),
        ("d", "--n 9 --batch-size 2"),
    ):
        done(f"sample run {options} --npz seed-{name}.npz")
    a, b, c, d = (array(f"seed-{name}.npz").astype(int) for name in "abcd")
    assert (a == b).all() and abs(a - d[:6]).max() <= 1 and abs(a - c).max() > 1
    assert Path("seed-a.npz").read_bytes() == Path("seed-b.npz").read_bytes()


def test_classes_labels_and_what_pipe_draws(run):
    star, heart = CLASSES.index("star"), CLASSES.index("heart")
    done("sample run --n 5 --classes star,heart --npz names.npz --out-dir names")
    done(f"sample run --n 5 --labels {star},{heart} --npz numbers.npz")
    assert [path.name for path in sorted(Path("names").iterdir())] == [
        f"{i:06d}-{name}.png" for i, name in enumerate(("star", "heart", "star", "heart", "star"))
    ]
    assert (array("names.npz") == array("numbers.npz")).all()
    pipe, generator = load_model("run"), torch.Generator().manual_seed(0)
    eps = [torch.cat(parts) for parts in zip(*(pipe.vae.noise(1, generator) for _ in range(5)), strict=True)]
    assert (
        array("names.npz") == pipe([star, heart, star, heart, star], eps=eps, output_type="np").images
    ).all()


def test_guidance_and_temperature_reach_the_model(run):
    calls = []
    pipe_call = recipes.LatentVAEPipeline.__call__
    for options in (
        "",
        "--mean-weight 1.5 --var-weight 3.0",
        "--mean-weight 1,0.5,0 --temperature 0.5,0.6,0.7",
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                recipes.LatentVAEPipeline,
                "__call__",
                lambda self, *given, **more: calls.append(more) or pipe_call(self, *given, **more),
            )
            done(f"sample run --n 2 {options} --npz guided.npz")
    assert [(c["guidance"].mean_weight, c["guidance"].var_weight, c["temperature"]) for c in calls] == [
        (0, 0, 1),
        (1.5, 3, 1),
        ((1, 0.5, 0), 0, (0.5, 0.6, 0.7)),
    ]
    assert not calls[0]["guidance"]  # off


def test_model_without_classes(plain):
    done("sample plain --n 3 --out-dir plain-files")
    assert sorted(os.listdir("plain-files")) == ["000000.png", "000001.png", "000002.png"]
    refused("sample plain --classes star --out x.png", "no class 'star'", "no classes")
    refused("sample plain --labels 0 --out x.png", "without classes")
    refused("sample plain --mean-weight 1 --out x.png", "guidance needs labels")
    assert "classes            none\n" in done("info plain")
    done("reconstruct plain --data shapes:n=5 --n 2 --out plain.png")


@pytest.mark.parametrize(
    "line, needles",
    [
        ("", ["--out", "--out-dir", "--npz"]),
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
    assert not Path("x.png").exists()


def test_damaged_models(run):
    refused("sample nowhere --out x.png", "nothing at nowhere")
    refused("sample run/latents --out x.png", "run/latents is neither a run folder")
    shutil.copytree("run/pipeline", "damaged")
    weights = Path("damaged/vae/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    refused("sample damaged --out x.png", "damaged", "cannot be read")
    Path("damaged/pipeline.json").write_text("{")
    refused("info damaged", "damaged", "cannot be read")
    shutil.copytree("run/autoencoder/model", "halved/autoencoder/model")
    shutil.copy("run/recipe.json", "halved")
    Path("halved/autoencoder/model/model.safetensors").write_bytes(b"")
    refused(
        "encode halved --data shapes:n=9 --out halved-codes", "halved/autoencoder/model", "cannot be read"
    )


# reconstructing and encoding


def test_reconstruct_draws_a_row_per_depth(run):
    out = done("reconstruct run --data shapes:n=9,seed=4 --n 3 --depths 1,all --out rows.png")
    assert out == "rows.png, from top to bottom: originals, autoencoder alone, 1 layer, all layers\n"
    picture = np.asarray(Image.open("rows.png"))[::2, ::2]
    cells = [
        [picture[2 + 34 * r : 34 + 34 * r, 2 + 34 * c : 34 + 34 * c].astype(int) for c in range(3)]
        for r in range(4)
    ]
    assert picture.shape == (4 * 34 + 2, 3 * 34 + 2, 3)
    images, labels = Shapes(9, seed=4).batch([0, 3, 6])
    pipe = load_model("run")
    for row, wanted in zip(
        cells, [images] + [pipe.reconstruct(images, labels, depth) for depth in (0, 1, None)], strict=True
    ):
        for cell, image in zip(row, wanted, strict=True):
            assert abs(cell - to_uint8(image).permute(1, 2, 0).numpy().astype(int)).max() <= 1


def test_reconstruct_matches_classes_by_name(run):
    for name, grey in (("star", 40), ("heart", 200)):
        Path("two", name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (32, 32), (grey + i, grey, grey)).save(f"two/{name}/{i}.png")
    pipe, seen = load_model("run"), []
    with pytest.MonkeyPatch.context() as patch:
        original = recipes.LatentVAEPipeline.reconstruct
        patch.setattr(
            recipes.LatentVAEPipeline,
            "reconstruct",
            lambda self, images, labels, depth: seen.append(labels) or original(self, images, labels, depth),
        )
        done("reconstruct run --data folder:two --n 4 --out two.png")
    assert seen[0] == pipe.class_indices(["heart", "heart", "star", "star"])
    Path("two/star").rename("two/cat")
    refused(
        "reconstruct run --data folder:two --n 4 --out x.png", "two: the model knows no class cat", "disc"
    )
    Path("flat").mkdir()
    Image.new("RGB", (32, 32)).save("flat/a.png")
    refused("reconstruct run --data folder:flat --n 1 --out x.png", "flat", "all")


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


def test_encode(run):
    assert "9 codes of shape 4 x 8 x 8 in codes" in done("encode run --data shapes:n=9 --out codes")
    with torch.no_grad():
        wanted = load_autoencoder("run").encode(Shapes(9).batch(range(9))[0]).half().numpy()
    assert np.array_equal(np.load("codes/latents.npy"), wanted)
    assert "18 codes" in done(
        "encode run/pipeline --data shapes:n=9 --out codes --flip"
    )  # codes may be replaced ...
    Path("codes/holiday.jpg").write_bytes(b"")
    refused(
        "encode run --data shapes:n=9 --out codes", "holiday.jpg", "folder of its own"
    )  # ... and nothing else
    assert Path("codes/holiday.jpg").exists()
    refused("encode run --data shapes:n=9 --out .", "folder of its own")


# demo and judge


def test_demo_goes_on_where_it_was_interrupted(monkeypatch):
    settings = dict(pair.split("=") for pair in SIZES.split() if "=" in pair) | {
        "steps": 2,
        "device": "cpu",
        "precision": "fp32",
        "data": "shapes:n=60",
    }
    small = change(preset("shapes-demo"), settings)
    monkeypatch.setitem(PRESETS, "shapes-demo", lambda: small)
    reports = []
    monkeypatch.setitem(
        sys.modules,
        "cfvae.report",
        types.SimpleNamespace(
            write_report=lambda run: reports.append(Path(run)) or Path(run) / "report.html"
        ),
    )
    with monkeypatch.context() as patch:
        at_step(patch, "autoencoder 1", lambda: signal.raise_signal(signal.SIGINT))
        code, out, _ = call("demo")
    assert code == 130 and "go on with: cfvae demo --out runs/demo" in out and not reports
    out = done("demo")
    assert "resuming after step 1" in out and "report: runs/demo/report.html" in out
    stamp = Path("runs/demo/pipeline/vae/model.safetensors").stat().st_mtime_ns
    out = done("demo --out runs/demo")
    assert (
        "the demo in runs/demo is complete" in out
        and "report: runs/demo/report.html" in out
        and reports == [Path("runs/demo")] * 2
    )
    assert Path("runs/demo/pipeline/vae/model.safetensors").stat().st_mtime_ns == stamp


def test_train_features(monkeypatch):
    for module in (evaluation, data):
        monkeypatch.setattr(module, "Shapes", lambda n, seed: Shapes(min(n, 64), seed))
    monkeypatch.setattr(
        evaluation,
        "SHAPES_TRAINING",
        training.TrainingConfig(steps=2, batch_size=8, device="cpu", precision="fp32"),
    )
    assert "of 64 held-out images are recognised" in done("train-features --out judge")
    from safetensors.torch import load_file

    assert {tensor.dtype for tensor in load_file("judge/model.safetensors").values()} == {torch.float16}


# killed

DRIVER = """
import os, signal, sys
from cfvae import training
from cfvae.cli import main

moment, number, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
log, replace = training.JsonLog.on_step, os.replace

def on_step(self, state, metrics):
    log(self, state, metrics)
    here = f"{self.path.parent.name} {state.step}"
    if "pause" in moment and here == "autoencoder 3":
        os.kill(os.getpid(), signal.SIGSTOP)
    if moment.startswith(here + ","):
        os.kill(os.getpid(), number)

def rename(source, target):
    if moment == "encoding" and str(target).endswith("latents"):
        os.kill(os.getpid(), number)
    replace(source, target)

training.JsonLog.on_step, os.replace = on_step, rename
sys.exit(main(arguments))
"""


def killed(moment, number, line):
    "A command in a process of its own, which sends itself a signal at a moment of its training."
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, moment, str(int(number)), *shlex.split(line)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def same(a, b):
    "Equal to the last bit, however nested."
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_killed_run_ends_as_one_that_was_never_killed(run):
    first = killed("autoencoder 7, pause", signal.SIGKILL, f"{TINY} --out killed --steps 30")
    try:
        _, status = os.waitpid(first.pid, os.WUNTRACED)  # it stands still in the middle of its work
        assert os.WIFSTOPPED(status), first.communicate()
        refused("train --out killed --resume", "killed is in use by another run", str(first.pid))
    finally:
        first.send_signal(signal.SIGCONT)
    first.communicate(timeout=300)
    assert first.returncode == -signal.SIGKILL
    assert load_checkpoint("killed/autoencoder/checkpoints")[0] == 5  # two steps are lost
    assert not Path("killed/autoencoder/model").exists()

    second = killed("autoencoder 13,", signal.SIGTERM, "train --out killed --resume")
    out, err = second.communicate(timeout=300)
    assert second.returncode == 143 and "resuming after step 5" in out and "Traceback" not in err
    assert out.splitlines()[-1] == (
        "stopped by SIGTERM: everything up to step 13 of 30 (autoencoder) is saved; go on with: cfvae train --out killed --resume"
    )
    assert load_checkpoint("killed/autoencoder/checkpoints")[0] == 13

    third = killed("encoding", signal.SIGKILL, "train --out killed --resume")
    third.communicate(timeout=300)
    assert (
        third.returncode == -signal.SIGKILL
        and not Path("killed/latents").exists()
        and not Path("killed/vae").exists()
    )

    fourth = killed("vae 17,", signal.SIGKILL, "train --out killed --resume")
    fourth.communicate(timeout=300)
    assert fourth.returncode == -signal.SIGKILL and load_checkpoint("killed/vae/checkpoints")[0] == 15
    assert not Path("killed/pipeline").exists()

    last = subprocess.run(
        [sys.executable, "-m", "cfvae", "train", "--out", "killed", "--resume"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert last.returncode == 0 and "done: the model is in killed/pipeline" in last.stdout, last.stderr
    for stage in ("autoencoder", "vae"):
        (step, a), (other, b) = (load_checkpoint(f"{name}/{stage}/checkpoints") for name in ("run", "killed"))
        assert step == other == 30 and same({**a, "config": 0}, {**b, "config": 0})
        lines = [
            [
                {k: v for k, v in json.loads(line).items() if k != "examples_per_second"}
                for line in Path(name, stage, "log.jsonl").read_text().splitlines()
            ]
            for name in ("run", "killed")
        ]
        assert lines[0] == lines[1] and len(lines[0]) == 30
    for file in (
        "latents/latents.npy",
        "autoencoder/model/model.safetensors",
        "pipeline/pipeline.json",
        "pipeline/autoencoder/model.safetensors",
        "pipeline/vae/model.safetensors",
        "vae/pictures/step-00000030.png",
    ):
        assert Path("run", file).read_bytes() == Path("killed", file).read_bytes(), file
    assert len(list_checkpoints("killed/vae/checkpoints")) == 2
