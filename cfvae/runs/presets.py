"""Every recipe that has a name."""

import dataclasses
import typing

from ..autoencoder import AutoencoderConfig
from ..core import check, seed_everything
from ..data import Shapes
from ..hvae import HierarchicalVAE, HierarchicalVAEConfig
from ..objective import ObjectiveConfig, vae_loss
from ..pretrained import PretrainedConfig
from ..published import PUBLISHED, published_config
from ..recipes import Recipe
from .callbacks import ProgressBar
from ..training import TrainingConfig, fit


_F8 = PretrainedConfig("", 256, 4, 8)


_RUNS: dict[str, tuple] = {  # data, first stage, training where it is not P2's, objective, what it is
    "imagenet256_kl8": (
        "folder:data/imagenet",
        _F8,
        {"learning_rate": 3e-4},
        {"sigma_q": 0.07},
        "P2's model of ImageNet, class-conditional, on the codes of KL-f8. For many GPUs.",
    ),
    "bedroom": (
        "folder:data/bedroom",
        PretrainedConfig("", 256, 3, 4),
        {"batch_size": 256, "accumulate": 4},
        {"sigma_q": 0.1, "steepness": 2000.0},
        "P2's model of LSUN bedrooms, on the codes of VQ-f4.",
    ),
    "church": (
        "folder:data/church",
        _F8,
        {},
        {"sigma_q": 0.07},
        "P2's model of LSUN churches, on the codes of KL-f8.",
    ),
    "bedroom_f8": (
        "folder:data/bedroom",
        _F8,
        {},
        {"sigma_q": 0.07},
        "P2's ablation: bedrooms on the codes of KL-f8.",
    ),
    "bedroom_f16": (
        "folder:data/bedroom",
        PretrainedConfig("", 256, 16, 16),
        {},
        {"sigma_q": 0.07, "steepness": 600.0},
        "P2's ablation: bedrooms on codes of factor 16.",
    ),
    "church256": (
        "folder:data/church",
        PretrainedConfig("pixels", 256, 3, 1, 0.0, 1.0),
        {"accumulate": 4, "learning_rate": 1e-4},
        {
            "sigma_q": 0.05,
            "schedule": "constant-per-resolution",
            "values": (1, 4, 8, 16, 32, 64, 128, 256),
            "spectral_weight": 0.25,
        },
        "P2's model of churches in pixels, to compare with.",
    ),
    "church32": (
        "folder:data/church",
        PretrainedConfig("pixels", 32, 3, 1, 0.0, 1.0),
        {},
        {"sigma_q": 0.035},
        "The base of P2's cascade of pixel models: churches at 32 x 32.",
    ),
    "cifar10_pixels": (
        "cifar10",
        PretrainedConfig("pixels", 32, 3, 1, 0.0, 1.0),
        {
            "optimizer": "adamax",
            "betas": (0.9, 0.999),
            "learning_rate": 6e-4,
            "final_learning_rate": 3e-4,
            "warmup": 50,
            "ema_decay": 0.9997,
            "steps": 400_000,
        },
        {"sigma_q": 0.025, "spectral_weight": 0.05},
        "After P1: CIFAR-10 in pixels, class-conditional.",
    ),
}


def published_recipe(
    name: str,  # of a published model, a key of `PUBLISHED`
) -> Recipe:
    "A published model as a recipe, with the training constants of its paper; the number of steps, a million, is ours, but for the model of CIFAR-10."
    data, first_stage, training, objective, _ = _RUNS[name]
    config = published_config(PUBLISHED[name])
    constants = {
        "steps": 1_000_000,
        "batch_size": 128,
        "learning_rate": 2e-4,
        "betas": (0.9, 0.9),
        "warmup": 100,
        "ema_decay": 0.9999,
        "skip_norm": 300.0 * config.data_channels * config.resolution**2,
        "log_every": 500,
        "sample_every": 10_000,
        "checkpoint_every": 2500,
    }
    return Recipe(
        name,
        data,
        conditional=config.num_classes > 0,
        autoencoder=first_stage,
        vae=config,
        vae_training=TrainingConfig(**{**constants, **training}),
        objective=ObjectiveConfig(label_drop=0.1 if config.num_classes else 0.0, **objective),
    )


