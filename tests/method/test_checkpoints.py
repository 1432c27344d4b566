"Checkpoints: faults are injected, processes really killed, and a resumed run is compared with an undisturbed one to the last bit."

import contextlib
import dataclasses
import errno
import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cfvae import checkpoints
from cfvae.runs.callbacks import Checkpointer, StopOnSignal
from cfvae.runs.folder import RunLock
from cfvae.checkpoints import differences, list_checkpoints, load_checkpoint, save_checkpoint
from cfvae.core import CfvaeError, seed_everything
from cfvae.data import Shapes
from cfvae.training import Callback, StopTraining, TrainingConfig, fit

# Children are forked from a server that has imported everything once and computed nothing: cheap, and without inherited threads.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["cfvae.checkpoints", "cfvae.data", "torch._dynamo"])

CONFIG = TrainingConfig(steps=24, batch_size=4, learning_rate=1e-2, warmup=4, device="cpu", precision="fp32")
WEIGHTS = {"weights": torch.arange(5000.0)}


def in_child(target, *arguments) -> int:
    "Run a function in a process of its own; returns its exit code, -9 after SIGKILL."
    process = context.Process(target=target, args=arguments)
    process.start()
    process.join(300)
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def train(callbacks=(), config=CONFIG, width=4, loss=None):
    "Train a model of a few hundred weights that needs noise, so that a wrong generator state would show."
    torch.set_num_threads(1)
    seed_everything(0)
    model = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))

    def denoise(model, batch, generator):
        noise = torch.randn(batch[0].shape, generator=generator)
        return (model(batch[0] + noise) - batch[0]).square().mean(), {}

    return fit(model, Shapes(n=64, size=8), loss or denoise, config, callbacks)


def flatten(value, name="state") -> dict:
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, item in items for k, v in flatten(item, f"{name}.{key}").items()}
    return {name: value}


def assert_same(found: dict, wanted: dict) -> None:
    "Two states are equal to the last bit."
    found, wanted = flatten({k: v for k, v in found.items() if k != "config"}), flatten(wanted)
    assert found.keys() == wanted.keys() and len(found) > 20
    for name, value in wanted.items():
        assert torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value, (
            name
        )


@pytest.fixture(scope="module")
def undisturbed() -> dict:
    return train().state_dict()


@pytest.fixture
def folder(tmp_path) -> Path:
    "A folder with one good checkpoint, of step 1."
    save_checkpoint(tmp_path, 1, WEIGHTS)
    return tmp_path


@contextlib.contextmanager
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def assert_intact(folder: Path, step: int = 1) -> None:
    "The checkpoint of a step loads, without a word about damage, and there is nothing half-written beside it."
    with no_warnings():
        found, state = load_checkpoint(folder)
    assert found == step and torch.equal(state["weights"], WEIGHTS["weights"])
    assert not (folder / checkpoints.UNFINISHED).exists()


# ---------------------------------------------------------------- saving and loading


def test_round_trip(tmp_path):
    state = {
        "model": OrderedDict(w=torch.randn(3, 4), b=torch.tensor(1.5, dtype=torch.bfloat16)),
        "list": [1, 2.5, "text", None, True, (3, 4)],
        "index": {0: torch.arange(3), 1: float("inf")},
        "empty": {},
    }
    path = save_checkpoint(tmp_path / "new" / "folder", 12, state)
    step, found = load_checkpoint(path.parent)
    assert step == 12 and list_checkpoints(path.parent) == [path]
    a, b = flatten(found), flatten(state)
    assert a.keys() == b.keys()
    for name, value in b.items():
        assert (
            torch.equal(a[name], value) and a[name].dtype == value.dtype
            if isinstance(value, torch.Tensor)
            else a[name] == value
        )


def test_file_is_plain_and_its_name_holds_its_checksum(folder):
    (path,) = list_checkpoints(folder)
    assert torch.load(path, weights_only=True)["step"] == 1
    summed = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
    assert path.stem == f"step-1-{summed[:16]}"


def test_nothing_there(tmp_path):
    assert load_checkpoint(tmp_path) is None and load_checkpoint(tmp_path / "missing") is None


