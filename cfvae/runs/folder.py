"""The folder of a run: claimed, locked, read again."""

import json
import os
from pathlib import Path

from ..autoencoder import Autoencoder
from ..checkpoints import list_checkpoints
from ..core import CfvaeError, check, config_to_dict
from ..data import ImageDataset
from ..pipeline import LatentVAEPipeline, find_model, load_local
from ..pretrained import PretrainedAutoencoder, load_pretrained
from ..recipes import Recipe, is_pretrained, recipe_from_dict
from .hub import load as load_from_hub


def load_recipe(
    out: str | Path,  # a run folder
) -> Recipe:
    "The recipe that a run was begun with. Raises `CfvaeError` where there is none, or a damaged one."
    path = Path(out) / "recipe.json"
    check(path.is_file(), f"{out} is not a run folder: it holds no recipe.json")
    try:
        return recipe_from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (
        ValueError,
        TypeError,
        AttributeError,
    ) as error:  # not JSON, or not a recipe; `CfvaeError` is a ValueError
        raise CfvaeError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): restore it from a copy, or train into another folder"
        ) from None


def refuse_begun(out: Path, resume: bool) -> bool:
    "Whether the folder holds a run that has saved something. Raises `CfvaeError` if so, unless it is to be resumed."
    begun = (out / "recipe.json").exists() and (
        any(list_checkpoints(out / stage / "checkpoints") for stage in ("autoencoder", "vae"))
        or (out / "autoencoder" / "model").exists()
    )
    check(
        resume or not begun, f"{out} already holds a run: go on with it by --resume, or choose another --out"
    )
    return begun


def claim_run(out: Path, recipe: Recipe, images: ImageDataset, resume: bool) -> None:
    "Claim the run folder: refuse to overwrite a run, or to resume it as another one. A run that failed before it saved anything is no hindrance."
    path, begun = out / "recipe.json", refuse_begun(out, resume)
    wanted = json.loads(json.dumps(config_to_dict(recipe)))
    if begun:
        different = _differences(json.loads(json.dumps(config_to_dict(load_recipe(out)))), wanted)
        check(
            not different,
            f"{out} was begun with another recipe ({'; '.join(different[:3])}): resume it with the same settings, or choose another --out",
        )
        before = (
            json.loads((out / "data.json").read_text(encoding="utf-8"))
            if (out / "data.json").is_file()
            else {"fingerprint": images.fingerprint}
        )
        check(
            before["fingerprint"] == images.fingerprint,
            f"{out} was begun with other images ({before.get('images')} of them, {len(images)} now): "
            "the data has changed since. Bring the old images back, or choose another --out",
        )
    _write_json(
        out / "data.json",
        {"fingerprint": images.fingerprint, "images": len(images), "classes": images.classes},
    )
    _write_json(path, wanted)


def _write_json(path: Path, value: dict) -> None:
    "Write a small file so that it is whole or not there."
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
    os.replace(temporary, path)


_MAY_DIFFER = {
    "device",
    "accumulate",
    "log_every",
    "sample_every",
    "checkpoint_every",
}  # without changing what is learned


def _differences(found: dict, wanted: dict, prefix: str = "") -> list[str]:
    lines = []
    for key in wanted:
        a, b = found.get(key), wanted[key]
        if isinstance(b, dict) and isinstance(a, dict):
            lines += _differences(a, b, f"{prefix}{key}.")
        elif a != b and key not in _MAY_DIFFER:
            lines.append(f"{prefix}{key}: {a} there, {b} now")
    return lines


def load_autoencoder(
    out: str | Path,  # a run folder
) -> Autoencoder | PretrainedAutoencoder:
    "The run's autoencoder, trained or pretrained. Raises `CfvaeError` where its stage has not been finished, or a pretrained one is not there any more."
    recipe = load_recipe(out)
    if is_pretrained(recipe):
        return load_pretrained(recipe.autoencoder)
    folder = Path(out) / "autoencoder" / "model"
    check(
        (folder / "config.json").is_file(),
        f"{out} has no finished autoencoder: train it first, with --stage autoencoder or --stage all",
    )
    return load_local(Autoencoder, folder)


def load_model(
    path: str
    | Path,  # a run folder, a saved pipeline, the name of one that comes with the package, or hub:owner/name
) -> LatentVAEPipeline:
    "The pipeline that is meant. Raises `CfvaeError` where there is none."
    if str(path).startswith("hub:") and not Path(path).exists():
        return load_from_hub(str(path).removeprefix("hub:"))
    path = find_model(path)
    check(path.exists(), f"there is nothing at {path}: give a run folder or a saved pipeline")
    run = (path / "recipe.json").exists()
    inner = path / "pipeline" if run else path
    check(
        run or (inner / "pipeline.json").is_file(),
        f"{path} is neither a run folder (no recipe.json) nor a saved pipeline (no pipeline.json)",
    )
    check(
        (inner / "pipeline.json").is_file(),
        f"{path} holds no model yet: a run has one once its second stage was trained",
    )
    return LatentVAEPipeline.from_pretrained(inner)
