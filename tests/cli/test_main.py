"Tests of the command line as a process: help without torch, usage errors, a closed pipe."

import os
import subprocess
import sys

import pytest
from commandline import done
from typer.main import get_command

from cfvae import __version__
from cfvae.cli import app

IN_ORDER = [
    "presets",
    "train",
    "tune",
    "info",
    "report",
    "evaluate",
    "sample",
    "reconstruct",
    "encode",
    "demo",
    "bench",
    "compare",
    "train-features",
    "import-weights",
    "push",
    "export-onnx",
]


def python(*arguments, **options):
    command = [sys.executable, *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=300, **options)


def test_help_needs_no_torch():
    code = f"""
import sys
from cfvae.cli import main

assert main([]) == main(["--help"]) == main(["--version"]) == 0
for command in {IN_ORDER}:
    assert main([command, "--help"]) == 0
assert main(["sample", "shapes", "--n", "many"]) == 2
sys.exit(3 if "torch" in sys.modules else 0)
"""
    process = python("-c", code, stdout=subprocess.PIPE)
    assert process.returncode == 0, process.stderr
    assert "--max-minutes" in process.stdout
    for command in IN_ORDER:
        assert f" {command} " in process.stdout


def test_commands_are_in_order():
    assert list(get_command(app).commands) == IN_ORDER


def test_module_and_usage_error():
    process = python("-m", "cfvae", "trian", stdout=subprocess.PIPE)
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr == "error: No such command 'trian'. Did you mean 'train'?\nSee cfvae --help\n"


def test_closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    process = python("-m", "cfvae", "--version", stdout=writer)
    os.close(writer)
    assert process.stderr == "" and process.returncode == 1


def test_version():
    assert done("--version") == f"cfvae {__version__}\n"


@pytest.mark.parametrize("command", IN_ORDER)
def test_every_command_has_a_line_of_help(command):
    assert get_command(app).commands[command].help.endswith(".")


def test_a_backend_that_is_not_there_is_not_asked(tmp_path):
    environment = {**os.environ, "MPLBACKEND": "nosuch"}
    command = [sys.executable, "-c", "from cfvae.cli import main; main(['presets']); import matplotlib"]
    assert subprocess.run(command, env=environment, capture_output=True, cwd=tmp_path).returncode == 0
