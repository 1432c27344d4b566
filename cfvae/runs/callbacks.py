"""What watches a run: progress, pictures, the clock, signals, checkpoints."""

import numbers
import signal
import sys
import threading
import time
import typing
from pathlib import Path
from types import FrameType

import torch
from torch import nn
from tqdm.auto import tqdm

from ..checkpoints import differences, list_checkpoints, load_checkpoint, save_checkpoint, write_synced
from ..core import CfvaeError, check, check_path, config_to_dict, image_grid, whole_number
from ..files.names import first_few
from ..training import Callback, Metrics, StopTraining, TrainingState
from .logs import JsonLog, Speed, TensorBoardLog, plain_metrics, read_log
from .output import Forgiving, say
from .saved import as_png

__all__ = [  # all that is ready-made, the logs included
    "Checkpointer",
    "JsonLog",
    "PictureLog",
    "ProgressBar",
    "StopOnSignal",
    "TensorBoardLog",
    "TimeLimit",
    "plain_metrics",
    "read_log",
]


class ProgressBar(Callback):
    "A line that shows loss, rate, distortion, skipped steps, examples per second and the time left."

    def __init__(
        self,
        title: str = "training",  # stands before the bar
        keys: typing.Sequence[str] = ("loss", "distortion", "rate", "psnr"),  # shown where they are reported
    ) -> None:
        self.title = title
        self.keys = keys

    def on_start(self, state: TrainingState) -> None:
        self.bar = tqdm(
            total=state.config.steps,
            initial=state.step,
            desc=self.title,
            unit="step",
            mininterval=0.5,
            disable=not state.is_main,
            dynamic_ncols=True,
            file=Forgiving(sys.stderr),
        )
        self.speed = Speed(state)

    def on_step(self, state: TrainingState, metrics: Metrics) -> None:
        self.bar.update()
        if state.step % state.config.log_every == 0:
            known = plain_metrics({key: metrics[key] for key in self.keys if key in metrics})
            shown = {key: f"{value:.4g}" for key, value in known.items() if not isinstance(value, list)}
            shown["skipped"] = str(state.skipped)
            shown["examples/s"] = f"{self.speed.since_last(state):.0f}"
            self.bar.set_postfix(shown, refresh=False)

    def on_end(self, state: TrainingState) -> None:
        self.bar.close()


class PictureLog(Callback):
    "Saves a grid of images every `sample_every` steps and at the end, drawn from the averaged weights."

    def __init__(
        self,
        folder: str | Path,  # where the PNG files go
        draw: typing.Callable[[nn.Module], torch.Tensor],  # averaged model -> (n, 3, h, w) in [-1, 1]
        columns: int | None = None,  # images per row
    ) -> None:
        self.folder = check_path(folder)
        self.draw = draw
        self.columns = columns

    def on_step(self, state: TrainingState, metrics: Metrics) -> None:
        is_due = state.step % state.config.sample_every == 0 or state.step == state.config.steps
        if state.is_main and is_due:
            self.folder.mkdir(parents=True, exist_ok=True)
            model = state.ema.module.eval()
            with torch.no_grad():
                grid = image_grid(self.draw(model), self.columns)
            write_synced(self.folder / f"step-{state.step:08d}.png", as_png(grid))


class TimeLimit(Callback):
    "Stops training when the time is up; the checkpoint is written as at any end."

    def __init__(
        self,
        minutes: float,  # from now on
    ) -> None:
        usable = isinstance(minutes, numbers.Real) and not isinstance(minutes, bool) and minutes > 0
        check(usable, f"max-minutes is {minutes!r}: a number above 0 is needed")
        self.deadline = time.monotonic() + 60 * minutes

    def on_step(self, state: TrainingState, metrics: Metrics) -> None:
        if time.monotonic() >= self.deadline:
            raise StopTraining