def test_newest_by_number_in_whatever_order_they_were_saved(tmp_path):
    for step in (97_500, 100_000, 9, 95_000):
        save_checkpoint(tmp_path, step, {"step": step}, keep=10)
    assert [torch.load(p, weights_only=True)["step"] for p in list_checkpoints(tmp_path)] == [
        9,
        95_000,
        97_500,
        100_000,
    ]
    assert load_checkpoint(tmp_path) == (100_000, {"step": 100_000})


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_keep(tmp_path, keep):
    for step in (8, 9, 10, 11):
        save_checkpoint(tmp_path, step, WEIGHTS, keep=keep)
    assert [int(p.name.split("-")[1]) for p in list_checkpoints(tmp_path)] == [8, 9, 10, 11][-keep:]
    assert len(list(tmp_path.iterdir())) == keep


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(CfvaeError, match="keep is 0"):
        save_checkpoint(tmp_path, 1, WEIGHTS, keep=0)
    with pytest.raises(CfvaeError, match="every is 0"):
        Checkpointer(tmp_path, every=0)


def test_only_checkpoints_are_deleted(tmp_path):
    others = [tmp_path / name for name in ("log.jsonl", "step-1.png", "model.pt", "stepwise-1.pt")]
    for other in others:
        other.write_text("mine")
    for step in range(5):
        save_checkpoint(tmp_path, step, WEIGHTS, keep=1)
    assert all(other.read_text() == "mine" for other in others) and len(list_checkpoints(tmp_path)) == 1


@pytest.mark.parametrize("value", [np.float64(1), np.zeros(3), Path("x"), {1, 2}, print, CONFIG])
def test_what_could_not_be_read_back_is_not_saved(folder, value):
    with pytest.raises(CfvaeError, match=r"state\.a\.0 is a .* cannot hold"):
        save_checkpoint(folder, 2, {"a": [value]})
    assert_intact(folder)


# ---------------------------------------------------------------- faults while saving


class Failing:
    "A system call that fails at its n-th use, and works otherwise."

    def __init__(self, call, at=1):
        self.call, self.left = call, at

    def __call__(self, *arguments, **options):
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.call(*arguments, **options)


