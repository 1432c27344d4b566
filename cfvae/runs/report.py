"""One file that shows what a run has learned, and says what it has not."""

import base64
import io
import dataclasses
import json
import torch
import typing
import math
import matplotlib
import statistics
import string
import html
import shlex
import os
from matplotlib.figure import Figure
from pathlib import Path
from cfvae.core import (
    CfvaeError,
    PALETTE,
    check,
    config_to_dict,
    count_parameters,
    get_device,
    image_grid,
    make_generator,
    set_style,
)

from ..autoencoder import psnr
from ..data import FACTORS, ImageDataset, Shapes
from ..evaluation import class_accuracy, shapes_classifier
from ..files.open import open_dataset
from ..guidance import Guidance
from ..objective import blurred_distortion
from ..pipeline import LatentVAEPipeline
from ..recipes import Recipe, is_pretrained
from .callbacks import read_log
from .folder import load_model, load_recipe
from .hub import model_card
from .presets import PRESETS
from .train import prepare


def data_uri(
    picture,  # a PIL image or a matplotlib figure
) -> str:
    "The picture as a PNG inside a `data:` address: an <img> can show it without any file beside the page."
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(
            buffer, format="png", dpi=130, metadata={"Software": None}
        )  # the same figure gives the same bytes
    else:
        picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclasses.dataclass(frozen=True)
class Run:
    "A finished or half-finished run, opened for looking at."

    folder: Path  # where it is
    recipe: Recipe  # what was trained
    pipe: LatentVAEPipeline  # the model
    held: ImageDataset  # images that training did not see
    same_images: bool  # False: the images have changed since, and may have been trained on
    logs: dict[str, list[dict]]  # "autoencoder" and "vae": the lines of their logs


def open_run(
    folder: str | Path,  # a run folder
    device: str = "auto",  # where to compute
    data: str | ImageDataset | None = None,  # the images; None: where the recipe found them
) -> Run:
    "A run with its model and held-out images. Raises `CfvaeError` where the folder is no run, has no model yet, or its images are gone."
    folder = Path(folder)
    check(
        (folder / "recipe.json").is_file(),
        f"{folder} is not a run folder (no recipe.json): give the --out of a training run",
    )
    recipe, pipe = load_recipe(folder), load_model(folder).to(get_device(device))
    source = recipe.data if data is None else data
    dataset = open_dataset(source, recipe.autoencoder.size) if isinstance(source, str) else source
    recipe, images, held = prepare(recipe, dataset)
    check(
        not recipe.conditional or dataset.classes == pipe.classes,
        f"{dataset.name}: its classes are not those that {folder} was trained on",
    )
    logs = {stage: read_log(folder / stage / "log.jsonl") for stage in ("autoencoder", "vae")}
    return Run(folder, recipe, pipe, held, _same_images(folder, images), logs)


def _same_images(folder: Path, images: ImageDataset) -> bool:
    "Whether the run was made with these training images; where it did not note them, nothing speaks against it."
    path = folder / "data.json"
    return (
        not path.is_file()
        or json.loads(path.read_text(encoding="utf-8"))["fingerprint"] == images.fingerprint
    )


def first_layers(
    noise: list[
        torch.Tensor
    ],  # one tensor per stochastic layer, lowest resolution first, as from `HierarchicalVAE.noise`
    depth: int,  # K: layers that keep their noise
) -> list[torch.Tensor]:
    "The same noise with zeros above the first K layers, whose z then are prior means (14b.1)."
    return [e if layer < depth else torch.zeros_like(e) for layer, e in enumerate(noise)]


def shown_depths(
    layers: typing.Sequence[int],  # stochastic layers per resolution, lowest first
) -> list[int]:
    "The depths worth showing: the first layer alone, then whole resolutions."
    ends = [sum(layers[: i + 1]) for i in range(len(layers))]
    return sorted({1, *ends})


def _batches(
    run: Run, most: int = 512, size: int = 64
) -> typing.Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    "Held-out images, a batch at a time, with their labels where the model knows classes."
    count = min(most, len(run.held))
    for start in range(0, count, size):
        x, y = run.held.batch(range(start, min(start + size, count)))
        yield x, y if run.recipe.conditional else None


