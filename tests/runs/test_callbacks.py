"What watches a run: logs, pictures, the clock, signals; a run that is killed ends equal to the last bit."

import contextlib
import copy
import dataclasses
import errno
import io
import itertools
import json
import math
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
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cfvae.autoencoder import Autoencoder, AutoencoderConfig, reconstruction_loss
from cfvae.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from cfvae.core import CfvaeError, seed_everything
from cfvae.data import Shapes
from cfvae.files.lock import FolderLock
from cfvae.runs import callbacks
from cfvae.runs.callbacks import (
    Checkpointer,
    JsonLog,
    PictureLog,
    ProgressBar,
    StopOnSignal,
    TensorBoardLog,
    TimeLimit,
    plain_metrics,
    read_log,
)
from cfvae.runs.logs import Speed
from cfvae.runs.output import say
from cfvae.training import Callback, StopTraining, TrainingConfig, TrainingState, fit

# Children come from a server that has imported everything once: cheap, and without inherited threads.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["cfvae.runs.callbacks", "cfvae.data", "torch._dynamo"])

DATA = Shapes(24, size=8)
LOSS = reconstruction_loss()
CONFIG = TrainingConfig(steps=24, batch_size=4, learning_rate=1e-2, warmup=4, device="cpu", precision="fp32")


def new_model() -> Autoencoder:
    seed_everything(0)
    return Autoencoder(AutoencoderConfig(size=8, widths=(8,), patch=2, groups=4, latent_channels=2))


def config(**changes) -> TrainingConfig:
    settings = {"steps": 4, "batch_size": 8, "warmup": 2, "precision": "fp32", "device": "cpu"}
    return TrainingConfig(**{**settings, **changes})


class Recorder(Callback):
    def __init__(self):
        self.states = []

    def on_step(self, state, metrics):
        self.states.append(copy.deepcopy(state.state_dict()))


# ---------------------------------------------------------------- time, logs and pictures


def test_a_time_limit_stops_the_run():
    state = fit(new_model(), DATA, LOSS, config(steps=50), [TimeLimit(1e-9)])
    assert state.step == 1
    for minutes in (0, "5", True, math.nan):
        with pytest.raises(CfvaeError, match=f"max-minutes is {minutes!r}"):
            TimeLimit(minutes)


def test_log_lines(tmp_path):
    path = tmp_path / "run" / "log.jsonl"
    fit(new_model(), DATA, LOSS, config(steps=7, log_every=3), [JsonLog(path)])
    lines = read_log(path)
    assert [line["step"] for line in lines] == [3, 6, 7]
    assert {
        "loss",
        "psnr",
        "l1",
        "gradient_norm",
        "learning_rate",
        "skipped",
        "examples_per_second",
    } <= lines[0].keys()
    fit(new_model(), DATA, LOSS, config(steps=2, log_every=1), [JsonLog(path)])
    assert [line["step"] for line in read_log(path)] == [1, 2]  # a new run begins a new log


def test_resuming_drops_lines_beyond_the_resumed_step(tmp_path):
    path, watch = tmp_path / "log.jsonl", Recorder()
    fit(new_model(), DATA, LOSS, config(steps=6, log_every=1), [watch, JsonLog(path)])
    first = read_log(path)
    with path.open("a") as file:
        file.write('{"step": 7, "lo')  # cut off by a crash

    class Resume(Callback):
        def on_start(self, state):
            state.load_state_dict(watch.states[3])

    fit(new_model(), DATA, LOSS, config(steps=6, log_every=1), [Resume(), JsonLog(path)])
    second = read_log(path)
    assert [line["step"] for line in second] == [1, 2, 3, 4, 5, 6]
    assert second[:4] == first[:4] and [line["loss"] for line in second] == [line["loss"] for line in first]


