"""What the stored experiments share: a training, a bound, a judge, and the codes of `Shapes`."""

import functools
import tempfile
import typing
from collections.abc import Sequence
from pathlib import Path

import torch

from cfvae.autoencoder import Autoencoder
from cfvae.core import get_device, make_generator, seed_everything, shipped_weights
from cfvae.data import Batches, Shapes
from cfvae.elbo import ELBO
from cfvae import evaluation
from cfvae.evaluation import Classifier, shapes_classifier
from cfvae.files.codes import encode_dataset
from cfvae.hvae import HierarchicalVAE, HierarchicalVAEConfig
from cfvae.latents import LatentDataset
from cfvae.objective import ObjectiveConfig, blurred_distortion, vae_loss
from cfvae.training import Callback, TrainingConfig, fit
from cfvae.runs.recorded import RecordedStep

Record = dict[str, typing.Any]


def train(
    config: HierarchicalVAEConfig,
    data: Batches,
    objective: ObjectiveConfig,
    training: TrainingConfig,
    callbacks: Sequence[Callback] = (),
) -> HierarchicalVAE:
    "The averaged model of one training, on the training's device."
    seed_everything(training.seed)
    model = HierarchicalVAE(config).to(get_device(training.device))
    state = fit(model, data, vae_loss(objective), training, callbacks, RecordedStep())
    return typing.cast(HierarchicalVAE, state.ema.module.eval())


def where_is(model: HierarchicalVAE) -> torch.device:
    return model.decoder.start.device


@torch.no_grad()
def bound(
    model: HierarchicalVAE,
    x: torch.Tensor,  # (n, channels, r, r)
    labels: torch.Tensor,  # (n,), used where the model has classes
    sigma_q: float,  # of the blur
) -> Record:
    "Distortion, rate and their sum, and the rate of every layer, in nats: means over x."
    generator = make_generator(0, where_is(model))
    parts = []
    for part, known in zip(x.split(250), labels.split(250), strict=True):
        out = model(part, known if model.config.num_classes else None, generator=generator)
        parts.append(ELBO(blurred_distortion(part, out.distribution, sigma_q), out.rates))
    rates = torch.cat([part.rates for part in parts])
    distortion = torch.cat([part.distortion for part in parts]).mean().item()
    rate = rates.sum(1).mean().item()
    return {
        "distortion": distortion,
        "rate": rate,
        "loss": distortion + rate,
        "rates": rates.mean(0).tolist(),
    }


@functools.cache
def _judge() -> Classifier:
    return shapes_classifier()


def features(
    pictures: torch.Tensor,  # (n, 3, size, size) in [-1, 1], of any size
) -> torch.Tensor:
    "What the shipped judge of `Shapes` sees, (n, d)."
    return evaluation.features(_judge(), pictures.cpu())


def recognised(
    pictures: torch.Tensor,  # (n, 3, size, size) in [-1, 1], of any size
    labels: torch.Tensor,  # (n,)
) -> float:
    "The share that the shipped judge of `Shapes` recognises as their class."
    fitting = evaluation.resize(pictures.cpu().clamp(-1, 1), _judge().config.size)
    return evaluation.class_accuracy(_judge(), fitting, labels.cpu())


@functools.cache
def codes_of_shapes() -> LatentDataset:
    "The codes of 20,000 images by the shipped autoencoder."
    with tempfile.TemporaryDirectory() as folder:
        codes = encode_dataset(autoencoder(), Shapes(20000), Path(folder) / "codes", progress=False)
        return codes.to(torch.device("cpu"))  # in memory: the file goes


@functools.cache
def autoencoder() -> Autoencoder:
    folder = shipped_weights("shapes")
    assert folder is not None  # it comes with the package
    return Autoencoder.from_pretrained(folder / "autoencoder").eval()


@torch.no_grad()
def held_out_codes(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    "Held-out images, their standardised codes and their labels."
    x, labels = Shapes(n, seed=1).batch(range(n))
    return x, codes_of_shapes().scaler(autoencoder().encode(x)), labels


@torch.no_grad()
def paint(codes: torch.Tensor) -> torch.Tensor:
    return autoencoder().decode(codes_of_shapes().scaler.invert(codes.float().cpu()))