@torch.no_grad()
def held_out_rates(
    run: Run,  # the run to measure
    seed: int = 0,  # of the posterior's noise
) -> dict:
    "Means over held-out images: the rate of every layer and the distortion, both in nats per image; and the band [low, high] of every rate."
    rates, distortions, generator = [], [], make_generator(seed)
    for x, y in _batches(run):
        z = run.pipe.encode(x)
        out = run.pipe.vae(z, y, generator=generator)
        rates.append(out.rates.cpu())
        distortions.append(blurred_distortion(z, out.distribution, run.recipe.objective.sigma_q).cpu())
    mean = torch.cat(rates).mean(0)
    shares = run.recipe.objective.shares(run.recipe.vae.layers)
    band = (
        None
        if shares is None
        else [[(s * mean.sum() / 100).item(), (2 * s * mean.sum() / 100).item()] for s in shares]
    )
    return {
        "rates": mean.tolist(),
        "rate": mean.sum().item(),
        "distortion": torch.cat(distortions).mean().item(),
        "band": band,
    }


def entropy_sentence(
    rate: float,  # nats, measured
    entropy: float,  # nats, of the pictures given what the model is told
) -> str:
    "What a rate beside a known entropy proves (14b.2)."
    if rate > entropy:
        return (
            f"The rate is above the entropy: z cannot say more than {entropy:.1f} nats about a picture, so at least {rate - entropy:.1f} nats "
            "go to posteriors that the prior does not match."
        )
    return f"The rate is below the entropy: at least {entropy - rate:.1f} nats of what tells the pictures apart are missing from z."


def known_entropy(
    recipe: Recipe,  # what was trained, on `Shapes`
) -> float:
    "Entropy of a picture of `Shapes` in nats, given its class where the model is told it."
    return Shapes.entropy() - (math.log(len(FACTORS["class"])) if recipe.conditional else 0.0)


COLUMNS, ROWS, JUDGED = 8, 10, 500  # pictures per row, rows of samples, samples for the class accuracy


def strengths(
    recipe: Recipe,  # what was trained
) -> list[Guidance]:
    "The guidance weights that the report compares: off, 1 / 1 and 2 / 2 where the model can be guided, otherwise off alone."
    can = recipe.conditional and recipe.vae.learned_prior and recipe.objective.label_drop > 0
    return [Guidance(w, w) for w in ((0, 1, 2) if can else (0,))]


def _draw(
    run: Run, labels: torch.Tensor | None, n: int, guidance: Guidance, depth: int | None = None
) -> torch.Tensor:
    "Images in [-1, 1]; the noise depends on n and the seed 0 alone."
    noise = run.pipe.vae.noise(n, make_generator(0))
    noise = noise if depth is None else first_layers(noise, depth)
    return run.pipe(labels, n, guidance, eps=noise, output_type="pt").images.cpu() * 2 - 1


def class_accuracies(
    run: Run,  # a run on `Shapes`
    reconstructed: torch.Tensor,  # (n, 3, size, size), the first n held-out images through the whole model
) -> dict[str, float]:
    "Share of images that the shipped classifier recognises: held-out ones, their reconstructions, and samples at every strength."
    judge, (x, y) = shapes_classifier(), run.held.batch(range(len(reconstructed)))
    found = {
        "held-out images": class_accuracy(judge, x, y),
        "their reconstructions": class_accuracy(judge, reconstructed, y),
    }
    labels = torch.arange(JUDGED) % len(FACTORS["class"])
    for g in strengths(run.recipe) if run.recipe.conditional else []:
        found[f"samples, {_weights(g)}"] = class_accuracy(judge, _draw(run, labels, JUDGED, g), labels)
    return found


def _weights(g: Guidance) -> str:
    return f"guidance {g.mean_weight:g} / {g.var_weight:g}" if g else "without guidance"


def rates_figure(
    nats: dict,  # from `held_out_rates`
    resolutions: typing.Sequence[int],  # of every stochastic layer
) -> Figure:
    "Nats of every layer as bars, over the band that the schedule asks for."
    with matplotlib.rc_context():
        set_style()
        figure = Figure(figsize=(7, 3), layout="constrained")
        axis, layers = figure.subplots(), range(1, len(nats["rates"]) + 1)
        for layer, (low, high) in zip(layers, nats["band"] or [], strict=False):
            label = "band of the schedule" if layer == 1 else None
            axis.bar(layer, high - low, bottom=low, width=0.95, color=PALETTE[1], alpha=0.35, label=label)
        axis.bar(layers, nats["rates"], width=0.5, color=PALETTE[0], label="measured rate")
        axis.set_xticks(
            list(layers), [f"{i}\n{r}x{r}" for i, r in zip(layers, resolutions, strict=True)], fontsize=8
        )
        axis.set(xlabel="stochastic layer and its resolution", ylabel="rate (nats per image)")
        axis.legend(fontsize=8)
    return figure