@pytest.mark.parametrize("content", [b"dear", b'{"name": 1}\n', b"\x00\xff"])
def test_a_file_of_somebody_is_no_place_for_a_log(tmp_path, content):
    path = tmp_path / "notes.jsonl"
    path.write_bytes(content)
    with pytest.raises(CfvaeError, match="notes.jsonl holds something else than a log of cfvae: move it"):
        fit(new_model(), DATA, LOSS, config(steps=2), [JsonLog(path)])
    assert path.read_bytes() == content


def log_line(step: int) -> dict:
    return {"step": step, "loss": 0.5, "skipped": 0, "examples_per_second": 9.0}


def test_reading_an_absent_log(tmp_path):
    assert read_log(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b'{"st',
        b"\xff\xfe\x00",
        b"\x00" * 40,
        b"7",
        b"[1, 2]",
        b"null",
        b"{}",
        b'{"step": 2}',
        b'{"step": "2", "loss": 1, "skipped": 0, "examples_per_second": 1}',
        b'{"step": null, "loss": 1, "skipped": 0, "examples_per_second": 1}',
        b'{"step": 2, "loss": [1.0], "skipped": 0, "examples_per_second": 1}',
        b'{"step": 2, "loss": 1, "skipped": 0, "examples_per_second": [1, 2]}',
        b'{"step": 2, "loss": 1' + 400 * b"0" + b', "skipped": 0, "examples_per_second": 1}',
        b'{"step": true, "loss": 1, "skipped": 0, "examples_per_second": 1}',
        b'{"step": -2, "loss": 1, "skipped": 0, "examples_per_second": 1}',
        b'{"step": 2, "loss": 1, "skipped": 0, "examples_per_second": 1, "rate": "much"}',
        b'{"step": 2, "loss": 1, "skipped": 0, "examples_per_second": 1, "rates": [1, "x"]}',
        b"[" * 100_000,
    ],
    ids=lambda bad: repr(bad[:20]),
)
def test_a_bad_line_of_a_log_is_left_out_and_no_other(tmp_path, bad):
    lines = [json.dumps(log_line(step)).encode() for step in (1, 2)]
    for position in range(3):
        damaged = [*lines[:position], bad, *lines[position:]]
        (tmp_path / "log.jsonl").write_bytes(b"\n".join(damaged))
        assert read_log(tmp_path / "log.jsonl") == [log_line(1), log_line(2)]


def test_a_log_is_json_for_every_program(tmp_path):
    "JSON has no NaN and no infinity."
    path = tmp_path / "log.jsonl"

    def loss_fn(model, batch, generator, step):
        loss, _ = LOSS(model, batch, generator, step)
        return loss * (math.inf if step == 1 else 1.0), {"rates": torch.tensor([1.0, math.nan])}

    def refuse(constant):
        raise AssertionError(constant)

    fit(new_model(), DATA, loss_fn, config(steps=3, log_every=1), [JsonLog(path)])
    entries = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert [entry["loss"] is None for entry in entries] == [False, True, False]
    assert entries[0]["rates"] == [1.0, None]
    lines = read_log(path)
    assert len(lines) == 3 and math.isnan(lines[1]["loss"]) and lines[2]["loss"] == entries[2]["loss"]
    assert lines[0]["rates"][0] == 1 and math.isnan(lines[0]["rates"][1])

    path.write_text(json.dumps(log_line(1) | {"loss": math.inf}) + "\n")  # of an earlier version
    assert read_log(path)[0]["loss"] == math.inf


def draw_nothing(model) -> torch.Tensor:
    return torch.zeros(1, 3, 8, 8)


def logged_run(folder: Path, resume: bool) -> None:
    often = dataclasses.replace(CONFIG, log_every=1, sample_every=5)
    log = JsonLog(folder / "log.jsonl")
    pictures = PictureLog(folder / "pictures", draw_nothing)
    train([log, pictures, Checkpointer(folder / "checkpoints", 5, resume)], often)


