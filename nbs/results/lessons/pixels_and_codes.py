"""The stored experiments of lesson 10: pixels against codes at the same number of operations."""

import base64
import dataclasses
import io
import typing
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from cfvae.autoencoder import psnr
from cfvae.core import CfvaeError, image_grid, make_generator
from cfvae.data import Batches, Shapes
from cfvae.evaluation import precision_recall
from cfvae.hvae import HierarchicalVAE, HierarchicalVAEConfig
from cfvae.objective import ObjectiveConfig
from cfvae.training import Callback, Metrics, TrainingConfig, TrainingState
from common import (
    Record,
    autoencoder,
    bound,
    codes_of_shapes,
    features,
    held_out_codes,
    paint,
    recognised,
    train,
    where_is,
)

_COMMON: Record = {"multipliers": 0, "encoder_blocks": 1, "latent_channels": 8, "num_classes": 10}
_ON_CODES: Record = {"data_channels": 4, "resolutions": (1, 4, 8), "layers": (2, 3, 2), **_COMMON}
_WIDTHS = (48, 48, 48, 32, 16)
_ON_PIXELS = HierarchicalVAEConfig(
    data_channels=3,
    resolutions=(1, 4, 8, 16, 32),
    widths=_WIDTHS,
    encoder_widths=_WIDTHS,
    layers=(2, 3, 2, 2, 1),
    **_COMMON,
)
SIDES = {
    "pixels": _ON_PIXELS,
    "codes": HierarchicalVAEConfig(widths=(48,), encoder_widths=(48,), **_ON_CODES),
    "codes, larger": HierarchicalVAEConfig(widths=(88,), encoder_widths=(88,), **_ON_CODES),
}
COARSE_FIRST = {"pixels": (16, 8, 4, 2, 1), "codes": (4, 2, 1), "codes, larger": (4, 2, 1)}
SIGMAS = {"pixels": 0.035, "codes": 0.1, "codes, larger": 0.1}
BATCH = 32
PIXEL_STEPS = 2000  # the budget is what the pixel model computes in so many steps
AUTOENCODER_STEPS = 3000  # of the shipped autoencoder, 32 images each


def _objective(side: str, schedule: str = "coarse first", sigma_q: float | None = None) -> ObjectiveConfig:
    options: Record = {"sigma_q": sigma_q or SIGMAS[side], "label_drop": 0}
    if schedule == "coarse first":
        return ObjectiveConfig(schedule="constant-per-resolution", values=COARSE_FIRST[side], **options)
    return ObjectiveConfig(**options)  # the published exponential: most to the fine layers


