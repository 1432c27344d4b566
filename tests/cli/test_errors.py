"Tests of cfvae.cli.errors: whatever happens becomes an exit code and one or two lines."

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from commandline import TINY, call, refused
from PIL import Image
from safetensors import SafetensorError

from cfvae.cli import _short_remarks, drawing, errors


@pytest.mark.parametrize(
    "error, code, needle",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), 2, "--batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "out of memory"),
        (MemoryError(), 2, "out of memory: take fewer images (shapes:n="),
        (MemoryError(), 2, "reconstruct: --n"),
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
        (OSError(errno.EFBIG, "File too large", "x.npz"), 2, "x.npz: File too large: write less, or raise"),
        (SafetensorError("Error while serializing: I/O error"), 2, "I/O error): check its file and the disk"),
        (UserWarning("1 of 9 images cannot be read"), 2, "1 of 9 images cannot be read\nThis was meant as"),
        (KeyboardInterrupt(), 130, "what was written before is still there"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_exceptions_become_messages(run, monkeypatch, error, code, needle):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(drawing, "draw", fail)
    exit_code, _, err = call("sample run --npz failed.npz")
    assert exit_code == code and needle in err
    assert "Traceback" not in err and len(err.splitlines()) <= 2
    assert not list(Path(".").glob("failed*"))  # not even half of it
    for line in ("--debug sample run --npz failed.npz", "sample run --npz failed.npz --debug"):
        exit_code, _, err = call(line)
        assert exit_code == code and needle in err and "Traceback" in err


@pytest.mark.parametrize(
    "line, culprit",
    [
        ('train --preset shapes-demo --out ""', "--out"),
        ("train --preset shapes-demo --out=", "--out"),
        ('train --preset shapes-demo --out " "', "--out"),
        ('train --preset shapes-demo --out x --data ""', "--data"),
        ('sample shapes --out-dir ""', "--out-dir"),
        ('sample shapes --npz ""', "--npz"),
        ('sample "" --out x.png', "an argument"),
        ('reconstruct shapes --data shapes:n=9 --out ""', "--out"),
        ('encode shapes --data shapes:n=9 --out ""', "--out"),
        ('demo --out ""', "--out"),
        ('bench --out ""', "--out"),
        ('train-features --out ""', "--out"),
        ('import-weights released.pt --config church --out ""', "--out"),
        ('import-weights "" --config church --out x', "an argument"),
        ('export-onnx shapes --out ""', "--out"),
        ('push "" me/shapes', "an argument"),
    ],
)
def test_no_argument_may_be_empty(line, culprit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(line, f"{culprit} is empty: give it a value, or leave it out")
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_no_text_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"caf\xe9")
    refused(f"sample shapes --n 1 --out '{name}.png'", r"caf\udce9.png' is no text in UTF-8: rename it")
    assert not list(tmp_path.iterdir())


def test_messages_stay_short_and_plain():
    from cfvae.cli.errors import readable

    assert readable("a.png: broken:\nremove it") == "a.png: broken:\nremove it"
    assert readable("\x1b]0;owned\x07\x1b[31m\u202eabc\r") == r"\x1b]0;owned\x07\x1b[31m\u202eabc"
    long = readable(f"--classes: no class '{'x' * 100_000}': it knows cat")
    assert (
        len(long) < 900 and long.startswith("--classes: no class 'xxx") and long.endswith("': it knows cat")
    )
    many = readable(
        "\n".join(["the weights do not fit", *map(str, range(1000)), "and what to do"])
    ).splitlines()
    assert len(many) == 10 and many[0] == "the weights do not fit" and many[-1] == "and what to do"


def test_values_of_any_length_leave_a_short_message(tmp_path):
    long = "y" * 20_000
    for line in (
        f"train --preset {long} --out x",
        f"train --preset shapes-demo --out x --set {long}=1",
        f"train --preset shapes-demo --out x --set vae.widths={long}",
        f"train --preset shapes-demo --out x --data {long}",
        f"sample shapes --out x.png --classes {long}",
        f"sample shapes --out x.png --mean-weight {long}",
        f"sample {long} --out x.png",
        f"reconstruct shapes --data shapes:n=9 --out x.png --depths {long}",
    ):
        code, _, err = call(line)
        assert code == 2 and len(err) < 2000 and "Traceback" not in err, line[:60]
    code, _, err = call("sample shapes --out x.png --classes 'a\n\x1b[31mb'")
    assert code == 2 and "\x1b" not in err


def test_a_thread_that_fails_is_one_line(capsys):
    "TensorBoard's writer is a thread; who waits for it gets the error again."

    def fail():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", b"gone/events")

    def work():
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        fail()

    with _short_remarks(debug=False), pytest.raises(FileNotFoundError) as failure:
        work()
    said = capsys.readouterr().err
    assert said.startswith("warning: FileNotFoundError") and len(said.splitlines()) == 1
    assert errors.explain(failure.value) == (2, "gone/events: No such file or directory: check the path")


def test_a_failure_half_way_leaves_no_array(run, monkeypatch):
    original = drawing.draw

    def fail_later(*arguments):
        yield next(original(*arguments))
        raise MemoryError

    monkeypatch.setattr(drawing, "draw", fail_later)
    refused("sample run --n 4 --batch-size 2 --npz failed.npz", "out of memory")
    assert not list(Path(".").glob("failed*"))


def test_warnings_are_one_line(run):
    Path("photos/star").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save("photos/star/a.png")
    Path("photos/star/b.png").write_bytes(b"")
    code, _, err = call("encode run --data folder:photos --out photo-codes")
    assert code == 0
    lines = [line for line in err.splitlines() if "b.png" in line]
    assert len(lines) == 1 and lines[0].startswith("warning: ") and "cannot be read" in lines[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(run):
    for line in (
        "train --preset shapes-demo --out other",
        "sample run --out other.png",
        "reconstruct run --data shapes:n=9 --out other.png",
        "encode run --data shapes:n=9 --out other",
        "report run",
    ):
        refused(f"{line} --device cuda", "'cuda' was asked for", "--device cpu")
    assert not Path("other").exists() and not Path("other.png").exists()


def test_places_that_cannot_be_written(run):
    Path("file").write_text("in the way")
    refused(f"{TINY} --out file/run", "cannot use file/run", "choose a folder")
    refused("sample run --out file/x.png", "file", "move away the file")
    refused("encode run --data shapes:n=9 --out file", "file is a file")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the administrator may write anywhere")
def test_read_only_folder(run):
    Path("locked").mkdir()
    Path("locked").chmod(0o500)
    refused(f"{TINY} --out locked/run", "cannot use locked/run", "Permission denied")
    refused("sample run --out locked/x.png", "locked/x.png: Permission denied: choose a place")
    refused("encode run --data shapes:n=9 --out locked/codes", "cannot write the codes to locked/codes")


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
    line = "encode halved --data shapes:n=9 --out halved-codes"
    refused(line, "halved/autoencoder/model", "cannot be read")
