"""Every recipe that has a name: one function each, and one dict of them all."""

import dataclasses
import functools
import typing

from ..autoencoder import AutoencoderConfig
from ..core import check
from ..hvae import HierarchicalVAEConfig
from ..objective import ObjectiveConfig
from ..pretrained import PretrainedConfig
from ..recipes import Recipe
from ..training import TrainingConfig
from .published_presets import PUBLISHED_RUNS, published_recipe


def shapes_demo() -> Recipe:
    """From nothing to guided samples within minutes of two CPU cores.

    Plain blocks, most layers at low resolution: what costs least per step."""
    return Recipe(
        name="shapes-demo",
        autoencoder_training=TrainingConfig(
            steps=500,
            batch_size=32,
            learning_rate=2e-3,
            final_learning_rate=4e-5,
            ema_decay=0.99,
            warmup=50,
        ),
        vae=HierarchicalVAEConfig(
            data_channels=4,
            resolutions=(1, 4, 8),
            widths=(64, 64, 64),
            encoder_widths=(64, 64, 64),
            multipliers=(0, 0, 0),
            layers=(2, 4, 2),
            encoder_blocks=(1, 1, 1),
            num_classes=10,
        ),
        vae_training=TrainingConfig(
            steps=1250,
            batch_size=48,
            learning_rate=4e-3,
            final_learning_rate=4e-5,
            ema_decay=0.99,
            warmup=50,
            skip_norm=300 * 256,
        ),
        objective=ObjectiveConfig(sigma_q=0.15, schedule="constant-per-resolution", values=(4, 2, 1)),
    )


def shapes() -> Recipe:
    """The model of shapes that comes with the package.

    The demo's, somewhat wider, with eight times the images and about ten times the steps."""
    demo = shapes_demo()
    return dataclasses.replace(
        demo,
        name="shapes",
        data="shapes:n=80000",
        autoencoder_training=dataclasses.replace(
            demo.autoencoder_training,
            steps=3000,
            final_learning_rate=2e-5,
            ema_decay=0.998,
        ),
        vae=dataclasses.replace(
            demo.vae,
            widths=(96, 80, 64),
            encoder_widths=(96, 80, 64),
            layers=(2, 5, 2),
        ),
        vae_training=dataclasses.replace(
            demo.vae_training,
            steps=13000,
            learning_rate=2.5e-3,
            final_learning_rate=2e-5,
            ema_decay=0.999,
            sample_every=1000,
        ),
        objective=dataclasses.replace(demo.objective, sigma_q=0.1),
    )


def cifar10_small() -> Recipe:
    """CIFAR-10 at a size that a CPU can train in an hour.

    The layout of `shapes`: in the same time a larger model sees too few images to be worth its size."""
    training = TrainingConfig(
        batch_size=64,
        learning_rate=2e-3,
        final_learning_rate=2e-5,
        ema_decay=0.999,
    )
    return Recipe(
        name="cifar10-small",
        data="cifar10",
        held_out=500,
        flip=True,
        autoencoder=AutoencoderConfig(widths=(96, 64), latent_channels=8),
        autoencoder_training=dataclasses.replace(training, steps=2500),
        vae=HierarchicalVAEConfig(
            data_channels=8,
            resolutions=(1, 4, 8),
            widths=(96, 80, 64),
            encoder_widths=(96, 80, 64),
            multipliers=(0, 0, 0),
            layers=(2, 5, 2),
            encoder_blocks=(1, 1, 1),
            num_classes=10,
        ),
        vae_training=dataclasses.replace(
            training,
            steps=6000,
            learning_rate=4e-3,
            final_learning_rate=4e-5,
            skip_norm=300 * 512,
        ),
        objective=ObjectiveConfig(sigma_q=0.1),
    )


def cifar10() -> Recipe:
    "CIFAR-10 on one GPU: the sizes and settings of the model that comes with the package."
    training = TrainingConfig(batch_size=512, sample_every=2000, checkpoint_every=1000)
    return Recipe(
        name="cifar10",
        data="cifar10",
        held_out=500,
        flip=True,
        autoencoder=AutoencoderConfig(widths=(192, 128), blocks=2, latent_channels=8),
        autoencoder_training=dataclasses.replace(
            training,
            steps=3400,
            learning_rate=1.5e-3,
            final_learning_rate=1e-5,
            warmup=200,
            ema_decay=0.999,
        ),
        vae=HierarchicalVAEConfig(
            data_channels=8,
            resolutions=(1, 4, 8),
            widths=(192, 128, 128),
            encoder_widths=(192, 128, 128),
            multipliers=(0, 0, 0),
            layers=(4, 8, 10),
            encoder_blocks=(1, 4, 4),
            num_classes=10,
        ),
        vae_training=dataclasses.replace(
            training,
            steps=16_000,
            learning_rate=1.2e-3,
            final_learning_rate=1.2e-5,
            warmup=500,
            ema_decay=0.9995,
            skip_norm=300 * 512,
        ),
        objective=ObjectiveConfig(sigma_q=0.1),
    )


