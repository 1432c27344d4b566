"""What the lessons built, as commands: train, look inside, draw, and never lose a run."""

import typing
import typer
import errno
import sys
import os
import traceback
import warnings
import signal
import shlex
import contextlib
import re
from pathlib import Path


if typing.TYPE_CHECKING:
    from cfvae.autoencoder import AutoencoderConfig
    from cfvae.hvae import HierarchicalVAEConfig
    from cfvae.pretrained import PretrainedConfig
    from cfvae.pipeline import LatentVAEPipeline
    from cfvae.recipes import Recipe


_UsageError = typer.BadParameter.__base__  # what typer raises for a command line that it cannot read


def _out_of_memory(error: BaseException) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def _about_file(error: OSError) -> str:
    "A system error as one line: the file, what is wrong, the way out."
    way_out = "check the path"
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        way_out = "free some space, or write to another disk"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        way_out = "choose a place where you have permission"
    return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}: {way_out}"


def _explain(error: BaseException) -> tuple[int, str]:
    "Exit code and message for an exception. Code 2: the user can mend it; 1: only we can."
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted: nothing was finished, give the same command again"
    if isinstance(error, _UsageError):
        command = error.ctx.command_path if error.ctx else "cfvae"
        return 2, f"{' '.join(error.format_message().split())}\nSee {command} --help"
    if _out_of_memory(error):
        return 2, (
            "out of memory: lower the batch size (train: --set batch_size=16, sample: --batch-size 8),\n"
            "or train every batch in parts (--set accumulate=4), which a run that has begun allows too, with --resume"
        )
    if isinstance(error, OSError):
        return 2, _about_file(error)
    from cfvae.core import CfvaeError

    if isinstance(error, CfvaeError):
        return 2, str(error)
    return (
        1,
        f"{type(error).__name__}: {' '.join(str(error).split())[:300]}\nThis should not happen: please report it, with what --debug shows",
    )


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _dispatch(arguments: list[str]) -> int:
    "Read the command line and call the command; every exception comes through."
    command = typer.main.get_command(app)
    try:
        with command.make_context("cfvae", arguments) as context:
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except typer.Exit as end:
        return end.exit_code


def main(
    arguments: typing.Sequence[str] | None = None,  # what stands after `cfvae`; None: this process's own
) -> int:
    "Run one command. Returns the exit code: 0 done, 2 an error the user can mend, 130 Ctrl-C, 143 SIGTERM, 1 a defect."
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments  # wherever it stands
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return _dispatch([a for a in arguments if a != "--debug"] or ["--help"])
        except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                traceback.print_exc()
            code, message = _explain(error)
            print(f"error: {message}", file=sys.stderr)
            return code


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


Option, Argument = typer.Option, typer.Argument


Model = typing.Annotated[
    Path,
    Argument(
        metavar="MODEL",
        help="A run folder, a saved pipeline, hub:owner/name, or the name of a shipped one: shapes.",
        show_default=False,
    ),
]


Data = typing.Annotated[
    str,
    Option(
        metavar="SPEC",
        help="shapes, shapes:n=2000,seed=1, cifar10, folder:PATH or tiny-imagenet:PATH.",
        show_default=False,
    ),
]


Device = typing.Annotated[str, Option(help="auto, cpu or cuda.")]


Validation = typing.Annotated[bool, Option("--validation", help="Take the data's validation split.")]


def _version(wanted: bool) -> None:
    if wanted:
        from cfvae import __version__

        print(f"cfvae {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: typing.Annotated[
        bool, Option("--debug", help="Show an error's whole trace. May stand anywhere.")
    ] = False,
    version: typing.Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    "Deep hierarchical VAEs in latent space: train them, look inside, draw from them."


