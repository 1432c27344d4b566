"""A third step for a trained model: its decoder learns from what stage two hands it (lesson 18)."""

import copy
import dataclasses
import json
import typing
from pathlib import Path

import torch

from ..autoencoder import Autoencoder
from ..autoencoder_loss import (
    AutoencoderLossConfig,
    TwoPlayers,
    autoencoder_of,
    first_stage_loss,
    with_discriminator,
)
from ..checkpoints import list_checkpoints, write_synced
from ..core import (
    CfvaeError,
    check,
    check_path,
    config_to_dict,
    get_device,
    make_generator,
    seed_everything,
)
from ..data import ImageDataset, hold_out
from ..files.lock import FolderLock
from ..files.names import first_few
from ..files.open import describe, open_dataset, require_classes
from ..latents import weights_fingerprint
from ..pipeline import LatentVAEPipeline
from ..training import Callback, TrainingConfig, fit
from ..tuning import through_both
from .callbacks import StopOnSignal, TimeLimit
from .folder import has_same_images, load_model, load_recipe, read_fields, trained_steps
from .free import refuse_filled, refuse_foreign
from .output import say
from .recorded import RecordedStep
from .saved import save_whole
from .train import AUTOENCODER_RATE, SHOWN, prepare, watchers_of

NOTE = "tuning.json"  # what the tuning of a folder rests on
LOSS = AutoencoderLossConfig(disc_weight=0.5, disc_start=1, disc_width=32, disc_layers=2)
TRAINING = TrainingConfig(
    steps=5000,
    batch_size=32,
    learning_rate=2e-4,
    final_learning_rate=1e-5,
    betas=(0.5, 0.99),  # a discriminator's opponent moves: a short memory follows it better
    ema_decay=0.998,
    log_every=50,
)


@dataclasses.dataclass(frozen=True)
class Tuning:
    "What is to be tuned, and how."

    model: str  # a run folder, a saved pipeline, or a name
    data: str | None = None  # the images, as `open_dataset` reads it; None: those of the run
    flip: bool = False  # mirror a random half of the images; of a run, its recipe decides
    loss: AutoencoderLossConfig = LOSS
    training: TrainingConfig = TRAINING


def tune(
    tuning: Tuning,  # what is to be done
    out: str | Path,  # a folder for the tuned pipeline, its log and pictures
    resume: bool = False,  # go on with the tuning in that folder
    max_minutes: float | None = None,  # stop after so long
    signals: StopOnSignal | None = None,  # one's own, to ask afterwards which signal it `received`
) -> bool:
    """Train the decoder of a model on posterior draws of its stage two; encoder and stage two stay.

    The pipeline is saved in `out`/pipeline, also where it was stopped early, which False says. Raises
    `CfvaeError` where it cannot be done."""
    out = check_path(out)
    check(not (out / "recipe.json").exists(), f"{out} holds a run: choose another --out")
    refuse_foreign(out, (NOTE, "decoder", "pipeline"), {"model", "images"})
    if not (out / NOTE).exists():
        refuse_filled(out, "tuning")
    limit = [] if max_minutes is None else [TimeLimit(max_minutes)]
    pipe = load_model(tuning.model)
    if not isinstance(pipe.autoencoder, Autoencoder):
        raise CfvaeError(f"{tuning.model}: its first stage is borrowed, and only own decoders can be tuned")
    images, held, flip = _open_images(tuning, pipe)
    config = tuning.training
    count = len(images)
    too_large = f"batch_size is {config.batch_size}, but {images.name} has {count} training images"
    check(config.batch_size <= count, f"{too_large}: --set batch_size={count} or less")
    with FolderLock(out):
        _claim(out, tuning, pipe, images, flip, resume)
        extra: list[Callback] = [signals or StopOnSignal(), *limit]
        return _fit(pipe, pipe.autoencoder, tuning, images, held, flip, out, resume, extra)