def _training(steps: int, rate: float, seed: int, device: str) -> TrainingConfig:
    return TrainingConfig(
        steps=steps,
        batch_size=BATCH,
        learning_rate=rate,
        final_learning_rate=rate / 100,
        ema_decay=0.99,
        warmup=min(100, steps // 10),
        seed=seed,
        precision="fp32",
        device=device,
    )


def _operations(action: Callable[[], typing.Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


def operations_a_step(side: str) -> int:
    "Operations of matrices and convolutions in one training step, forwards and backwards."
    config = SIDES[side]
    x = torch.zeros(2, config.data_channels, config.resolution, config.resolution)
    model, labels = HierarchicalVAE(config), torch.zeros(2, dtype=torch.int64)
    return _operations(lambda: model(x, labels).distribution.mean.sum().backward()) * BATCH // 2


def autoencoder_operations() -> int:
    "Operations of the shipped autoencoder's whole training, and of encoding 20,000 images."
    x = torch.zeros(2, 3, 32, 32)
    step = _operations(lambda: autoencoder()(x).sum().backward())
    encoding = _operations(lambda: autoencoder().encode(x))
    return AUTOENCODER_STEPS * BATCH * step // 2 + 20000 * encoding // 2


def _side_data(side: str, n: int) -> tuple[Batches, torch.Tensor, torch.Tensor, torch.Tensor]:
    "What a side is trained on; held-out images, as the side sees them, and their labels."
    if side == "pixels":
        x, labels = Shapes(n, seed=1).batch(range(n))
        return Shapes(20000), x, x, labels
    x, codes, labels = held_out_codes(n)
    return codes_of_shapes(), x, codes, labels


def budget(
    side: str,  # a key of `SIDES`
    seed: int,
    device: str,
    schedule: str = "coarse first",  # or "fine first"
    with_autoencoder: bool = False,  # add what the autoencoder's training cost
    steps: int = 0,  # 0: as many as the budget pays for
    n: int = 1000,  # samples, and held-out images
) -> Record:
    "One side's training at the budget, with the best of three learning rates, and what came of it."
    data, x, seen, labels = _side_data(side, n)
    operations = PIXEL_STEPS * operations_a_step("pixels")
    if with_autoencoder:
        operations += autoencoder_operations()
    steps = steps or operations // operations_a_step(side)

    objective = _objective(side, schedule)
    tries = {}
    for rate in (1.5e-3, 3e-3, 6e-3):  # a tenth of the budget each, on seed 0 for every seed
        model = train(SIDES[side], data, objective, _training(max(steps // 10, 1), rate, 0, device))
        where = where_is(model)
        tries[rate] = bound(model, seen.to(where), labels.to(where), objective.sigma_q)["loss"]
    rate = min(tries, key=lambda r: tries[r])
    model = train(SIDES[side], data, objective, _training(steps, rate, seed, device))
    where = where_is(model)

    def pictures(z: torch.Tensor) -> torch.Tensor:
        return z.cpu() if side == "pixels" else paint(z)

    again = pictures(model.reconstruct(seen.to(where), labels.to(where)))
    asked = torch.arange(n) % 10
    samples = pictures(model.sample(n, asked, generator=make_generator(0, where)))
    precision, recall = precision_recall(features(x), features(samples))
    sheet = torch.cat([again[:7], samples[:14]])
    return {
        "steps": steps,
        "operations": steps * operations_a_step(side),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tries": [[rate, loss] for rate, loss in tries.items()],
        "learning_rate": rate,
        **bound(model, seen.to(where), labels.to(where), objective.sigma_q),
        "psnr": float(psnr(again, x)),
        "reconstructions_recognised": recognised(again, labels),
        "samples_recognised": recognised(samples, asked),
        "precision": precision,
        "recall": recall,
        "pictures": _as_text(sheet, columns=7) if seed == 0 else "",
    }


def _as_text(
    images: torch.Tensor,  # (n, 3, size, size)
    columns: int,
) -> str:
    "A PNG of a grid without gaps, in base64; every sixth grey level, for half the bytes."
    grid = image_grid(images, columns, padding=0).point(lambda value: round(value / 6) * 6)
    file = io.BytesIO()
    grid.save(file, format="png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


class _Losses(Callback):
    "Every step's loss and gradient norm, and how many steps were skipped."

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.norms: list[torch.Tensor] = []
        self.skipped = 0

    def on_step(self, state: TrainingState, metrics: Metrics) -> None:
        self.losses.append(torch.as_tensor(metrics["loss"]).detach().clone())
        self.norms.append(torch.as_tensor(metrics["gradient_norm"]).detach().clone())

    def on_end(self, state: TrainingState) -> None:
        self.skipped = int(state.skipped)


def steadiness(
    side: str,  # "pixels" or "codes"
    sigma_q: float,  # the same for both sides, or each side's own
    rate: float,  # learning rate after the warm-up, constant
    seed: int,
    device: str,
    steps: int = 300,
) -> Record:
    "A short training at one learning rate: does it still learn?"
    data, _, seen, labels = _side_data(side, 256)
    watch = _Losses()
    training = dataclasses.replace(_training(steps, rate, seed, device), final_learning_rate=None)
    message = ""
    loss = None
    try:
        model = train(SIDES[side], data, _objective(side, sigma_q=sigma_q), training, [watch])
        where = where_is(model)
        loss = bound(model, seen.to(where), labels.to(where), sigma_q)["loss"]
    except CfvaeError as error:  # too many steps skipped in a row
        message = str(error)
    losses = torch.stack(watch.losses).float().cpu()
    norms = torch.stack(watch.norms).float().cpu()
    finite = norms[norms.isfinite()]
    return {
        "loss": loss,  # held-out bound of the averaged model, nats; none where the run was ended
        "message": message,
        "not_finite": int((~norms.isfinite()).sum()),
        "first_losses": float(losses[:10].median()),
        "last_losses": float(losses[-50:].median()),
        "largest_loss": float(losses[losses.isfinite()].max()),
        "norm_spread": float(finite[100:].std() / finite[100:].mean()) if len(finite) > 101 else None,
    }