class Checkpointer(Callback):
    """Saves the state every `every` steps and at the end, and can resume. Best placed after `JsonLog` and
    `PictureLog`, which then have all that a checkpoint counts as done; and before callbacks that read
    `state.step` on start."""

    def __init__(
        self,
        folder: str | Path,  # where the checkpoints live; shared by all processes
        every: int,  # steps between checkpoints
        resume: bool = False,  # go on from the newest checkpoint, or from the beginning where there is none
        keep: int = 2,  # how many checkpoints stay
        data: str = "",  # fingerprint of what is learned from: checkpoints of other data are refused
        rate: str = "learning_rate",  # the field of the recipe that a run which diverged should lower
    ) -> None:
        self.folder = check_path(folder)
        self.every = whole_number(every, "every", 1)
        self.resume = resume
        self.keep = whole_number(keep, "keep", 1)
        self.data = data
        self.rate = rate
        self.saved: int | None = None  # the step that is on disk

    def on_start(self, state: TrainingState) -> None:
        self.earlier_error = sys.exception()
        self.saved = self._load_newest(state)
        self.seen = state.step

    def on_step(self, state: TrainingState, metrics: Metrics) -> None:
        self.seen = state.step
        if state.step % self.every == 0:
            self._save(state)

    def on_end(self, state: TrainingState) -> None:
        failed = sys.exception() is not self.earlier_error
        another_failed = state.step > self.seen  # a callback, after a whole step: half a step is not counted
        if not failed or another_failed:
            self._save(state)

    def _load_newest(self, state: TrainingState) -> int | None:
        "Resume from the newest checkpoint and return its step; without `resume` there must be none."
        if not self.resume and list_checkpoints(self.folder):
            raise CfvaeError(
                f"{self.folder} already holds the checkpoints of a run: "
                "resume it (--resume), or choose another folder"
            )
        newest = load_checkpoint(self.folder)
        if newest is None:
            return None
        step, saved_state = newest
        try:
            self._take_up(state, step, saved_state)
        except CfvaeError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # of another make
            raise CfvaeError(
                f"the checkpoint of step {step} in {self.folder} cannot be taken up "
                f"({type(error).__name__}): remove it, and --resume goes on from the one before"
            ) from error
        return step

    def _take_up(self, state: TrainingState, step: int, saved_state: dict[str, typing.Any]) -> None:
        "Put a checkpoint into a fresh state. Raises `CfvaeError` for one that does not fit this run."
        steps = state.config.steps
        more = f"{step} steps are done already in {self.folder}, and steps is {steps}"
        check(step <= steps, f"{more}: take {step} or more, or choose another folder")
        _check_counts(saved_state, self.folder, step)
        _check_finite(saved_state, self.folder, step)
        learned_from = saved_state.get("config", {}).pop("data", self.data)  # older ones do not say
        check(
            learned_from == self.data,
            f"the checkpoint in {self.folder} learned from other data than this run has now: images or "
            "autoencoder are others. Bring the old ones back, or choose another folder",
        )
        _resume(state, saved_state, self.folder)

    def _save(self, state: TrainingState) -> None:
        if state.step != self.saved:
            saved_state = state.state_dict()
            self._refuse_diverged(saved_state)  # in every process, so that none waits for another
            if state.is_main:
                config = {**config_to_dict(state.config), "data": self.data}
                save_checkpoint(self.folder, state.step, {**saved_state, "config": config}, self.keep)
        self.saved = state.step

    def _refuse_diverged(self, state: dict[str, typing.Any]) -> None:
        "Raises `CfvaeError` for weights that are not worth saving: what was saved earlier stays as it is."
        broken = _not_finite(state)
        place = f"from step {self.saved}, which is saved" if self.saved else "from the beginning"
        check(
            not broken,
            f"training diverged: after step {state['step']} its weights are not finite "
            f"({first_few(broken)}), and they were not saved. Lower {self.rate}: "
            f"--resume --set {self.rate}=NUMBER goes on {place}",
        )


