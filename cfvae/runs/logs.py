"""The numbers of a run, kept: one line of JSON per entry, or TensorBoard."""

import json
import math
import time
import typing
from pathlib import Path

from ..checkpoints import write_synced
from ..core import check, check_path
from ..training import Callback, Metrics, TrainingState


def plain_metrics(
    metrics: Metrics,  # values may be tensors or arrays
) -> dict[str, typing.Any]:
    """The metrics as numbers and lists, ready for JSON; of true and false, 1 and 0.

    Raises `CfvaeError` for anything else, which could not be read again."""
    plain = {}
    for name, value in metrics.items():
        value = value.tolist() if hasattr(value, "tolist") else value
        entries = list(value) if isinstance(value, (list, tuple)) else [value]
        numbers = all(isinstance(entry, (int, float)) for entry in entries)
        check(numbers, f"the metric {name} is no number, and no list of numbers: leave it out of the metrics")
        entries = [int(entry) if isinstance(entry, bool) else entry for entry in entries]
        plain[name] = entries if isinstance(value, (list, tuple)) else entries[0]
    return plain


def _as_line(entry: dict[str, typing.Any]) -> str:
    "A line of a log, JSON that every program reads: null is a number that is not finite."
    return json.dumps({name: _as_json(value) for name, value in entry.items()}, allow_nan=False) + "\n"


def _as_json(value: typing.Any) -> typing.Any:
    if isinstance(value, list):
        return [_as_json(number) for number in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value: typing.Any) -> typing.Any:
    if isinstance(value, list):
        return [_from_json(number) for number in value]
    return math.nan if value is None else value


class Speed:
    "How fast a run goes now: examples per second since it was last asked."

    def __init__(
        self,
        state: TrainingState,  # at the start
    ) -> None:
        self.step = state.step
        self.time = time.monotonic()

    def since_last(
        self,
        state: TrainingState,  # now
    ) -> float:
        "Examples per second since the last call, or since the start."
        now = time.monotonic()
        steps = state.step - self.step
        seconds = max(now - self.time, 1e-9)
        self.step = state.step
        self.time = now
        return steps * state.config.batch_size / seconds


LINE_START = b'{"step":'


class JsonLog(Callback):
    """Appends one JSON object per `log_every` steps to a file. On resuming, lines beyond the resumed step are
    dropped. Best placed before the `Checkpointer`: the log then lacks no step that a checkpoint counts."""

    def __init__(
        self,
        path: str | Path,  # the file, usually log.jsonl
    ) -> None:
        self.path = check_path(path, "the log")

    def on_start(self, state: TrainingState) -> None:
        self.begun = False
        self.speed = Speed(state)
        check(not self.path.is_dir(), f"{self.path} is a folder: name a file for the log")
        start = self.path.read_bytes()[: len(LINE_START)] if self.path.is_file() else b""
        ours = LINE_START.startswith(start)  # perhaps cut off by a crash
        check(ours, f"{self.path} holds something else than a log of cfvae: move it away")

    def on_step(self, state: TrainingState, metrics: Metrics) -> None:
        if not state.is_main:
            return
        if not self.begun:  # not earlier: a `Checkpointer` may have resumed after `on_start`
            self._begin(steps_done=state.step - 1)
        if state.step % state.config.log_every == 0 or state.step == state.config.steps:
            self._append(state, metrics)

    def _begin(self, steps_done: int) -> None:
        "Keep the lines of the steps that were done before, without a line that a crash cut off."
        self.begun = True
        self.speed.step = steps_done
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [line for line in read_log(self.path) if line["step"] <= steps_done]
        text = "".join(map(_as_line, lines))
        write_synced(self.path, text.encode())

    def _append(self, state: TrainingState, metrics: Metrics) -> None:
        line = {"step": state.step, **plain_metrics(metrics)}
        line["step"] = state.step  # first, and not what a metric of that name says
        line["skipped"] = state.skipped
        line["examples_per_second"] = round(self.speed.since_last(state), 1)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_as_line(line))


ALWAYS_LOGGED = ("step", "loss", "skipped", "examples_per_second")


def read_log(
    path: str | Path,  # a file that JsonLog wrote
) -> list[dict[str, typing.Any]]:
    """The lines of a log, oldest first. Those that JsonLog cannot have written, such as one that a crash cut
    off, are left out; what was not finite is NaN; an absent file is an empty log."""
    path = check_path(path, "the log")
    if not path.exists():
        return []
    lines = []
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):  # not JSON, or not UTF-8
            continue
        if isinstance(line, dict):
            line = {name: _from_json(value) for name, value in line.items()}
            if _is_whole(line):
                lines.append(line)
    return lines


def _is_whole(line: dict[str, typing.Any]) -> bool:
    "Whether a line of a log has the numbers that every line has, one each, and nothing but numbers."
    if any(name not in line or isinstance(line[name], list) for name in ALWAYS_LOGGED):
        return False
    values = [value for entry in line.values() for value in (entry if isinstance(entry, list) else [entry])]
    numbers = all(type(value) is float or (type(value) is int and abs(value) < 2**63) for value in values)
    return numbers and type(line["step"]) is int and line["step"] >= 0


class TensorBoardLog(Callback):
    "The same numbers for TensorBoard."

    def __init__(
        self,
        folder: str | Path,  # where TensorBoard will look
    ) -> None:
        self.folder = check_path(folder)

    def on_start(self, state: TrainingState) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: SummaryWriter | None = None
        if state.is_main:
            redone = state.step + 1  # and all after it, of which the folder may hold an earlier try
            self.writer = SummaryWriter(str(self.folder), purge_step=redone)

    def on_step(self, state: TrainingState, metrics: Metrics) -> None:
        if self.writer is None or state.step % state.config.log_every != 0:
            return
        for name, value in plain_metrics(metrics).items():
            if isinstance(value, list):
                for i, number in enumerate(value):
                    self.writer.add_scalar(f"{name}/{i:02d}", number, state.step)
            else:
                self.writer.add_scalar(name, value, state.step)

    def on_end(self, state: TrainingState) -> None:
        if self.writer is not None:
            self.writer.close()