def curves_figure(
    logs: dict[str, list[dict]],  # as in `Run`
) -> Figure:
    "Loss, distortion and rate of both stages over the steps; logarithmic, so that late progress can be seen."
    with matplotlib.rc_context():
        set_style()
        figure = Figure(figsize=(7, 2.8), layout="constrained")
        for axis, (stage, log) in zip(figure.subplots(1, 2), logs.items(), strict=True):
            for key, colour in zip(("loss", "distortion", "rate"), PALETTE, strict=False):
                points = [
                    (line["step"], line[key]) for line in log if line.get(key) is not None and line[key] > 0
                ]
                if points:
                    axis.plot(*zip(*points, strict=True), color=colour, label=key, linewidth=1.2)
            unit = "nats per image" if stage == "vae" else "loss"
            axis.set(
                title={"vae": "stage two: VAE"}.get(stage, "stage one: autoencoder"),
                xlabel="step",
                ylabel=unit,
                yscale="log",
            )
            if log:
                axis.legend(fontsize=8)
    return figure


def _stage(run: Run, name: str) -> dict:
    "What a stage's log tells: steps done and wanted, last values, skipped steps, speed, and how much the loss fell in its last tenth."
    log, config = run.logs[name], getattr(run.recipe, f"{name}_training")
    last = log[-1] if log else {}
    tenth = max(1, len(log) // 10)
    late, before = (
        statistics.fmean(line["loss"] for line in part) if part else math.nan
        for part in (log[-tenth:], log[-2 * tenth : -tenth])
    )
    speed = statistics.median(line["examples_per_second"] for line in log) if log else math.nan
    found = {
        "steps": last.get("step", 0),
        "of": config.steps,
        "skipped": last.get("skipped", 0),
        "examples_per_second": speed,
        "fell_in_last_tenth": 1 - late / before,
    }
    return found | {key: last[key] for key in ("loss", "distortion", "rate", "psnr") if key in last}


def _head(run: Run) -> dict:
    "What was trained, and on what."
    recipe, pipe = run.recipe, run.pipe
    return {
        "preset": recipe.name,
        "data": recipe.data,
        "classes": len(pipe.classes),
        "held_out_images": len(run.held),
        "same_images": run.same_images,
        "seeds": [recipe.autoencoder_training.seed, recipe.vae_training.seed],
        "parameters": {
            "autoencoder": sum(p.numel() for p in pipe.autoencoder.parameters()),
            "vae": count_parameters(pipe.vae),
        },
        "trained_on": recipe.vae_training.device,
        "pretrained": recipe.autoencoder.source if is_pretrained(recipe) else None,
    }


@torch.no_grad()
def reconstructions(
    run: Run,  # the run to look at
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    "Held-out images (n, 3, size, size), the autoencoder's reconstructions, and those of the whole model, on the CPU."
    parts = [
        (x, run.pipe.reconstruct(x, depth=0).cpu(), run.pipe.reconstruct(x, y).cpu())
        for x, y in _batches(run)
    ]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def is_shapes(
    run: Run,  # any run
) -> bool:
    "Whether the images are `Shapes` at the size that the shipped classifier knows."
    return run.held.name == "shapes" and run.held.classes == FACTORS["class"] and run.held.size == 32


def _plain(value):
    "The value with None in place of numbers that JSON has no word for."
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_PAGE = string.Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1d2430; --paper: #fdfdfc; --soft: #5c6675; --line: #d9dde3; --card: #f3f4f6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --paper: #15181d; --soft: #a3acba; --line: #343b46; --card: #1f242c; } }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; font: 1rem/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2.4rem; border-top: 1px solid var(--line); padding-top: 1rem; }
p { max-width: 44rem; } figure { margin: 1rem 0; } figcaption { color: var(--soft); font-size: .9rem; }
img { display: block; width: 100%; height: auto; background: #fff; border-radius: 4px; } img.pixels { image-rendering: pixelated; }
.plot { max-width: 44rem; } .side { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); }
.rows { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .5rem; }
.names { display: grid; grid-auto-rows: 1fr; margin: 0; padding: 0; list-style: none; font-size: .75rem; }
.names li { display: flex; align-items: center; max-width: 7rem; min-height: 0; overflow: hidden; white-space: nowrap; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; } td { overflow-wrap: anywhere; }
pre { background: var(--card); padding: .6rem; border-radius: 4px; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def _e(text) -> str:
    return html.escape(str(text))


def _grid(images: torch.Tensor, names: typing.Sequence[str], caption: str) -> str:
    "One row of pictures per name; the names stand at their rows."
    picture = data_uri(image_grid(images, columns=len(images) // len(names)))
    items = "".join(f"<li>{_e(name)}</li>" for name in names)
    alt = _e(f"{caption}; rows: {', '.join(names)}")
    return f'<figure><div class="rows"><ul class="names">{items}</ul><img class="pixels" src="{picture}" alt="{alt}"></div><figcaption>{_e(caption)}</figcaption></figure>'


def _plot(figure: Figure, alt: str) -> str:
    return f'<figure class="plot"><img src="{data_uri(figure)}" alt="{_e(alt)}"></figure>'


def _table(rows: typing.Iterable[tuple]) -> str:
    return (
        "<table>"
        + "".join(
            f"<tr><th>{_e(first)}</th>" + "".join(f"<td>{_e(cell)}</td>" for cell in rest) + "</tr>"
            for first, *rest in rows
        )
        + "</table>"
    )


def _p(*sentences: str) -> str:
    return f"<p>{_e(' '.join(s for s in sentences if s))}</p>"


def _section_head(numbers: dict) -> str:
    head, ae, vae = numbers["run"], numbers["autoencoder"], numbers["vae"]
    warning = (
        ""
        if head["same_images"]
        else _p(
            "The images have changed since the run was made: the ones called held out below may have been trained on."
        )
    )
    speed = f"{vae['examples_per_second']:.0f} examples/s in stage two; the machine itself was not recorded (device setting: {head['trained_on']})"
    return (
        _table(
            [
                ("preset", head["preset"]),
                ("data", head["data"]),
                ("classes", head["classes"] or "none (unconditional)"),
                ("held-out images", head["held_out_images"]),
                ("seeds", " and ".join(map(str, head["seeds"])) + " (stage one and two)"),
                (
                    "parameters",
                    f"{head['parameters']['autoencoder']:,} in the autoencoder, {head['parameters']['vae']:,} in the VAE",
                ),
                (
                    "stage one",
                    f"pretrained: {head['pretrained']}"
                    if head["pretrained"]
                    else f"{ae['steps']:,} of {ae['of']:,} steps",
                ),
                ("stage two", f"{vae['steps']:,} of {vae['of']:,} steps"),
                ("speed of training", speed),
            ]
        )
        + warning
    )


def _section_reconstructions(
    real: torch.Tensor, alone: torch.Tensor, whole: torch.Tensor, numbers: dict
) -> str:
    numbers["psnr"] = {"autoencoder": psnr(alone, real).item(), "whole_model": psnr(whole, real).item()}
    a, b = numbers["psnr"].values()
    body = _grid(
        torch.cat([part[:COLUMNS] for part in (real, alone, whole)]),
        ["held-out image", "autoencoder alone", "whole model"],
        "Images and their reconstructions",
    )
    return body + _p(
        "What to look at: the second row is the best that any sample can look, for samples pass through the same decoder; what differs between second and third "
        f"row is what the VAE's layers forget. Over {len(real)} held-out images the peak signal-to-noise ratio is {a:.1f} dB for the autoencoder alone "
        f"and {b:.1f} dB for the whole model."
    )


def _section_samples(run: Run, numbers: dict) -> str:
    classes, body, numbers["spread"] = run.pipe.classes[:ROWS], "", {}
    labels = torch.arange(len(classes)).repeat_interleave(COLUMNS) if classes else None
    n = COLUMNS * (len(classes) or 4)
    for g in strengths(run.recipe):
        images = _draw(run, labels, n, g)
        numbers["spread"][_weights(g)] = images.unflatten(0, (-1, COLUMNS)).std(1).mean().item()
        body += _grid(images, classes or ["sample"] * 4, _weights(g).capitalize())
    spread = "; ".join(f"{name} {value:.3f}" for name, value in numbers["spread"].items())
    first = (
        f"The first {ROWS} of {len(run.pipe.classes)} classes are shown."
        if len(run.pipe.classes) > ROWS
        else ""
    )
    look = (
        (
            "What to look at: whether a row shows its class, and whether its eight pictures still differ from each other. The noise is the same everywhere, so pictures at "
            "the same place differ by guidance alone (weights on mean / log-variance), which buys the first at the price of the second."
        )
        if len(numbers["spread"]) > 1
        else "What to look at: whether these could be held-out images, and whether they differ from each other as held-out images do."
    )
    return f'<div class="side">{body}</div>' + _p(
        first, look, f"Standard deviation of a pixel within a row: {spread}."
    )


def _section_depths(run: Run, numbers: dict) -> str:
    depths, classes = shown_depths(run.recipe.vae.layers), run.pipe.classes
    labels = torch.arange(COLUMNS) % len(classes) if classes else None
    rows = [_draw(run, labels, COLUMNS, Guidance(), depth) for depth in depths]
    numbers["depths"] = {
        str(k): (row - rows[-1]).square().mean().sqrt().item() for k, row in zip(depths, rows, strict=True)
    }
    last, before = depths[-1], depths[-2:][0]
    added = (
        f"The layers after the first {before} still change a pixel by {numbers['depths'][str(before)]:.3f} in the root mean square (of a range of 2)."
        if before != last
        else ""
    )
    return _grid(
        torch.cat(rows),
        [f"first {k} of {last}" for k in depths],
        "Samples from the first layers; the layers above take their priors' means",
    ) + _p(
        "What to look at: going down a column, at which row the picture is decided. A healthy hierarchy decides layout and colour early and detail late; if only the last "
        "row brings the picture, the low layers are unused.",
        added,
    )


def _section_rates(run: Run, numbers: dict) -> str:
    nats = numbers["nats"] = held_out_rates(run)
    inside = sum(
        low <= rate <= high for rate, (low, high) in zip(nats["rates"], nats["band"] or [], strict=False)
    )
    band = (
        f"{inside} of {len(nats['rates'])} layers lie inside their band."
        if nats["band"]
        else "This run has no schedule, so there are no bands."
    )
    empty = [str(i) for i, rate in enumerate(nats["rates"], start=1) if rate < 0.01 * nats["rate"]]
    body = _plot(
        rates_figure(nats, run.recipe.vae.layer_resolutions),
        "Bars: nats per layer; bands: what the schedule asks for",
    ) + _p(
        f"What to look at: bars that end outside their band, and bars that are hardly there. {band}",
        f"Below one percent of the nats: layer {', '.join(empty)}."
        if empty
        else "No layer holds less than one percent of the nats.",
        f"In all an image costs {nats['rate']:.1f} nats, and {nats['distortion']:.1f} nats of distortion remain (held-out images, z drawn from the posterior). The "
        "schedule works on every image by itself; the bands drawn here are those of the mean.",
    )
    if is_shapes(run):
        numbers["entropy"] = known_entropy(run.recipe)
        told = "given its class" if run.recipe.conditional else "in all"
        body += _p(
            f"A perfect code would spend {numbers['entropy']:.1f} nats on a picture of Shapes ({told}).",
            entropy_sentence(nats["rate"], numbers["entropy"]),
        )
    return body


def _section_curves(run: Run, numbers: dict) -> str:
    said = []
    for stage, name in (("autoencoder", "Stage one"), ("vae", "Stage two")):
        s = numbers[stage]
        fell = s["fell_in_last_tenth"]
        change = (
            f", and the mean loss {'fell' if fell >= 0 else 'rose'} by {100 * abs(fell):.1f} % from the last tenth but one to the last"
            if math.isfinite(fell)
            else ""
        )
        said.append(
            f"{name}: {s['skipped']} of {s['steps']:,} steps were skipped{change}."
            if s["steps"]
            else f"{name} has left no log."
        )
    return _plot(curves_figure(run.logs), "Loss, distortion and rate of both stages over the steps") + _p(
        "What to look at: curves that still fall at their right end ask for more steps; spikes that come back ask for a lower learning rate.",
        *said,
    )


def _section_accuracy(run: Run, whole: torch.Tensor, numbers: dict) -> str:
    found = numbers["class_accuracy"] = class_accuracies(run, whole)
    counts = [min(len(whole), len(run.held))] * 2 + [JUDGED] * (len(found) - 2)
    rows = [
        (name, f"{100 * a:.1f} %", f"n = {n}, standard error {100 * math.sqrt(a * (1 - a) / n):.1f}")
        for (name, a), n in zip(found.items(), counts, strict=True)
    ]
    return _table(rows) + _p(
        "What to look at: the first line is what the judge can do at best, the second what survives the model's own coding. Samples that score below the second line "
        "are less often recognisable as their class than reconstructions are. They use seed 0, the same noise at every strength. The number is blind to diversity: one good picture per class would score as high."
    )


def changed_settings(
    recipe: Recipe,  # what was trained
) -> dict[str, typing.Any] | None:
    "The settings in which a recipe differs from its preset; None where the preset is not known. The number of classes follows from the data and is left out."
    if recipe.name not in PRESETS:
        return None
    here, there = config_to_dict(recipe), config_to_dict(PRESETS[recipe.name]())
    if is_pretrained(recipe):  # told by --autoencoder
        here.pop("autoencoder")
    flat = [(key, value, there[key]) for key, value in here.items() if not isinstance(value, dict)]
    flat += [
        (f"{part}.{key}", value, there[part][key])
        for part, fields in here.items()
        if isinstance(fields, dict)
        for key, value in fields.items()
    ]
    return {
        key: value
        for key, value, before in flat
        if value != before and key not in ("data", "vae.num_classes")
    }


def train_command(
    recipe: Recipe,  # what was trained
    out: str | Path,  # the run folder to write
    settings: dict[str, typing.Any],  # what to do otherwise
) -> str | None:
    "The command that trains a recipe with some settings changed; None where its preset is not known."
    own = changed_settings(recipe)
    if own is None:
        return None
    words = ["cfvae", "train", "--preset", recipe.name, "--data", recipe.data, "--out", str(out)] + (
        ["--autoencoder", recipe.autoencoder.source] if is_pretrained(recipe) else []
    )
    for key, value in {**own, **settings}.items():
        words += [
            "--set",
            f"{key}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}",
        ]
    return shlex.join(words)


def next_steps(
    run: Run,  # the run
    numbers: dict,  # what was measured
) -> list[tuple[str, str]]:
    "Pairs of (reason, command), the most pressing first."
    recipe, vae, out = run.recipe, numbers["vae"], run.folder
    found = []
    if vae["steps"] < vae["of"]:
        found.append(
            (
                "The run was stopped early. Go on with it:",
                shlex.join(["cfvae", "train", "--out", str(out), "--resume"]),
            )
        )
    if vae["skipped"] > 0.01 * max(vae["steps"], 1):
        found.append(
            (
                "More than one step in a hundred was skipped. Learn more slowly:",
                train_command(
                    recipe,
                    f"{out}-slower",
                    {"vae_training.learning_rate": recipe.vae_training.learning_rate / 2},
                ),
            )
        )
    found.append(
        (
            "Train stage two for longer:",
            train_command(recipe, f"{out}-longer", {"vae_training.steps": 2 * recipe.vae_training.steps}),
        )
    )
    found.append(
        (
            "Keep finer detail, for more nats:",
            train_command(recipe, f"{out}-finer", {"objective.sigma_q": recipe.objective.sigma_q / 2}),
        )
    )
    if recipe.conditional and len(strengths(recipe)) == 1:
        found.append(
            (
                "Make guidance possible:",
                train_command(
                    recipe, f"{out}-guided", {"objective.label_drop": 0.1, "vae.learned_prior": True}
                ),
            )
        )
    guided = ["--mean-weight", "1", "--var-weight", "1"] if len(strengths(recipe)) > 1 else []
    found.append(
        (
            "Draw samples of your own:",
            shlex.join(["cfvae", "sample", str(out), "--n", "64", *guided, "--out", "samples.png"]),
        )
    )
    return [(reason, command) for reason, command in found if command]


def write_report(
    run: str | Path,  # a run folder, as `recipes.train` makes it
    device: str = "auto",  # where to compute
    data: str | ImageDataset | None = None,  # the run's images, where they have moved
) -> Path:
    "Look at a run and write report.html, and its numbers as report.json, into its folder. Returns the page's path. Raises `CfvaeError` where there is no model yet."
    opened = open_run(run, device, data)
    numbers = {
        "run": _head(opened),
        "autoencoder": _stage(opened, "autoencoder"),
        "vae": _stage(opened, "vae"),
    }
    real, alone, whole = reconstructions(opened)
    sections = [
        ("Reconstructions", _section_reconstructions(real, alone, whole, numbers)),
        ("Samples", _section_samples(opened, numbers)),
    ]
    if is_shapes(opened):
        sections.append(("Are they what was asked for?", _section_accuracy(opened, whole, numbers)))
    sections += [
        ("From the first layers", _section_depths(opened, numbers)),
        ("Where the nats are", _section_rates(opened, numbers)),
        ("How training went", _section_curves(opened, numbers)),
    ]
    steps = "".join(
        f"{_p(reason)}<pre>{_e(command)}</pre>" for reason, command in next_steps(opened, numbers)
    )
    body = (
        _section_head(numbers)
        + "".join(f"<h2>{_e(title)}</h2>{text}" for title, text in [*sections])
        + f"<h2>What to try next</h2>{steps}"
    )
    page = _PAGE.substitute(title=_e(f"{opened.recipe.name} on {opened.recipe.data}"), body=body)
    _write(opened.folder / "report.json", json.dumps(_plain(numbers), indent=1))
    return _write(opened.folder / "report.html", page)


def _write(path: Path, text: str) -> Path:
    "Write a file whole, or not at all."
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise CfvaeError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def _public(recipe: Recipe) -> Recipe:
    "A recipe for others to read: of the folders of this machine only the last name."
    kind, _, place = recipe.data.partition(":")
    recipe = (
        dataclasses.replace(recipe, data=f"{kind}:{Path(place).name}")
        if kind in ("folder", "tiny-imagenet")
        else recipe
    )
    source = Path(recipe.autoencoder.source) if is_pretrained(recipe) else None
    if source and (source.is_absolute() or source.is_dir()):
        recipe = dataclasses.replace(
            recipe, autoencoder=dataclasses.replace(recipe.autoencoder, source=source.name)
        )
    return recipe


def run_card(
    run: str | Path,  # a run folder with a model
    repo_id: str = "owner/name",  # where it will be published
) -> str:
    "The model card of a run, filled in from its recipe, its logs and, where `write_report` has been called, report.json. Raises `CfvaeError` where there is no model yet."
    run = Path(run)
    recipe, pipe = _public(load_recipe(run)), load_model(run)
    data = (
        json.loads((run / "data.json").read_text(encoding="utf-8")) if (run / "data.json").is_file() else {}
    )
    log, report = read_log(run / "vae" / "log.jsonl"), run / "report.json"
    numbers = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    figures = (
        {
            "steps of stage two": f"{log[-1]['step']:,} of {recipe.vae_training.steps:,}, {log[-1]['skipped']} skipped"
        }
        if log
        else {}
    )
    figures |= {
        f"peak signal-to-noise ratio, {name.replace('_', ' ')}": f"{value:.1f} dB on {numbers['run']['held_out_images']} held-out images"
        for name, value in numbers.get("psnr", {}).items()
    }
    figures |= {
        f"recognised as their class: {name}": f"{value:.1%}"
        for name, value in numbers.get("class_accuracy", {}).items()
    }
    first = (
        f"pretrained ({recipe.autoencoder.source})"
        if is_pretrained(recipe)
        else f"{recipe.autoencoder_training.steps:,} steps of {recipe.autoencoder_training.batch_size}"
    )
    how = (
        f"Preset `{recipe.name}`, seed {recipe.vae_training.seed}. Stage one: {first}. Stage two: {recipe.vae_training.steps:,} steps of {recipe.vae_training.batch_size}. "
        f"All settings:\n\n```json\n{json.dumps(config_to_dict(recipe))}\n```"
    )
    limits = (
        "It knows nothing but images like those it was trained on. Guidance makes samples more typical of their class and less varied. "
        + (
            ""
            if numbers
            else "Nobody has measured the quality of its samples yet: `cfvae.report.write_report` does."
        )
    )
    return model_card(
        pipe,
        f"`{recipe.data}`, {data.get('images', 'an unknown number of')} training images of {recipe.autoencoder.size} x {recipe.autoencoder.size} pixels"
        f"{', with their mirror images' if recipe.flip else ''}. The licence is that of the data.",
        how,
        figures,
        limits,
        repo_id,
    )
