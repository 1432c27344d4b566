"""What watches a run: progress, logs, pictures, the clock, signals, checkpoints."""

import torch
import time
import typing
import json
import sys
import signal
import threading
from tqdm.auto import tqdm
from pathlib import Path

from ..checkpoints import differences, list_checkpoints, load_checkpoint, save_checkpoint
from ..core import CfvaeError, check, config_to_dict, image_grid
from ..training import Callback, StopTraining, TrainingState


def plain_metrics(
    metrics: dict,  # values may be tensors
) -> dict:
    "The metrics as numbers and lists, ready for JSON."
    return {k: (v.tolist() if torch.is_tensor(v) else v) for k, v in metrics.items()}


class ProgressBar(Callback):
    "A line that shows loss, rate, distortion, skipped steps, examples per second and the time left."

    def __init__(
        self,
        title: str = "training",  # stands before the bar
        keys: typing.Sequence[str] = (
            "loss",
            "distortion",
            "rate",
            "psnr",
        ),  # metrics to show, where the loss reports them
    ):
        self.title, self.keys = title, keys

    def on_start(self, state: TrainingState) -> None:
        self.bar = tqdm(
            total=state.config.steps,
            initial=state.step,
            desc=self.title,
            unit="step",
            mininterval=0.5,
            disable=not state.is_main,
            dynamic_ncols=True,
        )
        self.began, self.first = time.monotonic(), state.step

    def on_step(self, state: TrainingState, metrics: dict) -> None:
        self.bar.update()
        if state.step % state.config.log_every == 0:
            shown = {k: f"{float(metrics[k]):.4g}" for k in self.keys if k in metrics}
            speed = (
                (state.step - self.first) * state.config.batch_size / max(time.monotonic() - self.began, 1e-9)
            )
            self.bar.set_postfix(
                {**shown, "skipped": state.skipped, "examples/s": f"{speed:.0f}"}, refresh=False
            )

    def on_end(self, state: TrainingState) -> None:
        self.bar.close()


class JsonLog(Callback):
    "Appends one JSON object per `log_every` steps to a file; on resuming, lines beyond the resumed step are dropped (so it stands after the `Checkpointer`)."

    def __init__(
        self,
        path: str | Path,  # the file, usually log.jsonl
    ):
        self.path = Path(path)

    def on_start(self, state: TrainingState) -> None:
        if not state.is_main:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_log(self.path) if line["step"] <= state.step] if state.step else []
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self.began, self.first = time.monotonic(), state.step

    def on_step(self, state: TrainingState, metrics: dict) -> None:
        if state.is_main and (state.step % state.config.log_every == 0 or state.step == state.config.steps):
            speed = (
                (state.step - self.first) * state.config.batch_size / max(time.monotonic() - self.began, 1e-9)
            )
            line = {
                "step": state.step,
                **plain_metrics(metrics),
                "skipped": state.skipped,
                "examples_per_second": round(speed, 1),
            }
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def read_log(
    path: str | Path,  # a file that JsonLog wrote
) -> list[dict]:
    "The lines of a log, oldest first; a last line cut off by a crash is left out. An absent file is an empty log."
    path = Path(path)
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


class TensorBoardLog(Callback):
    "The same numbers for TensorBoard."

    def __init__(
        self,
        folder: str | Path,  # where TensorBoard will look
    ):
        self.folder = Path(folder)

    def on_start(self, state: TrainingState) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = (
            SummaryWriter(str(self.folder), purge_step=state.step or None) if state.is_main else None
        )

    def on_step(self, state: TrainingState, metrics: dict) -> None:
        if self.writer and state.step % state.config.log_every == 0:
            for name, value in plain_metrics(metrics).items():
                for i, number in enumerate(value if isinstance(value, list) else [value]):
                    self.writer.add_scalar(
                        f"{name}/{i:02d}" if isinstance(value, list) else name, number, state.step
                    )

    def on_end(self, state: TrainingState) -> None:
        if self.writer:
            self.writer.close()


