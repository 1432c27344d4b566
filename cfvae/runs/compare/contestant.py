"""The kinds of models in a comparison: what is the same for all, and what each has to say."""

import copy
import dataclasses
import typing

import torch
from torch import nn

from ...autoencoder import Autoencoder
from ...data import Batches, ImageDataset
from ...latents import LatentDataset
from ...pretrained import PretrainedAutoencoder
from ...recipes import Recipe
from ...training import Loss, TrainingConfig


@dataclasses.dataclass(frozen=True)
class Material:
    "What all models of a comparison share: one first stage, and the data as images and as its codes."

    recipe: Recipe  # as from `prepare`
    autoencoder: Autoencoder | PretrainedAutoencoder  # the first stage
    images: ImageDataset  # to train on
    held: ImageDataset  # what learning rates are chosen on
    codes: LatentDataset  # of the images
    held_codes: LatentDataset  # of the held-out ones


@dataclasses.dataclass(frozen=True)
class Style:
    "A way to draw from a trained model."

    weight: float = 0.0  # of guidance; 0 is off
    temperature: float = 1.0  # of a VAE
    steps: int = 0  # of a flow's solver
    solver: str = ""  # of a flow: euler or heun

    @property
    def name(self) -> str:
        "As in a file's name: plain, w2-t0.9, euler-16-w1."
        parts = [f"{self.solver}-{self.steps}"] if self.solver else []
        if self.weight:
            parts.append(f"w{self.weight:g}")
        if self.temperature != 1:
            parts.append(f"t{self.temperature:g}")
        return "-".join(parts) or "plain"

    @property
    def title(self) -> str:
        "In words, for figures."
        parts = (
            [f"{self.steps} {self.solver.capitalize()} step{'s' * (self.steps > 1)}"] if self.solver else []
        )
        parts.append(f"guidance {self.weight:g}" if self.weight else "unguided")
        if self.temperature != 1:
            parts.append(f"temperature {self.temperature:g}")
        return ", ".join(parts)

    @property
    def evaluations(self) -> int:
        "States that pass through the network for one image: a guided evaluation is of two."
        per_step = 2 if self.solver == "heun" else 1
        return max(1, self.steps) * per_step * (2 if self.weight else 1)


class Contestant:
    "A kind of model in a comparison, on one material."

    title: str  # for figures and messages
    unit: str  # of the held-out loss
    metric = "loss"  # what the held-out loss is, among what the loss reports
    styles: tuple[Style, ...]  # ways to draw
    shown: tuple[Style, ...]  # those whose pictures are shown

    def __init__(
        self,
        material: Material,  # what all models share
    ) -> None:
        self.material = material
        self.recipe = material.recipe
        self.autoencoder = copy.deepcopy(material.autoencoder).eval().requires_grad_(False)
        self.scaler = copy.deepcopy(material.codes.scaler)

    def to(
        self,
        device: torch.device,  # where to draw
    ) -> typing.Self:
        "Itself, with the first stage on a device."
        self.autoencoder.to(device)
        self.scaler.to(device)
        return self

    @property
    def obstacle(self) -> str:
        "Why this model cannot be had of these data; empty where it can."
        return ""

    @property
    def rates(self) -> tuple[float, ...]:
        "Learning rates to try."
        raise NotImplementedError

    def data(
        self,
        held: bool = False,  # those that training does not see
    ) -> Batches:
        "The examples."
        return self.material.held_codes if held else self.material.codes

    def build(self) -> nn.Module:
        "A fresh model."
        raise NotImplementedError

    def loss_fn(self) -> Loss:
        "What it is trained for."
        raise NotImplementedError

    def training(
        self,
        steps: int,  # that the budget allows
        rate: float,  # the learning rate
        seed: int,  # of the run
    ) -> TrainingConfig:
        "The recipe's training of stage two, so long and at this rate."
        base = self.recipe.vae_training
        return dataclasses.replace(
            base,
            steps=steps,
            learning_rate=rate,
            final_learning_rate=rate / 100,
            warmup=min(base.warmup, steps // 10),
            seed=seed,
        )

    def can_draw(self, style: Style) -> bool:
        "Whether the recipe allows it: guidance takes classes, and labels dropped in training."
        return not style.weight or self.recipe.conditional and self.recipe.objective.label_drop > 0

    def draw(
        self,
        model: typing.Any,  # as from `build`, trained
        labels: torch.Tensor | None,  # (n,) class indices, on the model's device; None without classes
        n: int,  # how many
        style: Style,  # one of `styles`
        generator: torch.Generator,  # on the model's device
    ) -> torch.Tensor:
        "What the model models: codes, (n, channels, r, r), or images."
        raise NotImplementedError

    def decode(
        self,
        drawn: torch.Tensor,  # as from `draw`
    ) -> torch.Tensor:
        "Images (n, 3, size, size), nominally in [-1, 1]."
        return self.autoencoder.decode(self.scaler.invert(drawn))


def too_rich(
    material: Material,  # what all models share
) -> str:
    "What speaks against modelling its pixels; empty where nothing does."
    if material.recipe.flip or material.images.size > 32:
        return "models of pixels are compared on small generated pictures only, as shapes-demo has"
    return ""