def _parameters(
    autoencoder: "AutoencoderConfig | PretrainedConfig", vae: "HierarchicalVAEConfig"
) -> tuple[str, str]:
    "Parameters of both models in millions, counted without any memory for them; what stands in place of the first where it is not trained here."
    import torch

    from cfvae.autoencoder import Autoencoder
    from cfvae.core import count_parameters
    from cfvae.hvae import HierarchicalVAE
    from cfvae.pretrained import PretrainedConfig

    with torch.device("meta"):
        first = Autoencoder(autoencoder) if not isinstance(autoencoder, PretrainedConfig) else None
        counts = [
            f"{count_parameters(model) / 1e6:.2f}" if model else "" for model in (first, HierarchicalVAE(vae))
        ]
    return counts[0] or ("pixels" if autoencoder.source == "pixels" else "pretrained"), counts[1]


def _shape(sizes: typing.Iterable[int]) -> str:
    return " x ".join(map(str, sizes))


@app.command()
def presets() -> None:
    "List the named recipes: data, sizes, steps, and what hardware they are meant for."
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    import cfvae.published  # noqa: F401  (adds its presets)
    from cfvae.runs.presets import PRESETS, preset
    from cfvae.recipes import is_pretrained

    table = Table(box=SIMPLE)
    for title in ("name", "image", "code", "layers", "parameters\n(millions)", "steps"):
        table.add_column(title, justify="right" if title[0] in "lps" else "left", no_wrap=title == "name")
    table.add_column("data, and what it is meant for", overflow="fold")
    for name in PRESETS:
        recipe = preset(name)
        sizes = _parameters(recipe.autoencoder, recipe.vae)
        steps = (
            f"{recipe.vae_training.steps}"
            if is_pretrained(recipe)
            else f"{recipe.autoencoder_training.steps}\n+ {recipe.vae_training.steps}"
        )
        about = f"{recipe.data}\n{(PRESETS[name].__doc__ or '').strip().partition(chr(10))[0]}"
        table.add_row(
            name,
            _shape([recipe.autoencoder.size] * 2),
            _shape(recipe.autoencoder.latent_shape),
            str(sum(recipe.vae.layers)),
            f"{sizes[0]}\n+ {sizes[1]}",
            steps,
            about,
        )
    terminal = sys.stdout.isatty()
    Console(
        width=None if terminal else 120, force_terminal=terminal, highlight=False, force_jupyter=False
    ).print(table)


def _recipe(
    name: str | None, out: Path, resume: bool, settings: dict[str, str], autoencoder: str | None = None
) -> "Recipe":
    "The recipe to train: the run's own where one goes on, else a preset; with changes."
    import cfvae.published  # noqa: F401  (adds its presets)
    from cfvae.core import check
    from cfvae.recipes import change, with_pretrained
    from cfvae.runs.folder import load_recipe
    from cfvae.runs.presets import preset

    if resume and (out / "recipe.json").exists():
        recipe = load_recipe(out)
        check(
            name in (None, recipe.name),
            f"{out} was begun with the preset {recipe.name}, not {name}: leave --preset out, or choose another --out",
        )
    else:
        check(name is not None, "which recipe? Give --preset NAME; `cfvae presets` lists them")
        recipe = preset(name)
    changed = change(recipe, settings)
    return changed if autoencoder is None else with_pretrained(changed, autoencoder)


def _settings(pairs: typing.Sequence[str]) -> dict[str, str]:
    "What --set says, as a dictionary."
    from cfvae.core import check

    for pair in pairs:
        check(
            "=" in pair.strip("="), f"--set {pair}: write it as key=value, for instance --set batch_size=16"
        )
    return dict(pair.split("=", 1) for pair in pairs)


def _newest(folder: Path) -> int:
    "The step of a stage's newest checkpoint; 0 where there is none."
    from cfvae.checkpoints import list_checkpoints

    return max((int(path.name.split("-")[1]) for path in list_checkpoints(folder / "checkpoints")), default=0)


