"""What the models of a comparison share: one first stage, its codes, and real images to judge by."""

import dataclasses
import math
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ...autoencoder import Autoencoder, AutoencoderConfig
from ...core import check, check_fields, get_device, make_generator
from ...data import ImageDataset
from ...files.codes import encode_dataset
from ...files.folders import NoValidationSplit
from ...files.open import describe, open_dataset
from ...hvae import HierarchicalVAE
from ...latents import LatentScaler, weights_fingerprint
from ...pipeline import find_model, load_first_stage
from ...pretrained import PretrainedConfig, load_pretrained
from ...recipes import Recipe
from .contestant import Material
from .models import MODELS
from ..folder import claim_run, load_autoencoder, load_model, load_recipe
from ..image_sets import open_images
from ..output import say
from ..steps import random_codes
from ..train import FirstStage, known_scaler, prepare, train

FEWEST = 20  # samples, and real images, that can be judged


@dataclasses.dataclass(frozen=True)
class Plan:
    "What is compared, and how."

    models: tuple[str, ...] = tuple(MODELS)  # keys of `MODELS`
    seeds: int = 3  # 0, 1, ...
    n: int = 1000  # samples, and real images, that are judged
    budget: float | None = None  # training FLOPs of a model; None: what the recipe's stage two takes
    first_stage: str | None = None  # a pipeline to take it from, or an autoencoder; None: it is trained
    vae: str | None = None  # a pipeline whose VAE is taken in place of one trained here, its first stage too
    features: str = "own"  # the judges, as `find_judges` reads it
    jobs: int = 1  # trainings at a time, each on one thread of the CPU
    device: str = "auto"  # where to train where jobs is 1, to draw and to judge

    def __post_init__(self) -> None:
        several = not isinstance(self.models, str)
        check(several, f"models is '{self.models}': give a list of names, such as ('{self.models}',)")
        check_fields(self)
        for name in self.models:
            check(name in MODELS, f"there is no model '{name}' to compare: choose of {', '.join(MODELS)}")
        check(bool(self.models), f"no model is named: choose of {', '.join(MODELS)}")
        paid = self.budget is None or 0 < self.budget < math.inf
        check(paid, f"budget is {self.budget}: give a number above 0, in 10^15 operations by --budget")
        check(self.n >= FEWEST, f"n is {self.n}: at least {FEWEST} samples are needed to judge")
        for name in ("seeds", "jobs"):
            check(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}: it must be at least 1")


@dataclasses.dataclass(frozen=True)
class Given:
    "What is taken as it is, rather than trained."

    autoencoder: FirstStage  # in evaluation mode
    scaler: LatentScaler | None = None  # None: fitted on the codes, as for one that is trained here
    vae: HierarchicalVAE | None = None
    classes: Sequence[str] = ()  # of the VAE


def open_given(
    plan: Plan,  # what is compared, and how
) -> Given | None:
    "The first stage, and perhaps the VAE, that a plan names; None where all is trained."
    first = None if plan.first_stage is None else _given_first_stage(plan.first_stage)
    if plan.vae is None:
        return first
    pipe = load_model(plan.vae)
    same = first is None or weights_fingerprint(first.autoencoder) == weights_fingerprint(pipe.autoencoder)
    check(same, f"{plan.vae} has another first stage than {plan.first_stage}: leave --first-stage out")
    return Given(pipe.autoencoder, pipe.scaler, pipe.vae, pipe.classes)


def _given_first_stage(name: str) -> Given:
    "That of a run or a pipeline, or an autoencoder that was saved by itself."
    folder = find_model(name)
    pipeline = any((folder / about).exists() for about in ("recipe.json", "pipeline.json"))
    alone = any((folder / config).is_file() for config in ("config.json", "first_stage.json"))
    if alone and not pipeline:
        return Given(load_first_stage(folder))
    pipe = load_model(name)
    return Given(pipe.autoencoder, pipe.scaler)


