"""Models on the Hugging Face hub: fetched, published, described by a card."""

import json
import re
import tempfile
import typing
import warnings
from pathlib import Path

import torch
from huggingface_hub import HfApi, ModelCardData, snapshot_download

from ..core import CfvaeError, check, check_path, config_to_dict, count_parameters
from ..pipeline import LatentVAEPipeline
from ..pretrained import PretrainedConfig
from ..recipes import Recipe
from .public import in_backticks, in_markdown, public_recipe

# --- there and back

MODEL_FILES = [f"{part}/*.{ending}" for part in ("autoencoder", "vae") for ending in ("json", "safetensors")]


def fetch_from_hub(
    repo_id: str,  # owner/name
) -> Path:
    """The local copy of a pipeline on the Hugging Face hub. Only its JSON and safetensors are fetched.

    Raises `CfvaeError` where it cannot be had."""
    check_name(repo_id)
    try:
        return Path(snapshot_download(repo_id, allow_patterns=["pipeline.json", *MODEL_FILES]))
    except Exception as error:  # no network, no such model, no permission
        raise CfvaeError(
            f"the Hugging Face hub gave no model {repo_id} (is there a network?): {_reason(error)}"
        ) from error


def load(
    repo_id: str,  # owner/name
) -> LatentVAEPipeline:
    "A pipeline from the Hugging Face hub, on the CPU in float32. Raises `CfvaeError` where it cannot be had."
    return LatentVAEPipeline.from_pretrained(fetch_from_hub(repo_id))


def check_name(
    repo_id: str,  # where a model is, or is to be published
) -> None:
    "Raises `CfvaeError` for a name that no model on the hub can have."
    named = re.fullmatch(r"[a-z0-9][\w.-]*/[a-z0-9][\w.-]*", str(repo_id), re.ASCII | re.IGNORECASE)
    check(named is not None, f"'{repo_id}' is no name on the hub: give owner/name, of letters, digits, - _ .")


def publish(
    pipe: LatentVAEPipeline,  # the model
    repo_id: str,  # owner/name; made where it does not exist
    card: str,  # its model card, as from `model_card`: nobody should publish a model without one
    private: bool = False,  # visible to its owner alone
    token: str | None = None,  # None: the one that `hf auth login` stored
) -> str:
    """Publish a pipeline in half precision on the Hugging Face hub; returns its address.

    Raises `CfvaeError` where the hub refuses or cannot be reached, and where a model is to be private whose
    repository is there and public."""
    check_name(repo_id)
    _check_pipeline(pipe)
    described = isinstance(card, str) and card.strip() != ""
    check(described, f"the card is {card!r}: say what the model is, as model_card and run_card do")
    api = HfApi(token=token)
    message = "Pipeline in half precision, with its card"
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder, torch.float16, card)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            hidden = not private or api.model_info(repo_id).private is True
            check(
                hidden, f"{repo_id} is there and public: make it private on the hub, or choose another name"
            )
            api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=message,
                delete_patterns=MODEL_FILES,  # of an earlier model, perhaps of another kind
            )
        except CfvaeError:
            raise
        except Exception as error:  # no network, no token, no permission, a name that is not allowed
            raise CfvaeError(
                f"{repo_id} could not be published ({_reason(error)}): "
                "check the network, the name, and `hf auth whoami`"
            ) from error
    return f"https://huggingface.co/{repo_id}"


def _reason(error: Exception) -> str:
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line[:200]}"


# --- the card of a model

_CARD = """---
{head}
---

# {title}

{sizes} One network evaluation draws one image.
Made with [cfvae](https://github.com/cfvae/cfvae), which follows
P2 ([arXiv 2303.13714](https://arxiv.org/abs/2303.13714)).

```python
from cfvae.runs import hub

images = hub.load("{repo_id}")({call}).images
```

## Data

{data}

## Recipe

{recipe}

## Measured

{figures}

## Limits

{limits}
"""


def model_card(
    pipe: LatentVAEPipeline,  # the model
    data: str,  # what it was trained on: source, number of images, what was done to them, licence
    recipe: str,  # how: preset, steps, seed, hardware
    figures: typing.Mapping[str, str],  # what was measured -> the value, with n and seed
    limits: str,  # what it is not good for
    repo_id: str = "owner/name",  # where it will be found
) -> str:
    """The text of a model card (README.md): what a reader has to know before using a model.

    Raises `CfvaeError` for a text that is none or empty, and for figures without names."""
    check_name(repo_id)
    _check_pipeline(pipe)
    for name, text in (("data", data), ("recipe", recipe), ("limits", limits)):
        told = isinstance(text, str) and text.strip() != ""
        check(told, f"{name} is {text!r}: a reader has to know it, so tell it in a text")
    named = isinstance(figures, typing.Mapping)
    check(named, f"figures are {figures!r}: give names and values, as {{'PSNR': '27.5 dB, n = 500'}}")
    head = ModelCardData(
        library_name="cfvae",
        pipeline_tag="unconditional-image-generation",
        tags=["vae", "hierarchical-vae", "latent", "pytorch"],
    )
    return _CARD.format(
        head=head.to_yaml(),
        title=repo_id.split("/")[-1],
        sizes=_sizes(pipe),
        repo_id=repo_id,
        call="labels=[0]" if pipe.classes else "n=1",
        data=data,
        recipe=recipe,
        figures=_table(figures),
        limits=limits,
    )


