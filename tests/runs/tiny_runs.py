"A recipe that trains in a second, and images with names that a page has to escape."

import torch

from cfvae.data import ImageDataset, Shapes
from cfvae.recipes import Recipe, change
from cfvae.runs.presets import preset

TINY = {
    "held_out": 24,
    "autoencoder.size": 16,
    "autoencoder.widths": (8, 8),
    "autoencoder.groups": 4,
    "autoencoder_training.steps": 4,
    "vae.resolutions": (1, 4),
    "vae.widths": 8,
    "vae.encoder_widths": 8,
    "vae.multipliers": 1,
    "vae.layers": (1, 2),
    "vae.encoder_blocks": 1,
    "vae.attention": 0,
    "vae.heads": 2,
    "vae.latent_channels": 2,
    "vae_training.steps": 4,
    "objective.schedule": "shifted-exponential",
    "batch_size": 8,
    "warmup": 2,
    "log_every": 1,
    "precision": "fp32",
    "device": "cpu",
}
STRANGE = ("<script>alert(1)</script>", "cats & dogs", 'it\'s "quoted"')


def tiny(**settings) -> Recipe:
    return change(preset("shapes-demo"), {**TINY, **settings})


def strange_images() -> ImageDataset:
    shapes = Shapes(60, seed=2, size=16)
    return ImageDataset(shapes.images, torch.arange(60) % 3, STRANGE, "<i>mine</i>")
