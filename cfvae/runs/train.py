"""From images to a saved model, both stages."""

import contextlib
import copy
import dataclasses
import typing
from pathlib import Path

import torch
from accelerate import PartialState

from ..autoencoder import Autoencoder, AutoencoderConfig
from ..autoencoder_loss import TwoPlayers, autoencoder_of, first_stage, first_stage_loss
from ..core import check, check_path, get_device, make_generator, seed_everything
from ..data import ImageDataset, hold_out
from ..files.codes import encode_dataset, encode_share
from ..files.lock import FolderLock
from ..files.open import describe, open_dataset, require_classes
from ..guidance import Guidance
from ..hvae import HierarchicalVAE
from ..latents import LatentDataset, LatentScaler
from ..objective import vae_loss
from ..pipeline import LatentVAEPipeline
from ..pretrained import PretrainedAutoencoder, PretrainedConfig, load_pretrained
from ..recipes import Recipe, check_models
from ..training import Callback, TrainingConfig, TrainingState, fit, join_processes
from .callbacks import Checkpointer, JsonLog, PictureLog, ProgressBar, StopOnSignal, TensorBoardLog, TimeLimit
from .folder import claim_run, load_autoencoder, note_trained, only_model_is_kept, refuse_begun
from .free import check_free
from .output import say
from .recorded import RecordedStep
from .saved import save_whole

FirstStage = Autoencoder | PretrainedAutoencoder
SHOWN = 8  # held-out images in the pictures of a run
AUTOENCODER_RATE = "autoencoder_training.learning_rate"  # fields of the recipe, for advice
VAE_RATE = "vae_training.learning_rate"