def imagenet_256_small() -> Recipe:
    "ImageNet at 256 x 256 scaled down for one GPU: a fifth of the published model's parameters, on the codes of any autoencoder of factor 8."
    return Recipe(
        "imagenet-256-small",
        "folder:data/imagenet",
        1000,
        flip=True,
        autoencoder=PretrainedConfig("stabilityai/sd-vae-ft-mse", 256, 4, 8),
        vae=HierarchicalVAEConfig(
            4,
            (1, 4, 8, 16, 32),
            (192, 192, 192, 192, 128),
            (192, 192, 192, 192, 128),
            (4, 4, 4, 4, 2),
            (4, 6, 6, 6, 4),
            (2, 2, 3, 3, 2),
            (0, 2, 2, 2, 0),
            4,
            num_classes=1000,
        ),
        vae_training=TrainingConfig(
            steps=400_000,
            batch_size=128,
            learning_rate=3e-4,
            betas=(0.9, 0.9),
            ema_decay=0.9999,
            skip_norm=300.0 * 4 * 32**2,
            log_every=100,
            sample_every=5000,
            checkpoint_every=2500,
        ),
    )


def _named(name: str) -> typing.Callable[[], Recipe]:
    def make() -> Recipe:
        return published_recipe(name)

    make.__doc__ = _RUNS[name][-1]
    return make