def _open_images(tuning: Tuning, pipe: LatentVAEPipeline) -> tuple[ImageDataset, ImageDataset, bool]:
    "Images to train on, others for the pictures, and whether mirrored ones are as good: a run's own."
    size = pipe.autoencoder.config.size
    folder = check_path(tuning.model, "the model")
    recipe = load_recipe(folder) if (folder / "recipe.json").is_file() else None
    source = tuning.data if recipe is None else tuning.data or recipe.data
    if source is None:
        raise CfvaeError("which images? Give --data SPEC")
    dataset = open_dataset(source, size)
    say(describe(dataset))
    same = not pipe.classes or pipe.classes == dataset.classes
    needed = f"{first_few(pipe.classes)}: give images of these"
    check(
        same, f"{dataset.name} has other classes than {tuning.model}, or in another order, which has {needed}"
    )
    if recipe is None:
        if pipe.classes:
            require_classes(dataset)
        images, held = hold_out(dataset, min(500, max(1, len(dataset) // 10)))
        return images, held, tuning.flip
    recipe, images, held = prepare(recipe, dataset)
    trained_on = has_same_images(folder, images)
    check(
        trained_on, f"{dataset.name}: {folder} was trained on other images, and some may have been held out"
    )
    steps, seen = recipe.vae_training.steps, trained_steps(folder)
    if seen is not None and seen < steps:
        remark = "where it goes on, its decoder has to be tuned anew"
        say(f"{tuning.model}: the second stage was stopped after step {seen} of {steps}; {remark}")
    return images, held, recipe.flip or tuning.flip


def _claim(
    out: Path, tuning: Tuning, pipe: LatentVAEPipeline, images: ImageDataset, flip: bool, resume: bool
) -> None:
    "Note what a tuning rests on. Raises `CfvaeError` where the folder holds another, or one not asked for."
    begun = bool(list_checkpoints(out / "decoder" / "checkpoints")) or (out / "pipeline").exists()
    way_out = "choose another --out"
    check(resume or not begun, f"{out} already holds a tuning: go on with it by --resume, or {way_out}")
    training = tuning.training
    note = {
        "model": weights_fingerprint(torch.nn.ModuleList([pipe.autoencoder, pipe.vae])),
        "images": images.fingerprint,
        "flip": flip,
        "seed": training.seed,
        "batch_size": training.batch_size,
        "loss": config_to_dict(tuning.loss),
    }
    earlier = {"flip": flip, **read_fields(out / NOTE, way_out)} if begun else note  # older notes do not say
    changed = [name for name in note if note[name] != earlier.get(name)]
    values = {name: f" ({earlier.get(name)}, not {note[name]})" for name in changed}
    values |= {"model": "", "images": ""}  # of these only checksums
    shown = [f"{name}{values[name]}" for name in changed]
    message = f"{out} was begun with another {' and another '.join(shown)}"
    check(not changed, f"{message}: give the same again to go on, or {way_out}")
    write_synced(out / NOTE, json.dumps(note, indent=1).encode())


def _fit(
    pipe: LatentVAEPipeline,
    autoencoder: Autoencoder,
    tuning: Tuning,
    images: ImageDataset,
    held: ImageDataset,
    flip: bool,
    out: Path,
    resume: bool,
    extra: list[Callback],
) -> bool:
    "Train, and save the pipeline with the averaged decoder; whether every step was done."
    config = tuning.training
    pipe.to(get_device(config.device))
    seed_everything(config.seed)
    before = copy.deepcopy(autoencoder)
    model = with_discriminator(autoencoder, tuning.loss)
    autoencoder_of(model).encoder.requires_grad_(False)
    pipe.vae.requires_grad_(False).to(memory_format=torch.channels_last)  # as `fit` lays out what it trains
    rebuild = through_both(pipe.vae, pipe.scaler)
    shown = held.batch(range(min(SHOWN, len(held))))

    def draw(model: Autoencoder | TwoPlayers) -> torch.Tensor:
        x, labels = (part.to(pipe.device) for part in shown)
        rows = [x]
        for decoder in (before, autoencoder_of(model)):  # without and with tuning, from the same draws
            rows.append(rebuild(decoder, x, (x, labels), make_generator(0)))
        return torch.cat(rows)

    watchers = watchers_of(
        out / "decoder", config, resume, draw, len(shown[0]), extra, images.fingerprint, AUTOENCODER_RATE
    )
    loss_fn = first_stage_loss(tuning.loss, flip, rebuild=rebuild)
    state = fit(model, images, loss_fn, config, watchers, take_step=RecordedStep())
    if state.is_main:
        averaged = typing.cast(Autoencoder | TwoPlayers, state.ema.module)
        tuned = autoencoder_of(averaged).cpu()
        tuned.requires_grad_(True)
        parts = (tuned, pipe.vae.cpu(), pipe.scaler.cpu(), pipe.classes, pipe.label_dropped)
        save_whole(LatentVAEPipeline(*parts), out / "pipeline")
    return state.step == config.steps