class HalfWritten:
    "An open file on a disk that becomes full in the middle of the write."

    def __init__(self, path, mode):
        self.file = open(path, mode)  # noqa: SIM115

    def write(self, payload):
        self.file.write(payload[: len(payload) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


@pytest.mark.parametrize("stage", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("keep", [1, 2])
def test_failure_leaves_the_one_before(folder, monkeypatch, stage, keep):
    if stage in ("open", "write"):
        monkeypatch.setattr(
            checkpoints, "open", Failing(open) if stage == "open" else HalfWritten, raising=False
        )
    else:
        monkeypatch.setattr(os, stage, Failing(getattr(os, stage)))
    with pytest.raises(CfvaeError, match=f"{re.escape(str(folder))}.*No space left"):
        save_checkpoint(folder, 2, WEIGHTS, keep=keep)
    monkeypatch.undo()
    assert_intact(folder)
    save_checkpoint(folder, 2, WEIGHTS)
    assert_intact(folder, step=2)


def test_failing_folder_sync_deletes_nothing(folder, monkeypatch):
    monkeypatch.setattr(os, "fsync", Failing(os.fsync, at=2))
    with pytest.raises(CfvaeError, match="No space left"):
        save_checkpoint(folder, 2, WEIGHTS, keep=1)
    assert len(list_checkpoints(folder)) == 2
    assert_intact(folder, step=2)


def test_content_reaches_the_disk_before_the_name_and_the_name_before_deletion(folder, monkeypatch):
    calls = []
    for name in ("fsync", "replace", "unlink"):
        monkeypatch.setattr(
            os,
            name,
            lambda *a, call=getattr(os, name), name=name, **k: (calls.append(name), call(*a, **k))[1],
        )
    monkeypatch.setattr(Path, "unlink", lambda path, **options: os.unlink(path))
    save_checkpoint(folder, 2, WEIGHTS, keep=1)
    assert calls == ["fsync", "replace", "fsync", "unlink"]


def test_interrupted_save_leaves_nothing_half_written(folder, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, 2, WEIGHTS)
    assert_intact(folder)


@contextlib.contextmanager
def mounted(path: Path, options: str):
    path.mkdir()
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root on Linux")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True).returncode:
        pytest.skip("this system does not allow mounting a small disk")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_disk_that_is_really_full(tmp_path):
    with mounted(tmp_path / "disk", "size=128k") as disk:
        save_checkpoint(disk / "run", 1, WEIGHTS)
        with pytest.raises(CfvaeError, match="disk/run.*No space left"):
            save_checkpoint(disk / "run", 2, {"weights": torch.zeros(50_000)})
        assert_intact(disk / "run")
        save_checkpoint(disk / "run", 3, WEIGHTS)
        assert_intact(disk / "run", step=3)


def test_read_only_folder(tmp_path):
    with mounted(tmp_path / "disk", "size=128k") as disk:
        save_checkpoint(disk, 1, WEIGHTS)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(CfvaeError, match=f"{disk}.*Read-only"):
            save_checkpoint(disk, 2, WEIGHTS)
        with pytest.raises(CfvaeError, match=f"{disk}.*Read-only"):
            RunLock(disk).__enter__()
        assert_intact(disk)


def test_folder_that_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("not a folder")
    for attempt in (
        lambda: save_checkpoint(path, 1, WEIGHTS),
        lambda: load_checkpoint(path),
        lambda: RunLock(path).__enter__(),
    ):
        with pytest.raises(CfvaeError, match=re.escape(str(path))):
            attempt()
    assert path.read_text() == "not a folder"


def killed_at_line(number: int, report: Path, action, *arguments) -> None:
    "Run `action`, and SIGKILL this process at the given line of checkpoints.py or training.py that it executes; write how many there were."
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if Path(frame.f_code.co_filename).name not in ("checkpoints.py", "training.py"):
            return None
        if event == "line":
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    action(*arguments)
    sys.settrace(None)
    report.write_text(str(count))


def kill_saves(folder: Path) -> None:
    "Fork once for each line that saving executes and die at that line; note which step is found afterwards."
    torch.set_num_threads(1)
    steps = []
    for number in itertools.count(1):
        run = folder / f"{number}"
        save_checkpoint(run, 1, WEIGHTS)
        child = os.fork()
        if not child:
            killed_at_line(number, folder / "lines", save_checkpoint, run, 2, WEIGHTS, 1)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break  # the save was complete before that line
        with no_warnings():
            steps.append(load_checkpoint(run)[0])
        save_checkpoint(run, 3, WEIGHTS, keep=1)
        assert_intact(run, step=3)
        assert len(list(run.iterdir())) == 1  # nothing of the killed save is left
    (folder / "steps").write_text(json.dumps(steps))


def test_killed_at_every_line_of_a_save(tmp_path):
    assert in_child(kill_saves, tmp_path) == 0
    steps = json.loads((tmp_path / "steps").read_text())
    assert steps == sorted(steps) and set(steps) == {1, 2} and len(steps) > 20


# ---------------------------------------------------------------- damage and strangers


def flip_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
    "truncated": lambda c: c[: len(c) // 2],
    "one byte short": lambda c: c[:-1],
    "longer": lambda c: c + b"\0",
    "bit flipped": flip_bit,
    "empty": lambda c: b"",
    "zeros": lambda c: bytes(len(c)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named_and_the_one_before_used(folder, damage):
    newest = save_checkpoint(folder, 2, {"weights": -WEIGHTS["weights"]})
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match=re.escape(newest.name)):
        step, state = load_checkpoint(folder)
    assert step == 1 and torch.equal(state["weights"], WEIGHTS["weights"])
    list_checkpoints(folder)[0].write_bytes(b"")
    with (
        pytest.warns(UserWarning),
        pytest.raises(CfvaeError, match=f"all 2 checkpoints in {re.escape(str(folder))}"),
    ):
        load_checkpoint(folder)


def test_damaged_step_is_replaced_when_saved_again(folder):
    good = save_checkpoint(folder, 2, WEIGHTS)
    good.rename(folder / "step-2-0123456789abcdef.pt")
    with pytest.warns(UserWarning, match="0123456789abcdef"):
        assert load_checkpoint(folder)[0] == 1
    save_checkpoint(folder, 2, WEIGHTS)
    assert [p.name for p in list_checkpoints(folder)][1:] == [good.name]
    assert_intact(folder, step=2)


def test_the_file_just_written_stays_even_if_a_damaged_one_has_a_higher_number(tmp_path):
    save_checkpoint(tmp_path, 9, WEIGHTS).write_bytes(b"damaged")
    save_checkpoint(tmp_path, 5, WEIGHTS, keep=1)
    with pytest.warns(UserWarning, match="step-9"):
        assert load_checkpoint(tmp_path)[0] == 5


def test_unfinished_file_is_never_read_and_goes_with_the_next_save(folder):
    (folder / checkpoints.UNFINISHED).write_bytes(b"half a checkpoint")
    with no_warnings():
        assert load_checkpoint(folder)[0] == 1
    save_checkpoint(folder, 2, WEIGHTS)
    assert_intact(folder, step=2)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def plant(folder: Path, payload, step: int = 9) -> Path:
    "A file with a right name and a right checksum, but of somebody else's making."
    path = folder / "made"
    torch.save(payload, path)
    return path.rename(folder / f"step-{step}-{checkpoints._checksum(path.read_bytes())}.pt")


def test_malicious_pickle_only_raises(folder, tmp_path):
    prey = tmp_path / "prey"
    planted = plant(folder, {"format": checkpoints.FORMAT, "version": 1, "step": 9, "state": Trap(prey)})
    with pytest.raises(
        CfvaeError, match=f"{re.escape(planted.name)} is not a checkpoint.*nothing in it was run"
    ):
        load_checkpoint(folder)
    assert not prey.exists()
    torch.load(planted, weights_only=False)
    assert prey.exists()  # the trap was live


@pytest.mark.parametrize(
    "payload, complaint",
    [
        ({"weights": torch.ones(2)}, "not a checkpoint of this package"),
        (torch.ones(2), "not a checkpoint of this package"),
        (
            {"format": "cfvae checkpoint", "version": 2, "step": 9, "state": {}},
            "has format version 2, this code reads 1",
        ),
        ({"format": "cfvae checkpoint", "step": 9, "state": {}}, "has format version None"),
    ],
)
def test_strangers(folder, payload, complaint):
    planted = plant(folder, payload)
    with pytest.raises(CfvaeError, match=f"{planted.name} (is )?{complaint}"):
        load_checkpoint(folder)


def test_not_a_torch_file_at_all(folder):
    text = b"a text that somebody saved under a checkpoint's name"
    (folder / f"step-9-{checkpoints._checksum(text)}.pt").write_bytes(text)
    with pytest.raises(CfvaeError, match="step-9.*is not a checkpoint"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "found, lines",
    [
        ({"a": torch.ones(2, 3), "b": [1, 2], "c": {}}, []),
        ({"a": torch.ones(2, 3), "b": [7, 8], "c": {"anything": torch.ones(1)}}, []),
        ({"a": torch.ones(3, 2), "b": [1, 2], "c": {}}, ["a has shape (3, 2) instead of (2, 3)"]),
        ({"a": torch.ones(2, 3), "b": [1, 2, 3], "c": {}}, ["b.2 is not part of this run"]),
        ({"a": torch.ones(2, 3), "b": [1], "c": {}}, ["b.1 is missing"]),
        ({"b": [1, 2], "c": {}, "d": 0}, ["a is missing", "d is not part of this run"]),
        ({"a": 1, "b": [1, 2], "c": {}}, ["a is a int instead of a Tensor"]),
        ({"a": torch.ones(2, 3), "b": 5, "c": {}}, ["b is a int instead of a list"]),
    ],
)
def test_differences(found, lines):
    assert differences({"a": torch.zeros(2, 3), "b": [3, 4], "c": {}}, found) == lines


# ---------------------------------------------------------------- the callback


class SignalAt(Callback):
    "Sends this process a signal once a step is done."

    def __init__(self, step, number):
        self.step, self.number = step, number

    def on_step(self, state, metrics):
        if state.step == self.step:
            signal.raise_signal(self.number)


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step(self, state, metrics):
        if state.step == self.step:
            raise StopTraining


def steps_in(folder: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in list_checkpoints(folder)]


def test_resumed_run_is_equal_to_the_last_bit(tmp_path, undisturbed):
    train([Checkpointer(tmp_path, every=5), StopAt(12)])
    assert steps_in(tmp_path) == [10, 12]
    resumed = train([Checkpointer(tmp_path, every=5, resume=True)])
    assert steps_in(tmp_path) == [20, 24]
    assert_same(resumed.state_dict(), undisturbed)
    assert_same(load_checkpoint(tmp_path)[1], undisturbed)


@pytest.mark.parametrize("part", ["model", "ema", "optimizer", "step"])
def test_every_part_of_the_state_matters(tmp_path, undisturbed, part):
    "The comparison above would notice if a part were not restored."
    train([Checkpointer(tmp_path, every=5), StopAt(12)])
    step, found = load_checkpoint(tmp_path)
    fresh = train(config=dataclasses.replace(CONFIG, steps=1)).state_dict()
    save_checkpoint(tmp_path, step, {**found, part: fresh[part]})
    resumed = train([Checkpointer(tmp_path, every=5, resume=True)]).state_dict()
    with pytest.raises(AssertionError):
        assert_same(resumed, undisturbed)


def test_resuming_an_empty_folder_starts_from_the_beginning(tmp_path, undisturbed):
    assert_same(train([Checkpointer(tmp_path / "new", every=50, resume=True)]).state_dict(), undisturbed)
    assert steps_in(tmp_path / "new") == [24]


def test_finished_run_resumes_to_itself_without_writing(tmp_path, undisturbed):
    train([Checkpointer(tmp_path, every=10)])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert_same(train([Checkpointer(tmp_path, every=10, resume=True)]).state_dict(), undisturbed)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_damaged_newest_resumes_from_the_one_before(tmp_path, undisturbed, capsys):
    train([Checkpointer(tmp_path, every=5), StopAt(12)])
    list_checkpoints(tmp_path)[-1].write_bytes(b"")
    with pytest.warns(UserWarning, match="step-12"):
        resumed = train([Checkpointer(tmp_path, every=5, resume=True)])
    assert "resuming after step 10" in capsys.readouterr().out
    assert_same(resumed.state_dict(), undisturbed)


def test_forgotten_resume_is_refused_and_nothing_is_lost(tmp_path):
    train([Checkpointer(tmp_path, every=10), StopAt(3)])
    before = list_checkpoints(tmp_path)
    with pytest.raises(CfvaeError, match=f"{re.escape(str(tmp_path))} already holds"):
        train([Checkpointer(tmp_path, every=1)])
    assert list_checkpoints(tmp_path) == before


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"width": 6}, r"model\.0\.weight has shape \(4, 3, 3, 3\) instead of \(6, 3, 3, 3\).*and \d+ more"),
        ({"config": dataclasses.replace(CONFIG, optimizer="adamax")}, "optimizer adam -> adamax"),
        ({"config": dataclasses.replace(CONFIG, seed=5)}, "seed"),
    ],
)
def test_checkpoint_of_another_run(tmp_path, change, complaint):
    train([Checkpointer(tmp_path, every=10), StopAt(3)])
    before = list_checkpoints(tmp_path)
    with pytest.raises(CfvaeError, match=complaint):
        train([Checkpointer(tmp_path, every=10, resume=True)], **change)
    assert list_checkpoints(tmp_path) == before


