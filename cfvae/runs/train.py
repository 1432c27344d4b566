"""From images to a saved model, both stages."""

import dataclasses
import typing
import torch
import copy
from cfvae.core import check, get_device, make_generator, seed_everything
from pathlib import Path
from cfvae.runs.callbacks import JsonLog, PictureLog, ProgressBar, TensorBoardLog, TimeLimit
from cfvae.training import TrainingConfig, TrainingState, fit, join_processes

from ..autoencoder import Autoencoder
from ..autoencoder_loss import first_stage, first_stage_loss, the_autoencoder
from ..data import ImageDataset, hold_out
from ..files.codes import encode_dataset
from ..files.lock import FolderLock
from ..files.open import open_dataset, require_classes
from ..guidance import Guidance
from ..hvae import HierarchicalVAE
from ..latents import LatentDataset, LatentScaler
from ..objective import vae_loss
from ..pipeline import LatentVAEPipeline
from ..pretrained import PretrainedAutoencoder, load_pretrained
from ..recipes import Recipe, is_pretrained
from .callbacks import Checkpointer, StopOnSignal
from .folder import claim_run, refuse_begun, load_autoencoder


def prepare(
    recipe: Recipe,  # what to train
    dataset: ImageDataset,  # on what
) -> tuple[Recipe, ImageDataset, ImageDataset]:
    "The recipe with the data's number of classes, the training images and the held-out ones."
    check(
        dataset.size == recipe.autoencoder.size,
        f"{dataset.name}: images are {dataset.size} pixels wide, the recipe wants {recipe.autoencoder.size}",
    )
    check(len(dataset) >= 2, f"{dataset.name}: one image is not enough to train on")
    classes = require_classes(dataset) if recipe.conditional else 0
    train, held = hold_out(dataset, min(recipe.held_out, max(1, len(dataset) // 10)))
    trained = [] if is_pretrained(recipe) else [("autoencoder_training", len(train))]
    for part, count in [*trained, ("vae_training", len(train) * (1 + recipe.flip))]:
        size = getattr(recipe, part).batch_size
        check(
            size <= count,
            f"{part}.batch_size is {size}, but {dataset.name} has {count} training images: --set {part}.batch_size={count} or less",
        )
    vae = dataclasses.replace(recipe.vae, num_classes=classes)
    return dataclasses.replace(recipe, vae=vae), train, held


def _callbacks(
    folder: Path,
    recipe_training: TrainingConfig,
    title: str,
    resume: bool,
    draw: typing.Callable,
    shown: int,
    extra: typing.Sequence,
) -> list:
    "Who watches a stage. The checkpointer comes first, so that the others see the step it resumes from."
    return [
        Checkpointer(folder / "checkpoints", recipe_training.checkpoint_every, resume),
        JsonLog(folder / "log.jsonl"),
        TensorBoardLog(folder / "tensorboard"),
        PictureLog(folder / "pictures", draw, columns=shown),
        ProgressBar(title),
        *extra,
    ]


def train_autoencoder(
    recipe: Recipe,  # from `prepare`
    train: ImageDataset,  # images
    held: ImageDataset,  # images for the pictures
    out: Path,  # the run folder
    resume: bool,  # go on from the newest checkpoint
    extra: typing.Sequence = (),  # further callbacks
) -> TrainingState:
    "Stage one; the averaged model is saved in `out`/autoencoder/model once its last step is done."
    shown = held.batch(range(min(8, len(held))))[0]

    def draw(model):
        images = shown.to(next(model.parameters()).device)
        return torch.cat([images, model(images)])

    seed_everything(recipe.autoencoder_training.seed)
    folder, config = out / "autoencoder", recipe.autoencoder_training
    model, loss_fn = (
        first_stage(recipe.autoencoder, recipe.autoencoder_loss),
        first_stage_loss(recipe.autoencoder_loss, recipe.flip),
    )
    state = fit(
        model,
        train,
        loss_fn,
        config,
        _callbacks(folder, config, "autoencoder", resume, draw, len(shown), extra),
    )
    if state.step == config.steps and state.is_main:
        the_autoencoder(state.ema.module).cpu().save_pretrained(folder / "model")
    return state


def train_vae(
    recipe: Recipe,  # from `prepare`
    autoencoder: Autoencoder | PretrainedAutoencoder,  # trained
    latents: LatentDataset,  # codes of the training images
    held: ImageDataset,  # images for the pictures
    out: Path,  # the run folder
    resume: bool,  # go on from the newest checkpoint
    extra: typing.Sequence = (),  # further callbacks
) -> TrainingState:
    "Stage two; the pipeline with the averaged model is saved in `out`/pipeline, also where training was stopped early."
    folder, config, classes = out / "vae", recipe.vae_training, latents.classes if recipe.conditional else ()
    shown, labels = held.batch(range(min(8, len(held))))
    labels = labels if recipe.conditional else None
    wanted = torch.arange(len(shown)) % max(recipe.vae.num_classes, 1) if recipe.conditional else None
    guidance = (
        Guidance(1.0, 1.0)
        if recipe.conditional and recipe.vae.learned_prior and recipe.objective.label_drop > 0
        else None
    )

    def pipeline(model):
        return LatentVAEPipeline(autoencoder, model, copy.deepcopy(latents.scaler), classes).to(
            model.decoder.start.device
        )

    def draw(model):
        pipe = pipeline(model)
        rows = [shown.to(pipe.device), pipe.reconstruct(shown, labels)]
        for g in [None] + ([guidance] if guidance else []):  # the same noise in both rows and at every step
            rows.append(
                pipe(wanted, len(shown), g, generator=make_generator(0), output_type="pt").images * 2 - 1
            )
        return torch.cat([row.cpu() for row in rows])

    seed_everything(config.seed)
    state = fit(
        HierarchicalVAE(recipe.vae),
        latents,
        vae_loss(recipe.objective),
        config,
        _callbacks(folder, config, "vae", resume, draw, len(shown), extra),
    )
    if state.is_main:
        pipeline(state.ema.module.cpu()).save_pretrained(out / "pipeline")
    return state


def train(
    recipe: Recipe,  # what to train
    data: str | ImageDataset,  # where the images come from (as `open_dataset` reads it), or the images
    out: str | Path,  # the run folder
    stage: str = "all",  # "all", "autoencoder" or "vae"
    resume: bool = False,  # go on with a run; an empty folder is begun
    max_minutes: float | None = None,  # stop after so long, whatever the stage
    signals: StopOnSignal | None = None,  # one's own, to ask afterwards which signal it `received`
) -> bool:
    "Train both stages into a run folder. True where all that was asked for is done, False where it was stopped before; `resume` takes it up again."
    check(stage in ("all", "autoencoder", "vae"), f"stage is '{stage}': use all, autoencoder or vae")
    check(
        stage != "autoencoder" or not is_pretrained(recipe),
        "the autoencoder of this recipe is pretrained: there is nothing to train in stage one",
    )
    borrowed = (
        load_pretrained(recipe.autoencoder) if is_pretrained(recipe) else None
    )  # where it is missing, complain before the images are opened
    signals = signals or StopOnSignal()
    extra = [signals] + ([TimeLimit(max_minutes)] if max_minutes is not None else [])
    for config in (recipe.autoencoder_training, recipe.vae_training):
        get_device(config.device)  # complain before anything is written
    out = Path(out)
    processes = join_processes(recipe.vae_training.device)
    refuse_begun(out, resume)  # before the images are opened, which may take long
    with processes.main_process_first():  # the first process decodes the images, the others find them decoded
        dataset = open_dataset(data, recipe.autoencoder.size) if isinstance(data, str) else data
    recipe, images, held = prepare(
        dataclasses.replace(recipe, data=data if isinstance(data, str) else dataset.name), dataset
    )
    known = (
        LatentScaler(recipe.autoencoder.shift, recipe.autoencoder.scale)
        if borrowed and recipe.autoencoder.scale is not None
        else None
    )
    with FolderLock(out):
        if processes.is_main_process:
            claim_run(out, recipe, images, resume)
        processes.wait_for_everyone()
        if stage != "vae" and not borrowed:
            state = train_autoencoder(recipe, images, held, out, resume, extra)
            processes.wait_for_everyone()
            done = state.step == recipe.autoencoder_training.steps
            if stage == "autoencoder" or not done or signals.received:  # a signal may come at the last step
                return stage == "autoencoder" and done
        autoencoder = (borrowed or load_autoencoder(out)).to(get_device(recipe.vae_training.device))
        with processes.main_process_first():
            latents = encode_dataset(autoencoder, images, out / "latents", recipe.flip, scaler=known)
        return (
            train_vae(recipe, autoencoder, latents, held, out, resume, extra).step
            == recipe.vae_training.steps
        )
