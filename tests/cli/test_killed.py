"A run that is really killed, again and again, ends as one that never was, to the last byte."

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import torch
from commandline import TINY, refused

from cfvae.checkpoints import list_checkpoints, load_checkpoint

DRIVER = """
import os, signal, sys
from cfvae.cli import main
from cfvae.runs import callbacks

moment, number, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
log, replace = callbacks.JsonLog.on_step, os.replace

def on_step(self, state, metrics):
    log(self, state, metrics)
    now = f"{self.path.parent.name} {state.step}"
    if "pause" in moment and now == "autoencoder 3":
        os.kill(os.getpid(), signal.SIGSTOP)
    if moment.startswith(now + ","):
        os.kill(os.getpid(), number)

def rename(source, target):
    if moment == "encoding" and str(target).endswith("latents.npy"):
        os.kill(os.getpid(), number)
    replace(source, target)

callbacks.JsonLog.on_step, os.replace = on_step, rename
sys.exit(main(arguments))
"""
RESUME = "train --out killed --resume"
FILES = (
    "latents/latents.npy",
    "autoencoder/model/model.safetensors",
    "pipeline/pipeline.json",
    "pipeline/autoencoder/model.safetensors",
    "pipeline/vae/model.safetensors",
    "vae/pictures/step-00000030.png",
)


def start(moment, number, line):
    "A command in a process of its own, which sends itself a signal at a moment of its training."
    command = [sys.executable, "-c", DRIVER, moment, str(int(number)), *shlex.split(line)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def newest(stage):
    return load_checkpoint(f"killed/{stage}/checkpoints")[0]


def same(a, b):
    "Equal to the last bit, however nested."
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def log_without_speed(path):
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    for line in lines:
        del line["examples_per_second"]
    return lines


def test_a_killed_run_ends_as_one_that_was_never_killed(run):
    first = start("autoencoder 7, pause", signal.SIGKILL, f"{TINY} --out killed --steps 30")
    try:
        _, status = os.waitpid(first.pid, os.WUNTRACED)  # it stands still in the middle of its work
        assert os.WIFSTOPPED(status), first.communicate()
        refused(RESUME, "killed is in use by another run", str(first.pid))
    finally:
        first.send_signal(signal.SIGCONT)
    first.communicate(timeout=300)
    assert first.returncode == -signal.SIGKILL
    assert newest("autoencoder") == 5  # two steps are lost
    assert not Path("killed/autoencoder/model").exists()

    second = start("autoencoder 13,", signal.SIGTERM, RESUME)
    out, err = second.communicate(timeout=300)
    assert second.returncode == 143 and "Traceback" not in err
    assert "resuming after step 5" in out
    saved = "everything up to step 13 of 30 (autoencoder) is saved"
    assert out.splitlines()[-1] == f"stopped by SIGTERM: {saved}; go on with: cfvae {RESUME}"
    assert newest("autoencoder") == 13

    third = start("encoding", signal.SIGKILL, RESUME)
    third.communicate(timeout=300)
    assert third.returncode == -signal.SIGKILL
    assert not Path("killed/latents/latents.npy").exists() and not Path("killed/vae").exists()

    fourth = start("vae 17,", signal.SIGKILL, RESUME)
    fourth.communicate(timeout=300)
    assert fourth.returncode == -signal.SIGKILL
    assert newest("vae") == 15
    assert not Path("killed/pipeline").exists()

    command = [sys.executable, "-m", "cfvae", *shlex.split(RESUME)]
    last = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert last.returncode == 0 and "done: the model is in killed/pipeline" in last.stdout, last.stderr

    for stage in ("autoencoder", "vae"):
        step, state = load_checkpoint(f"run/{stage}/checkpoints")
        killed_step, killed_state = load_checkpoint(f"killed/{stage}/checkpoints")
        assert step == killed_step == 30
        assert same({**state, "config": 0}, {**killed_state, "config": 0})
        log = log_without_speed(f"run/{stage}/log.jsonl")
        assert len(log) == 30 and log == log_without_speed(f"killed/{stage}/log.jsonl")
    for file in FILES:
        assert Path("run", file).read_bytes() == Path("killed", file).read_bytes(), file
    assert len(list_checkpoints("killed/vae/checkpoints")) == 2
