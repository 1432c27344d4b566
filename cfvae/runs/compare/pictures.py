"""What the models of a comparison draw, side by side: the same labels for all of them."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from ...core import image_grid, set_style
from ...data import ImageDataset
from .contestant import Contestant, Material
from .figures import save_figure
from .judging import draw_images
from .training import Job, load_trained

COLUMNS = 10  # pictures in a row


def write_pictures(
    material: Material,  # what all models share
    contestants: Mapping[str, Contestant],  # the models, by name
    real: ImageDataset,  # what no model has seen
    device: torch.device,  # where to compute
    out: Path,  # the comparison's folder
) -> None:
    "pictures-MODEL.png for every model: a row of real images, and one for every style that is shown."
    classes = material.recipe.vae.num_classes if material.recipe.conditional else 0
    labels = torch.arange(COLUMNS) % classes if classes else None
    for name, contestant in contestants.items():
        model = load_trained(contestant, Job(name, seed=0), out).to(device)
        rows = {"real images": _choose(real, labels)}
        for style in contestant.shown:
            if contestant.can_draw(style):
                drawn = draw_images(contestant.to(device), model, labels, COLUMNS, style, seed=0)
                rows[style.title] = drawn.cpu()
        names = [] if labels is None else [real.classes[label] for label in labels.tolist()]
        save_figure(draw_rows(rows, names, contestant.title), out / f"pictures-{name}.png")


def _choose(real: ImageDataset, labels: torch.Tensor | None) -> torch.Tensor:
    "Real images of these labels; where there is none of a label, a white square."
    if labels is None:
        return real.batch(range(min(COLUMNS, len(real))))[0]
    shown = torch.ones(len(labels), 3, real.size, real.size)
    for column, label in enumerate(labels.tolist()):
        same = (real.labels == label).nonzero().flatten().tolist()
        if same:
            shown[column] = real.batch(same[:1])[0][0]
    return shown


def draw_rows(
    rows: Mapping[str, torch.Tensor],  # title -> images (n, 3, size, size) in [-1, 1]
    names: list[str],  # of the columns; empty: they have none
    title: str,  # of the whole
) -> Figure:
    "A grid with a title at each row."
    size = next(iter(rows.values())).shape[-1]
    scale = max(1, 64 // size)
    with matplotlib.rc_context():
        set_style()
        figure = Figure(figsize=(10, 0.9 * len(rows) + 0.6), layout="constrained")
        panels = figure.subplots(len(rows), 1, squeeze=False).flat
        for panel, (about, images) in zip(panels, rows.items(), strict=True):
            strip = np.asarray(image_grid(images, columns=COLUMNS, scale=scale))
            panel.imshow(strip)
            panel.grid(False)
            panel.set(xticks=[], yticks=[])
            for spine in panel.spines.values():
                spine.set_visible(False)
            panel.set_ylabel(about.replace(", ", ",\n"), rotation=0, ha="right", va="center", fontsize=9)
        if names:
            places = (np.arange(len(names)) + 0.5) * strip.shape[1] / COLUMNS
            panel.set_xticks(places, names, fontsize=8)
        figure.suptitle(title, fontsize=11)
    return figure
