"""`reconstruct`: images beside what a model remembers of them."""

from pathlib import Path

import torch

from ..core import check, to_uint8
from ..data import ImageDataset
from ..files.open import open_dataset
from ..pipeline import LatentVAEPipeline
from .describing import list_names
from .drawing import load_pipeline
from .parsing import read_depths
from .writing import prepare_file, save_grid


def reconstruct(
    model: Path,  # a run folder, a saved pipeline, or a name
    data: str,  # the images, as `open_dataset` reads it
    out: Path,  # the picture
    depths: str,  # what --depths says
    n: int,  # how many images
    validation: bool,  # take the validation split
    device: str,  # auto, cpu or cuda
) -> None:
    "Draw a row of originals, the autoencoder alone, and a row for every depth; say what the rows are."
    prepare_file(out, ".png", "--out")
    chosen_depths = read_depths(depths)
    pipe = load_pipeline(model, device)
    dataset = open_dataset(data, pipe.autoencoder.config.size, train=not validation)
    check(n <= len(dataset), f"--n is {n}, but {dataset.name} has {len(dataset)} images")

    indices = [i * len(dataset) // n for i in range(n)]  # spread evenly
    images, _ = dataset.batch(indices)
    labels = match_labels(pipe, dataset, indices)
    rows = [images]
    titles = ["originals", "autoencoder alone"]
    rows.append(pipe.reconstruct(images, labels, 0).cpu())
    for depth in chosen_depths:
        rows.append(pipe.reconstruct(images, labels, depth).cpu())
        titles.append(_describe_depth(depth))

    pixels = to_uint8(torch.cat(rows)).permute(0, 2, 3, 1)
    save_grid(pixels.numpy(), n, out)
    print(f"{out}, from top to bottom: {', '.join(titles)}")


def _describe_depth(depth: int | None) -> str:
    if depth is None:
        return "all layers"
    return "1 layer" if depth == 1 else f"{depth} layers"


def match_labels(
    pipe: LatentVAEPipeline,  # the model
    dataset: ImageDataset,  # images of its classes
    indices: list[int],  # which of them
) -> list[int] | None:
    """The model's labels for some images of a dataset, matched by the names of the classes.

    None for a model without classes. Raises `CfvaeError` for a class that the model does not know, and for
    images without labels."""
    if not pipe.classes:
        return None
    labels = dataset.labels[indices].tolist()
    way_out = "put those of each class into a folder of its own"
    check(min(labels) >= 0, f"{dataset.name}: the images have no labels, which this model needs: {way_out}")
    unknown = [name for name in dataset.classes if pipe.find_class(name) is None]
    message = f"{dataset.name}: the model knows no class {list_names(unknown, 3)}"
    check(not unknown, f"{message}: it was trained on {list_names(pipe.classes)}")

    return pipe.class_indices([dataset.classes[label] for label in labels])
