"Tests of cfvae.cli.converting: codes, released weights, graphs."

import copy
import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import call, done, refused

from cfvae.data import Shapes
from cfvae.files.arrays import RowWriter
from cfvae.runs.folder import load_autoencoder, load_model


def test_encode(run):
    assert "9 codes of shape 4 x 8 x 8 in codes" in done("encode run --data shapes:n=9 --out codes")
    images, _ = Shapes(9).batch(range(9))
    with torch.no_grad():
        expected = load_autoencoder("run").encode(images).half().numpy()
    assert np.array_equal(np.load("codes/latents.npy"), expected)

    # codes may be replaced, and nothing else
    code, out, err = call("encode run/pipeline --data shapes:n=9 --out codes --flip")
    told = "codes of other images or of another model were in codes, and are replaced"
    assert code == 0 and "18 codes" in out and told in err
    assert told not in call("encode run/pipeline --data shapes:n=9 --out codes --flip")[2]
    Path("codes/holiday.jpg").write_bytes(b"")
    refused("encode run --data shapes:n=9 --out codes", "holiday.jpg", "folder of its own")
    assert Path("codes/holiday.jpg").exists()
    refused("encode run --data shapes:n=9 --out .", "folder of its own")

    # whatever has the names of codes, too
    Path("foreign").mkdir()
    Path("foreign/latents.npy").write_text("mine")
    refused("encode run --data shapes:n=9 --out foreign", "foreign", "latents.npy", "did not write", "move")
    assert Path("foreign/latents.npy").read_text() == "mine"


def test_sigterm_leaves_nothing_of_half_an_encoding(run, monkeypatch):
    def stop(self, rows):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RowWriter, "write", stop)
    with pytest.raises(SystemExit) as ended:
        call("encode run --data shapes:n=9 --out stopped")
    assert ended.value.code == 128 + signal.SIGTERM
    assert os.listdir("stopped") == []


def test_an_error_while_encoding_has_a_line_of_its_own(run, monkeypatch):
    def fill(self, rows):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RowWriter, "write", fill)
    code, _, err = call("encode run --data shapes:n=9 --out full")
    assert code == 2 and "\nerror: cannot write the codes to full (No space left" in err


def test_import_weights(released):
    out = done("import-weights released.pt --config config.json --out models/a")
    assert "models/a" in out and "16 x 16" in out and "3: 1 at 1 x 1, 1 at 4 x 4, 1 at 8 x 8" in out
    Path("names.txt").write_text("cat\ndog\n\nemu\n", encoding="utf-8-sig")  # with a mark, as Windows may
    done("import-weights released.safetensors --classes names.txt --out models/b")  # the config is inside
    assert load_model("models/a").classes == ("0", "1", "2")
    assert load_model("models/b").classes == ("cat", "dog", "emu")
    assert load_model("models/a").scaler.scale.item() == pytest.approx(4.4)
    done("sample models/b --n 2 --classes emu --mean-weight 1.5 --out emus.png")
    assert "parameters" in done("info models/a")

    Path("marked.json").write_text(Path("config.json").read_text(), encoding="utf-8-sig")
    done("import-weights released.pt --config marked.json --out models/marked")

    before = Path("models/a/vae/model.safetensors").read_bytes()
    refused("import-weights released.pt --config config.json --out models/a", "models/a", "already")
    assert Path("models/a/vae/model.safetensors").read_bytes() == before