def tiny_imagenet_64() -> Recipe:
    """Tiny-ImageNet at 64 x 64, meant for half an hour of one GPU.

    The layout of `cifar10` with one resolution more: 29 GFLOP a training example."""
    training = TrainingConfig(batch_size=256, sample_every=2000, checkpoint_every=1000)
    return Recipe(
        name="tiny-imagenet-64",
        data="tiny-imagenet:data/tiny-imagenet-200",
        held_out=1000,
        flip=True,
        autoencoder=AutoencoderConfig(size=64, widths=(192, 128), blocks=2, latent_channels=8),
        autoencoder_training=dataclasses.replace(
            training,
            steps=6000,
            learning_rate=1e-3,
            final_learning_rate=1e-5,
            warmup=200,
        ),
        vae=HierarchicalVAEConfig(
            data_channels=8,
            resolutions=(1, 4, 8, 16),
            widths=(256, 256, 192, 160),
            encoder_widths=(256, 256, 192, 160),
            multipliers=(0, 0, 0, 0),
            layers=(3, 6, 10, 8),
            encoder_blocks=(1, 3, 4, 4),
            num_classes=200,
        ),
        vae_training=dataclasses.replace(
            training,
            steps=15_000,
            learning_rate=1e-3,
            final_learning_rate=1e-5,
            warmup=500,
            ema_decay=0.9995,
            skip_norm=300 * 2048,
        ),
        objective=ObjectiveConfig(sigma_q=0.1),
    )


LARGE_VAE_TRAINING = TrainingConfig(  # P2's constants, for one GPU
    batch_size=128,
    learning_rate=3e-4,
    betas=(0.9, 0.9),
    ema_decay=0.9999,
    log_every=50,
    sample_every=5000,
    checkpoint_every=2500,
)


def imagenet_256_small() -> Recipe:
    """ImageNet at 256 x 256 scaled down for one GPU.

    A fifth of the published model's parameters, on the codes of any autoencoder of factor 8."""
    return Recipe(
        name="imagenet-256-small",
        data="folder:data/imagenet",
        held_out=1000,
        flip=True,
        autoencoder=PretrainedConfig("stabilityai/sd-vae-ft-mse", size=256, latent_channels=4, factor=8),
        vae=HierarchicalVAEConfig(
            data_channels=4,
            resolutions=(1, 4, 8, 16, 32),
            widths=(192, 192, 192, 192, 128),
            encoder_widths=(192, 192, 192, 192, 128),
            multipliers=(4, 4, 4, 4, 2),
            layers=(4, 6, 6, 6, 4),
            encoder_blocks=(2, 2, 3, 3, 2),
            attention=(0, 2, 2, 2, 0),
            num_classes=1000,
        ),
        vae_training=dataclasses.replace(
            LARGE_VAE_TRAINING, steps=400_000, log_every=100, skip_norm=300.0 * 4 * 32**2
        ),
    )


PRESETS: dict[str, typing.Callable[[], Recipe]] = {
    "shapes-demo": shapes_demo,
    "shapes": shapes,
    "cifar10-small": cifar10_small,
    "cifar10": cifar10,
    "tiny-imagenet-64": tiny_imagenet_64,
    **{name: functools.partial(published_recipe, name) for name in PUBLISHED_RUNS},
    "imagenet-256-small": imagenet_256_small,
}


def preset(
    name: str,  # as `cfvae presets` lists it
) -> Recipe:
    "A named recipe. Raises `CfvaeError` for a name that does not exist, listing those that do."
    known = isinstance(name, str) and name in PRESETS
    check(known, f"there is no preset '{name}': choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()


def describe(
    name: str,  # a key of `PRESETS`
) -> str:
    "What a preset is, in a sentence or two."
    if name in PUBLISHED_RUNS:
        return PUBLISHED_RUNS[name].description
    return " ".join((PRESETS[name].__doc__ or "").split())
