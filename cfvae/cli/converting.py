"""`encode`, `import-weights` and `export-onnx`: the same things in other forms."""

import json
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import onnx_export
from ..core import CfvaeError, check, get_device
from ..files.codes import codes_fingerprint, encode_dataset, is_codes_file, refuse_foreign_codes
from ..files.open import open_dataset
from ..files.ways import check_way
from ..published import load_published_pipeline, read_header
from ..runs.folder import load_autoencoder, load_model
from ..runs.saved import save_whole
from .describing import describe_models, describe_shape, list_names
from .writing import unwinding_on_signals


def encode(
    model: Path,  # a run folder, a saved pipeline, or a name
    data: str,  # the images, as `open_dataset` reads it
    out: Path,  # a folder for the codes
    flip: bool,  # encode mirror images too
    validation: bool,  # take the validation split
    device: str,  # auto, cpu or cuda
) -> None:
    "Write the codes of a dataset. A run needs no more than a finished first stage for it."
    _check_codes_folder(out)
    if (model / "recipe.json").exists():
        autoencoder = load_autoencoder(model)
    else:
        autoencoder = load_model(model).autoencoder

    dataset = open_dataset(data, autoencoder.config.size, train=not validation)
    autoencoder.to(get_device(device))
    earlier = codes_fingerprint(out)
    with unwinding_on_signals():
        codes = encode_dataset(autoencoder, dataset, out, flip)
    if earlier not in (None, codes.fingerprint):
        warnings.warn(
            f"codes of other images or of another model were in {out}, and are replaced", stacklevel=1
        )
    latents = codes.latents
    shape = describe_shape(latents.shape[1:])
    files = f"latents.npy ({latents.dtype}) and latents.json (shift and scale)"
    print(f"{len(latents)} codes of shape {shape} in {out}: {files}")


def _check_codes_folder(out: Path) -> None:
    "Make sure, before the model is loaded, that the folder is one of codes or may become one."
    check(out.name not in ("", ".."), f"--out is {out}: give a folder of its own, such as latents")
    refuse_foreign_codes(out)
    if not out.is_dir():
        return
    others = [path.name for path in out.iterdir() if not is_codes_file(path.name)]
    message = f"{out} holds other files ({list_names(others, 3)})"
    check(not others, f"{message}: give a folder of its own for the codes")


def import_weights(
    weights: Path,  # a released pipeline, .pt or .safetensors
    out: Path,  # a folder for the pipeline
    config: str | None,  # what --config says
    attention: str,  # published or softmax
    classes: Path | None,  # a file of class names, one per line
) -> None:
    "Save a released model as a pipeline, and say what it is."
    check_way(out)
    check(not (out / "pipeline.json").exists(), f"{out} holds a pipeline already: choose another --out")
    empty = not out.is_dir() or not any(out.iterdir())
    check(empty, f"{out} holds files already, and some might be replaced: choose another --out")
    names = [] if classes is None else _read_names(classes)
    arguments = _read_config(config, weights)
    try:
        pipe = load_published_pipeline(weights, arguments, attention, names)
    except (CfvaeError, OSError, MemoryError):
        raise
    except Exception as error:  # as varied as the ways in which a value can be wrong
        reason = f"{type(error).__name__}: {error}"
        message = f"the config of {config or weights} does not describe a pipeline ({reason})"
        raise CfvaeError(f"{message}: it has to hold the constructor arguments of both stages") from None
    save_whole(pipe, out)

    about = describe_models(pipe.autoencoder.config, pipe.vae.config)
    summary = f"images {about['images']}, {about['stochastic layers']}"
    next_command = f"cfvae sample {shlex.quote(str(out))} --n 16 --out samples.png"
    print(f"the pipeline is in {out}: {summary}. Next: {next_command}")


def _read_names(path: Path) -> list[str]:
    "What a file of class names holds, one per line."
    lines = _read_text(path, "--classes").split("\n")
    names = [line.strip() for line in lines if line.strip()]
    check(bool(names), f"--classes {path} names no class: write one per line")
    return names


def _read_text(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some programs begin a file with a mark
    except UnicodeDecodeError:
        raise CfvaeError(f"{option} {path} is no text in UTF-8: save it again in that encoding") from None


def _read_config(config: str | None, weights: Path) -> str | Mapping[str, Any]:
    "What --config says: a name, or the constructor arguments out of a JSON file or the weights' own header."
    if config is None:
        text = read_header(weights).get("config")
    elif config.endswith(".json"):
        text = _read_text(Path(config), "--config")
    else:
        return config

    if text is None:
        way_out = "give --config, the name of a published model or a JSON file with its constructor arguments"
        raise CfvaeError(f"{weights} does not say which model it holds: {way_out}")
    about = f"the config of {config or weights}"
    way_out = "it has to hold the constructor arguments, names and values in braces"
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CfvaeError(f"{about} is not JSON ({error}): {way_out}") from None
    check(isinstance(fields, dict), f"{about} holds no such thing as {{...}}: {way_out}")
    for stage in ("dae", "vae"):
        named = isinstance(fields.get(stage, {}), (dict, str))
        check(named, f"{about}: {stage} is {fields.get(stage)!r}: {way_out}")
    return fields


def export_onnx(
    model: Path,  # a run folder, a saved pipeline, or a name
    out: Path,  # a folder for the graph
) -> None:
    "Write the graph that draws, and say how large it is."
    path = onnx_export.export_onnx(load_model(model), out)
    megabytes = path.stat().st_size / 1e6
    about = path.with_name("model.json")
    print(f"{path} ({megabytes:.1f} MB) turns noise into images; {about} describes its inputs")