def test_checkpoint_without_the_optimiser(tmp_path):
    train([Checkpointer(tmp_path, every=10), StopAt(3)])
    step, found = load_checkpoint(tmp_path)
    del found["optimizer"]
    save_checkpoint(tmp_path, step, found)
    with pytest.raises(CfvaeError, match="optimizer is missing"):
        train([Checkpointer(tmp_path, every=10, resume=True)])


def test_changed_settings_are_reported(tmp_path, capsys):
    train([Checkpointer(tmp_path, every=10), StopAt(3)])
    train([Checkpointer(tmp_path, every=10, resume=True)], dataclasses.replace(CONFIG, learning_rate=5e-3))
    assert "resuming after step 3; changed settings: learning_rate 0.01 -> 0.005\n" in capsys.readouterr().out


def test_step_cut_by_an_error_is_not_saved(tmp_path):
    "`fit` calls `on_end` after an error too, but half a step is not a state to go on from."

    def fails_in_step_8(model, batch, generator):
        fails_in_step_8.calls += 1
        if fails_in_step_8.calls == 8:
            raise KeyboardInterrupt
        return model(batch[0]).square().mean(), {}

    fails_in_step_8.calls = 0
    with pytest.raises(KeyboardInterrupt):
        train([Checkpointer(tmp_path, every=5)], loss=fails_in_step_8)
    assert steps_in(tmp_path) == [5]