def _stopped(out: Path, recipe: "Recipe", number: int | None, again: str) -> str:
    "One line about a run that was stopped: by whom, what is saved, how to go on."
    who = {None: "the time limit", signal.SIGINT: "Ctrl-C"}.get(number) or signal.Signals(number).name
    for stage, training in (("vae", recipe.vae_training), ("autoencoder", recipe.autoencoder_training)):
        if step := _newest(out / stage):
            return f"stopped by {who}: everything up to step {step} of {training.steps} ({stage}) is saved; go on with: {again}"
    return f"stopped by {who}: nothing was saved yet; give the same command again"


def _train(recipe: "Recipe", out: Path, again: str, **options) -> None:
    "Train; where the run is stopped early, say so and leave with the signal's exit code (0 for the time limit)."
    from cfvae.runs.callbacks import StopOnSignal
    from cfvae.runs.train import train

    signals = StopOnSignal()

    def stop(number, frame):  # while StopOnSignal is not on duty
        signals.received = number
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGTERM, stop)
    try:
        done = train(recipe, recipe.data, out, signals=signals, **options)
    except KeyboardInterrupt:
        done, signals.received = False, signals.received or signal.SIGINT
    finally:
        signal.signal(signal.SIGTERM, earlier or signal.SIG_DFL)
    if not done:
        print(_stopped(out, recipe, signals.received, again))
        raise typer.Exit(128 + signals.received if signals.received else 0)


@app.command()
def train(
    out: typing.Annotated[
        Path,
        Option(metavar="DIR", help="The run folder: log, pictures, checkpoints, model.", show_default=False),
    ],
    preset: typing.Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="A named recipe; see cfvae presets. Not needed with --resume.",
            show_default=False,
        ),
    ] = None,
    data: typing.Annotated[
        str | None,
        Option(
            metavar="SPEC",
            help="As cifar10 or folder:PATH; the recipe's own if not given.",
            show_default=False,
        ),
    ] = None,
    autoencoder: typing.Annotated[
        str | None,
        Option(
            metavar="SOURCE",
            help="A pretrained first stage: a folder or owner/name on the hub, in diffusers' form; or pixels, for none.",
            show_default=False,
        ),
    ] = None,
    stage: typing.Annotated[str, Option(help="all, autoencoder or vae.")] = "all",
    steps: typing.Annotated[int | None, Option(help="Steps of each stage.", show_default=False)] = None,
    max_minutes: typing.Annotated[
        float | None, Option(help="Save and stop after so long.", show_default=False)
    ] = None,
    resume: typing.Annotated[
        bool, Option("--resume", help="Go on with the run in the folder; an empty folder is begun.")
    ] = False,
    settings: typing.Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change the recipe, as batch_size=16. Repeatable.",
            show_default=False,
        ),
    ] = None,
    seed: typing.Annotated[
        int | None, Option(help="Decides initial weights, order of the data and noise.", show_default=False)
    ] = None,
    device: typing.Annotated[str | None, Option(help="auto, cpu or cuda.", show_default=False)] = None,
    precision: typing.Annotated[str | None, Option(help="auto, fp32 or bf16.", show_default=False)] = None,
) -> None:
    "Train a model of a folder of images, or of any other data."
    short = {"data": data, "steps": steps, "seed": seed, "device": device, "precision": precision}
    recipe = _recipe(
        preset,
        out,
        resume,
        {k: v for k, v in short.items() if v is not None} | _settings(settings or ()),
        autoencoder,
    )
    name = shlex.quote(str(out))
    _train(
        recipe, out, f"cfvae train --out {name} --resume", stage=stage, resume=resume, max_minutes=max_minutes
    )
    if stage == "autoencoder":
        print(
            f"done: the autoencoder is in {out / 'autoencoder' / 'model'}. Next: cfvae train --out {name} --resume"
        )
    else:
        print(f"done: the model is in {out / 'pipeline'}. Next: cfvae sample {name} --n 16 --out samples.png")