def _sizes(pipe: LatentVAEPipeline) -> str:
    layers = sum(pipe.vae.config.layers)
    codes = " x ".join(map(str, pipe.autoencoder.config.latent_shape))
    size = pipe.autoencoder.config.size
    millions = count_parameters(pipe.vae) / 1e6
    names = ""
    if pipe.classes:
        others = " and others" if len(pipe.classes) > 12 else ""
        first = ", ".join(in_markdown(name) for name in pipe.classes[:12])
        names = f"; {len(pipe.classes)} classes: {first}{others}"
    return (
        f"A hierarchical VAE of {layers} stochastic layers on the {codes} codes of an autoencoder, "
        f"for images of {size} x {size} pixels ({millions:.2f} M parameters{names})."
    )


def _table(figures: typing.Mapping[str, str]) -> str:
    if not figures:
        return "Nothing was measured."
    lines = [f"| {_in_cell(name)} | {_in_cell(value)} |" for name, value in figures.items()]
    return "\n".join(["| what | value |", "|---|---|", *lines])


def _in_cell(text: object) -> str:
    "Markdown on one line, with no bar that would end a table's cell."
    return re.sub(r"(?<!\\)\|", r"\|", " ".join(str(text).split()))


# --- the card of a run


def run_card(
    folder: str | Path,  # a run folder with a model
    repo_id: str = "owner/name",  # where it will be published
) -> str:
    """The model card of a run, filled in from its recipe, its log and, where it has one, its report.json.

    Raises `CfvaeError` where there is no model yet."""
    from .folder import (
        load_data_note,
        load_model,
        load_recipe,
        read_trained_log,
    )  # not above: a run folder may name a model on the hub

    check_name(repo_id)
    folder = check_path(folder, "the run")
    way_out = (
        "a pipeline or a tuning needs a card of your own: cfvae.runs.hub.publish in Python, with model_card"
    )
    check((folder / "recipe.json").is_file(), f"{folder} is not a run folder (no recipe.json): {way_out}")
    recipe = public_recipe(load_recipe(folder))
    pipe = load_model(folder)
    log, step = read_trained_log(folder)
    measured = _report_figures(folder, step)

    limits = "It knows nothing but images like those it was trained on."
    if pipe.guidable:
        limits += " Guidance makes samples more typical of their class and less varied."
    if not measured:
        limits += " Nobody has measured the quality of its samples yet: `cfvae report` does."
    figures = _log_figures(recipe, log, step) | measured
    noted = load_data_note(folder) or {}
    images = noted.get("images")
    if type(images) is not int:
        images = "an unknown number of"
    return model_card(pipe, _run_data(recipe, images), _run_recipe(recipe), figures, limits, repo_id)


def _run_data(recipe: Recipe, images: int | str) -> str:
    size = recipe.autoencoder.size
    mirrored = ", with their mirror images" if recipe.flip else ""
    return (
        f"{in_backticks(recipe.data)}, {images} training images of {size} x {size} pixels{mirrored}. "
        "The licence is that of the data."
    )


def _run_recipe(recipe: Recipe) -> str:
    one = recipe.autoencoder_training
    two = recipe.vae_training
    if isinstance(recipe.autoencoder, PretrainedConfig):
        first = f"pretrained ({in_markdown(recipe.autoencoder.source)})"
    else:
        first = f"{one.steps:,} steps of {one.batch_size}"
    settings = json.dumps(config_to_dict(recipe))
    return (
        f"Preset {in_backticks(recipe.name)}, seed {two.seed}. Stage one: {first}. "
        f"Stage two: {two.steps:,} steps of {two.batch_size}. All settings:\n\n```json\n{settings}\n```"
    )


def _log_figures(recipe: Recipe, log: list[dict], step: int) -> dict[str, str]:
    "How far training is, in the words of the card; what was skipped only a log knows."
    skipped = f", {log[-1]['skipped']} skipped" if log else ""
    return {"steps of stage two": f"{step:,} of {recipe.vae_training.steps:,}{skipped}"} if step else {}


def _report_figures(folder: Path, step: int) -> dict[str, str]:
    """What report.json tells, in the words of the card; nothing where there is no report of this step.

    Raises `CfvaeError` for a damaged one."""
    path = folder / "report.json"
    if not path.exists():
        return {}
    figures = {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        measured = report["vae"]["steps"]
        if measured != step:  # it was trained further, or anew
            warnings.warn(  # not on the output, where the card may be printed
                f"{path} is of step {measured}, the model of step {step}: its figures are left out; "
                f"cfvae report {folder} measures again",
                stacklevel=2,
            )
            return {}
        images = int(report["run"]["held_out_images"])
        for name, value in report["psnr"].items():
            if value is not None:  # it was not finite
                what = f"peak signal-to-noise ratio, {in_markdown(name.replace('_', ' '))}"
                figures[what] = f"{value:.1f} dB on {images} held-out images"
        for name, value in report.get("class_accuracy", {}).items():
            figures[f"recognised as their class: {in_markdown(name)}"] = f"{value:.1%}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CfvaeError(
            f"{path} cannot be read ({reason}): remove it, and write it anew by cfvae report {folder}"
        ) from None
    return figures


def _check_pipeline(pipe: LatentVAEPipeline) -> None:
    "By what it holds and not by its class: lesson 12 builds a class of its own."
    holds = hasattr(pipe, "autoencoder") and hasattr(pipe, "vae")
    check(holds, f"{pipe!r} is no pipeline: load_model loads that of a run")
