"""The one-layer VAE of lesson 06, trained longer, with what its latents leave open known exactly.

The squared error of a draw splits in two: what the latent leaves open, and what the network gets wrong."""

import functools
import math
import typing

import torch
from safetensors.torch import save_file

from cfvae.core import from_uint8, image_grid, make_generator, seed_everything
from cfvae.data import FACTORS, Shapes, render_shapes
from cfvae.gaussian import DiagGaussian, kl_divergence
from cfvae.training import Callback, Metrics, TrainingConfig, TrainingState, fit
from cfvae.vae import VAE, VAEConfig, one_layer_loss
from grid import sum_over_all
from jobs import Job, Record, Setting
from judging import shapes

# steps, training images, last learning rate
RUNS = {
    600: (8000, 3e-4),
    6000: (8000, 3e-4),
    20000: (80000, 3e-5),
}
LONGEST = max(RUNS)
CURVE_POINTS = 30
DRAWS = 64  # of the first held-out images: what is summed over all pictures is a mean over them


def one_layer(job: Job, setting: Setting) -> Record:
    "Train one VAE, and measure what lesson 06 asks of it."
    beta, steps = _read(job.variant)
    images, final_rate = RUNS[steps]
    data = shapes(setting.count(images), size=16)
    training = TrainingConfig(
        steps=setting.steps(steps),
        learning_rate=3e-3,
        final_learning_rate=final_rate,
        warmup=20,
        ema_decay=0.99,
        device="cpu",
        precision="fp32",
        seed=job.seed,
    )
    curve = Curve(data.batch(range(min(256, len(data))))[0], training.steps)
    seed_everything(job.seed)
    state = fit(VAE(VAEConfig()), data, one_layer_loss(beta), training, [curve])
    model = typing.cast(VAE, state.ema.module)

    with torch.no_grad():
        record = {
            "beta": beta,
            "steps": training.steps,
            "images": len(data),
            **_bound(model, data),
            **_reconstructions(model),
            "corner_error": _corner_error(model, data),
            "curve": curve.points,
            **_exactly(model, job, setting, data),
        }
    if (beta, steps, job.seed) == (1, LONGEST, 0):
        half = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
        save_file(half, setting.records / "06_beta1_long.safetensors")
    return record


def variant(beta: int, steps: int) -> str:
    "The name of one run."
    return f"beta {beta} {steps} steps"


def _read(name: str) -> tuple[int, int]:
    _, beta, steps, _ = name.split()
    return int(beta), int(steps)


@functools.cache
def held_out() -> tuple[torch.Tensor, Shapes]:
    "Lesson 06's held-out images, (256, 3, 16, 16), and their data set."
    data = shapes(256, 1, 16)
    return data.batch(range(256))[0], data


def bound(
    model: VAE,
    x: torch.Tensor,  # (n, 3, 16, 16)
) -> tuple[torch.Tensor, torch.Tensor]:
    "Distortion, from one draw of z, and rate, in nats, (n,) each."
    out = model(x, generator=make_generator(0))
    return -out.distribution.log_prob(x), out.rates.sum(1)


class Curve(Callback):
    "Distortion and rate of the averaged model, on images of the training and held-out ones, as it learns."

    def __init__(
        self,
        seen: torch.Tensor,  # images of the training, (n, 3, 16, 16)
        steps: int,  # of the training
    ) -> None:
        self.sets = {"train": seen, "held_out": held_out()[0]}
        spaced = torch.logspace(0, math.log10(steps), CURVE_POINTS)
        self.marks = {int(step) for step in spaced.round()}
        self.points: list[dict[str, float]] = []

    @torch.no_grad()
    def on_step(self, state: TrainingState, metrics: Metrics) -> None:
        if state.step not in self.marks:
            return
        point: dict[str, float] = {"step": state.step}
        for name, x in self.sets.items():
            distortion, rate = bound(typing.cast(VAE, state.ema.module), x)
            point[f"distortion_{name}"] = distortion.mean().item()
            point[f"rate_{name}"] = rate.mean().item()
        self.points.append(point)


def _mean_and_error(values: torch.Tensor, name: str) -> Record:
    "The mean over images and its standard error."
    error = values.std() / len(values) ** 0.5
    return {name: values.mean().item(), f"{name}_se": error.item()}


