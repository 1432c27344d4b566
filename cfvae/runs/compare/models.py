"""The models of a comparison, by name, and the hierarchical VAEs among them."""

import dataclasses
import typing

import torch
from torch import nn

from ...data import Batches
from ...guidance import Guidance
from ...hvae import HierarchicalVAE
from ...objective import vae_loss
from ...training import Loss, TrainingConfig
from .contestant import Contestant, Style, too_rich
from .transformers import Autoregressive, Flow, PixelAutoregressive


class VAE(Contestant):
    "The recipe's stage two."

    title = "hierarchical VAE"
    unit = "nats"
    metric = "elbo_loss"  # the bound, without the weights of the rates
    styles: tuple[Style, ...] = (
        Style(),
        Style(weight=1),
        Style(weight=2),
        Style(weight=3),
        Style(weight=1, temperature=0.9),
        Style(weight=2, temperature=0.9),
        Style(temperature=0.9),
        Style(temperature=0.8),
    )
    shown: tuple[Style, ...] = (Style(), Style(weight=1), Style(weight=2), Style(weight=2, temperature=0.9))

    @property
    def rates(self) -> tuple[float, ...]:
        "The recipe's, its half and its double."
        rate = self.recipe.vae_training.learning_rate
        return rate / 2, rate, 2 * rate

    def can_draw(self, style: Style) -> bool:
        return not style.weight or self.recipe.guidable

    def build(self) -> nn.Module:
        return HierarchicalVAE(self.recipe.vae)

    def loss_fn(self) -> Loss:
        return vae_loss(self.recipe.objective)

    def draw(
        self,
        model: typing.Any,
        labels: torch.Tensor | None,
        n: int,
        style: Style,
        generator: torch.Generator,
    ) -> torch.Tensor:
        guidance = Guidance(style.weight) if style.weight else None
        return model.sample(n, labels, guidance, style.temperature, generator=generator)


class PixelVAE(VAE):
    "The same kind of model without a first stage: two more resolutions, up to that of the images."

    title = "hierarchical VAE on pixels"
    styles = (Style(), Style(weight=1), Style(weight=2), Style(weight=3), Style(weight=2, temperature=0.9))

    @property
    def obstacle(self) -> str:
        return too_rich(self.material)

    def data(self, held: bool = False) -> Batches:
        return self.material.held if held else self.material.images

    def build(self) -> nn.Module:
        vae = self.recipe.vae
        sides = [vae.resolution]
        while sides[-1] < self.material.images.size:
            sides.append(2 * sides[-1])
        more = len(sides) - 1
        widths = tuple(max(16, vae.widths[-1] // 2**level) for level in range(1, more + 1))
        return HierarchicalVAE(
            dataclasses.replace(
                vae,
                data_channels=3,
                resolutions=(*vae.resolutions, *sides[1:]),
                widths=(*vae.widths, *widths),
                encoder_widths=(*vae.encoder_widths, *widths),
                multipliers=(*vae.multipliers, *more * (vae.multipliers[-1],)),
                layers=(*vae.layers, *more * (1,)),
                encoder_blocks=(*vae.encoder_blocks, *more * (1,)),
                attention=(*vae.attention, *more * (0,)),
                heads=(*vae.heads, *more * (1,)),
            )
        )

    def loss_fn(self) -> Loss:
        # the schedule of lesson 09's pixel model: the recipe's has values for the codes' resolutions
        objective = dataclasses.replace(
            self.recipe.objective, schedule="shifted-exponential", steepness=10, values=(), sigma_q=0.05
        )
        return vae_loss(objective)

    def training(self, steps: int, rate: float, seed: int) -> TrainingConfig:
        training = super().training(steps, rate, seed)
        size = self.material.images.size
        return dataclasses.replace(training, skip_norm=300.0 * 3 * size**2)

    def decode(self, drawn: torch.Tensor) -> torch.Tensor:
        return drawn


MODELS: dict[str, type[Contestant]] = {
    "vae": VAE,
    "flow": Flow,
    "autoregressive": Autoregressive,
    "pixel-vae": PixelVAE,
    "pixel-autoregressive": PixelAutoregressive,
}