def test_run_inside_an_except_block_is_saved_at_its_end(tmp_path):
    try:
        raise RuntimeError("handled already")
    except RuntimeError:
        train([Checkpointer(tmp_path, every=50), StopAt(3)])
    assert steps_in(tmp_path) == [3]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_order_of_callbacks_does_not_matter(tmp_path, undisturbed, order):
    def callbacks(resume, *more):
        return [
            [Checkpointer(tmp_path, 10, resume), StopOnSignal(), *more][i]
            for i in order[: 2 + len(more)]
            if i < 2 + len(more)
        ]

    train(callbacks(False, SignalAt(13, signal.SIGTERM)))
    assert steps_in(tmp_path)[-1] in (13, 14)
    assert_same(train(callbacks(True, Callback())).state_dict(), undisturbed)


def test_only_the_main_process_writes(tmp_path):
    class NotMain(Callback):
        def on_start(self, state):
            state.is_main = False

    train([NotMain(), Checkpointer(tmp_path, every=5), StopAt(6)])
    assert steps_in(tmp_path) == []


def test_full_disk_ends_the_run_with_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", Failing(os.replace, at=2))
    with pytest.raises(CfvaeError, match="No space left"):
        train([Checkpointer(tmp_path, every=5)])
    assert steps_in(tmp_path) == [5]