PIXEL_MODEL = HierarchicalVAEConfig(
    data_channels=3,
    resolutions=(1, 4, 8, 16),
    widths=(64, 64, 48, 24),
    encoder_widths=(64, 64, 48, 24),
    multipliers=0,
    layers=2,
    encoder_blocks=1,
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


def train_pixel_model(
    name: str,  # "pixels-plain" or "pixels-reweighted"
) -> HierarchicalVAE:
    "A pixel model of lessons 08 and 09 as it is shipped. Both begin with the same weights and see the same images and noise; the schedule (09.3) is the difference."
    check(name in PIXEL_SCHEDULES, f"there is no pixel model '{name}': choose {' or '.join(PIXEL_SCHEDULES)}")
    objective = ObjectiveConfig(
        sigma_q=0.05, schedule=PIXEL_SCHEDULES[name], steepness=10, spectral_weight=0.05, label_drop=0
    )
    seed_everything(PIXEL_TRAINING.seed)
    return fit(
        HierarchicalVAE(PIXEL_MODEL),
        Shapes(40000, size=16),
        vae_loss(objective),
        PIXEL_TRAINING,
        [ProgressBar(name)],
    ).ema.module.eval()


def shapes_demo() -> Recipe:
    "Minutes on two CPU cores, from nothing to guided samples. Plain blocks, most layers at low resolution: what costs least per step."
    return Recipe(
        "shapes-demo",
        autoencoder_training=TrainingConfig(
            steps=500, batch_size=32, learning_rate=2e-3, final_learning_rate=4e-5, ema_decay=0.99, warmup=50
        ),
        vae=HierarchicalVAEConfig(4, (1, 4, 8), 64, 64, 0, (2, 4, 2), 1, num_classes=10),
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
    "The model that comes with the package: the demo's, somewhat wider, with eight times the images and about ten times the steps."
    demo = shapes_demo()
    return dataclasses.replace(
        demo,
        name="shapes",
        data="shapes:n=80000",
        autoencoder_training=dataclasses.replace(
            demo.autoencoder_training, steps=3000, final_learning_rate=2e-5, ema_decay=0.998
        ),
        vae=HierarchicalVAEConfig(4, (1, 4, 8), (96, 80, 64), (96, 80, 64), 0, (2, 5, 2), 1, num_classes=10),
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
    "CIFAR-10 at a size that a CPU can train in an evening."
    return Recipe(
        "cifar10-small",
        "cifar10",
        500,
        flip=True,
        autoencoder=AutoencoderConfig(widths=(96, 64), latent_channels=8),
        autoencoder_training=TrainingConfig(
            steps=2500, batch_size=64, learning_rate=2e-3, final_learning_rate=2e-5, ema_decay=0.999
        ),
        vae=HierarchicalVAEConfig(
            8, (1, 4, 8), (128, 128, 96), (128, 128, 96), 0, (2, 5, 4), (1, 2, 2), (0, 0, 1), num_classes=10
        ),
        vae_training=TrainingConfig(
            steps=10000,
            batch_size=64,
            learning_rate=2e-3,
            final_learning_rate=2e-5,
            ema_decay=0.999,
            skip_norm=300 * 512,
        ),
        objective=ObjectiveConfig(sigma_q=0.1),
    )


def cifar10() -> Recipe:
    "CIFAR-10 on one GPU."
    return Recipe(
        "cifar10",
        "cifar10",
        500,
        flip=True,
        autoencoder=AutoencoderConfig(widths=(192, 128), blocks=2, latent_channels=16),
        autoencoder_training=TrainingConfig(
            steps=20000,
            batch_size=128,
            learning_rate=1e-3,
            final_learning_rate=1e-5,
            ema_decay=0.9995,
            sample_every=2000,
        ),
        vae=HierarchicalVAEConfig(
            16,
            (1, 2, 4, 8),
            256,
            256,
            (8, 6, 4, 4),
            (4, 6, 8, 10),
            (2, 3, 4, 5),
            (0, 0, 2, 2),
            (1, 1, 4, 4),
            num_classes=10,
        ),
        vae_training=TrainingConfig(
            steps=100000,
            batch_size=128,
            learning_rate=3e-4,
            betas=(0.9, 0.9),
            ema_decay=0.9999,
            skip_norm=300 * 1024,
            log_every=50,
            sample_every=5000,
            checkpoint_every=2500,
        ),
    )


def tiny_imagenet_64() -> Recipe:
    "Tiny-ImageNet at 64 x 64 on one GPU."
    return Recipe(
        "tiny-imagenet-64",
        "tiny-imagenet:data/tiny-imagenet-200",
        1000,
        flip=True,
        autoencoder=AutoencoderConfig(size=64, widths=(256, 128), blocks=2, latent_channels=8),
        autoencoder_training=TrainingConfig(
            steps=40000,
            batch_size=128,
            learning_rate=1e-3,
            final_learning_rate=1e-5,
            ema_decay=0.9995,
            sample_every=2000,
        ),
        vae=HierarchicalVAEConfig(
            8,
            (1, 4, 8, 16),
            256,
            256,
            (8, 6, 4, 4),
            (4, 6, 8, 10),
            (2, 3, 4, 5),
            (0, 2, 2, 2),
            4,
            num_classes=200,
        ),
        vae_training=TrainingConfig(
            steps=200000,
            batch_size=128,
            learning_rate=3e-4,
            betas=(0.9, 0.9),
            ema_decay=0.9999,
            skip_norm=300 * 2048,
            log_every=50,
            sample_every=5000,
            checkpoint_every=2500,
        ),
    )


PRESETS: dict[str, typing.Callable[[], Recipe]] = {
    "shapes-demo": shapes_demo,
    "shapes": shapes,
    "cifar10-small": cifar10_small,
    "cifar10": cifar10,
    "tiny-imagenet-64": tiny_imagenet_64,
    **{name: _named(name) for name in _RUNS},
    "imagenet-256-small": imagenet_256_small,
}


def preset(
    name: str,  # as `cfvae presets` lists it
) -> Recipe:
    "A named recipe. Raises `CfvaeError` for a name that does not exist, listing those that do."
    check(name in PRESETS, f"there is no preset '{name}': choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()
