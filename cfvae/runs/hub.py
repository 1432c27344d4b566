"""Models on the Hugging Face hub: fetched, published, described by a card."""

import tempfile
import typing
from pathlib import Path

import torch

from ..core import CfvaeError, count_parameters
from ..pipeline import LatentVAEPipeline


def fetch_from_hub(
    repo_id: str,  # owner/name
) -> Path:
    "The local copy of a pipeline on the Hugging Face hub. Only JSON and safetensors are fetched. Raises `CfvaeError` where it cannot be had."
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # no network, no such model, no permission
        reason = str(error).strip().partition("\n")[0][:200]
        raise CfvaeError(
            f"the Hugging Face hub gave no model {repo_id} (is there a network?): {type(error).__name__}: {reason}"
        ) from error


def load(
    repo_id: str,  # owner/name
) -> LatentVAEPipeline:
    "A pipeline from the Hugging Face hub, on the CPU in float32. Raises `CfvaeError` where it cannot be had."
    return LatentVAEPipeline.from_pretrained(fetch_from_hub(repo_id))


def publish(
    pipe: LatentVAEPipeline,  # the model
    repo_id: str,  # owner/name; made where it does not exist
    card: str,  # its model card, as from `model_card`: nobody should publish a model without one
    private: bool = False,  # visible to its owner alone
    token: str | None = None,  # None: the one that `hf auth login` stored
) -> str:
    """Publish a pipeline in half precision on the Hugging Face hub; returns its address.

    Raises `CfvaeError` where the hub refuses or cannot be reached."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder, torch.float16, card)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            message = "Pipeline in half precision, with its card"
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
        except Exception as error:  # no network, no token, no permission, a name that is not allowed
            reason = str(error).strip().partition("\n")[0][:200]
            raise CfvaeError(
                f"{repo_id} could not be published ({type(error).__name__}: {reason}): "
                "check the network, the name, and `hf auth whoami`"
            ) from error
    return f"https://huggingface.co/{repo_id}"


_CARD = """
# {title}

{sizes} One network evaluation draws one image. Made with [cfvae](https://github.com/cfvae/cfvae), which follows P2 ([arXiv 2303.13714](https://arxiv.org/abs/2303.13714)).

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
    "The text of a model card (README.md): what a reader has to know before using a model, with a head that the hub reads."
    from huggingface_hub import ModelCardData

    size, vae = pipe.autoencoder.config.size, pipe.vae.config
    head = ModelCardData(
        library_name="cfvae",
        pipeline_tag="unconditional-image-generation",
        tags=["vae", "hierarchical-vae", "latent", "pytorch"],
    ).to_yaml()
    names = (
        f"; {len(pipe.classes)} classes: {', '.join(pipe.classes[:12])}{' and others' if len(pipe.classes) > 12 else ''}"
        if pipe.classes
        else ""
    )
    sizes = (
        f"A hierarchical VAE of {sum(vae.layers)} stochastic layers on the {' x '.join(map(str, pipe.autoencoder.config.latent_shape))} codes of an autoencoder, for images of "
        f"{size} x {size} pixels ({count_parameters(pipe.vae) / 1e6:.2f} M parameters{names})."
    )
    table = (
        "\n".join(
            ["| what | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in figures.items())]
        )
        if figures
        else "Nothing was measured."
    )
    body = _CARD.format(
        title=repo_id.split("/")[-1],
        sizes=sizes,
        repo_id=repo_id,
        call="labels=[0]" if pipe.classes else "n=1",
        data=data,
        recipe=recipe,
        figures=table,
        limits=limits,
    )
    return f"---\n{head}\n---\n{body}"