# ---------------------------------------------------------------- killed for real


def protected_run(
    folder: Path, result: Path, stop_at: int = -1, number: int = signal.SIGTERM, resume: bool = True
) -> None:
    "What a training command does: lock, resume, train, leave the result."
    with RunLock(folder):
        state = train([Checkpointer(folder, 5, resume), SignalAt(stop_at, number), StopOnSignal()])
    torch.save(state.state_dict(), result)


def test_killed_at_random_moments(tmp_path, undisturbed):
    result, lines = tmp_path / "result.pt", tmp_path / "lines"
    assert in_child(killed_at_line, -1, lines, protected_run, tmp_path / "count", result) == 0
    total, chance = int(lines.read_text()), random.Random(0)
    for repeat in range(4):
        run = tmp_path / str(repeat)
        for number in sorted(chance.sample(range(1, total), 2), reverse=True):
            assert in_child(killed_at_line, number, lines, protected_run, run, result) in (
                0,
                -signal.SIGKILL,
            )  # 0: done before that line
        result.unlink(missing_ok=True)
        assert in_child(protected_run, run, result) == 0
        assert_same(torch.load(result, weights_only=True), undisturbed)


def test_kill_minus_9_then_resume(tmp_path, undisturbed):
    run, result = tmp_path / "run", tmp_path / "result.pt"
    assert in_child(protected_run, run, result, 13, signal.SIGKILL) == -signal.SIGKILL
    assert steps_in(run) == [5, 10] and not result.exists()
    assert in_child(protected_run, run, result) == 0
    assert_same(torch.load(result, weights_only=True), undisturbed)


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from test_checkpoints import Callback, Checkpointer, Path, RunLock, StopOnSignal, time, train

class Slow(Callback):  # waits in step 8, for the signal from outside to come in the middle of the run
    def on_step(self, state, metrics):
        if state.step == 8:
            Path(sys.argv[3]).touch()
            while stop.received is None:
                time.sleep(0.01)

stop = StopOnSignal()
with RunLock(sys.argv[2]):
    train([Checkpointer(sys.argv[2], 5), Slow(), stop])
