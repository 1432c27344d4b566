"Fits of a few steps on a few pictures, and who writes down what they did."

import copy

import torch

from cfvae.autoencoder import Autoencoder, AutoencoderConfig, reconstruction_loss
from cfvae.core import randn, seed_everything
from cfvae.data import Shapes
from cfvae.runs.logs import plain_metrics
from cfvae.training import Callback, TrainingConfig

DATA = Shapes(24, size=8)
LOSS = reconstruction_loss()


def new_model() -> Autoencoder:
    seed_everything(0)
    return Autoencoder(AutoencoderConfig(size=8, widths=(8,), patch=2, groups=4, latent_channels=2))


def config(**changes) -> TrainingConfig:
    return TrainingConfig(
        **{"steps": 4, "batch_size": 8, "warmup": 2, "precision": "fp32", "device": "cpu", **changes}
    )


def noisy_loss(model, batch, generator, step):
    x = batch[0] + 0.1 * randn(batch[0].shape, generator, batch[0].device)
    return (model(x) - batch[0]).square().mean(), {}


def assert_same(a, b, path="state"):
    "Nested state dicts, equal to the last bit."
    assert type(a) is type(b), path
    if torch.is_tensor(a):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for k in a:
            assert_same(a[k], b[k], f"{path}.{k}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (p, q) in enumerate(zip(a, b, strict=True)):
            assert_same(p, q, f"{path}[{i}]")
    else:
        assert a == b or (a != a and b != b), path


class Recorder(Callback):
    def __init__(self):
        self.events, self.metrics, self.states = [], [], []

    def on_start(self, state):
        self.events.append("start")

    def on_step(self, state, metrics):
        self.events.append(state.step)
        self.metrics.append(plain_metrics(metrics))
        self.states.append(copy.deepcopy(state.state_dict()))
        assert all(p.grad is None for p in state.model.parameters())  # nothing is left for the next step

    def on_end(self, state):
        self.events.append("end")
