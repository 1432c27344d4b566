"""The training step of a run on one GPU (lesson 03): called a few times, then recorded and replayed."""

import contextlib
import typing
import warnings

import torch
from accelerate import PartialState

from ..core import check, device_of, make_generator
from ..data import Batches, send
from ..training import Batch, Loss, Metrics, TrainingConfig, TrainingState, called_step, learn

REHEARSALS = 4  # steps that are called before one is recorded, so that libraries have set themselves up
DATA_SHARE = 0.25  # of all of a GPU's memory: what is free varies from run to run


class RecordedStep:
    """Takes the steps of one run, as `fit(..., take_step=RecordedStep())` wants it.

    On one GPU a step is recorded and replayed; what cannot be recorded is called, and a line says why.
    On a CPU this is `called_step`. The data of the first call are kept, on the GPU where they fit."""

    def __init__(self) -> None:
        self.recording: _Recording | None = None  # made at the first call, which brings the state

    def __call__(
        self,
        state: TrainingState,  # advanced in place
        data: Batches,  # what to train on
        indices: list[int],  # the examples of this step
        loss_fn: Loss,  # may run as Python only in the first steps
        generator: torch.Generator,  # seeded for this step
    ) -> Metrics:
        "One update, the one that `called_step` makes. Raises `CfvaeError` where batches differ in shape."
        if not _is_on_gpu(state):
            return called_step(state, data, indices, loss_fn, generator)
        if self.recording is None or self.recording.state is not state:
            self.recording = _Recording(state, data, loss_fn)
        return self.recording.take_step(indices, generator)


def settle(
    data: Batches,  # anywhere
    device: torch.device,  # where they are wanted
) -> Batches:
    "The data, in the memory of a GPU if they can be moved there and take at most `DATA_SHARE` of it."
    if device.type != "cuda" or not isinstance(data, _Movable):
        return data
    memory = torch.cuda.get_device_properties(device).total_memory
    return data.to(device) if data.nbytes <= DATA_SHARE * memory else data


@typing.runtime_checkable
class _Movable(Batches, typing.Protocol):
    @property
    def nbytes(self) -> int: ...

    def to(self, device: torch.device) -> Batches: ...


def _is_on_gpu(state: TrainingState) -> bool:
    return device_of(state.model).type == "cuda"


def _obstacle(config: TrainingConfig) -> str:
    "Why the steps of a run cannot be recorded; empty where they can."
    if PartialState().num_processes > 1:
        return "several processes train together"
    if config.optimizer != "adam":
        return f"with {config.optimizer} the host decides what to skip"
    return ""


@contextlib.contextmanager
def _waits() -> typing.Iterator[list[warnings.WarningMessage]]:
    "Collects a warning for every time that the host waits for the GPU within the block."
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message="called a synchronizing CUDA operation")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield caught
        finally:
            torch.cuda.set_sync_debug_mode(mode)


class _Recording:
    "The step of one run, and the memory that it reads: written anew before each replay, always in its place."

    def __init__(self, state: TrainingState, data: Batches, loss_fn: Loss) -> None:
        device = device_of(state.model)
        alone = PartialState().num_processes == 1
        self.state = state
        self.data = settle(data, device) if alone else data
        self.loss_fn = loss_fn

        self.parts: list[Batch] = []  # what a replay reads: examples, in the parts of a batch, ...
        self.number = torch.zeros((), dtype=torch.int64, device=device)  # ... the number of the step ...
        self.generator = make_generator(0, device)  # ... and noise
        self.metrics: Metrics = {}  # what it writes, besides the state
        self.stream = torch.cuda.Stream(device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.rehearsals = 0
        self.loaded = state.loaded
        self.obstacle = ""
        self._note(_obstacle(state.config))

    def take_step(self, indices: list[int], generator: torch.Generator) -> Metrics:
        "Call it, rehearse it or replay it."
        state = self.state
        if self.loaded != state.loaded:
            self.graph = None  # the graph knows the moments by their old places
            self.loaded = state.loaded
        if self.rehearsals == REHEARSALS and self.graph is None and not self.obstacle:
            self._record()
        if self.obstacle:
            return called_step(state, self.data, indices, self.loss_fn, generator)

        self._take_in(indices)
        self.number.fill_(state.step)
        self.generator.manual_seed(generator.initial_seed())
        state.schedule()
        metrics = self._rehearse() if self.graph is None else self._replay(self.graph)
        state.step += 1
        return {**metrics, "learning_rate": state.rate}

    def _take_in(self, indices: list[int]) -> None:
        "Copy the examples to where a replay reads them."
        device = self.number.device
        count = self.state.config.accumulate
        parts = []
        for part in range(count):
            examples = self.data.batch(indices[part::count])
            parts.append(tuple(send(tensor, device) for tensor in examples))

        if not self.parts:
            self.parts = [tuple(torch.empty_like(tensor) for tensor in batch) for batch in parts]
        for places, batch in zip(self.parts, parts, strict=True):
            for place, tensor in zip(places, batch, strict=True):
                check(place.shape == tensor.shape, "on a GPU all batches of a run need the same shape")
                place.copy_(tensor)

    def _learn(self) -> Metrics:
        return learn(self.state, self.parts, self.loss_fn, self.generator, self.number)

    def _rehearse(self) -> Metrics:
        "Call the step on the stream that will record it, and note whether the host waits."
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream), _waits() as waits:
            metrics = self._learn()
        current.wait_stream(self.stream)

        self.rehearsals += 1
        if waits and self.rehearsals > 1:  # in the first one constants are sent to the GPU
            self._note("the loss makes the host wait for a number")
        return metrics

    def _record(self) -> None:
        "Record the step without taking it."
        device = self.stream.device
        current = torch.cuda.current_stream(device)
        try:
            with torch.cuda.device(device):
                graph = torch.cuda.CUDAGraph()
                graph.register_generator_state(self.generator)
                with torch.cuda.graph(graph, stream=self.stream):
                    self.metrics = self._learn()
            self.graph = graph
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # which PyTorch forgets to do in this case
            self.state.optimizer.zero_grad(set_to_none=True)
            self._note(f"recording failed, {str(error).splitlines()[0]}")

    def _replay(self, graph: torch.cuda.CUDAGraph) -> Metrics:
        "Take the step. The metrics are copies: the next replay writes into the same places."
        graph.replay()
        copies = {}
        for name, value in self.metrics.items():
            copies[name] = value.detach().clone() if isinstance(value, torch.Tensor) else value
        return copies

    def _note(self, obstacle: str) -> None:
        self.obstacle = obstacle
        if obstacle and self.state.is_main:
            print(f"each step is called, not replayed: {obstacle}", flush=True)
