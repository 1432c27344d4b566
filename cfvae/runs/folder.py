"""The folder of a run: claimed, locked, read again."""

import contextlib
import fcntl
import json
import os
import warnings
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


_locked = set()  # open lock files of this process


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _locked])


def _lock(file, folder: Path) -> None:
    "Lock an open file and note this process in it, or raise `CfvaeError` naming the process that has it."
    try:
        if fcntl is None:
            raise OSError(0, "this system has no flock")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise CfvaeError(
            f"{folder} is in use by another run (process {owner}): wait for it, stop it, or choose another folder"
        ) from None
    except OSError as error:
        warnings.warn(
            f"{folder} cannot be locked ({error.strerror}): make sure that no other run uses it", stacklevel=3
        )
    with contextlib.suppress(OSError):  # on a full disk: the number is only for the message
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)


class RunLock:
    "Keeps other runs out of a folder while the `with` block and its process last. A second run gets a `CfvaeError`."

    def __init__(
        self,
        folder: str | Path,  # a run's folder; created where it is missing
    ):
        self.folder, self.file = Path(folder), None

    def __enter__(self) -> "RunLock":
        if (
            int(os.environ.get("RANK", 0)) == 0
        ):  # of several processes of one run, the main one; set by accelerate launch and torchrun
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.file = open(self.folder / "run.lock", "a+", encoding="utf-8")
            except OSError as error:
                raise CfvaeError(
                    f"cannot use {self.folder} ({error.strerror}): choose a folder that you may write to"
                ) from None
            _lock(self.file, self.folder)
            _locked.add(self.file)
        return self

    def __exit__(self, *error) -> None:
        if self.file:
            _locked.discard(self.file)
            self.file.close()
