"""One thing taken out of the recipe at a time: what does each of them do for the samples?

Stage one is the shipped autoencoder. Stage two is that of preset `shapes-demo`, with one change."""

import dataclasses
import functools
import typing
from pathlib import Path

import torch

from cfvae.autoencoder import psnr
from cfvae.core import count_parameters, make_generator, seed_everything
from cfvae.elbo import ELBO
from cfvae.evaluation import class_accuracy
from cfvae.files.codes import encode_dataset
from cfvae.guidance import Guidance
from cfvae.hvae import HierarchicalVAE
from cfvae.latents import LatentDataset
from cfvae.objective import blurred_distortion, vae_loss
from cfvae.pipeline import LatentVAEPipeline
from cfvae.recipes import Recipe, change
from cfvae.runs.presets import preset
from cfvae.runs.recorded import RecordedStep
from cfvae.training import fit
from jobs import Job, Record, Setting
from judging import N, REFERENCE_SEED, floor, judge, judged, noise, shapes

TRAINING_IMAGES = 10000
GUIDANCE = Guidance(2.0)  # on the means

# what is tried -> what it changes; wide and narrow have the demo's number of parameters within 1 %
ABLATIONS: dict[str, dict[str, typing.Any]] = {
    "the recipe": {},
    "no schedule": {"objective.schedule": "none"},
    "no spectral term": {"objective.spectral_weight": 0.0},
    "standard prior": {"vae.learned_prior": False},
    "attention": {"vae.attention": (0, 1, 1)},
    "constant 1 2 4": {"objective.values": (1, 2, 4)},
    "twice the layers": {
        "vae.layers": (4, 8, 4),
        "vae.widths": (44, 44, 44),
        "vae.encoder_widths": (60, 60, 60),
    },
    "half the layers": {
        "vae.layers": (1, 2, 1),
        "vae.widths": (88, 88, 88),
        "vae.encoder_widths": (88, 88, 88),
    },
    "shifted exponential 1000": {"objective.schedule": "shifted-exponential"},
    "sigma_q 0.1": {"objective.sigma_q": 0.1},
    "sigma_q 0.05": {"objective.sigma_q": 0.05},
    "sigma_q 0.3": {"objective.sigma_q": 0.3},
}
FLOOR = "real images"  # a variant without a training


def recipe_of(
    variant: str,  # a key of `ABLATIONS`
) -> Recipe:
    "The demo's recipe with the variant's change."
    return change(preset("shapes-demo"), ABLATIONS[variant])


@functools.cache
def stage_one() -> LatentVAEPipeline:
    "The shipped pipeline, of which the autoencoder and the scaler are used."
    return LatentVAEPipeline.from_pretrained("shapes")


def training_codes(
    work: Path,  # the codes are kept below it
    n: int,  # how many
) -> LatentDataset:
    "Codes of n training images; encoded once, by whoever asks first."
    pipe = stage_one()
    return encode_dataset(pipe.autoencoder, shapes(n), work / "codes", progress=False, scaler=pipe.scaler)


def ablation(job: Job, setting: Setting) -> Record:
    "Train one variant; judge the averaged and the raw weights, without guidance and with it."
    if job.variant == FLOOR:
        return floor(setting, job.seed)
    recipe = recipe_of(job.variant)
    training = dataclasses.replace(
        recipe.vae_training,
        steps=setting.steps(recipe.vae_training.steps),
        seed=job.seed,
        device=setting.device,
    )
    seed_everything(job.seed)
    model = HierarchicalVAE(recipe.vae)
    codes = training_codes(setting.work, setting.count(TRAINING_IMAGES))
    state = fit(model, codes, vae_loss(recipe.objective), training, [], RecordedStep())

    averaged = typing.cast(HierarchicalVAE, state.ema.module.cpu())
    record = {
        "steps": training.steps,
        "parameters": count_parameters(model),
        "skipped": state.skipped,
        "n": setting.count(N),
        **_bound(averaged, recipe.objective.sigma_q, setting),
        **_samples(averaged, recipe, setting),
    }
    raw = _samples(model.cpu(), recipe, setting)
    return record | {f"raw_{name}": value for name, value in raw.items()}


@torch.no_grad()
def _bound(model: HierarchicalVAE, sigma_q: float, setting: Setting) -> Record:
    "Rate and distortion on held-out codes, and what is left of the pictures."
    pipe = stage_one()
    n = setting.count(N)
    x, labels = shapes(n, REFERENCE_SEED).batch(range(n))
    codes = pipe.encode(x)
    out = model(codes, labels, generator=make_generator(0))
    bound = ELBO(blurred_distortion(codes, out.distribution, sigma_q), out.rates)
    again = pipe.decode(model.reconstruct(codes, labels))
    return {
        "rate": bound.rate.mean().item(),
        "distortion": bound.distortion.mean().item(),
        "rates": bound.rates.mean(0).tolist(),
        "psnr": float(psnr(again, x)),
        "kept": class_accuracy(judge(), again, labels),
    }


@torch.no_grad()
def _samples(model: HierarchicalVAE, recipe: Recipe, setting: Setting) -> Record:
    "What the judge makes of samples. A standard prior cannot be guided."
    asked = torch.arange(setting.count(N)) % recipe.vae.num_classes
    record = judged(_draw(model, asked, None), asked)
    if recipe.guidable:
        guided = judged(_draw(model, asked, GUIDANCE), asked)
        record |= {f"{name}_guided": value for name, value in guided.items()}
    return record


def _draw(model: HierarchicalVAE, asked: torch.Tensor, guidance: Guidance | None) -> torch.Tensor:
    codes = model.sample(len(asked), asked, guidance, generator=noise())
    return torch.cat([stage_one().decode(part) for part in codes.split(250)])