def gather(
    recipe: Recipe,  # of data, first stage and VAE
    plan: Plan,  # what is compared, and how
    given: Given | None,  # as from `open_given`
    out: Path,  # the comparison's folder
    review: Callable[[Material], object] = bool,  # raises where what is planned cannot be done
) -> tuple[Material, ImageDataset, ImageDataset]:
    """What all models share, the real images that samples are compared with, and as many others.

    `review` sees it with random codes, before a first stage is trained for the true ones."""
    recipe = _as_planned(recipe, plan, given)
    dataset = open_dataset(recipe.data, recipe.autoencoder.size)
    say(describe(dataset))
    recipe, images, held = prepare(recipe, dataset)
    if given is not None and given.vae is not None:
        same = not recipe.conditional or given.classes == dataset.classes
        check(same, f"{plan.vae} knows other classes than {dataset.name}")
    real, others = _unseen(recipe, images, held, plan)

    if given is None and isinstance(recipe.autoencoder, AutoencoderConfig):
        codes = random_codes(recipe)
        review(Material(recipe, Autoencoder(recipe.autoencoder), images, held, codes, codes))
    autoencoder = given.autoencoder if given is not None else _first_stage(recipe, images, out)
    autoencoder = autoencoder.to(get_device(plan.device))
    scaler = given.scaler if given is not None and given.scaler else known_scaler(autoencoder.config)
    codes = encode_dataset(autoencoder, images, out / "codes" / "train", recipe.flip, scaler=scaler)
    held_codes = encode_dataset(autoencoder, held, out / "codes" / "held", scaler=codes.scaler)
    material = Material(recipe, autoencoder.cpu(), images, held, codes, held_codes)
    return material, real, others


def _as_planned(recipe: Recipe, plan: Plan, given: Given | None) -> Recipe:
    "The recipe with the sizes of what is given, on the devices that the plan means."
    if plan.vae is not None and (Path(plan.vae) / "recipe.json").is_file():
        recipe = dataclasses.replace(load_recipe(plan.vae), data=recipe.data)  # with its held-out images
    elif plan.vae is not None:  # what it was trained for is not known, and the preset's need not fit it
        unknown = dataclasses.replace(recipe.objective, schedule="none", values=())
        recipe = dataclasses.replace(recipe, objective=unknown)
    if given is not None:
        sizes: dict[str, typing.Any] = {"autoencoder": given.autoencoder.config}
        if given.vae is not None:
            sizes |= {"vae": given.vae.config, "conditional": given.vae.config.num_classes > 0}
        recipe = dataclasses.replace(recipe, **sizes)  # at once: the two fit each other
    first = dataclasses.replace(recipe.autoencoder_training, device=plan.device)
    second = dataclasses.replace(recipe.vae_training, device="cpu" if plan.jobs > 1 else plan.device)
    return dataclasses.replace(recipe, autoencoder_training=first, vae_training=second)


def _first_stage(recipe: Recipe, images: ImageDataset, out: Path) -> FirstStage:
    """Borrowed, or trained as the recipe says, once.

    Raises `CfvaeError` where the one that is there was trained as another recipe says, or on other images."""
    if isinstance(recipe.autoencoder, PretrainedConfig):
        return load_pretrained(recipe.autoencoder)
    folder = out / "first-stage"
    if (folder / "autoencoder" / "model").is_dir():
        claim_run(folder, recipe, images, resume=True)
    else:
        done = train(recipe, recipe.data, folder, stage="autoencoder", resume=True)
        check(done, "the first stage was stopped: give the same command again to go on")
    return load_autoencoder(folder)


def _unseen(
    recipe: Recipe, images: ImageDataset, held: ImageDataset, plan: Plan
) -> tuple[ImageDataset, ImageDataset]:
    """n real images that nothing was trained on, and n others; these may be training images if there are few.

    Raises `CfvaeError` where there are too few, or nobody knows what a given VAE has seen."""
    size = recipe.autoencoder.size
    try:
        unseen = open_dataset(recipe.data, size, train=False)
    except NoValidationSplit:
        unseen = held if plan.vae is None else open_images(plan.vae, recipe.data, size)[1]
    check(unseen.classes == images.classes, f"{images.name}: the validation split has other classes")
    labelled = not recipe.conditional or int(unseen.labels.min()) >= 0
    check(labelled, f"{unseen.name}: held-out images have no class: label them, or leave them out")
    n = min(plan.n, len(unseen), max(len(images), len(unseen) // 2))  # as many others have to be there
    about = f"{len(unseen)} held-out images and {len(images)} to train on are there"
    check(n >= FEWEST, f"{unseen.name}: {about}, but to judge takes {FEWEST} of each: give more images")
    if n < plan.n:
        say(f"{about}, so samples are judged with n = {n}")
    order = torch.randperm(len(unseen), generator=make_generator(0))
    real = unseen.subset(order[:n])
    if len(unseen) >= 2 * n:
        return real, unseen.subset(order[n : 2 * n])
    order = torch.randperm(len(images), generator=make_generator(0))
    return real, images.subset(order[: len(real)])
