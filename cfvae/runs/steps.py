"""Steps of the package's own training loop on random codes, timed, with the time that fetching takes."""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import torch

from ..core import seed_everything
from ..data import Batches
from ..hvae import HierarchicalVAE
from ..latents import LatentDataset, LatentScaler
from ..objective import vae_loss
from ..recipes import Recipe
from ..training import Callback, Metrics, StopTraining, TrainingState, fit
from .machine import REPEATS, finish
from .recorded import RecordedStep

ENDLESS = 1_000_000  # steps; the timer stops training


class TimedData:
    "Data that note the time spent in fetching them. Where a run moves its data to a GPU, these move."

    def __init__(
        self,
        data: LatentDataset,  # what to fetch from
    ) -> None:
        self.data = data
        self.seconds = 0.0  # since somebody set it to 0

    def __len__(self) -> int:
        return len(self.data)

    def batch(
        self,
        indices: Sequence[int],  # which examples
    ) -> tuple[torch.Tensor, ...]:
        "What the data give."
        start = time.perf_counter()
        batch = self.data.batch(indices)
        self.seconds += time.perf_counter() - start
        return batch

    @property
    def nbytes(self) -> int:
        "What the data take in memory."
        return self.data.nbytes

    def to(
        self,
        device: torch.device,  # where they are wanted
    ) -> Batches:
        "Itself, with the data on a device."
        self.data = self.data.to(device)
        return self


class StepTimer(Callback):
    """Times steps of `fit`, and stops it after `REPEATS` repeats and so many seconds.

    A GPU works behind the loop's back, so there a repeat is ten steps, and the timer waits only after them;
    and a step is recorded on it, which has to be over before."""

    def __init__(
        self,
        data: TimedData,  # what is trained on
        device: torch.device,  # where
        seconds: float = 0.0,  # go on for so long
    ) -> None:
        self.data = data
        self.device = device
        self.least = seconds
        on_gpu = device.type == "cuda"
        self.warmup = 20 if on_gpu else 2
        self.steps = 10 if on_gpu else 1  # a repeat
        self.start = 0.0
        self.times: list[float] = []  # seconds a step, of every repeat
        self.data_shares: list[float] = []  # of the time, spent in fetching data, of every repeat

    def on_step(self, state: TrainingState, metrics: Metrics) -> None:
        steps = state.step - self.warmup
        if steps < 0 or steps % self.steps != 0:
            return
        finish(self.device)
        if steps > 0:
            elapsed = time.perf_counter() - self.start
            self.times.append(elapsed / self.steps)
            self.data_shares.append(self.data.seconds / elapsed)
        if len(self.times) >= REPEATS and self.steps * sum(self.times) >= self.least:
            raise StopTraining
        self.data.seconds = 0.0
        self.start = time.perf_counter()


def random_codes(
    recipe: Recipe,  # of what shape, and how many classes
) -> LatentDataset:
    "Codes of the recipe's shape, a few batches of them, in memory."
    n = 4 * recipe.vae_training.batch_size
    shape = (n, *recipe.autoencoder.latent_shape)
    codes = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    classes = recipe.vae.num_classes
    labels = torch.arange(n) % classes if classes else torch.full((n,), -1)
    scaler = LatentScaler(0.0, 1.0)
    return LatentDataset(codes.astype(np.float16), labels, class_names(recipe), scaler, "random")


def class_names(
    recipe: Recipe,  # with how many classes
) -> list[str]:
    "Their numbers."
    return [str(i) for i in range(recipe.vae.num_classes)]


def time_steps(
    recipe: Recipe,  # what to train
    device: torch.device,  # where
    seconds: float = 0.0,  # go on for so long, at least
) -> tuple[StepTimer, HierarchicalVAE]:
    "Train stage two on random codes with the package's loop; the timer that watched, and the model."
    config = dataclasses.replace(recipe.vae_training, steps=ENDLESS, device=str(device))
    seed_everything(config.seed)
    model = HierarchicalVAE(recipe.vae)
    data = TimedData(random_codes(recipe))
    timer = StepTimer(data, device, seconds)
    loss_fn = vae_loss(recipe.objective)
    fit(model, data, loss_fn, config, [timer], take_step=RecordedStep())  # as in a run
    return timer, model
