"""The figures that go with the tables of the stored experiments."""

import statistics
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from cfvae.core import PALETTE, set_style
from jobs import Record


def draw(
    experiment: str,  # a name that `summary.ABOUT` lists
    runs: list[Record],  # of it
    folder: Path,  # takes the PNG
) -> None:
    "The figure of an experiment, where it has one."
    set_style()
    plt.switch_backend("agg")
    if experiment == "ablations":
        _save(_ablations(runs), folder / "table.png")
    elif experiment == "06_vae":
        _save(_open_and_network(runs), folder / "06_vae.png")
    elif experiment == "code_length":
        _save(_code_length(runs), folder / "code_length.png")


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _by_variant(runs: list[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for run in runs:
        groups.setdefault(run["variant"], []).append(run)
    return groups


def _ablations(runs: list[Record]) -> plt.Figure:
    "Recognised and Frechet distance: a dot a seed, a bar at the mean."
    groups = _by_variant(runs)
    groups.pop("real images", None)
    places = range(len(groups))
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.36 * len(groups) + 1.2), sharey=True)
    for axis, measure in zip(axes, ("recognised", "frechet"), strict=True):
        for shift, (suffix, label) in enumerate((("", "unguided"), ("_guided", "guided, weight 2"))):
            for place, own in zip(places, groups.values(), strict=True):
                values = [run[measure + suffix] for run in own if measure + suffix in run]
                height = place + 0.3 * shift - 0.15
                axis.plot(values, [height] * len(values), ".", color=PALETTE[shift], label=label)
                if values:
                    axis.plot(statistics.fmean(values), height, "|", color=PALETTE[shift], markersize=12)
    axes[0].set(xlabel="recognised (share)", yticks=list(places), yticklabels=list(groups))
    axes[0].invert_yaxis()
    axes[1].set(xlabel="Frechet distance (log scale)", xscale="log")
    axes[1].xaxis.set_minor_formatter("{x:g}")
    axes[1].tick_params(axis="x", which="minor", labelsize=7)
    handles, labels = axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), fontsize=8, loc="outside upper right", ncols=2)
    return figure


def _open_and_network(runs: list[Record]) -> plt.Figure:
    "What the latent leaves open and what the network gets wrong, against the steps of training."
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True)
    own = [run for run in runs if "open" in run]
    for axis, part in zip(axes, ("open", "network"), strict=True):
        for colour, beta in zip(PALETTE, sorted({run["beta"] for run in own}), strict=False):
            points = [(run["steps"], run[part]) for run in own if run["beta"] == beta]
            axis.plot(*zip(*points, strict=True), ".", color=colour, label=f"beta = {beta}")
        axis.set(xlabel="steps", xscale="log", yscale="log", title=part)
        axis.set_ylim(1e-6, 1)  # without a price on the rate nothing is left open: 1e-16
        steps = sorted({run["steps"] for run in own})
        axis.set_xticks(steps, [f"{count:,}" for count in steps])
        axis.minorticks_off()
    axes[0].set(ylabel="mean squared error of a draw")
    axes[0].legend(fontsize=8)
    return figure


def _code_length(runs: list[Record]) -> plt.Figure:
    "Error and recognised share against the numbers in the code, a dot a seed."
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.4))
    for axis, measure in zip(axes, ("psnr", "recognised"), strict=True):
        axis.plot([run["numbers"] for run in runs], [run[measure] for run in runs], ".", color=PALETTE[0])
        axis.set(xlabel="numbers in the code", xscale="log", ylabel=measure)
        axis.set_xticks([64, 128, 256, 512], ["64", "128", "256", "512"])
        axis.minorticks_off()
    axes[0].set_ylabel("PSNR (dB)")
    axes[1].set_ylabel("recognised (share)")
    return figure


def stack_pictures(
    paths: list[Path],  # sheets of tiles of one width, from top to bottom
) -> Image.Image:
    "One sheet of several."
    sheets = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    return Image.fromarray(np.concatenate(sheets))