def _some(names: typing.Sequence[str], limit: int = 12) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _sizes(
    autoencoder: "AutoencoderConfig | PretrainedConfig", vae: "HierarchicalVAEConfig"
) -> dict[str, str]:
    "What both models look like."
    sizes = _parameters(autoencoder, vae)
    return {
        "images": _shape([autoencoder.size] * 2),
        "code": _shape(autoencoder.latent_shape),
        "stochastic layers": f"{sum(vae.layers)}: {', '.join(f'{count} at {r} x {r}' for count, r in zip(vae.layers, vae.resolutions, strict=True))}",
        "parameters": f"autoencoder {sizes[0]}{'' if sizes[0].isalpha() else ' M'}, VAE {sizes[1]} M",
    }


def _progress(folder: Path, steps: int) -> str:
    "How far a stage is: steps saved, last line of the log, checkpoints."
    from cfvae.checkpoints import list_checkpoints
    from cfvae.runs.callbacks import read_log

    done, log = _newest(folder), read_log(folder / "log.jsonl")
    logged = f"; last logged: loss {log[-1]['loss']:.4g} at step {log[-1]['step']}" if log else ""
    kept = ", ".join(path.name.split("-")[1] for path in list_checkpoints(folder / "checkpoints"))
    return f"{done} of {steps} steps saved{logged}; checkpoints: {kept or 'none'}"


def _about_run(run: Path) -> dict[str, str]:
    "What is known of a run, trained or not."
    from cfvae.recipes import is_pretrained
    from cfvae.runs.folder import load_model, load_recipe

    recipe, trained = load_recipe(run), (run / "pipeline" / "pipeline.json").exists()
    names = f": {_some(load_model(run).classes)}" if trained and recipe.vae.num_classes else ""
    return {
        "run": f"{run}, preset {recipe.name}",
        "data": recipe.data,
        **_sizes(recipe.autoencoder, recipe.vae),
        "classes": f"{recipe.vae.num_classes or 'none'}{names}",
        "autoencoder": f"pretrained: {recipe.autoencoder.source}"
        if is_pretrained(recipe)
        else _progress(run / "autoencoder", recipe.autoencoder_training.steps),
        "VAE": _progress(run / "vae", recipe.vae_training.steps),
        "model": str(run / "pipeline")
        if trained
        else f"none yet; go on with: cfvae train --out {shlex.quote(str(run))} --resume",
    }


@app.command()
def info(model: Model) -> None:
    "Show what a run or a saved pipeline holds, and how far its training is."
    from cfvae.runs.folder import load_model

    if (model / "recipe.json").exists():
        about = _about_run(model)
    else:
        pipe = load_model(model)
        about = {
            "pipeline": str(model),
            **_sizes(pipe.autoencoder.config, pipe.vae.config),
            "classes": f"{len(pipe.classes) or 'none'}: {_some(pipe.classes)}",
        }
    for key, value in about.items():
        print(f"{key:<18} {value}")


def _draw(
    pipe: "LatentVAEPipeline", labels: list[int] | None, n: int, seed: int, batch_size: int, **options
) -> typing.Iterator:
    "Yield (index of the first, uint8 images (b, h, w, 3)) until n are drawn. Image i depends on the seed and on i, not on n or the batch size."
    import torch
    from tqdm import tqdm

    from cfvae.core import make_generator

    generator = make_generator(seed)
    for start in tqdm(range(0, n, batch_size), desc="drawing", unit="batch", disable=None, leave=False):
        count = min(batch_size, n - start)
        eps = [
            torch.cat(parts)
            for parts in zip(*(pipe.vae.noise(1, generator) for _ in range(count)), strict=True)
        ]
        chosen = None if labels is None else labels[start : start + count]
        yield start, pipe(chosen, count, eps=eps, output_type="np", batch_size=count, **options).images


@contextlib.contextmanager
def _npz(path: Path, shape: tuple[int, ...]) -> typing.Iterator[typing.IO[bytes]]:
    "A file that numpy reads as one uint8 array, `arr_0`, written piece by piece. It gets its name when it is whole."
    import zipfile

    import numpy as np

    unfinished = path.with_name(path.name + ".tmp")
    try:
        with (
            zipfile.ZipFile(unfinished, "w") as archive,
            archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file,
        ):
            np.lib.format.write_array_header_1_0(
                file, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            yield file
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str, option: str) -> float | tuple[float, ...]:
    "One number, or one per resolution."
    from cfvae.core import CfvaeError

    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise CfvaeError(
            f"{option} is '{text}': give a number, or one per resolution, lowest first, as in 1.5,1,0"
        ) from None
    return values[0] if len(values) == 1 else values