def killed_at_a_write(number: int, folder: Path) -> None:
    "A run that is killed at the n-th opening or renaming of a file of its own."
    count = 0

    def watch(event, arguments):
        nonlocal count
        if event in ("open", "os.rename") and str(folder) in str(arguments[0]):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    logged_run(folder, resume=False)


@pytest.mark.parametrize("number", range(2, 30, 3))
def test_wherever_it_is_killed_log_and_pictures_agree_with_the_checkpoint(tmp_path, number):
    assert in_child(killed_at_a_write, number, tmp_path) == -signal.SIGKILL
    newest = load_checkpoint(tmp_path / "checkpoints")
    done = newest[0] if newest else 0
    logged = [line["step"] for line in read_log(tmp_path / "log.jsonl")]
    assert logged[:done] == list(range(1, done + 1))
    for step in range(5, done + 1, 5):
        assert Image.open(tmp_path / "pictures" / f"step-{step:08d}.png").size == (12, 12)

    logged_run(tmp_path, resume=True)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == list(range(1, 25))


def test_pictures_come_from_the_averaged_weights(tmp_path):
    drawn = []

    def draw(model):
        drawn.append((model, model.training, torch.is_grad_enabled()))
        return torch.zeros(2, 3, 8, 8)

    state = fit(
        new_model(), DATA, LOSS, config(steps=5, sample_every=2), [PictureLog(tmp_path, draw, columns=2)]
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-00000002.png",
        "step-00000004.png",
        "step-00000005.png",
    ]
    assert all(d == (state.ema.module, False, False) for d in drawn)
    assert Image.open(tmp_path / "step-00000005.png").size == (22, 12)


def test_progress_bar_and_tensorboard_take_scalars_and_lists(tmp_path, capsys):
    def loss_fn(model, batch, generator, step):
        return LOSS(model, batch, generator, step)[0], {"rates": torch.tensor([1.0, 2.0])}

    fit(
        new_model(),
        DATA,
        loss_fn,
        config(steps=2, log_every=1),
        [ProgressBar("a title"), TensorBoardLog(tmp_path)],
    )
    assert "a title" in capsys.readouterr().err
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    assert {"loss", "rates/00", "rates/01"} <= set(events.Tags()["scalars"])
    assert [e.value for e in events.Scalars("rates/01")] == [2.0, 2.0]


@pytest.mark.parametrize("resume, done", [(True, 4), (False, 0)])
def test_tensorboard_shows_every_step_once(tmp_path, resume, done):
    "Where a run goes on, and where one begins anew that failed before it saved anything."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class GoOn(Callback):
        def on_start(self, state):
            state.step = done

    for watchers, steps in (([], 6 if done else 3), ([GoOn()] if resume else [], 8)):
        fit(new_model(), DATA, LOSS, config(steps=steps, log_every=1), [*watchers, TensorBoardLog(tmp_path)])
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [e.step for e in events.Scalars("loss")] == list(range(1, 9))


def nobody_reads() -> typing.TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", buffering=1)


def closed() -> typing.TextIO:
    stream = open(os.devnull, "w")
    stream.close()
    return stream


def full() -> typing.TextIO:
    return open("/dev/full", "w", buffering=1)


@pytest.mark.parametrize("broken", [nobody_reads, closed, full, lambda: None], ids=lambda make: make.__name__)
def test_a_print_that_fails_does_not_end_a_run(tmp_path, monkeypatch, broken):
    train([Checkpointer(tmp_path, every=5), StopAt(6)])
    monkeypatch.setattr(sys, "stdout", broken())
    monkeypatch.setattr(sys, "stderr", broken())
    say("nobody hears this")
    watchers = [ProgressBar("nobody sees this"), SignalAt(9, signal.SIGTERM), StopOnSignal()]
    state = train([Checkpointer(tmp_path, every=5, resume=True), *watchers], often_shown())
    with contextlib.suppress(OSError):  # what it could not write, it tries again as it is closed
        sys.stdout and sys.stdout.close()
    with contextlib.suppress(OSError):
        sys.stderr and sys.stderr.close()
    assert state.step == 9 and steps_in(tmp_path)[-1] == 9


