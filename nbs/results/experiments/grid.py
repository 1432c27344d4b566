"""Sums over all pictures of `Shapes` at 16 x 16: they make the aggregate posterior known exactly."""

import functools
import itertools
import math
from collections.abc import Iterator

import torch

from cfvae.core import from_uint8
from cfvae.data import _LIGHTS, BACKGROUNDS, COLOURS, FACTORS, _coverage
from cfvae.gaussian import DiagGaussian
from cfvae.vae import VAE

SIZE = 16
PIXELS = 3 * SIZE**2
INTERIORS = len(FACTORS["colour"]) * len(FACTORS["shading"])


@functools.cache
def _parts() -> tuple[torch.Tensor, torch.Tensor]:
    "The terms of `render_shapes`: all interiors, (48, 3, 16, 16), and all backgrounds, (6, 3, 16, 1)."
    ramp = (torch.arange(SIZE) + 0.5) / SIZE
    lights = torch.tensor(tuple(_LIGHTS.values()))[..., None, None]
    slope = lights[:, 0] * (ramp - 0.5) + lights[:, 1] * (ramp[:, None] - 0.5)  # (4, rows, columns)
    brightness = 0.82 + 0.5 * slope
    colours = torch.tensor(tuple(COLOURS.values()), dtype=torch.float32)
    interiors = colours[:, None, :, None, None] * brightness[:, None]

    ends = torch.tensor(tuple(BACKGROUNDS.values()), dtype=torch.float32)[..., None]
    backgrounds = ends[:, 0] * (1 - ramp) + ends[:, 1] * ramp
    return interiors.flatten(0, 1), backgrounds[..., None]


def blocks(
    stride: int = 1,  # take every so manyth block; above 1 only to try the program
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """All 2,304,000 pictures in blocks of 2,304: one kind, size and place, and all the rest.

    Yields the factors, (2304, 7), and the pictures, (2304, 3, 16, 16) in [-1, 1]."""
    interiors, backgrounds = _parts()
    ranges = [range(len(FACTORS[name])) for name in ("class", "size", "position")]
    for kind, size, place in itertools.islice(itertools.product(*ranges), 0, None, stride):
        factors = _block_factors(kind, size, place)
        outlines = factors[:: len(factors) // len(FACTORS["rotation"])]
        cover = _coverage(outlines, SIZE)[:, None, None]  # (8, 1, 1, 16, 16)
        shapes = cover * interiors
        grounds = (1 - cover) * backgrounds
        pixels = shapes[:, :, None] + grounds[:, None]  # (8, 48, 6, 3, 16, 16)
        whole = pixels.flatten(0, 2).round_().clamp_(0, 255)
        yield factors, from_uint8(whole)


def _block_factors(kind: int, size: int, place: int) -> torch.Tensor:
    "In the order of `FACTORS`; rotation varies slowest, then colour, shading and background."
    ranges = [range(len(FACTORS[name])) for name in ("rotation", "colour", "shading", "background")]
    rows = [
        (kind, colour, size, place, rotation, background, shading)
        for rotation, colour, shading, background in itertools.product(*ranges)
    ]
    return torch.tensor(rows)


class Sums:
    "What is summed for every z_j over all pictures x_i, with weights proportional to q(z_j | x_i)."

    def __init__(
        self,
        z: torch.Tensor,  # (n, latent_dim)
        kinds: torch.Tensor,  # (n,) the class of the picture that z came from
    ) -> None:
        n = len(z)
        self.kinds = kinds
        self.powers = torch.cat([z.square(), z], dim=1).double()
        self.count = 0
        self.top = torch.full((n,), -math.inf, dtype=torch.float64)  # the largest log q(z_j | x_i) so far
        self.weight = torch.zeros(n, dtype=torch.float64)  # in units of its exponential, as all below
        self.weighted_log = torch.zeros(n, dtype=torch.float64)
        self.same_kind = torch.zeros(n, dtype=torch.float64)
        self.picture = torch.zeros(n, PIXELS)

    def add(
        self,
        q: DiagGaussian,  # posteriors of the block's pictures, entries (b, latent_dim)
        x: torch.Tensor,  # the pictures, (b, 768)
        kind: int,  # their class
    ) -> None:
        "Take in a block of pictures."
        logs = self._log_densities(q)
        top = torch.maximum(self.top, logs.max(1).values)
        fade = (self.top - top).exp()
        self.top = top
        weights = (logs - top[:, None]).exp()
        self.count += len(x)
        self.weight = self.weight * fade + weights.sum(1)
        self.weighted_log = self.weighted_log * fade + (weights * logs).sum(1)
        self.same_kind = self.same_kind * fade + weights.sum(1) * (self.kinds == kind)

        self.picture *= fade.float()[:, None]
        matters = weights.max(1).values > 1e-12
        self.picture[matters] += weights[matters].float() @ x

    def _log_densities(self, q: DiagGaussian) -> torch.Tensor:
        "log q(z_j | x_i), (n, b)."
        mean, variance = q.mean.double(), q.variance.double()
        precision = 1 / variance
        factors = torch.cat([precision, -2 * mean * precision], dim=1)
        constant = (mean.square() * precision + variance.log() + math.log(2 * math.pi)).sum(1)
        return -0.5 * (self.powers @ factors.T + constant)

    @property
    def log_aggregate(self) -> torch.Tensor:
        "log q(z_j), the aggregate posterior of the whole generator, (n,)."
        return self.top + self.weight.log() - math.log(self.count)

    @property
    def expected_picture(self) -> torch.Tensor:
        "E[x | z_j], (n, 768)."
        return self.picture / self.weight.float()[:, None]

    @property
    def entropy_left(self) -> torch.Tensor:
        "Entropy of the picture given z_j in nats, (n,)."
        return self.top + self.weight.log() - self.weighted_log / self.weight

    @property
    def chance_of_kind(self) -> torch.Tensor:
        "The chance that a picture drawn given z_j is of its class, (n,)."
        return self.same_kind / self.weight


@torch.no_grad()
def sum_over_all(
    model: VAE,  # of 16 x 16 pictures
    z: torch.Tensor,  # (n, latent_dim) draws from its posterior
    kinds: torch.Tensor,  # (n,) classes of the pictures they were drawn for
    stride: int = 1,  # above 1 only to try the program
) -> Sums:
    "The sums over all pictures."
    sums = Sums(z, kinds)
    for factors, pictures in blocks(stride):
        sums.add(model.posterior(pictures), pictures.flatten(1), int(factors[0, 0]))
    return sums
