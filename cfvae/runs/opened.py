"""A run opened for looking at: its model, the images it has not seen, and what is drawn from it."""

import dataclasses
import typing
from pathlib import Path

import torch

from ..core import check, check_path, get_device, make_generator
from ..data import FACTORS, ImageDataset
from ..files.names import first_few
from ..files.open import describe, open_dataset
from ..guidance import Guidance
from ..pipeline import LatentVAEPipeline
from ..recipes import Recipe
from .folder import has_same_images, load_model, load_recipe, read_trained_log
from .logs import read_log
from .train import prepare

COLUMNS = 8  # samples per class or depth
ROWS = 10  # classes that samples are drawn of


@dataclasses.dataclass(frozen=True)
class Run:
    "A finished or half-finished run, opened for looking at."

    folder: Path  # where it is
    recipe: Recipe  # what was trained
    pipe: LatentVAEPipeline  # the model
    held: ImageDataset  # images that training did not see
    same_images: bool  # False: the images have changed since, and may have been trained on
    logs: dict[str, list[dict]]  # "autoencoder" and "vae": the lines of their logs, as far as the model goes
    found: str = ""  # what `describe` says of all images
    trained: int = 0  # steps of stage two that the model has seen

    @property
    def is_shapes(self) -> bool:
        "Whether the images are `Shapes` at the size that the shipped classifier knows."
        held = self.held
        return held.name == "shapes" and held.classes == FACTORS["class"] and held.size == 32


def open_run(
    folder: str | Path,  # a run folder
    device: str = "auto",  # where to compute
    data: str | ImageDataset | None = None,  # the images; None: where the recipe found them
) -> Run:
    """A run with its model and held-out images.

    Raises `CfvaeError` where the folder is no run, has no model yet, or its images are gone."""
    folder = check_path(folder, "the run")
    is_run = (folder / "recipe.json").is_file()
    check(is_run, f"{folder} is not a run folder (no recipe.json): give the --out of a training run")
    recipe = load_recipe(folder)
    pipe = load_model(folder).to(get_device(device))

    # the images are divided as for training
    source = recipe.data if data is None else data
    dataset = open_dataset(source, recipe.autoencoder.size) if isinstance(source, str) else source
    is_dataset = isinstance(dataset, ImageDataset)
    check(is_dataset, f"data is {data!r}: give a text such as shapes, as open_dataset reads it, or a dataset")
    recipe, images, held = prepare(recipe, dataset)
    same_classes = not recipe.conditional or dataset.classes == pipe.classes
    check(
        same_classes,
        f"{dataset.name} has other classes than {folder}, or in another order, which has "
        f"{first_few(pipe.classes)}: bring back the data that it was trained on, or mend pipeline.json",
    )

    log, trained = read_trained_log(folder)
    logs = {"autoencoder": read_log(folder / "autoencoder" / "log.jsonl"), "vae": log}
    return Run(folder, recipe, pipe, held, has_same_images(folder, images), logs, describe(dataset), trained)


def strengths(
    recipe: Recipe,  # what was trained
) -> list[Guidance]:
    "Guidance weights to compare: off, 1 / 1 and 2 / 2 where the model can be guided, otherwise off alone."
    weights = (0, 1, 2) if recipe.guidable else (0,)
    return [Guidance(weight, weight) for weight in weights]


def strength_name(
    guidance: Guidance,  # one of `strengths`
) -> str:
    "What the guidance is called, on the page and in report.json."
    if not guidance:
        return "without guidance"
    return f"guidance {guidance.mean_weight:g} / {guidance.var_weight:g}"


def shown_depths(
    layers: typing.Sequence[int],  # stochastic layers per resolution, lowest first
) -> list[int]:
    "The depths worth showing: the first layer alone, then whole resolutions."
    ends = [sum(layers[: i + 1]) for i in range(len(layers))]
    return sorted({1, *ends})


def first_layers(
    noise: list[torch.Tensor],  # one tensor per stochastic layer, lowest resolution first
    depth: int,  # K: layers that keep their noise
) -> list[torch.Tensor]:
    "The same noise with zeros above the first K layers, whose z then are the means of their priors."
    return [eps if layer < depth else torch.zeros_like(eps) for layer, eps in enumerate(noise)]


def draw(
    run: Run,  # where to draw from
    labels: torch.Tensor | None,  # one class index per image; None for a model without classes
    n: int,  # how many
    guidance: Guidance,  # one of `strengths`
    depth: int | None = None,  # layers that keep their noise; None: all
) -> torch.Tensor:
    """Images in [-1, 1], (n, 3, size, size), on the CPU; their noise depends on n and the seed 0 alone.

    In bf16 where the hardware has it: its roundings are small beside what another seed changes."""
    noise = run.pipe.vae.noise(n, make_generator(0))
    if depth is not None:
        noise = first_layers(noise, depth)
    drawn = run.pipe(labels, n, guidance, eps=noise, output_type="pt", precision="auto").images
    return drawn.cpu() * 2 - 1


def draw_classes(
    run: Run,  # where to draw from
    guidance: Guidance,  # one of `strengths`
) -> torch.Tensor:
    "Samples of the first `ROWS` classes, `COLUMNS` of each; four rows from a model without classes."
    classes = len(run.pipe.classes[:ROWS])
    labels = torch.arange(classes).repeat_interleave(COLUMNS) if classes else None
    return draw(run, labels, COLUMNS * (classes or 4), guidance)


def draw_depths(
    run: Run,  # where to draw from
) -> dict[int, torch.Tensor]:
    "For each of `shown_depths`, `COLUMNS` samples whose higher layers take their priors' means."
    classes = len(run.pipe.classes)
    labels = torch.arange(COLUMNS) % classes if classes else None
    depths = shown_depths(run.recipe.vae.layers)
    return {depth: draw(run, labels, COLUMNS, Guidance(), depth) for depth in depths}