def often_shown() -> TrainingConfig:
    return dataclasses.replace(CONFIG, log_every=1)


def test_characters_that_the_terminal_lacks(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    say("a caf\xe9 \udcff")
    assert raw.getvalue() == b"a caf\\xe9 \\udcff\n"


def test_plain_metrics_are_json():
    metrics = {"loss": torch.tensor(1.5), "rates": torch.tensor([1.0, 2.0]), "skipped": False}
    assert json.loads(json.dumps(plain_metrics(metrics))) == {
        "loss": 1.5,
        "rates": [1.0, 2.0],
        "skipped": False,
    }


def reporting(value, name="hit"):
    "The usual loss, which reports something besides."
    return lambda *arguments: (LOSS(*arguments)[0], {name: value})


@pytest.mark.parametrize(
    "value, read",
    [
        (True, 1),
        (torch.tensor(True), 1),
        (np.float32(0.5), 0.5),
        (np.arange(2), [0, 1]),
        ((1.5, False), [1.5, 0]),
        (torch.ones(3, requires_grad=True), [1.0, 1.0, 1.0]),
    ],
)
def test_a_line_that_is_logged_can_be_read_again(tmp_path, value, read):
    path = tmp_path / "log.jsonl"
    watch = [JsonLog(path), TensorBoardLog(tmp_path / "board"), ProgressBar(keys=["hit"])]
    fit(new_model(), DATA, reporting(value), config(log_every=1), watch)
    assert [(line["step"], line["hit"]) for line in read_log(path)] == [(step, read) for step in range(1, 5)]


@pytest.mark.parametrize("value", ["good", None, torch.ones(2, 2), [[1.0]], object()])
@pytest.mark.parametrize("watch", [JsonLog, TensorBoardLog])
def test_what_is_no_number_is_not_logged(tmp_path, watch, value):
    with pytest.raises(CfvaeError, match="the metric hit is no number, and no list of numbers"):
        fit(new_model(), DATA, reporting(value), config(log_every=1), [watch(tmp_path / "log")])


def test_no_metric_takes_the_place_of_the_step(tmp_path):
    fit(new_model(), DATA, reporting(7, "step"), config(log_every=1), [JsonLog(tmp_path / "log.jsonl")])
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4]


def test_a_log_is_no_folder(tmp_path):
    with pytest.raises(CfvaeError, match="is a folder: name a file"):
        fit(new_model(), DATA, LOSS, config(), [JsonLog(tmp_path)])


