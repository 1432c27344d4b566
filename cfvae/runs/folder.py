"""The folder of a run: claimed, locked, read again."""

import dataclasses
import json
import typing
from pathlib import Path, PurePath

from ..autoencoder import Autoencoder
from ..checkpoints import intact_checkpoints, list_checkpoints, write_synced
from ..core import CfvaeError, check, check_path, config_to_dict, whole_number
from ..data import ImageDataset
from ..pipeline import LatentVAEPipeline, find_model, load_local
from ..pretrained import PretrainedAutoencoder, PretrainedConfig, load_pretrained
from ..recipes import Recipe, recipe_from_dict
from .hub import load as load_from_hub
from .logs import read_log


STAGES = ("autoencoder", "vae")
TRAINED = "vae/trained.json"  # what `note_trained` writes
# what may differ when a run is resumed: how it is computed and watched, and what advice tells to change
MAY_DIFFER = {
    "device",
    "accumulate",
    "log_every",
    "sample_every",
    "checkpoint_every",
    "learning_rate",
    "final_learning_rate",
    "skip_norm",
    "skip_from",
    "max_skipped",
    "vae_training.steps",  # stage one's codes are made when its steps are done
}


def load_recipe(
    out: str | Path,  # a run folder
) -> Recipe:
    "The recipe that a run was begun with. Raises `CfvaeError` where there is none, or a damaged one."
    path = check_path(out) / "recipe.json"
    check(path.is_file(), f"{out} is not a run folder: it holds no recipe.json")
    way_out = "restore it from a copy, or train into another folder"
    fields = read_fields(path, way_out)
    try:
        check({"autoencoder", "vae"} <= fields.keys(), "it has no autoencoder, or no vae")
        return recipe_from_dict(fields)
    except Exception as error:  # as varied as the ways in which a value can be wrong
        raise CfvaeError(f"{path} cannot be read ({_first_line(error)}): {way_out}") from None


def load_data_note(
    out: str | Path,  # a run folder
) -> dict[str, typing.Any] | None:
    """What a run noted of its images: "fingerprint", "images" (how many), "classes" (names).

    None where it noted nothing. Raises `CfvaeError` for a damaged data.json."""
    path = check_path(out) / "data.json"
    if not path.exists():
        return None
    way_out = "restore it from a copy, or remove it if you know that the images are those of the run"
    note = read_fields(path, way_out)
    noted = isinstance(note.get("fingerprint"), str)
    check(noted, f"{path} cannot be read (it holds no fingerprint): {way_out}")
    return note


def note_trained(
    out: Path,  # a run folder
    step: int,  # steps of stage two that its model, just saved, has seen
) -> None:
    "The log may go on beyond them, where the run is killed before it saves the model again."
    _write_json(out / TRAINED, {"step": step})


def trained_steps(
    out: str | Path,  # a run folder
) -> int | None:
    """The steps of stage two that the saved model has seen; None where the run did not note them.

    Raises `CfvaeError` for a damaged note."""
    path = check_path(out) / TRAINED
    if not path.exists():
        return None
    way_out = "remove it, and the last step of the log is taken for it"
    step = read_fields(path, way_out).get("step")
    try:
        return whole_number(step, "step", 0)
    except CfvaeError as error:
        raise CfvaeError(f"{path} cannot be read ({error}): {way_out}") from None


def read_trained_log(
    out: Path,  # a run folder
) -> tuple[list[dict[str, typing.Any]], int]:
    "The log of stage two as far as the saved model goes, and the steps that this has seen."
    lines = read_log(out / "vae" / "log.jsonl")
    trained = trained_steps(out)
    if trained is None:  # not noted by earlier versions
        return lines, lines[-1]["step"] if lines else 0
    return [line for line in lines if line["step"] <= trained], trained