def _wanted(pipe: "LatentVAEPipeline", n: int, classes: str | None, labels: str | None) -> list[int] | None:
    "A class index per image: those asked for, over and over; all classes in turn where none is named; None for a model without classes."
    from cfvae.core import check

    count = len(pipe.classes)
    chosen = list(range(count))
    check(
        classes is None or labels is None, "--classes and --labels say the same in two ways: give one of them"
    )
    if classes is not None:
        chosen = pipe.class_indices(_parts(classes))
    if labels is not None:
        check(count > 0, "--labels: the model was trained without classes, leave it out")
        for part in _parts(labels):
            check(
                part.isdecimal() and int(part) < count,
                f"--labels: '{part}' is not a label of this model: it has 0 to {count - 1}",
            )
        chosen = [int(part) for part in _parts(labels)]
    check(chosen or not count, "no class is named: give at least one, or leave the option out")
    return [chosen[i % len(chosen)] for i in range(n)] if chosen else None


def _file(path: Path | None, ending: str, option: str) -> None:
    "Make sure, before the work, that a file can be called so, and that its folder is there."
    from cfvae.core import check

    if path is not None:
        check(
            path.suffix.lower() == ending and not path.is_dir(),
            f"{option} is {path}: give the name of a {ending} file",
        )
        path.parent.mkdir(parents=True, exist_ok=True)


