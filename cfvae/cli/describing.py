"""Models, runs and their parts in a few words, as several commands say them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from ..autoencoder import Autoencoder, AutoencoderConfig
from ..checkpoints import intact_checkpoints
from ..core import count_parameters
from ..files.names import first_few
from ..hvae import HierarchicalVAE, HierarchicalVAEConfig
from ..pretrained import PretrainedConfig


def describe_shape(sizes: Iterable[int]) -> str:
    "As in 4 x 8 x 8."
    return " x ".join(str(size) for size in sizes)


def list_names(names: Sequence[str], limit: int = 12) -> str:
    "The first few of many names, and how many more there are."
    return first_few(names, limit)


def count_millions(
    autoencoder: AutoencoderConfig | PretrainedConfig, vae: HierarchicalVAEConfig
) -> tuple[str, str]:
    """Parameters of both models in millions, counted on the meta device, without any memory for them.

    Where the first stage is not trained here, what it is: pretrained or pixels."""
    with torch.device("meta"):
        second = _in_millions(HierarchicalVAE(vae))
        if not isinstance(autoencoder, PretrainedConfig):
            return _in_millions(Autoencoder(autoencoder)), second
    return "pixels" if autoencoder.source == "pixels" else "pretrained", second


def _in_millions(model: torch.nn.Module) -> str:
    return f"{count_parameters(model) / 1e6:.2f}"


def describe_models(
    autoencoder: AutoencoderConfig | PretrainedConfig, vae: HierarchicalVAEConfig
) -> dict[str, str]:
    "What both models look like: a name and a value for each line."
    first, second = count_millions(autoencoder, vae)
    unit = "" if isinstance(autoencoder, PretrainedConfig) else " M"
    levels = []
    for count, side in zip(vae.layers, vae.resolutions, strict=True):
        levels.append(f"{count} at {side} x {side}")
    return {
        "images": describe_shape([autoencoder.size, autoencoder.size]),
        "code": describe_shape(autoencoder.latent_shape),
        "stochastic layers": f"{sum(vae.layers)}: {', '.join(levels)}",
        "parameters": f"autoencoder {first}{unit}, VAE {second} M",
    }


def saved_steps(
    stage: Path,  # the folder of a run's stage
) -> list[int]:
    "The steps of the checkpoints that a stage can go on from, oldest first: damaged ones do not count."
    paths = intact_checkpoints(stage / "checkpoints")
    return [int(path.stem.split("-")[1]) for path in paths]


def newest_step(
    stage: Path,  # the folder of a run's stage
) -> int:
    "The step of the newest one; 0 where there is none."
    return max(saved_steps(stage), default=0)
