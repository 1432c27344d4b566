"""The papers' models as recipes: what they were trained on, and with which constants."""

import dataclasses
import typing

from ..objective import ObjectiveConfig
from ..pretrained import PretrainedConfig
from ..published import PUBLISHED, published_config
from ..recipes import Recipe
from ..training import TrainingConfig

KL_F8 = PretrainedConfig("", size=256, latent_channels=4, factor=8)
VQ_F4 = PretrainedConfig("", size=256, latent_channels=3, factor=4)
KL_F16 = PretrainedConfig("", size=256, latent_channels=16, factor=16)


def _pixels(
    size: int,  # of the images
) -> PretrainedConfig:
    "No first stage: the VAE models pixels."
    return PretrainedConfig("pixels", size=size, latent_channels=3, factor=1, shift=0.0, scale=1.0)


@dataclasses.dataclass(frozen=True)
class PublishedRun:
    "What a paper says of a model's training, beside its sizes."

    data: str  # where the images are expected
    first_stage: PretrainedConfig  # what makes the codes
    objective: ObjectiveConfig  # what the model was trained for
    description: str  # for the list of presets
    training: dict[str, typing.Any] = dataclasses.field(default_factory=dict)  # where it is not P2's default


PUBLISHED_RUNS = {  # the keys are those of `PUBLISHED`
    "imagenet256_kl8": PublishedRun(
        data="folder:data/imagenet",
        first_stage=KL_F8,
        objective=ObjectiveConfig(sigma_q=0.07),
        description="P2's model of ImageNet, class-conditional, on the codes of KL-f8. For many GPUs.",
        training={"learning_rate": 3e-4},
    ),
    "bedroom": PublishedRun(
        data="folder:data/bedroom",
        first_stage=VQ_F4,
        objective=ObjectiveConfig(sigma_q=0.1, steepness=2000.0),
        description="P2's model of LSUN bedrooms, on the codes of VQ-f4.",
        training={"batch_size": 256, "accumulate": 4},
    ),
    "church": PublishedRun(
        data="folder:data/church",
        first_stage=KL_F8,
        objective=ObjectiveConfig(sigma_q=0.07),
        description="P2's model of LSUN churches, on the codes of KL-f8.",
    ),
    "bedroom_f8": PublishedRun(
        data="folder:data/bedroom",
        first_stage=KL_F8,
        objective=ObjectiveConfig(sigma_q=0.07),
        description="P2's ablation: bedrooms on the codes of KL-f8.",
    ),
    "bedroom_f16": PublishedRun(
        data="folder:data/bedroom",
        first_stage=KL_F16,
        objective=ObjectiveConfig(sigma_q=0.07, steepness=600.0),
        description="P2's ablation: bedrooms on codes of factor 16.",
    ),
    "church256": PublishedRun(
        data="folder:data/church",
        first_stage=_pixels(256),
        objective=ObjectiveConfig(
            sigma_q=0.05,
            schedule="constant-per-resolution",
            values=(1, 4, 8, 16, 32, 64, 128, 256),
            spectral_weight=0.25,
        ),
        description="P2's model of churches in pixels, to compare with.",
        training={"accumulate": 4, "learning_rate": 1e-4},
    ),
    "church32": PublishedRun(
        data="folder:data/church",
        first_stage=_pixels(32),
        objective=ObjectiveConfig(sigma_q=0.035),
        description="The base of P2's cascade of pixel models: churches at 32 x 32.",
    ),
    "cifar10_pixels": PublishedRun(
        data="cifar10",
        first_stage=_pixels(32),
        objective=ObjectiveConfig(sigma_q=0.025, spectral_weight=0.05),
        description="After P1: CIFAR-10 in pixels, class-conditional.",
        training={
            "optimizer": "adamax",
            "betas": (0.9, 0.999),
            "learning_rate": 6e-4,
            "final_learning_rate": 3e-4,
            "warmup": 50,
            "ema_decay": 0.9997,
            "steps": 400_000,
        },
    ),
}
P2_TRAINING = TrainingConfig(
    steps=1_000_000,  # ours: the paper does not say
    batch_size=128,
    learning_rate=2e-4,
    betas=(0.9, 0.9),
    warmup=100,
    ema_decay=0.9999,
    log_every=500,
    sample_every=10_000,
    checkpoint_every=2500,
)


def published_recipe(
    name: str,  # of a published model, a key of `PUBLISHED`
) -> Recipe:
    "A published model as a recipe, with the training constants of its paper."
    run = PUBLISHED_RUNS[name]
    vae = published_config(PUBLISHED[name])
    conditional = vae.num_classes > 0
    data_dims = vae.data_channels * vae.resolution**2
    training = dataclasses.replace(P2_TRAINING, skip_norm=300.0 * data_dims, **run.training)
    objective = dataclasses.replace(run.objective, label_drop=0.1 if conditional else 0.0)
    return Recipe(
        name=name,
        data=run.data,
        conditional=conditional,
        autoencoder=run.first_stage,
        vae=vae,
        vae_training=training,
        objective=objective,
    )