def _save_grid(images, columns: int | None, path: Path) -> None:
    "Save (n, h, w, 3) uint8 images as one picture; small ones are enlarged by a whole number."
    import torch

    from cfvae.core import from_uint8, image_grid

    image_grid(
        from_uint8(torch.as_tensor(images)).permute(0, 3, 1, 2), columns, scale=max(1, 64 // images.shape[1])
    ).save(path)


LARGEST_GRID = 4096  # images in one picture


@app.command()
def sample(
    model: Model,
    n: typing.Annotated[int, Option("--n", min=1, help="How many images.")] = 16,
    classes: typing.Annotated[
        str | None,
        Option(help="Class names, as cat,dog; taken in turn. All, if not given.", show_default=False),
    ] = None,
    labels: typing.Annotated[
        str | None, Option(help="The same by number, as 0,3.", show_default=False)
    ] = None,
    mean_weight: typing.Annotated[
        str, Option(help="Guidance of the means; 0 is off. A number, or one per resolution, lowest first.")
    ] = "0",
    var_weight: typing.Annotated[str, Option(help="Guidance of the variances; 0 is off.")] = "0",
    temperature: typing.Annotated[
        str, Option(help="Scales the noise: below 1 more typical, 0 the modes.")
    ] = "1",
    seed: typing.Annotated[int, Option(help="The same seed gives the same images.")] = 0,
    device: Device = "auto",
    batch_size: typing.Annotated[int, Option(min=1, help="Images at a time.")] = 64,
    out: typing.Annotated[
        Path | None, Option(metavar="PNG", help="One picture of all images.", show_default=False)
    ] = None,
    out_dir: typing.Annotated[
        Path | None, Option(metavar="DIR", help="A PNG file per image.", show_default=False)
    ] = None,
    npz: typing.Annotated[
        Path | None,
        Option(metavar="NPZ", help="A numpy array: arr_0, uint8, (n, height, width, 3).", show_default=False),
    ] = None,
) -> None:
    "Draw images, guided or not."
    import numpy as np

    from cfvae.core import check, get_device
    from cfvae.guidance import Guidance
    from cfvae.runs.folder import load_model

    check(out or out_dir or npz, "where to? Give --out grid.png, --out-dir DIR or --npz FILE.npz")
    check(
        not out or n <= LARGEST_GRID,
        f"--out draws at most {LARGEST_GRID} images into one picture: use --out-dir or --npz",
    )
    guidance = Guidance(_numbers(mean_weight, "--mean-weight"), _numbers(var_weight, "--var-weight"))
    options = {"guidance": guidance, "temperature": _numbers(temperature, "--temperature")}
    pipe = load_model(model).to(get_device(device))
    wanted, size, kept = _wanted(pipe, n, classes, labels), pipe.autoencoder.config.size, []
    _outputs(out, out_dir, npz)
    with _npz(npz, (n, size, size, 3)) if npz else contextlib.nullcontext() as file:
        for start, images in _draw(pipe, wanted, n, seed, batch_size, **options):
            if file:
                file.write(images.tobytes())
            if out_dir:
                _save_each(
                    images,
                    start,
                    [pipe.classes[i] for i in wanted[start : start + len(images)]] if wanted else None,
                    out_dir,
                )
            if out:
                kept.append(images)
    if out:
        _save_grid(np.concatenate(kept), None, out)
    shown = f" ({_some([pipe.classes[i] for i in dict.fromkeys(wanted)])})" if wanted else ""
    print(
        f"{n} image{'s' * (n > 1)}{shown} in {', '.join(str(path) for path in (out, out_dir, npz) if path)}"
    )


def _outputs(out: Path | None, out_dir: Path | None, npz: Path | None) -> None:
    "Check the places to write to before anything is drawn."
    from cfvae.core import check

    _file(out, ".png", "--out")
    _file(npz, ".npz", "--npz")
    if out_dir:
        out_dir.mkdir(parents=True, exist_ok=True)
        check(
            not any(out_dir.iterdir()),
            f"{out_dir} already holds files, and old images among new ones would be counted: empty it, or choose another --out-dir",
        )


def _save_each(images, start: int, names: list[str] | None, folder: Path) -> None:
    "One PNG per image, called by index and class."
    from PIL import Image

    for i, image in enumerate(images):
        name = "-" + re.sub(r"[^\w-]+", "_", names[i]) if names else ""
        Image.fromarray(image).save(folder / f"{start + i:06d}{name}.png")


def _labels(pipe: "LatentVAEPipeline", dataset, indices: list[int]) -> list[int] | None:
    "The model's labels for some images of a dataset, matched by the names of the classes; None for a model without classes."
    from cfvae.core import check

    if not pipe.classes:
        return None
    unknown = [name for name in dataset.classes if name not in pipe.classes]
    check(
        not unknown,
        f"{dataset.name}: the model knows no class {_some(unknown, 3)}: it was trained on {_some(pipe.classes)}",
    )
    found = dataset.labels[indices].tolist()
    check(min(found) >= 0, f"{dataset.name}: the images have no labels, and this model needs them")
    return pipe.class_indices([dataset.classes[label] for label in found])


def _depths(text: str) -> list[int | None]:
    "--depths as numbers of layers; None stands for all."
    from cfvae.core import check

    for part in _parts(text):
        check(
            part == "all" or part.isdecimal(),
            f"--depths: '{part}' is not a number of layers: write it as in 1,4,all",
        )
    return [None if part == "all" else int(part) for part in _parts(text)]


@app.command()
def reconstruct(
    model: Model,
    data: Data,
    out: typing.Annotated[Path, Option(metavar="PNG", help="The picture.", show_default=False)],
    depths: typing.Annotated[
        str, Option(help="Rows: how many stochastic layers may look at the image.")
    ] = "1,all",
    n: typing.Annotated[int, Option("--n", min=1, help="How many images, spread evenly over the data.")] = 8,
    validation: Validation = False,
    device: Device = "auto",
) -> None:
    "Draw images beside what the model remembers of them."
    import torch

    from cfvae.core import check, get_device, to_uint8
    from cfvae.files.open import open_dataset
    from cfvae.runs.folder import load_model

    _file(out, ".png", "--out")
    wanted = _depths(depths)
    pipe = load_model(model).to(get_device(device))
    dataset = open_dataset(data, pipe.autoencoder.config.size, train=not validation)
    check(n <= len(dataset), f"--n is {n}, but {dataset.name} has {len(dataset)} images")
    indices = [i * len(dataset) // n for i in range(n)]
    images, labels = dataset.batch(indices)[0], _labels(pipe, dataset, indices)
    rows = [images] + [pipe.reconstruct(images, labels, depth).cpu() for depth in [0, *wanted]]
    _save_grid(to_uint8(torch.cat(rows)).permute(0, 2, 3, 1).numpy(), n, out)
    names = ["all layers" if depth is None else f"{depth} layer{'s' * (depth != 1)}" for depth in wanted]
    print(f"{out}, from top to bottom: {', '.join(['originals', 'autoencoder alone', *names])}")


def _check_latents_folder(out: Path) -> None:
    "Whatever is in the folder will be replaced: make sure that it is codes."
    from cfvae.core import check

    check(out.name not in ("", ".."), f"--out is {out}: give a folder of its own, such as latents")
    others = (
        [path.name for path in out.iterdir() if path.name not in ("latents.npy", "latents.json")]
        if out.is_dir()
        else []
    )
    check(not others, f"{out} holds other files ({_some(others, 3)}): give a folder of its own for the codes")
    check(out.is_dir() or not out.exists(), f"{out} is a file: give a folder for the codes")


@app.command()
def encode(
    model: Model,
    data: Data,
    out: typing.Annotated[
        Path, Option(metavar="DIR", help="The folder for latents.npy and latents.json.", show_default=False)
    ],
    flip: typing.Annotated[bool, Option("--flip", help="Encode every image's mirror image too.")] = False,
    validation: Validation = False,
    device: Device = "auto",
) -> None:
    "Write the codes of a dataset to disk, where they can be memory-mapped."
    from cfvae.core import get_device
    from cfvae.files.open import open_dataset
    from cfvae.files.codes import encode_dataset
    from cfvae.runs.folder import load_autoencoder, load_model

    _check_latents_folder(out)
    autoencoder = (
        load_autoencoder(model) if (model / "recipe.json").exists() else load_model(model).autoencoder
    )
    dataset = open_dataset(data, autoencoder.config.size, train=not validation)
    latents = encode_dataset(autoencoder.to(get_device(device)), dataset, out, flip).latents
    print(
        f"{len(latents)} codes of shape {_shape(latents.shape[1:])} in {out}: latents.npy ({latents.dtype}) and latents.json (shift and scale)"
    )


@app.command()
def demo(
    out: typing.Annotated[Path, Option(metavar="DIR", help="The run folder.")] = Path("runs/demo"),
) -> None:
    "Train a small model on generated shapes and write a report: minutes on two CPU cores."
    from cfvae.runs.report import write_report

    recipe, name = _recipe("shapes-demo", out, True, {}), shlex.quote(str(out))
    if _newest(out / "vae") == recipe.vae_training.steps and (out / "pipeline" / "pipeline.json").exists():
        print(f"the demo in {out} is complete: only its report is written again")
    else:
        _train(recipe, out, f"cfvae demo --out {name}", resume=True)
    print(
        f"report: {write_report(out)}. Next: cfvae sample {name} --mean-weight 1 --var-weight 1 --out samples.png"
    )


@app.command()
def train_features(
    out: typing.Annotated[
        Path, Option(metavar="DIR", help="The folder for the weights.", show_default=False)
    ],
) -> None:
    "Train the judge of the shapes models again, as it was trained for the package."
    from cfvae import evaluation
    from cfvae.data import Shapes
    from cfvae.pipeline import load_local

    out.mkdir(parents=True, exist_ok=True)
    evaluation.train_shapes_classifier().cpu().half().save_pretrained(out)
    held_out = Shapes(2000, seed=12345)  # training had another seed
    images, labels = held_out.batch(range(len(held_out)))
    accuracy = evaluation.class_accuracy(load_local(evaluation.Classifier, out), images, labels)
    print(f"the classifier is in {out}: {accuracy:.1%} of {len(images)} held-out images are recognised")


def _published_arguments(config: str | None, weights: Path) -> "str | dict":
    "What --config says: a name, or the constructor arguments out of a JSON file or the weights' own header."
    import json

    from cfvae.core import CfvaeError, check
    from cfvae.published import read_header

    if config is not None and not config.endswith(".json"):
        return config
    text = read_header(weights).get("config") if config is None else Path(config).read_text(encoding="utf-8")
    check(
        text is not None,
        f"{weights} does not say which model it holds: give --config, the name of a published model or a JSON file with its constructor arguments",
    )
    try:
        return json.loads(text)
    except ValueError as error:
        raise CfvaeError(
            f"the config of {config or weights} is not JSON ({error}): it has to hold the constructor arguments"
        ) from None


@app.command()
def import_weights(
    weights: typing.Annotated[
        Path, Argument(metavar="FILE", help="A released pipeline, .pt or .safetensors.", show_default=False)
    ],
    out: typing.Annotated[
        Path, Option(metavar="DIR", help="The folder for the pipeline.", show_default=False)
    ],
    config: typing.Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="imagenet256_kl8, church, bedroom, or a JSON file with the constructor arguments.",
            show_default=False,
        ),
    ] = None,
    attention: typing.Annotated[
        str, Option(help="published, as the weights were trained, or softmax.")
    ] = "published",
    classes: typing.Annotated[
        Path | None,
        Option(
            metavar="TXT", help="Class names, one per line; their numbers if not given.", show_default=False
        ),
    ] = None,
) -> None:
    "Turn a released model of the papers into a pipeline that every command reads."
    from cfvae.core import check
    from cfvae.published import load_published_pipeline

    check(not (out / "pipeline.json").exists(), f"{out} holds a pipeline already: choose another --out")
    names = classes.read_text(encoding="utf-8").split("\n") if classes else ()
    pipe = load_published_pipeline(
        weights,
        _published_arguments(config, weights),
        attention,
        [name.strip() for name in names if name.strip()],
    )
    pipe.save_pretrained(out)
    sizes = _sizes(pipe.autoencoder.config, pipe.vae.config)
    print(
        f"the pipeline is in {out}: images {sizes['images']}, {sizes['stochastic layers']}. Next: cfvae sample {shlex.quote(str(out))} --n 16 --out samples.png"
    )


