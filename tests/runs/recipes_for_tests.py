"A recipe that trains within seconds."

from cfvae.runs.presets import preset
from cfvae.recipes import Recipe, change


TINY = {
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
    "checkpoint_every": 2,
    "precision": "fp32",
    "device": "cpu",
}


def tiny(**settings) -> Recipe:
    return change(
        preset("shapes-demo"), {**TINY, **{key.replace("__", "."): value for key, value in settings.items()}}
    )