def read_fields(
    path: Path,  # of the file
    way_out: str,  # what to do where it is damaged
) -> dict[str, typing.Any]:
    "A JSON file that holds an object. Raises `CfvaeError` for any other content, or none."
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        check(isinstance(fields, dict), "no fields in braces")
    except (OSError, ValueError, RecursionError) as error:  # not readable, not text, not JSON
        raise CfvaeError(f"{path} cannot be read ({_first_line(error)}): {way_out}") from None
    return fields


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def refuse_begun(
    out: Path,  # a run folder, or one that may become a run's
    resume: bool,  # whether a run that is there is wanted
) -> bool:
    """Whether the folder holds a run that has saved something.

    Raises `CfvaeError` if so, unless it is to be resumed."""
    begun = (out / "recipe.json").exists() and _has_saved(out)
    check(
        resume or not begun, f"{out} already holds a run: go on with it by --resume, or choose another --out"
    )
    return begun


def _has_saved(out: Path) -> bool:
    checkpoints = [list_checkpoints(out / stage / "checkpoints") for stage in STAGES]
    return any(checkpoints) or (out / "autoencoder" / "model").exists() or has_model(out)


def has_model(
    out: Path,  # a run folder
) -> bool:
    "Whether a pipeline was saved, once or more often."
    return (out / "pipeline" / "pipeline.json").exists()


def only_model_is_kept(
    out: Path,  # a run folder
) -> bool:
    "Whether stage one is done and its checkpoints, which are of no use then, were deleted."
    stage = out / "autoencoder"
    return (stage / "model").exists() and not list_checkpoints(stage / "checkpoints")


def claim_run(
    out: Path,  # the run folder
    recipe: Recipe,  # what is to be trained
    images: ImageDataset,  # on what
    resume: bool,  # whether a run that is there is to be taken up
) -> None:
    """Note recipe and data in the run folder.

    A stage that is done keeps the settings that it was trained with, whatever the recipe says now. Raises
    `CfvaeError` rather than overwrite a run, or resume it as another one. A run that failed before it saved
    anything is no hindrance."""
    if refuse_begun(out, resume):
        _check_first_stage(out, recipe)
        _check_same_recipe(out, recipe)
        _check_same_images(out, images)
        done = _check_progress(out, recipe.vae_training.steps)
        recipe = _as_trained(out, recipe, done)
    about = {"fingerprint": images.fingerprint, "images": len(images), "classes": images.classes}
    _write_json(out / "data.json", about)
    _write_json(out / "recipe.json", config_to_dict(recipe))


def _check_first_stage(out: Path, recipe: Recipe) -> None:
    "Raises `CfvaeError` where stage two was begun on a stage one that is gone, and would be trained anew."
    stage = out / "autoencoder"
    weights = stage / "model" / "model.safetensors"
    kept = weights.exists() or bool(list_checkpoints(stage / "checkpoints"))
    begun = has_model(out) or bool(list_checkpoints(out / "vae" / "checkpoints"))
    copy = "from a copy"
    if (out / "pipeline" / "autoencoder").exists():
        copy = f"as a copy of {out / 'pipeline' / 'autoencoder'}"
    check(
        kept or recipe.is_pretrained or not begun,
        f"{stage / 'model'} is gone, and the second stage rests on it: "
        f"put it back, {copy}, or choose another --out",
    )


def _check_same_recipe(out: Path, recipe: Recipe) -> None:
    may_differ = MAY_DIFFER
    if load_data_note(out) is not None:  # then the images are compared, wherever they lie now
        may_differ = MAY_DIFFER | {"data", "vae.num_classes"}
    begun_with = _plain(config_to_dict(load_recipe(out)))
    changed = _differences(begun_with, _plain(config_to_dict(recipe)), may_differ)
    check(
        not changed,
        f"{out} was begun with another recipe ({'; '.join(changed[:3])}): "
        "resume it with the same settings, or choose another --out",
    )


def has_same_images(
    out: Path,  # a run folder
    images: ImageDataset,  # without those that are held out
) -> bool:
    "Whether these were trained on; where a run did not note its images, nothing speaks against them."
    noted = load_data_note(out)
    if noted is None:
        return True
    classes = list(images.classes)  # which the fingerprint of images from Python does not cover
    return noted["fingerprint"] == images.fingerprint and noted.get("classes", classes) == classes


def _check_same_images(out: Path, images: ImageDataset) -> None:
    before = (load_data_note(out) or {}).get("images")
    check(
        has_same_images(out, images),
        f"{out} was begun with other images ({before} of them, {len(images)} now), or other class names: "
        "the data has changed since. Bring the old images back, or choose another --out",
    )