def test_import_weights_refuses(released):
    Path("theirs/vae").mkdir(parents=True)
    Path("theirs/vae/config.json").write_text("mine")
    refused("import-weights released.safetensors --out theirs", "theirs holds files already")
    refused("import-weights released.safetensors --out new/../theirs", "leads through new")
    assert Path("theirs/vae/config.json").read_text() == "mine"
    refused("import-weights nowhere.pt --config church --out models/c", "nowhere.pt")
    refused("import-weights released.pt --out models/c", "--config")
    refused("import-weights released.pt --config chruch --out models/c", "chruch", "church")
    Path("bad.json").write_text("{")
    refused("import-weights released.pt --config bad.json --out models/c", "bad.json", "JSON")
    Path("cut.safetensors").write_bytes(Path("released.safetensors").read_bytes()[:100])
    refused("import-weights cut.safetensors --out models/c", "cut.safetensors cannot be read")
    refused("import-weights released.pt --config config.json --attention none --out models/c", "attention")
    Path("latin.txt").write_bytes("K\xe4fer\n".encode("latin-1"))
    refused("import-weights released.safetensors --classes latin.txt --out models/c", "latin.txt", "UTF-8")
    Path("none.txt").write_text("\n \n")
    refused(
        "import-weights released.safetensors --classes none.txt --out models/c", "none.txt names no class"
    )
    for content in (
        b"null",
        b"[]",
        b"3",
        b"\xff\xfe{}",
        b"[" * 100000,
        b'{"dae": 1, "vae": 2, "shift": 3, "scale": 4}',
    ):
        Path("bad.json").write_bytes(content)
        refused("import-weights released.pt --config bad.json --out models/c", "bad.json")
    code, _, err = call("import-weights released.pt --config church --out models/c")
    # the list of what does not fit has several lines
    assert code == 2 and "the weights do not fit the config" in err and "Traceback" not in err
    assert not Path("models/c").exists()


def test_import_weights_walks_a_config(released):
    "Every entry of the config, missing or of another kind: two lines, or a pipeline."
    config = json.loads(Path("config.json").read_text())
    places = [(key,) for key in config] + [(part, key) for part in ("dae", "vae") for key in config[part]]
    places += [("dae", "ddconfig", key) for key in config["dae"]["ddconfig"]]
    for number, place in enumerate(places):
        for value in (None, "x", [], -1, ...):
            changed = copy.deepcopy(config)
            *path, last = place
            inner = changed
            for key in path:
                inner = inner[key]
            if value is ...:
                del inner[last]
            else:
                inner[last] = value
            Path("walked.json").write_text(json.dumps(changed))
            code, _, err = call(
                f"import-weights released.pt --config walked.json --out walked/{number}-{value}"
            )
            if code != 0:
                assert code == 2 and "Traceback" not in err and len(err.splitlines()) <= 10, (
                    place,
                    value,
                    err,
                )


def test_train_with_an_imported_first_stage(released):
    if not Path("models/a").exists():
        done("import-weights released.pt --config config.json --out models/a")
    vae = "vae.resolutions=1,4,8 vae.widths=8 vae.encoder_widths=8 vae.layers=1 vae.encoder_blocks=1"
    settings = f"{vae} autoencoder.size=16 batch_size=8 vae_training.warmup=1".split()
    options = "--steps 2 --precision fp32 --device cpu --data shapes:n=40 "
    options += " ".join(f"--set {setting}" for setting in settings)

    done(f"train --preset shapes-demo --autoencoder models/a/autoencoder --out borrowed {options}")
    assert load_model("borrowed").scaler.scale.item() == pytest.approx(4.4)  # it came with the folder
    assert "pretrained: models/a/autoencoder" in done("info borrowed")
    done("sample borrowed --n 2 --out borrowed.png")
    done("encode borrowed --data shapes:n=10 --out borrowed-codes")
    refused(f"train --preset shapes-demo --autoencoder no/where --out other {options}", "no/where")
    refused("train --preset church --out other --data shapes", "--autoencoder")
    assert not Path("other").exists()


def test_export_onnx(plain):
    pytest.importorskip("onnx")
    out = done("export-onnx plain --out graph")
    about = json.loads(Path("graph/model.json").read_text())
    assert "graph/model.onnx" in out
    assert Path("graph/model.onnx").stat().st_size > 10_000
    assert "noise" in json.dumps(about)
    assert "labels" not in json.dumps(about.get("inputs", ""))
    done("export-onnx plain --out graph")  # its own files may be replaced
    Path("foreign-graph").mkdir()
    Path("foreign-graph/model.json").write_text('{"layers": 3}')
    refused("export-onnx plain --out foreign-graph", "foreign-graph", "model.json", "did not write")
    assert os.listdir("foreign-graph") == ["model.json"]
    Path("a-file").write_text("kept")
    refused("export-onnx plain --out a-file", "a-file")
    refused("export-onnx nowhere --out graph", "nowhere")
    assert Path("a-file").read_text() == "kept"