"""


def test_sigterm_from_outside_saves_and_exits(tmp_path, undisturbed):
    run, started, result = tmp_path / "run", tmp_path / "started", tmp_path / "result.pt"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", PROGRAM, Path(__file__).parent, run, started]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    wait_for(started.exists)
    with pytest.raises(CfvaeError, match=rf"in use by another run \(process {process.pid}\)"):
        RunLock(run).__enter__()  # a second run is refused while the first lives
    process.terminate()
    output = process.communicate(timeout=120)[0]
    stopped = int(re.search(r"SIGTERM: stopping after step (\d+)", output)[1])
    assert process.returncode == 0 and steps_in(run)[-1] == stopped == 8
    assert in_child(protected_run, run, result) == 0
    assert_same(torch.load(result, weights_only=True), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_stops_cleanly_and_handlers_come_back(tmp_path, undisturbed, number, capsys):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    stop = StopOnSignal()
    state = train([Checkpointer(tmp_path, 50), SignalAt(7, number), stop])
    assert state.step == 7 and steps_in(tmp_path) == [7] and stop.received == number
    assert f"{signal.Signals(number).name}: stopping after step 7\n" in capsys.readouterr().out
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert_same(train([Checkpointer(tmp_path, 50, resume=True)]).state_dict(), undisturbed)


def test_second_ctrl_c_interrupts_at_once(tmp_path):
    def two_ctrl_c(model, batch, generator):
        two_ctrl_c.calls += 1
        if two_ctrl_c.calls == 8:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the second Ctrl-C did not interrupt")
        return model(batch[0]).square().mean(), {}

    two_ctrl_c.calls, before = 0, signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train([Checkpointer(tmp_path, 5), StopOnSignal()], loss=two_ctrl_c)
    assert steps_in(tmp_path) == [5] and signal.getsignal(signal.SIGINT) == before


def test_stop_on_signal_outside_the_main_thread_installs_nothing(tmp_path):
    before, seen = signal.getsignal(signal.SIGTERM), []
    thread = threading.Thread(target=lambda: seen.append(train([StopOnSignal(), StopAt(2)]).step))
    thread.start()
    thread.join()
    assert seen == [2] and signal.getsignal(signal.SIGTERM) == before


def one_of_two(rank: int, port: int, folder: Path, results) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", ACCELERATE_USE_CPU="true")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    signals = [SignalAt(7, signal.SIGTERM)] if rank == 1 else []  # reaches one of the two processes only
    with RunLock(folder):
        state = train([Checkpointer(folder, 5), *signals, StopOnSignal()])
    results.put((rank, state.step))


def test_processes_stop_together_and_one_writes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = context.Queue()
    processes = [
        context.Process(target=one_of_two, args=(rank, port, tmp_path, results)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    assert sorted(results.get(timeout=120) for _ in processes) == [(0, 7), (1, 7)]
    for process in processes:
        process.join(60)
    assert steps_in(tmp_path) == [5, 7]


# ---------------------------------------------------------------- the lock


def hold_lock(folder: Path, report: Path, fork_a_child: bool = False) -> None:
    with RunLock(folder):
        child = os.fork() if fork_a_child else 1
        if child:
            report.with_suffix(".new").write_text(str(child))
            os.rename(report.with_suffix(".new"), report)
        time.sleep(300)


@pytest.mark.parametrize("fork_a_child", [False, True], ids=["alone", "with a forked child that lives on"])
def test_lock_is_refused_while_held_and_free_after_kill(tmp_path, fork_a_child):
    report = tmp_path / "report"
    process = context.Process(target=hold_lock, args=(tmp_path, report, fork_a_child))
    process.start()
    wait_for(report.exists)
    try:
        with pytest.raises(
            CfvaeError,
            match=rf"{re.escape(str(tmp_path))} is in use by another run \(process {process.pid}\)",
        ):
            RunLock(tmp_path).__enter__()
        process.kill()
        process.join()
        with no_warnings(), RunLock(tmp_path):
            assert (tmp_path / "run.lock").read_text() == f"{os.getpid()}\n"
    finally:
        if fork_a_child:
            os.kill(int(report.read_text()), signal.SIGKILL)


def test_lock_in_the_same_process(tmp_path):
    with RunLock(tmp_path / "a"), RunLock(tmp_path / "b"):
        with pytest.raises(CfvaeError, match="in use"):
            RunLock(tmp_path / "a").__enter__()
    first, second = RunLock(tmp_path / "a"), RunLock(tmp_path / "a")
    with pytest.raises(KeyError), first:
        raise KeyError
    with second:
        pass
    with first:  # leaving the block releases it, and it can be used again
        pass


def test_only_the_main_process_of_a_run_locks(tmp_path, monkeypatch):
    with RunLock(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with RunLock(tmp_path):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(CfvaeError):
            RunLock(tmp_path).__enter__()


def test_without_flock_the_run_goes_on_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "fcntl", None)
    with pytest.warns(UserWarning, match=f"{re.escape(str(tmp_path))} cannot be locked"), RunLock(tmp_path):
        pass


# ---------------------------------------------------------------- the lesson


NOTEBOOK = Path(__file__).parents[2] / "nbs" / "03b_checkpoints.ipynb"


def solutions() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    folded = "".join(re.findall(r"<details>(.*?)</details>", text, re.S))
    return re.findall(r"```python\n(.*?)```", folded, re.S)


def test_exercise_solutions_run(tmp_path):
    assert len(solutions()) == 3
    program = "\n".join(solutions())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_no_private_paths_in_the_stored_outputs():
    outputs = json.dumps(
        [cell.get("outputs") for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]]
    )
    assert not re.search(r"/(?:tmp|home|root)/|ipykernel_\d| at 0x[0-9a-f]{6}", outputs)