def _as_trained(out: Path, recipe: Recipe, done: int) -> Recipe:
    "The recipe with the earlier settings of the stages that are done: no step is taken with others."
    begun = load_recipe(out)
    if (out / "autoencoder" / "model").exists():
        recipe = dataclasses.replace(recipe, autoencoder_training=begun.autoencoder_training)
    steps = recipe.vae_training.steps
    if done == steps:
        training = dataclasses.replace(begun.vae_training, steps=steps)
        recipe = dataclasses.replace(recipe, vae_training=training)
    return recipe


def _check_progress(out: Path, steps: int) -> int:
    """The steps of stage two that are saved.

    Raises `CfvaeError` where it cannot go on from them to so many steps."""
    folder = out / "vae" / "checkpoints"
    check(
        bool(list_checkpoints(folder)) or not has_model(out),
        f"{out} holds a model, but no checkpoint of its second stage, so it cannot be trained further: "
        "take the model as it is, or choose another --out",
    )
    done = max((int(path.name.split("-")[1]) for path in intact_checkpoints(folder)), default=0)
    check(done <= steps, f"{out}: {done} steps of stage two are done already: --steps must be {done} or more")
    return done


def _plain(fields: dict[str, typing.Any]) -> dict[str, typing.Any]:
    "As JSON gives it back: lists in the place of tuples."
    return json.loads(json.dumps(fields))


def _write_json(path: Path, value: dict[str, typing.Any]) -> None:
    write_synced(path, json.dumps(value, indent=1).encode())


def _differences(
    before: dict[str, typing.Any], now: dict[str, typing.Any], may_differ: set[str], prefix: str = ""
) -> list[str]:
    "The settings that decide what is learned and have changed, one line each."
    lines = []
    for key, value in now.items():
        earlier = before.get(key)
        if isinstance(value, dict) and isinstance(earlier, dict):
            lines += _differences(earlier, value, may_differ, f"{prefix}{key}.")
        elif earlier != value and not {key, f"{prefix}{key}"} & may_differ:
            lines.append(f"{prefix}{key}: {earlier} there, {value} now")
    return lines


def load_autoencoder(
    out: str | Path,  # a run folder
) -> Autoencoder | PretrainedAutoencoder:
    """The run's autoencoder, trained or pretrained.

    Raises `CfvaeError` where its stage has not been finished, or a pretrained one is not there any more."""
    config = load_recipe(out).autoencoder
    if isinstance(config, PretrainedConfig):
        return load_pretrained(config)
    folder = check_path(out) / "autoencoder" / "model"
    check(
        (folder / "config.json").is_file(),
        f"{out} has no finished autoencoder: train it first, with --stage autoencoder or --stage all",
    )
    return load_local(Autoencoder, folder)


def load_model(
    model: str | Path,  # a run folder, a saved pipeline, the name of a shipped one, or hub:owner/name
) -> LatentVAEPipeline:
    "The pipeline that is meant. Raises `CfvaeError` where there is none."
    check_path(model, "the model")
    name = model.as_posix() if isinstance(model, PurePath) else model  # Windows turns slashes round
    if name.startswith("hub:") and not Path(model).exists():
        return load_from_hub(name.removeprefix("hub:"))
    path = find_model(model)
    check(path.exists(), f"there is nothing at {path}: give a run folder or a saved pipeline")
    if not (path / "recipe.json").exists():
        saved = path / "pipeline" if (path / "pipeline/pipeline.json").is_file() else path  # of a tuning
        check(
            (saved / "pipeline.json").is_file(),
            f"{path} is neither a run folder (no recipe.json) nor a saved pipeline (no pipeline.json)",
        )
        return LatentVAEPipeline.from_pretrained(saved)
    check(has_model(path), f"{path} holds no model yet: a run has one once its second stage was trained")
    pipe = LatentVAEPipeline.from_pretrained(path / "pipeline")
    pipe.label_dropped &= not pipe.classes or load_recipe(path).objective.label_drop > 0  # not noted before
    return pipe