@app.command()
def push(
    run: typing.Annotated[Path, Argument(metavar="RUN", help="A run folder.", show_default=False)],
    repo: typing.Annotated[
        str,
        Argument(
            metavar="OWNER/NAME", help="Where on the Hugging Face hub; made if need be.", show_default=False
        ),
    ],
    private: typing.Annotated[bool, Option("--private", help="Visible to you alone.")] = False,
    card_only: typing.Annotated[
        bool, Option("--card-only", help="Print the model card and publish nothing.")
    ] = False,
) -> None:
    "Publish a run's model on the Hugging Face hub, with a card made of its recipe and report."
    from cfvae.runs.folder import load_model
    from cfvae.runs.report import run_card

    card = run_card(run, repo)
    print(card if card_only else f"published: {load_model(run).push_to_hub(repo, card, private)}")


@app.command()
def export_onnx(
    model: Model,
    out: typing.Annotated[
        Path, Option(metavar="DIR", help="The folder for model.onnx and model.json.", show_default=False)
    ],
) -> None:
    "Write the half of a model that draws as a graph for other programs, such as a browser."
    from cfvae import onnx_export
    from cfvae.runs.folder import load_model

    path = onnx_export.export_onnx(load_model(model), out)
    print(
        f"{path} ({path.stat().st_size / 1e6:.1f} MB) turns noise into images; {path.with_name('model.json')} describes its inputs"
    )
