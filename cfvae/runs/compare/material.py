"""What the models of a comparison share: one first stage, its codes, and real images to judge by."""

import dataclasses
import math
import typing
from collections.abc import Callable
from pathlib import Path

import torch

from ...autoencoder import Autoencoder, AutoencoderConfig
from ...core import check, get_device, make_generator
from ...data import ImageDataset
from ...files.codes import encode_dataset
from ...files.folders import NoValidationSplit
from ...files.open import describe, open_dataset
from ...latents import weights_fingerprint
from ...pipeline import LatentVAEPipeline
from ...pretrained import PretrainedConfig, load_pretrained
from ...recipes import Recipe
from .contestant import Material
from .models import MODELS
from ..folder import load_autoencoder, load_model, load_recipe
from ..output import say
from ..steps import random_codes
from ..train import FirstStage, prepare, train


@dataclasses.dataclass(frozen=True)
class Plan:
    "What is compared, and how."

    models: tuple[str, ...] = tuple(MODELS)  # keys of `MODELS`
    seeds: int = 3  # 0, 1, ...
    n: int = 1000  # samples, and real images, that are judged
    budget: float | None = None  # training FLOPs of a model; None: what the recipe's stage two takes
    first_stage: str | None = None  # a pipeline to take it from; None: it is trained
    vae: str | None = None  # a pipeline whose VAE is taken in place of one trained here, its first stage too
    features: str = "own"  # the judges, as `find_judges` reads it
    jobs: int = 1  # trainings at a time, each on one thread of the CPU
    device: str = "auto"  # where to train where jobs is 1, to draw and to judge

    def __post_init__(self) -> None:
        for name in self.models:
            check(name in MODELS, f"there is no model '{name}' to compare: choose of {', '.join(MODELS)}")
        check(bool(self.models), f"no model is named: choose of {', '.join(MODELS)}")
        paid = self.budget is None or 0 < self.budget < math.inf
        check(paid, f"budget is {self.budget}: give a number above 0, in 10^15 operations by --budget")
        check(self.n >= 20, f"n is {self.n}: at least 20 samples are needed to judge")
        for name in ("seeds", "jobs"):
            check(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}: it must be at least 1")


def given_pipeline(plan: Plan) -> LatentVAEPipeline | None:
    "The pipeline that the first stage, and perhaps the VAE, are taken from."
    pipe = None if plan.first_stage is None else load_model(plan.first_stage)
    if plan.vae is None:
        return pipe
    given = load_model(plan.vae)
    same = pipe is None or weights_fingerprint(pipe.autoencoder) == weights_fingerprint(given.autoencoder)
    check(same, f"{plan.vae} has another first stage than {plan.first_stage}: leave --first-stage out")
    return given


def gather(
    recipe: Recipe,  # of data, first stage and VAE
    plan: Plan,  # what is compared, and how
    pipe: LatentVAEPipeline | None,  # whose first stage is taken; None: it is trained
    out: Path,  # the comparison's folder
    review: Callable[[Material], object] = bool,  # raises where what is planned cannot be done
) -> tuple[Material, ImageDataset, ImageDataset]:
    """What all models share, the real images that samples are compared with, and as many others.

    `review` sees it with random codes, before a first stage is trained for the true ones."""
    recipe = _as_planned(recipe, plan, pipe)
    dataset = open_dataset(recipe.data, recipe.autoencoder.size)
    say(describe(dataset))
    recipe, images, held = prepare(recipe, dataset)
    if plan.vae is not None and pipe is not None:
        same = not recipe.conditional or pipe.classes == dataset.classes
        check(same, f"{plan.vae} knows other classes than {dataset.name}")

    if pipe is None and isinstance(recipe.autoencoder, AutoencoderConfig):
        codes = random_codes(recipe)
        review(Material(recipe, Autoencoder(recipe.autoencoder), images, held, codes, codes))
    autoencoder = pipe.autoencoder if pipe is not None else _first_stage(recipe, out)
    autoencoder = autoencoder.to(get_device(plan.device))
    given = pipe.scaler.cpu() if pipe is not None else None
    codes = encode_dataset(autoencoder, images, out / "codes" / "train", recipe.flip, scaler=given)
    held_codes = encode_dataset(autoencoder, held, out / "codes" / "held", scaler=codes.scaler)
    material = Material(recipe, autoencoder.cpu(), images, held, codes, held_codes)
    return material, *_unseen(recipe, images, held, plan.n)


def _as_planned(recipe: Recipe, plan: Plan, pipe: LatentVAEPipeline | None) -> Recipe:
    "The recipe with the sizes of what is given, on the devices that the plan means."
    if plan.vae is not None and (Path(plan.vae) / "recipe.json").is_file():
        recipe = dataclasses.replace(load_recipe(plan.vae), data=recipe.data)  # with its held-out images
    elif plan.vae is not None:  # what it was trained for is not known, and the preset's need not fit it
        unknown = dataclasses.replace(recipe.objective, schedule="none", values=())
        recipe = dataclasses.replace(recipe, objective=unknown)
    if pipe is not None:
        given: dict[str, typing.Any] = {"autoencoder": pipe.autoencoder.config}
        if plan.vae is not None:
            given |= {"vae": pipe.vae.config, "conditional": pipe.vae.config.num_classes > 0}
        recipe = dataclasses.replace(recipe, **given)  # at once: the two fit each other
    first = dataclasses.replace(recipe.autoencoder_training, device=plan.device)
    second = dataclasses.replace(recipe.vae_training, device="cpu" if plan.jobs > 1 else plan.device)
    return dataclasses.replace(recipe, autoencoder_training=first, vae_training=second)


def _first_stage(recipe: Recipe, out: Path) -> FirstStage:
    "Borrowed, or trained as the recipe says, once."
    if isinstance(recipe.autoencoder, PretrainedConfig):
        return load_pretrained(recipe.autoencoder)
    folder = out / "first-stage"
    if not (folder / "autoencoder" / "model").is_dir():
        done = train(recipe, recipe.data, folder, stage="autoencoder", resume=True)
        check(done, "the first stage was stopped: give the same command again to go on")
    return load_autoencoder(folder)


def _unseen(
    recipe: Recipe, images: ImageDataset, held: ImageDataset, n: int
) -> tuple[ImageDataset, ImageDataset]:
    "n real images that nothing was trained on, and n others; these may be training images if there are few."
    try:
        unseen = open_dataset(recipe.data, recipe.autoencoder.size, train=False)
    except NoValidationSplit:
        unseen = held
    check(unseen.classes == images.classes, f"{images.name}: the validation split has other classes")
    if len(unseen) < n:
        say(f"{len(unseen)} held-out images are there, so samples are judged with n = {len(unseen)}")
    order = torch.randperm(len(unseen), generator=make_generator(0))
    real = unseen.subset(order[:n])
    if len(unseen) >= 2 * n:
        return real, unseen.subset(order[n : 2 * n])
    order = torch.randperm(len(images), generator=make_generator(0))
    return real, images.subset(order[: len(real)])
