"""What the layers of a model hold of held-out images: nats, active units; on pixels bits per dimension."""

import dataclasses
import math

import torch

from ..core import make_generator
from ..elbo import ELBO, importance_weighted_bound
from ..gaussian import DiagGaussian, kl_divergence
from ..hvae import HierarchicalVAE, TopDownBlock
from ..pipeline import LatentVAEPipeline
from ..pretrained import PretrainedAutoencoder

ACTIVE = 0.01  # nats: a unit that costs less on average says nothing
DRAWS = 8  # from the posterior, for the importance-weighted bound
BATCH = 64  # images at a time


@dataclasses.dataclass(frozen=True)
class PixelBounds:
    "Of a model on pixels, in bits per dimension of 8-bit images, with standard errors."

    elbo: tuple[float, float]
    importance_weighted: tuple[float, float]  # of `draws` draws (05.8)
    draws: int


@dataclasses.dataclass(frozen=True)
class Layers:
    "Means over held-out images, z drawn from the posterior; lists run from the lowest resolution."

    images: int  # how many
    rates: list[float]  # nats of every stochastic layer (08.1)
    rate: float  # their sum
    rate_error: float  # its standard error
    active: list[int]  # units whose rate is above 0.01 nats, in every layer
    units: list[int]  # all of them
    code_error: float  # root mean square of what the posterior's output misses, in standardised units
    pixels: PixelBounds | None  # None: the data of the model are codes, and no bits of images


@dataclasses.dataclass(frozen=True)
class _Walk:
    output: DiagGaussian  # p(x | z)
    rates: list[torch.Tensor]  # KL(q || p) of every unit, (b, c, r, r), a tensor per layer
    log_ratio: torch.Tensor  # (b,) log p(z) - log q(z | x) of the z that were drawn


def _unit_rates(q: DiagGaussian, p: DiagGaussian) -> torch.Tensor:
    "KL(q || p) of every entry by itself, in the shape of the mean."
    apart = [DiagGaussian(d.mean.reshape(-1, 1), d.variance.reshape(-1, 1)) for d in (q, p)]
    return kl_divergence(*apart).view_as(q.mean)


@torch.no_grad()
def _walk(
    vae: HierarchicalVAE, x: torch.Tensor, labels: torch.Tensor | None, generator: torch.Generator
) -> _Walk:
    "One pass with every z drawn from the posterior, and all that can be said about it."
    label = vae.label_vectors(labels, len(x))
    features = vae.encoder(x, label)
    noise = iter(vae.noise(len(x), generator))
    rates: list[torch.Tensor] = []
    log_ratios: list[torch.Tensor] = []

    def choose_z(p: DiagGaussian, block: TopDownBlock, h: torch.Tensor, level: int) -> torch.Tensor:
        q = block.posterior(h, features[level], label)
        z = q.sample(next(noise))
        rates.append(_unit_rates(q, p))
        log_ratios.append(p.log_prob(z) - q.log_prob(z))
        return z

    h = vae.decoder(len(x), choose_z, label)
    return _Walk(vae.decoder.output(h), rates, torch.stack(log_ratios).sum(0))


def measure_layers(
    pipe: LatentVAEPipeline,  # the model
    images: torch.Tensor,  # (n, 3, size, size) in [-1, 1], held out
    labels: torch.Tensor | None,  # (n,) the model's own; None for a model without classes
) -> Layers:
    "What every layer holds. The noise is that of seed 0."
    generator = make_generator(0)
    unit_rates: list[list[torch.Tensor]] = []
    squared_errors = []
    for rows in torch.arange(len(images)).split(BATCH):
        x = pipe.encode(images[rows])
        walk = _walk(pipe.vae, x, None if labels is None else labels[rows], generator)
        unit_rates.append([layer.flatten(1).cpu() for layer in walk.rates])
        squared_errors.append((x - walk.output.mean).square().flatten(1).mean(1).cpu())

    per_layer = [torch.cat(parts) for parts in zip(*unit_rates, strict=True)]  # (n, units) each
    rates = torch.stack([layer.sum(1) for layer in per_layer], dim=1)  # (n, layers)
    rate, rate_error = _mean_and_error(rates.sum(1))
    return Layers(
        images=len(images),
        rates=rates.mean(0).tolist(),
        rate=rate,
        rate_error=rate_error,
        active=[int((layer.mean(0) > ACTIVE).sum()) for layer in per_layer],
        units=[layer.shape[1] for layer in per_layer],
        code_error=torch.cat(squared_errors).mean().sqrt().item(),
        pixels=_pixel_bounds(pipe, images, labels) if is_on_pixels(pipe) else None,
    )


def is_on_pixels(
    pipe: LatentVAEPipeline,  # a model
) -> bool:
    "Whether the second stage models images themselves: then bits per dimension are defined."
    first = pipe.autoencoder
    return isinstance(first, PretrainedAutoencoder) and first.config.source == "pixels"


def _pixel_bounds(pipe: LatentVAEPipeline, images: torch.Tensor, labels: torch.Tensor | None) -> PixelBounds:
    """Bounds on the probability of 8-bit images.

    The model has a density: uniform noise as wide as a grey level makes its mean over the level a bound on
    the level's logarithm (Theis et al., arXiv 1511.01844, section 3.1)."""
    generator = make_generator(0)
    level = 2 / 255  # distance of two grey levels
    dims = images[0].numel()
    widths = (level / pipe.scaler.scale).expand(3, 1, 1).log()  # of a grey level in the model's units
    log_level = widths.sum().cpu() * dims / 3

    bounds = []
    tighter = []
    for rows in torch.arange(len(images)).split(BATCH):
        shown = None if labels is None else labels[rows]
        log_weights = []
        for draw in range(DRAWS):
            noise = torch.rand(images[rows].shape, generator=generator) - 0.5
            x = pipe.encode(images[rows] + level * noise)
            walk = _walk(pipe.vae, x, shown, generator)
            log_likelihood = walk.output.log_prob(x).cpu()
            log_weights.append(log_likelihood + walk.log_ratio.cpu() + log_level)
            if draw == 0:
                rates = torch.stack([layer.flatten(1).sum(1).cpu() for layer in walk.rates], dim=1)
                bounds.append(ELBO(-(log_likelihood + log_level), rates).bits_per_dim(dims))
        nats = importance_weighted_bound(torch.stack(log_weights))
        tighter.append(-nats / (dims * math.log(2)))
    return PixelBounds(_mean_and_error(torch.cat(bounds)), _mean_and_error(torch.cat(tighter)), DRAWS)


def _mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    "Mean and its standard error."
    spread = values.std().item() if len(values) > 1 else math.nan
    return values.mean().item(), spread / math.sqrt(len(values))