class PictureLog(Callback):
    "Saves a grid of images every `sample_every` steps and at the end, drawn from the averaged weights."

    def __init__(
        self,
        folder: str | Path,  # where the PNG files go
        draw: typing.Callable,  # averaged model -> images (n, 3, h, w) in [-1, 1]
        columns: int | None = None,  # images per row
    ):
        self.folder, self.draw, self.columns = Path(folder), draw, columns

    def on_step(self, state: TrainingState, metrics: dict) -> None:
        if state.is_main and (
            state.step % state.config.sample_every == 0 or state.step == state.config.steps
        ):
            self.folder.mkdir(parents=True, exist_ok=True)
            model = state.ema.module.eval()
            with torch.no_grad():
                image_grid(self.draw(model), self.columns).save(self.folder / f"step-{state.step:08d}.png")


class TimeLimit(Callback):
    "Stops training when the time is up; the checkpoint is written as at any end."

    def __init__(
        self,
        minutes: float,  # from now on
    ):
        check(minutes > 0, f"max-minutes is {minutes}: it must be above 0")
        self.deadline = time.monotonic() + 60 * minutes

    def on_step(self, state: TrainingState, metrics: dict) -> None:
        if time.monotonic() >= self.deadline:
            raise StopTraining


def _restore(state: TrainingState, found: dict, folder: Path) -> None:
    "Put a checkpoint into a fresh training state, or say what does not fit."
    before, now = found.pop("config", {}), config_to_dict(state.config)
    changed = [
        f"{name} {before[name]} -> {value}"
        for name, value in now.items()
        if name in before and before[name] != value
    ]
    wrong = [line for line in changed if line.startswith("optimizer ")] or differences(
        state.state_dict(), found
    )
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise CfvaeError(
            f"the checkpoint in {folder} is of another model or configuration: {'; '.join(wrong[:3])}{more}.\n"
            "Use the configuration it was made with, or choose another folder."
        )
    state.load_state_dict(found)
    if state.is_main:
        print(
            f"resuming after step {state.step}"
            + (f"; changed settings: {', '.join(changed)}" if changed else ""),
            flush=True,
        )


def _take_up(state: TrainingState, folder: Path, resume: bool) -> int | None:
    "Load the newest checkpoint and return its step; None where there is none. Without `resume` there must be none."
    if list_checkpoints(folder) and not resume:
        raise CfvaeError(
            f"{folder} already holds the checkpoints of a run: resume it (--resume), or choose another folder"
        )
    newest = load_checkpoint(folder)
    if newest:
        _restore(state, newest[1], folder)
    return newest and newest[0]


class Checkpointer(Callback):
    "Saves the state every `every` steps and at the end, and can resume. Place it before callbacks that read `state.step` on start."

    def __init__(
        self,
        folder: str | Path,  # where the checkpoints live; shared by all processes
        every: int,  # steps between checkpoints
        resume: bool = False,  # go on from the newest checkpoint, or from the beginning where there is none
        keep: int = 2,  # how many checkpoints stay
    ):
        check(every >= 1 and keep >= 1, f"every is {every} and keep is {keep}: both have to be at least 1")
        self.folder, self.every, self.resume, self.keep = Path(folder), every, resume, keep

    def on_start(self, state: TrainingState) -> None:
        self.earlier_error, self.saved = sys.exception(), _take_up(state, self.folder, self.resume)

    def on_step(self, state: TrainingState, metrics: dict) -> None:
        if state.step % self.every == 0:
            self._save(state)

    def on_end(self, state: TrainingState) -> None:
        if sys.exception() is self.earlier_error:  # no error under way: the state is that of a finished step
            self._save(state)

    def _save(self, state: TrainingState) -> None:
        if state.step != self.saved and state.is_main:
            save_checkpoint(
                self.folder,
                state.step,
                {**state.state_dict(), "config": config_to_dict(state.config)},
                self.keep,
            )
        self.saved = state.step


class StopOnSignal(Callback):
    "Turns SIGTERM and Ctrl-C into a stop after the step, where a `Checkpointer` saves. A second Ctrl-C interrupts at once. Best placed last."

    received: int | None = None  # the signal that asked for the stop

    def on_start(self, state: TrainingState) -> None:
        self.received, self.earlier = None, {}
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self.earlier = {
                number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
            }

    def _note(self, number: int, frame) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number

    def on_step(self, state: TrainingState, metrics: dict) -> None:
        if self.received is not None:
            if state.is_main:
                print(f"{signal.Signals(self.received).name}: stopping after step {state.step}", flush=True)
            raise StopTraining

    def on_end(self, state: TrainingState) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None stands for a handler that is not Python's
        self.earlier = {}
