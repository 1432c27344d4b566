"""The two pixel models of lessons 08 and 09: the same network, with and without a schedule of nats."""

import typing

from ..core import check, seed_everything
from ..data import Shapes
from ..hvae import HierarchicalVAE, HierarchicalVAEConfig
from ..objective import ObjectiveConfig, vae_loss
from ..training import TrainingConfig, fit
from .callbacks import ProgressBar

PIXEL_MODEL = HierarchicalVAEConfig(
    data_channels=3,
    resolutions=(1, 4, 8, 16),
    widths=(64, 64, 48, 24),
    encoder_widths=(64, 64, 48, 24),
    multipliers=(0, 0, 0, 0),
    layers=(2, 2, 2, 2),
    encoder_blocks=(1, 1, 1, 1),
    latent_channels=8,
)
PIXEL_TRAINING = TrainingConfig(
    steps=4500,
    batch_size=32,
    learning_rate=3e-3,
    final_learning_rate=3e-5,
    warmup=100,
    ema_decay=0.998,
    skip_norm=300 * 768,
    precision="fp32",
    device="cpu",
)
PIXEL_SCHEDULES = {"pixels-plain": "none", "pixels-reweighted": "shifted-exponential"}


def pixel_objective(
    name: str,  # "pixels-plain" or "pixels-reweighted"
) -> ObjectiveConfig:
    "What a pixel model is trained for."
    check(name in PIXEL_SCHEDULES, f"there is no pixel model '{name}': choose {' or '.join(PIXEL_SCHEDULES)}")
    return ObjectiveConfig(
        sigma_q=0.05,
        schedule=PIXEL_SCHEDULES[name],
        steepness=10,
        spectral_weight=0.05,
        label_drop=0,
    )


def train_pixel_model(
    name: str,  # "pixels-plain" or "pixels-reweighted"
) -> HierarchicalVAE:
    """A pixel model of lessons 08 and 09 as it is shipped.

    Both begin with the same weights and see the same images and noise: the schedule (09.3) differs."""
    objective = pixel_objective(name)
    seed_everything(PIXEL_TRAINING.seed)
    model = HierarchicalVAE(PIXEL_MODEL)
    images = Shapes(40000, size=16)
    state = fit(model, images, vae_loss(objective), PIXEL_TRAINING, [ProgressBar(name)])
    return typing.cast(HierarchicalVAE, state.ema.module)


def ship_pixel_models(
    folder: str,  # where the weights go, a folder per model
) -> None:
    "Train both and save them in half precision, as they come with the package."
    for name in PIXEL_SCHEDULES:
        train_pixel_model(name).half().save_pretrained(f"{folder}/{name}")


if __name__ == "__main__":  # `make weights`
    ship_pixel_models("cfvae/weights")