def test_at_home(tmp_path, monkeypatch):
    "What is written below ~ is found there, and no folder is called so."
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    often = config(log_every=1, sample_every=1)
    watch = [JsonLog("~/a/log.jsonl"), PictureLog("~/b", draw_nothing), TensorBoardLog("~/c")]
    with FolderLock("~/d"):
        fit(new_model(), DATA, LOSS, often, [*watch, Checkpointer("~/d", 2)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]
    assert len(read_log("~/a/log.jsonl")) == load_checkpoint("~/d")[0] == 4


def test_speed_is_that_since_the_last_line(monkeypatch):
    clock = iter([10.0, 12.0, 22.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    state = TrainingState(new_model(), config(batch_size=8))
    speed = Speed(state)
    state.step = 4
    assert speed.since_last(state) == 4 * 8 / 2
    state.step = 9
    assert speed.since_last(state) == 5 * 8 / 10


# ---------------------------------------------------------------- helpers


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

    def denoise(model, batch, generator, step):
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


def killed_at_line(number: int, report: Path, action, *arguments) -> None:
    "Run `action`, and SIGKILL this process at the given line of the files below; write how many there were."
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if Path(frame.f_code.co_filename).name not in ("checkpoints.py", "training.py", "callbacks.py"):
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


# ---------------------------------------------------------------- checkpoints


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


def test_a_checkpoint_at_least_every_step(tmp_path):
    with pytest.raises(CfvaeError, match="every is 0"):
        Checkpointer(tmp_path, every=0)
    with pytest.raises(CfvaeError, match="the folder is ''"):
        Checkpointer("", every=1)
    with pytest.raises(CfvaeError, match="every is '5'"):
        Checkpointer(tmp_path, every="5")
    with pytest.raises(CfvaeError, match="keep is 0"):
        Checkpointer(tmp_path, every=1, keep=0)


def test_more_steps_than_are_asked_for_are_not_passed_off_as_a_run_of_fewer(tmp_path):
    train([Checkpointer(tmp_path, every=5), StopAt(12)])
    with pytest.raises(CfvaeError, match="12 steps are done already in .*, and steps is 7: take 12 or more"):
        train([Checkpointer(tmp_path, every=5, resume=True)], dataclasses.replace(CONFIG, steps=7))


def test_resumed_run_is_equal_to_the_last_bit(tmp_path, undisturbed):
    train([Checkpointer(tmp_path, every=5), StopAt(12)])
    assert steps_in(tmp_path) == [10, 12]
    resumed = train([Checkpointer(tmp_path, every=5, resume=True)])
    assert steps_in(tmp_path) == [20, 24]
    assert_same(resumed.state_dict(), undisturbed)
    assert_same(load_checkpoint(tmp_path)[1], undisturbed)


@pytest.mark.parametrize("part", ["model", "ema", "optimizer"])
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


@pytest.mark.parametrize("part, value", [("model", float("nan")), ("ema", float("inf"))])
def test_a_checkpoint_with_weights_that_are_not_finite_is_refused(tmp_path, undisturbed, part, value):
    train([Checkpointer(tmp_path, every=5), StopAt(12)])
    step, state = load_checkpoint(tmp_path)
    weights = [name for name, tensor in state[part].items() if tensor.is_floating_point()]
    state[part][weights[-1]].view(-1)[-1] = value
    broken = save_checkpoint(tmp_path, step, state)
    go_on = [Checkpointer(tmp_path, every=5, resume=True)]
    with pytest.raises(CfvaeError) as refusal:
        train(go_on)
    assert str(broken) in str(refusal.value) and f"({part}.{weights[-1]})" in str(refusal.value)
    assert "remove it, and --resume goes on from the checkpoint before" in str(refusal.value)

    broken.unlink()
    assert_same(train(go_on).state_dict(), undisturbed)
    for path in list_checkpoints(tmp_path):
        path.unlink()
    save_checkpoint(tmp_path, step, state)
    with pytest.raises(CfvaeError, match="there is none before it; train anew"):
        train(go_on)


@pytest.mark.parametrize(
    "part, value",
    [("step", "x"), ("step", None), ("step", 11), ("step", -1), ("step", 10**9)]
    + [("skipped", None), ("skipped", -1), ("skipped", 13), ("skipped_in_a_row", 0.5)],
)
def test_a_checkpoint_that_counts_otherwise_is_refused(tmp_path, part, value):
    train([Checkpointer(tmp_path, every=5), StopAt(12)])
    step, state = load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, step, {**state, part: value})
    with pytest.raises(CfvaeError, match="of step 12 .* does not say what was done: remove it"):
        train([Checkpointer(tmp_path, every=5, resume=True)])


def with_one_parameter_twice(state: dict) -> None:
    group = state["optimizer"]["param_groups"][0]
    group["params"] = [group["params"][0]] * len(group["params"])


@pytest.mark.parametrize(
    "forge",
    [
        lambda state: state.update(config=[1]),
        lambda state: state.update(model=[1]),
        lambda state: state.update(ema=None),
        lambda state: state.update(optimizer="adam"),
        with_one_parameter_twice,
    ],
    ids=["config", "model", "ema", "optimizer", "params"],
)
def test_a_checkpoint_of_another_make_is_refused(tmp_path, forge):
    train([Checkpointer(tmp_path, every=5), StopAt(12)])
    step, state = load_checkpoint(tmp_path)
    forge(state)
    save_checkpoint(tmp_path, step, state)
    with pytest.raises(CfvaeError, match="cannot be taken up|of another model"):
        train([Checkpointer(tmp_path, every=5, resume=True)])


def test_a_checkpoint_that_learned_from_other_data_is_refused(tmp_path, undisturbed):
    train([Checkpointer(tmp_path, every=5, data="a"), StopAt(12)])
    with pytest.raises(CfvaeError, match="learned from other data than this run has now"):
        train([Checkpointer(tmp_path, every=5, resume=True, data="b")])
    assert_same(train([Checkpointer(tmp_path, every=5, resume=True, data="a")]).state_dict(), undisturbed)


def test_a_checkpoint_that_does_not_say_what_it_learned_from_goes_on(tmp_path, undisturbed):
    train([Checkpointer(tmp_path, every=5), StopAt(12)])
    step, state = load_checkpoint(tmp_path)
    del state["config"]["data"]  # as earlier versions saved it
    save_checkpoint(tmp_path, step, state)
    assert_same(train([Checkpointer(tmp_path, every=5, resume=True, data="a")]).state_dict(), undisturbed)


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


def test_after_the_last_step_changed_settings_come_too_late(tmp_path, capsys):
    done = dataclasses.replace(CONFIG, steps=3)
    train([Checkpointer(tmp_path, every=10)], done)
    train([Checkpointer(tmp_path, every=10, resume=True)], dataclasses.replace(done, learning_rate=5e-3))
    said = "resuming after step 3, the last: changed settings come too late (learning_rate 0.01 -> 0.005)\n"
    assert said in capsys.readouterr().out


def test_changed_betas_take_effect(tmp_path, capsys):
    train([Checkpointer(tmp_path, every=10), StopAt(3)])
    state = train([Checkpointer(tmp_path, 10, resume=True)], dataclasses.replace(CONFIG, betas=(0.5, 0.9)))
    assert "changed settings: betas (0.9, 0.99) -> (0.5, 0.9)\n" in capsys.readouterr().out
    assert [group["betas"] for group in state.optimizer.param_groups] == [(0.5, 0.9)]


def test_step_cut_by_an_error_is_not_saved(tmp_path):
    "`fit` calls `on_end` after an error too, but half a step is not a state to go on from."

    def fails_in_step_8(model, batch, generator, step):
        fails_in_step_8.calls += 1
        if fails_in_step_8.calls == 8:
            raise KeyboardInterrupt
        return model(batch[0]).square().mean(), {}

    fails_in_step_8.calls = 0
    with pytest.raises(KeyboardInterrupt):
        train([Checkpointer(tmp_path, every=5)], loss=fails_in_step_8)
    assert steps_in(tmp_path) == [5]


class FailsAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step(self, state, metrics):
        if state.step == self.step:
            raise ZeroDivisionError


def test_a_step_after_which_another_callback_fails_is_saved(tmp_path, undisturbed):
    "As where a picture cannot be drawn: what was learned by then is whole."
    with pytest.raises(ZeroDivisionError):
        train([FailsAt(8), Checkpointer(tmp_path, every=5)])
    assert steps_in(tmp_path) == [5, 8]
    assert_same(train([Checkpointer(tmp_path, every=5, resume=True)]).state_dict(), undisturbed)


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
    rename = os.replace
    left = iter([True])

    def second_fails(source, target):
        if not next(left, False):
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(CfvaeError, match="No space left"):
        train([Checkpointer(tmp_path, every=5)])
    assert steps_in(tmp_path) == [5]


# ---------------------------------------------------------------- killed for real


def protected_run(
    folder: Path, result: Path, stop_at: int = -1, number: int = signal.SIGTERM, resume: bool = True
) -> None:
    "What a training command does: lock, resume, train, leave the result."
    with FolderLock(folder):
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
from test_callbacks import Callback, Checkpointer, FolderLock, Path, StopOnSignal, time, train

class Slow(Callback):  # waits in step 8, for the signal from outside to come in the middle of the run
    def on_step(self, state, metrics):
        if state.step == 8:
            Path(sys.argv[3]).touch()
            while stop.received is None:
                time.sleep(0.01)

stop = StopOnSignal()
with FolderLock(sys.argv[2]):
    train([Checkpointer(sys.argv[2], 5), Slow(), stop])
"""


def test_sigterm_from_outside_saves_and_exits(tmp_path, undisturbed):
    run, started, result = tmp_path / "run", tmp_path / "started", tmp_path / "result.pt"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", PROGRAM, Path(__file__).parent, run, started]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    wait_for(started.exists)
    with pytest.raises(CfvaeError, match=rf"in use by another run \(process {process.pid}\)"):
        FolderLock(run).__enter__()  # a second run is refused while the first lives
    process.terminate()
    output = process.communicate(timeout=120)[0]
    stopped = int(re.search(r"SIGTERM: stopping after step (\d+)", output)[1])
    assert process.returncode == 0 and steps_in(run)[-1] == stopped == 8
    assert in_child(protected_run, run, result) == 0
    assert_same(torch.load(result, weights_only=True), undisturbed)


STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture
def hangup():
    "Sets what SIGHUP does, whatever these tests were started by."
    earlier = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, earlier)


@pytest.mark.parametrize("number", STOPPING)
def test_first_signal_stops_cleanly_and_handlers_come_back(tmp_path, undisturbed, number, capsys, hangup):
    hangup(signal.SIG_DFL)
    before = [signal.getsignal(n) for n in STOPPING]
    stop = StopOnSignal()
    state = train([Checkpointer(tmp_path, 50), SignalAt(7, number), stop])
    assert state.step == 7 and steps_in(tmp_path) == [7] and stop.received == number
    assert f"{signal.Signals(number).name}: stopping after step 7\n" in capsys.readouterr().out
    assert [signal.getsignal(n) for n in STOPPING] == before
    assert_same(train([Checkpointer(tmp_path, 50, resume=True)]).state_dict(), undisturbed)


def test_under_nohup_a_closed_terminal_stops_nothing(hangup):
    hangup(signal.SIG_IGN)
    assert train([SignalAt(7, signal.SIGHUP), StopOnSignal()]).step == 24
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_second_ctrl_c_interrupts_at_once(tmp_path):
    def two_ctrl_c(model, batch, generator, step):
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
    with FolderLock(folder) if rank == 0 else contextlib.nullcontext():  # as in a run
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


def test_a_bar_tells_of_steps_and_numbers(monkeypatch):
    "From where the run goes on; numbers at the steps that are logged; only one of several processes has one."
    told = []

    class Bar:
        def __init__(self, **options):
            told.append(options)

        def update(self):
            told.append("step")

        def set_postfix(self, shown, refresh):
            told.append((list(shown), shown["loss"], refresh))

        def close(self):
            told.append("closed")

    monkeypatch.setattr(callbacks, "tqdm", Bar)
    model = new_model()
    state = TrainingState(model, config(steps=9, log_every=2))
    state.step = 3
    bar = ProgressBar("a title")
    bar.on_start(state)
    options = told.pop()
    assert (options["total"], options["initial"], options["desc"], options["disable"]) == (
        9,
        3,
        "a title",
        False,
    )
    assert options["unit"] == "step" and options["file"].stream is sys.stderr
    for step in (4, 5):
        state.step = step
        bar.on_step(state, {"loss": torch.tensor(0.123456), "rate": 2.0, "other": 1.0})
    bar.on_end(state)
    numbers = (["loss", "rate", "skipped", "examples/s"], "0.1235", False)
    assert told == ["step", numbers, "step", "closed"]
    state.is_main = False
    bar.on_start(state)
    assert told.pop()["disable"] is True