def _bound(model: VAE, data: Shapes) -> Record:
    record: Record = {}
    for suffix, images in (("", held_out()[0]), ("_train", data.batch(range(min(256, len(data))))[0])):
        distortion, rate = bound(model, images)
        record |= _mean_and_error(distortion, f"distortion{suffix}")
        record |= _mean_and_error(rate, f"rate{suffix}")
        record |= _mean_and_error(distortion + rate, f"elbo_loss{suffix}")

    q = model.posterior(held_out()[0])
    single = DiagGaussian(q.mean.reshape(-1, 1), q.variance.reshape(-1, 1))
    by_entry = kl_divergence(single, DiagGaussian.standard(single.mean)).view(q.mean.shape).mean(0)
    return record | {
        "rate_by_entry": by_entry.sort(descending=True).values.tolist(),
        "entries_above_0.1": int((by_entry > 0.1).sum()),
    }


def _squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    "Mean squared difference of every picture, (n,)."
    return (a.flatten(1) - b.flatten(1)).square().mean(1)


def _reconstructions(model: VAE) -> Record:
    "Errors of reconstructions from the posterior's mean; lesson 06's older comparison with averages."
    x, _ = held_out()
    again = model.decode(model.posterior(x).mean).mean
    return {
        **_mean_and_error(_squared(again, x), "squared_error"),
        "to_image_of_48": _squared(again[:48], x[:48]).mean().item(),
        "to_average_of_48": _squared(again[:48], averages()).mean().item(),
    }


@functools.cache
def averages() -> torch.Tensor:
    "The first 48 held-out images, each averaged over kind and rotation, (48, 3, 16, 16)."
    ranges = (torch.arange(len(FACTORS["class"])), torch.arange(len(FACTORS["rotation"])))
    outlines = torch.cartesian_prod(*ranges)
    pictures = []
    for factors in held_out()[1].factors[:48]:
        variants = factors.repeat(len(outlines), 1)
        variants[:, [0, 4]] = outlines
        pictures.append(from_uint8(render_shapes(variants, 16)).mean(0))
    return torch.stack(pictures)


def _corner_error(model: VAE, data: Shapes) -> float:
    "How far the corner's colour of samples is from the nearest one that occurs."
    samples = model.sample(500, generator=make_generator(2))
    corners = data.batch(range(min(2000, len(data))))[0][:, :, 0, 0]
    return torch.cdist(samples[:, :, 0, 0], corners).min(1).values.mean().item()


def _exactly(model: VAE, job: Job, setting: Setting, data: Shapes) -> Record:
    "Information, hole, and the two parts of the error, from sums over all pictures of the generator."
    x, about = held_out()
    x = x[:DRAWS]
    q = model.posterior(x)
    z = q.sample(generator=make_generator(3))
    stride = max(1, round(1 / setting.scale))
    sums = sum_over_all(model, z, about.factors[:DRAWS, 0], stride)
    drawn = model.decode(z).mean
    expected = sums.expected_picture
    information = q.log_prob(z).double() - sums.log_aggregate
    rate = kl_divergence(q, DiagGaussian.standard(q.mean))

    still_open, network, total = _squared(x, expected), _squared(expected, drawn), _squared(x, drawn)
    parts = {
        "information": information,
        "hole": rate - information,
        "open": still_open,
        "network": network,
        "total": total,
        "cross": total - still_open - network,
        "entropy_left": sums.entropy_left,
        "chance_of_kind": sums.chance_of_kind,
    }
    if job.seed == 0:
        _picture(model, job, setting, data, [drawn[:12], expected[:12].view(12, 3, 16, 16)])
    record: Record = {"pictures_summed_over": sums.count, "draws": len(z)}
    for name, values in parts.items():
        record |= _mean_and_error(values, name)
    return record


def _picture(model: VAE, job: Job, setting: Setting, data: Shapes, drawn: list[torch.Tensor]) -> None:
    "Seven rows of twelve, as lesson 06 shows them."
    x, _ = held_out()
    seen = data.batch(range(12))[0]
    rows = [
        x[:12],
        model.decode(model.posterior(x[:12]).mean).mean,
        *drawn,
        averages()[:12],
        model.sample(12, generator=make_generator(0)),
        model.decode(model.posterior(seen).sample(generator=make_generator(1))).mean,
    ]
    beta, steps = _read(job.variant)
    setting.records.mkdir(parents=True, exist_ok=True)
    image_grid(torch.cat(rows), columns=12, padding=0).save(setting.records / f"06_beta{beta}_{steps}.png")