def prepare(
    recipe: Recipe,  # what to train
    dataset: ImageDataset,  # on what
) -> tuple[Recipe, ImageDataset, ImageDataset]:
    """The recipe with the data's number of classes, the training images and the held-out ones.

    Raises `CfvaeError` where the images do not fit the recipe."""
    size = recipe.autoencoder.size
    check(
        dataset.size == size,
        f"{dataset.name}: images are {dataset.size} pixels wide, the recipe wants {size}",
    )
    check(len(dataset) >= 2, f"{dataset.name}: one image is not enough to train on")
    classes = require_classes(dataset) if recipe.conditional else 0
    train_images, held = hold_out(dataset, min(recipe.held_out, max(1, len(dataset) // 10)))
    _check_batch_sizes(recipe, train_images)
    vae = dataclasses.replace(recipe.vae, num_classes=classes)
    return dataclasses.replace(recipe, vae=vae), train_images, held


def _check_batch_sizes(recipe: Recipe, images: ImageDataset) -> None:
    examples = {"vae_training": len(images) * (2 if recipe.flip else 1)}  # a code for every mirror image
    if not recipe.is_pretrained:
        examples = {"autoencoder_training": len(images), **examples}
    for part, count in examples.items():
        batch_size = getattr(recipe, part).batch_size
        check(
            batch_size <= count,
            f"{part}.batch_size is {batch_size}, but {images.name} has {count} training images: "
            f"--set {part}.batch_size={count} or less",
        )


def watchers_of(
    folder: Path,  # of the stage
    config: TrainingConfig,  # of the stage
    resume: bool,  # go on from the newest checkpoint
    draw: typing.Callable[[typing.Any], torch.Tensor],  # averaged model -> images
    columns: int,  # images per row
    extra: typing.Sequence[Callback],  # further callbacks
    data: str,  # fingerprint of what is learned from
    rate: str,  # the recipe's field that a run which diverged should lower
) -> list[Callback]:
    """Who watches a stage. Log and pictures come before the checkpointer, so that they have all that a
    checkpoint counts as done; the others after it, so that they see the step it resumes from."""
    return [
        JsonLog(folder / "log.jsonl"),
        PictureLog(folder / "pictures", draw, columns),
        Checkpointer(
            folder / "checkpoints",
            config.checkpoint_every,
            resume,
            data=data,
            rate=rate,
        ),
        TensorBoardLog(folder / "tensorboard"),
        ProgressBar(folder.name),
        *extra,
    ]


def train_autoencoder(
    recipe: Recipe,  # from `prepare`
    images: ImageDataset,  # to train on
    held: ImageDataset,  # for the pictures
    out: Path,  # the run folder
    resume: bool,  # go on from the newest checkpoint
    extra: typing.Sequence[Callback] = (),  # further callbacks
) -> TrainingState:
    "Stage one; the averaged model is saved in `out`/autoencoder/model once its last step is done."
    folder = out / "autoencoder"
    config = recipe.autoencoder_training
    shown, _ = held.batch(range(min(SHOWN, len(held))))

    def draw(model: Autoencoder) -> torch.Tensor:
        originals = shown.to(next(model.parameters()).device)
        return torch.cat([originals, model(originals)])

    seed_everything(config.seed)
    sizes = recipe.autoencoder
    assert isinstance(sizes, AutoencoderConfig), "a borrowed first stage is not trained"
    model = first_stage(sizes, recipe.autoencoder_loss)
    loss_fn = first_stage_loss(recipe.autoencoder_loss, recipe.flip)
    watchers = watchers_of(
        folder, config, resume, draw, len(shown), extra, images.fingerprint, AUTOENCODER_RATE
    )
    state = fit(model, images, loss_fn, config, watchers, take_step=RecordedStep())
    if state.step == config.steps and state.is_main:
        averaged = typing.cast(Autoencoder | TwoPlayers, state.ema.module)
        save_whole(autoencoder_of(averaged).cpu(), folder / "model")
    return state


def _vae_pictures(
    recipe: Recipe,
    held: ImageDataset,
    pipeline: typing.Callable[[HierarchicalVAE], LatentVAEPipeline],
) -> typing.Callable[[HierarchicalVAE], torch.Tensor]:
    "What draws stage two's pictures: held-out images, reconstructions, samples, guided samples."
    shown, labels = held.batch(range(min(SHOWN, len(held))))
    known_labels = labels if recipe.conditional else None
    sample_labels = torch.arange(len(shown)) % recipe.vae.num_classes if recipe.conditional else None
    strengths = [None, Guidance(1.0, 1.0)] if recipe.guidable else [None]

    def draw(model: HierarchicalVAE) -> torch.Tensor:
        pipe = pipeline(model)
        rows = [shown, pipe.reconstruct(shown, known_labels)]
        for guidance in strengths:
            noise = make_generator(0)  # the same in both rows and at every step
            samples = pipe(sample_labels, len(shown), guidance, generator=noise, output_type="pt").images
            rows.append(samples * 2 - 1)
        return torch.cat([row.cpu() for row in rows])

    return draw


def train_vae(
    recipe: Recipe,  # from `prepare`
    autoencoder: FirstStage,  # trained
    latents: LatentDataset,  # codes of the training images
    held: ImageDataset,  # for the pictures
    out: Path,  # the run folder
    resume: bool,  # go on from the newest checkpoint
    extra: typing.Sequence[Callback] = (),  # further callbacks
) -> TrainingState:
    """Stage two; the pipeline with the averaged model is saved in `out`/pipeline.

    It is saved where training was stopped early, too."""
    folder = out / "vae"
    config = recipe.vae_training
    classes = latents.classes if recipe.conditional else ()

    def pipeline(model: HierarchicalVAE) -> LatentVAEPipeline:
        scaler = copy.deepcopy(latents.scaler)
        dropped = not classes or recipe.objective.label_drop > 0
        pipe = LatentVAEPipeline(autoencoder, model, scaler, classes, dropped)
        return pipe.to(model.decoder.start.device)

    draw = _vae_pictures(recipe, held, pipeline)
    watchers = watchers_of(
        folder, config, resume, draw, min(SHOWN, len(held)), extra, latents.fingerprint, VAE_RATE
    )
    seed_everything(config.seed)
    model = HierarchicalVAE(recipe.vae)
    loss_fn = vae_loss(recipe.objective)
    state = fit(model, latents, loss_fn, config, watchers, take_step=RecordedStep())
    if state.is_main:
        averaged = typing.cast(HierarchicalVAE, state.ema.module)
        save_whole(pipeline(averaged.cpu()), out / "pipeline")
        note_trained(out, state.step)
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
    """Train both stages into a run folder: True where all that was asked for is done.

    False: it was stopped, and `resume` takes it up again. Raises `CfvaeError` where it cannot be done."""
    out = check_path(out)
    signals = signals or StopOnSignal()
    extra: list[Callback] = [signals] if max_minutes is None else [signals, TimeLimit(max_minutes)]

    # complain before the images are opened, which may take long, and before anything is written
    _check_request(recipe, data, stage)
    borrowed = _borrow(recipe)
    processes = join_processes(recipe.vae_training.device)
    check_free(out)
    refuse_begun(out, resume)

    dataset = _open_images(data, recipe, processes)
    if processes.is_main_process:
        say(describe(dataset))
    source = data if isinstance(data, str) else dataset.name
    recipe, images, held = prepare(dataclasses.replace(recipe, data=source), dataset)
    with FolderLock(out) if processes.is_main_process else contextlib.nullcontext():
        if processes.is_main_process:
            claim_run(out, recipe, images, resume)
        processes.wait_for_everyone()
        if stage != "vae" and not borrowed:
            steps = recipe.autoencoder_training.steps
            done = only_model_is_kept(out)
            if not done:
                done = train_autoencoder(recipe, images, held, out, resume, extra).step == steps
            processes.wait_for_everyone()
            if stage == "autoencoder" or not done or signals.received:  # a signal may come at the last step
                return stage == "autoencoder" and done
        autoencoder = (borrowed or load_autoencoder(out)).to(get_device(recipe.vae_training.device))
        latents = _encode(recipe, autoencoder, images, out, processes)
        state = train_vae(recipe, autoencoder, latents, held, out, resume, extra)
        return state.step == recipe.vae_training.steps


def check_recipe(
    recipe: object,  # what was given as one
) -> None:
    "Raises `CfvaeError` for anything else, such as a preset's name."
    kind = type(recipe).__name__
    is_recipe = dataclasses.is_dataclass(recipe)  # lesson 14 has a class of its own
    check(is_recipe, f"the recipe is of the type {kind}: cfvae.runs.presets.preset makes one")


def _check_request(recipe: Recipe, data: object, stage: str) -> None:
    check_recipe(recipe)
    way_out = "give a name, such as folder:PATH, or the images as a cfvae.data.ImageDataset"
    usable = isinstance(data, (str, ImageDataset))
    check(usable, f"the data are of the type {type(data).__name__}: {way_out}")
    check(stage in ("all", "autoencoder", "vae"), f"stage is '{stage}': use all, autoencoder or vae")
    check(
        stage != "autoencoder" or not recipe.is_pretrained,
        "the autoencoder of this recipe is pretrained: there is nothing to train in stage one",
    )
    for config in (recipe.autoencoder_training, recipe.vae_training):
        get_device(config.device)
    check_models(recipe)


def _borrow(recipe: Recipe) -> PretrainedAutoencoder | None:
    "The first stage, where the recipe takes it as it is."
    config = recipe.autoencoder
    return load_pretrained(config) if isinstance(config, PretrainedConfig) else None


def _open_images(data: str | ImageDataset, recipe: Recipe, processes: PartialState) -> ImageDataset:
    "The images; the first process decodes them, the others find them decoded."
    with processes.main_process_first():
        return open_dataset(data, recipe.autoencoder.size) if isinstance(data, str) else data


def known_scaler(
    config: AutoencoderConfig | PretrainedConfig,  # of the first stage
) -> LatentScaler | None:
    "Shift and scale that a borrowed first stage brings along; None where they are measured on the codes."
    if isinstance(config, PretrainedConfig) and config.shift is not None and config.scale is not None:
        return LatentScaler(config.shift, config.scale)
    return None


def _encode(
    recipe: Recipe, autoencoder: FirstStage, images: ImageDataset, out: Path, processes: PartialState
) -> LatentDataset:
    "The codes of the training images, made once and kept in the run's folder."
    scaler = known_scaler(recipe.autoencoder)
    folder = out / "latents"
    shares = processes.num_processes
    if shares > 1:
        encode_share(autoencoder, images, folder, recipe.flip, processes.process_index, shares)
        processes.wait_for_everyone()
    with processes.main_process_first():
        return encode_dataset(autoencoder, images, folder, recipe.flip, scaler=scaler, shares=shares)
