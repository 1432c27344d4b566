"Nobody reads, the terminal closes, its alphabet is small: real processes, which lose no work by it."

import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commandline import TINY

from cfvae.checkpoints import list_checkpoints

LONG = f"{TINY} --steps 100000 --set checkpoint_every=100000"


def cfvae(line):
    return [sys.executable, "-m", "cfvae", *shlex.split(line)]


def shell(line, **environment):
    "A line of shell, with `cfvae` in it; the exit code is that of the first command of a pipe."
    command = f'cfvae() {{ {shlex.quote(sys.executable)} -m cfvae "$@"; }}; set -o pipefail; {line}'
    options = {"capture_output": True, "timeout": 120, "env": {**os.environ, **environment}}
    return subprocess.run(["bash", "-c", command], **options)


def wait_for(process, condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "it has ended, or hangs"
        time.sleep(0.02)


def has_logged(out):
    "Whether the first stage of a run has taken a step."
    log = Path(out, "autoencoder", "log.jsonl")
    return lambda: log.exists() and log.stat().st_size > 0


def newest_step(out):
    return int(list_checkpoints(Path(out, "autoencoder", "checkpoints"))[-1].name.split("-")[1])


def steps_logged(out):
    return len(Path(out, "autoencoder", "log.jsonl").read_text().splitlines())


def take_terminal():
    "Make the standard input the terminal that this process belongs to."
    import fcntl
    import termios

    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_terminal_that_is_closed_loses_nothing():
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        cfvae(f"{LONG} --out hung-up"),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(terminal)
    wait_for(process, has_logged("hung-up"))
    os.close(master)
    assert process.wait(120) == 128 + signal.SIGHUP
    assert newest_step("hung-up") == steps_logged("hung-up") > 0


def test_sighup_is_answered_as_sigterm_is():
    process = subprocess.Popen(
        cfvae(f"{LONG} --out told"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    wait_for(process, has_logged("told"))
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 129 and "Traceback" not in err
    step = newest_step("told")
    saved = f"everything up to step {step} of 100000 (autoencoder) is saved"
    ending = (
        f"stopped by SIGHUP (the terminal was closed): {saved}; go on with: cfvae train --out told --resume"
    )
    assert out.splitlines()[-2:] == [f"SIGHUP: stopping after step {step}", ending]


@pytest.mark.parametrize("closed", ["before", "meanwhile"])
def test_a_run_that_nobody_reads_goes_on_and_is_saved(closed):
    reader, writer = os.pipe()
    if closed == "before":
        os.close(reader)
    process = subprocess.Popen(cfvae(f"{LONG} --out unread-{closed}"), stdout=writer, stderr=writer)
    os.close(writer)
    wait_for(process, has_logged(f"unread-{closed}"))
    if closed == "meanwhile":
        os.close(reader)
    time.sleep(1)  # two lines of progress
    assert process.poll() is None
    process.terminate()
    assert process.wait(120) == 143
    assert newest_step(f"unread-{closed}") == steps_logged(f"unread-{closed}") > 0


@pytest.mark.parametrize("line", ["presets", "info shapes", "--help"])
def test_closed_streams(line):
    process = shell(f"cfvae {line} >&- 2>&-")
    assert process.returncode == 0, process


def test_a_pipe_closed_early_ends_quietly():
    process = shell("cfvae presets | true")
    assert process.returncode in (0, 1) and process.stdout == process.stderr == b""


def test_a_full_disk_under_the_output_is_named():
    process = shell("cfvae info shapes >/dev/full")
    assert process.returncode == 2
    assert process.stderr.startswith(b"error: standard output: No space left on device: free some space")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_names_outside_the_alphabet_of_the_terminal(encoding):
    name = f"{encoding} \u732b caf\u00e9.png"
    process = shell(f"cfvae sample shapes --n 1 --out '{name}'", PYTHONIOENCODING=encoding)
    assert process.returncode == 0 and Path(name).exists(), process
    assert b"\\u732b caf" in process.stdout and process.stderr == b""