def _check_counts(saved_state: dict[str, typing.Any], folder: Path, step: int) -> None:
    "Raises `CfvaeError` for a checkpoint whose steps are not those in its name, or that counts nothing."
    counts = [saved_state.get(name, 0) for name in ("skipped", "skipped_in_a_row")]
    counted = all(type(count) is int and 0 <= count <= step for count in counts)
    same_step = type(saved_state.get("step")) is int and saved_state["step"] == step
    message = f"the checkpoint of step {step} in {folder} does not say what was done"
    check(counted and same_step, f"{message}: remove it, and --resume goes on from the one before")


def _check_finite(saved_state: dict[str, typing.Any], folder: Path, step: int) -> None:
    "Raises `CfvaeError` for a checkpoint whose weights are not all finite: nothing can be learned from them."
    broken = _not_finite(saved_state)
    if not broken:
        return
    *earlier, newest = [path for path in list_checkpoints(folder) if _step_of(path) <= step]
    way_out = "remove it, and --resume goes on from the checkpoint before"
    if not earlier:
        way_out = "there is none before it; train anew, in another folder and with a lower learning rate"
    raise CfvaeError(f"{newest} holds weights that are not finite ({first_few(broken)}):\n{way_out}")


def _not_finite(saved_state: dict[str, typing.Any]) -> list[str]:
    "The names of the weights that are not all finite."
    broken = []
    for part in ("model", "ema"):
        for name, value in saved_state.get(part, {}).items():
            if torch.is_tensor(value) and not value.isfinite().all():
                broken.append(f"{part}.{name}")
    return broken


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _resume(state: TrainingState, saved_state: dict[str, typing.Any], folder: Path) -> None:
    "Put a checkpoint into a fresh state, or say what does not fit; changed settings take effect."
    saved_config = saved_state.pop("config", {})
    changed = []
    for name, value in config_to_dict(state.config).items():
        if name in saved_config and saved_config[name] != value:
            changed.append(f"{name} {saved_config[name]} -> {value}")

    # another optimiser keeps other averages, under the same names
    obstacles = [line for line in changed if line.startswith("optimizer ")]
    obstacles = obstacles or differences(state.state_dict(), saved_state)
    if obstacles:
        shown = "; ".join(obstacles[:3])
        more = f" (and {len(obstacles) - 3} more)" if len(obstacles) > 3 else ""
        raise CfvaeError(
            f"the checkpoint in {folder} is of another model or configuration: {shown}{more}.\n"
            "Use the configuration it was made with, or choose another folder."
        )

    state.load_state_dict(saved_state)
    if state.is_main:
        if state.step == state.config.steps:
            late = [line for line in changed if not line.startswith("steps ")]
            settings = f", the last: changed settings come too late ({', '.join(late)})" if late else ""
        else:
            settings = f"; changed settings: {', '.join(changed)}" if changed else ""
        say(f"resuming after step {state.step}{settings}")


def stop_signals() -> list[signal.Signals]:
    "The signals that ask for a stop: SIGTERM, Ctrl-C, and SIGHUP unless it was ignored before, as by nohup."
    numbers = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


class StopOnSignal(Callback):
    """Turns SIGTERM, Ctrl-C and a closed terminal (SIGHUP) into a stop after the step, where a `Checkpointer`
    saves. A second Ctrl-C interrupts at once. Best placed last."""

    received: int | None = None  # the signal that asked for the stop

    def on_start(self, state: TrainingState) -> None:
        self.received = None
        self.earlier_handlers: dict[int, typing.Any] = {}
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in stop_signals():
                self.earlier_handlers[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number

    def on_step(self, state: TrainingState, metrics: Metrics) -> None:
        if self.received is not None:
            if state.is_main:
                name = signal.Signals(self.received).name
                say(f"{name}: stopping after step {state.step}")
            raise StopTraining

    def on_end(self, state: TrainingState) -> None:
        for number, handler in self.earlier_handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None stands for a handler that is not Python's
        self.earlier_handlers = {}
