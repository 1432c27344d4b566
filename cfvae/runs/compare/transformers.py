"""Transformers in a comparison: flow matching, and autoregressive models of codes and of pixels."""

import dataclasses
import functools
import math
import typing

import torch
import torch.nn.functional as F
from torch import nn

from ...baselines import (
    AutoregressiveConfig,
    AutoregressiveTransformer,
    FlowConfig,
    FlowTransformer,
    Quantiser,
    TransformerConfig,
    autoregressive_loss,
    flow_loss,
    sample_autoregressive,
    sample_flow,
)
from ...core import count_parameters, to_uint8
from ...data import Batches, ImageDataset
from ...hvae import HierarchicalVAE
from ...training import Loss, TrainingConfig
from .contestant import Contestant, Style, too_rich


class _Transformer(Contestant):
    "A transformer with about as many parameters as the recipe's stage two."

    def sizes(
        self,
        data_channels: int,  # numbers at a position
        resolution: int,  # height and width
    ) -> TransformerConfig:
        "Eight blocks for a large model and six for a small one, as wide as makes up the parameters."
        with torch.device("meta"):
            parameters = count_parameters(HierarchicalVAE(self.recipe.vae))
        depth = 8 if parameters > 5e6 else 6
        width = 32 * max(1, round(math.sqrt(parameters / (18 * depth)) / 32))  # a block has 18 width^2
        heads = width // 32
        return TransformerConfig(data_channels, resolution, width, depth, heads, self.recipe.vae.num_classes)

    @property
    def rates(self) -> tuple[float, ...]:
        "Around one that falls with the width."
        middle = 0.6 / self.sizes(*self.recipe.autoencoder.latent_shape[:2]).width
        return middle / 2, middle, 2 * middle

    def training(self, steps: int, rate: float, seed: int) -> TrainingConfig:
        "Without a limit on the gradient: the recipe's is one for the VAE's loss."
        return dataclasses.replace(super().training(steps, rate, seed), skip_norm=math.inf)


STEPS = (1, 2, 4, 8, 16, 64, 250)  # of Euler's method


class Flow(_Transformer):
    "Flow matching on the codes."

    title = "flow matching"
    unit = "squared error of the velocity"
    styles = (
        *(Style(weight=weight, steps=steps, solver="euler") for weight in (0, 1) for steps in STEPS),
        *(Style(weight=2, steps=steps, solver="euler") for steps in (16, 64)),
        Style(weight=3, steps=16, solver="euler"),
        *(Style(weight=weight, steps=steps, solver="heun") for weight in (0, 1) for steps in (2, 8)),
    )
    shown = tuple(Style(weight=1, steps=steps, solver="euler") for steps in (1, 4, 16, 64))

    def build(self) -> nn.Module:
        sizes = self.sizes(*self.recipe.autoencoder.latent_shape[:2])
        return FlowTransformer(FlowConfig(**dataclasses.asdict(sizes)))

    def loss_fn(self) -> Loss:
        return flow_loss(self.recipe.objective.label_drop)

    def draw(
        self,
        model: typing.Any,
        labels: torch.Tensor | None,
        n: int,
        style: Style,
        generator: torch.Generator,
    ) -> torch.Tensor:
        return sample_flow(model, labels, n, style.steps, style.weight, style.solver, generator)


class Autoregressive(_Transformer):
    "One number of the code after the other."

    title = "autoregressive"
    unit = "nats"
    styles = (Style(), Style(weight=1), Style(weight=2), Style(temperature=0.9))
    shown = (Style(), Style(weight=1), Style(weight=2))

    def build(self) -> nn.Module:
        sizes = self.sizes(*self.recipe.autoencoder.latent_shape[:2])
        quantiser = Quantiser(64, -self.scaler.clip, self.scaler.clip)
        return AutoregressiveTransformer(
            AutoregressiveConfig(**dataclasses.asdict(sizes), quantiser=quantiser)
        )

    def loss_fn(self) -> Loss:
        return autoregressive_loss(self.recipe.objective.label_drop)

    def draw(
        self,
        model: typing.Any,
        labels: torch.Tensor | None,
        n: int,
        style: Style,
        generator: torch.Generator,
    ) -> torch.Tensor:
        return sample_autoregressive(model, labels, n, style.weight, style.temperature, generator)


SMALL = 16  # pixels a side, for the autoregressive model of pixels


class PixelAutoregressive(Autoregressive):
    "The same model of the pixels of small pictures, which are enlarged again for the judges."

    title = "autoregressive on 16 x 16 pixels"

    @property
    def obstacle(self) -> str:
        return too_rich(self.material)

    def data(self, held: bool = False) -> Batches:
        return self._held if held else self._images

    @functools.cached_property
    def _images(self) -> ImageDataset:
        return _shrink(self.material.images)

    @functools.cached_property
    def _held(self) -> ImageDataset:
        return _shrink(self.material.held)

    def build(self) -> nn.Module:
        quantiser = Quantiser(64, -1.0, 1.0)
        sizes = dataclasses.asdict(self.sizes(3, SMALL))
        return AutoregressiveTransformer(AutoregressiveConfig(**sizes, quantiser=quantiser))

    def decode(self, drawn: torch.Tensor) -> torch.Tensor:
        size = self.material.images.size
        return F.interpolate(drawn, (size, size), mode="bilinear")


def shrink(
    images: torch.Tensor,  # (n, 3, size, size)
) -> torch.Tensor:
    "The same at `SMALL` pixels a side."
    return F.adaptive_avg_pool2d(images, SMALL)


def _shrink(dataset: ImageDataset) -> ImageDataset:
    parts = []
    for start in range(0, len(dataset), 1024):
        images, _ = dataset.batch(range(start, min(start + 1024, len(dataset))))
        parts.append(to_uint8(shrink(images)))
    return ImageDataset(torch.cat(parts), dataset.labels, dataset.classes, dataset.name)
