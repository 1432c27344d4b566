"""Every option and argument of the command line, with its line of help."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from .. import __version__


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cfvae {__version__}")
        raise typer.Exit


# of cfvae itself

Debug = Annotated[bool, Option("--debug", help="Show an error's whole trace. May stand anywhere.")]
Version = Annotated[
    bool, Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
]

# of several commands

Model = Annotated[
    Path,
    Argument(
        metavar="MODEL",
        help="A run folder, a saved pipeline, hub:owner/name, or a shipped one: shapes, cifar10.",
        show_default=False,
    ),
]
Run = Annotated[Path, Argument(metavar="RUN", help="A run folder.", show_default=False)]
Data = Annotated[
    str,
    Option(
        metavar="SPEC",
        help="shapes, shapes:n=2000,seed=1, cifar10, folder:PATH, table:FILE or tiny-imagenet:PATH.",
        show_default=False,
    ),
]
Device = Annotated[str, Option(help="auto, cpu or cuda.")]
Validation = Annotated[bool, Option("--validation", help="Take the data's validation split.")]

# train

RunFolder = Annotated[
    Path,
    Option(metavar="DIR", help="The run folder: log, pictures, checkpoints, model.", show_default=False),
]
Preset = Annotated[
    str | None,
    Option(
        metavar="NAME",
        help="A named recipe; see cfvae presets. Not needed with --resume.",
        show_default=False,
    ),
]
OtherData = Annotated[
    str | None,
    Option(
        metavar="SPEC",
        help="As cifar10 or folder:PATH; the recipe's own if not given.",
        show_default=False,
    ),
]
FirstStage = Annotated[
    str | None,
    Option(
        metavar="SOURCE",
        help="A pretrained first stage: a folder or owner/name on the hub, in diffusers' form; or pixels, "
        "for none.",
        show_default=False,
    ),
]
Stage = Annotated[str, Option(help="all, autoencoder or vae.")]
Steps = Annotated[
    int | None, Option(help="Steps of each stage; with --resume, of the second.", show_default=False)
]
MaxMinutes = Annotated[float | None, Option(help="Save and stop after so long.", show_default=False)]
Resume = Annotated[
    bool, Option("--resume", help="Go on with the run in the folder; an empty folder is begun.")
]
Settings = Annotated[
    list[str] | None,
    Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change the recipe, as batch_size=16. Repeatable.",
        show_default=False,
    ),
]
TrainingSeed = Annotated[
    int | None, Option(help="Decides initial weights, order of the data and noise.", show_default=False)
]
OtherDevice = Annotated[str | None, Option(help="auto, cpu or cuda.", show_default=False)]
Precision = Annotated[str | None, Option(help="auto, fp32 or bf16.", show_default=False)]

# tune

TunedFolder = Annotated[
    Path,
    Option(metavar="DIR", help="A folder for the tuned model, its log and pictures.", show_default=False),
]
MirrorImages = Annotated[
    bool, Option("--flip", help="Mirror a random half of the images; for a run, its recipe decides.")
]
TuningSteps = Annotated[int | None, Option(help="Steps; 5,000 if not given.", show_default=False)]

# sample

SampleCount = Annotated[int, Option("--n", min=1, max=10_000_000, help="How many images.")]
Classes = Annotated[
    str | None,
    Option(help="Class names, as cat,dog; taken in turn. All, if not given.", show_default=False),
]
Labels = Annotated[str | None, Option(help="The same by number, as 0,3.", show_default=False)]
MeanWeight = Annotated[
    str, Option(help="Guidance of the means; 0 is off. A number, or one per resolution, lowest first.")
]
VarWeight = Annotated[str, Option(help="Guidance of the variances; 0 is off.")]
Temperature = Annotated[str, Option(help="Scales the noise: below 1 more typical, 0 the modes.")]
Seed = Annotated[int, Option(help="The same seed gives the same images.")]
BatchSize = Annotated[int, Option(min=1, help="Images at a time.")]
DrawingPrecision = Annotated[
    str,
    Option(
        "--precision",
        help="fp32, the same images everywhere; bf16, faster where the hardware has it, slightly other "
        "images; or auto.",
    ),
]
GridFile = Annotated[
    Path | None, Option(metavar="PNG", help="One picture of all images.", show_default=False)
]
ImageFolder = Annotated[Path | None, Option(metavar="DIR", help="A PNG file per image.", show_default=False)]
ArrayFile = Annotated[
    Path | None,
    Option(metavar="NPZ", help="A numpy array: arr_0, uint8, (n, height, width, 3).", show_default=False),
]

# evaluate

EvaluationFolder = Annotated[
    Path,
    Option("--out", metavar="DIR", help="A folder for the numbers and the page.", show_default=False),
]
Features = Annotated[
    str,
    Option(
        metavar="own|inception|FILE",
        help="own: classifiers of the package, two for photographs. inception: as FID means it. A file or "
        "folder: Inception's weights (.pth), or your own classifier.",
    ),
]
EvaluationCount = Annotated[int, Option("--n", min=1, help="How many images on either side.")]
GuidanceSweep = Annotated[
    bool,
    Option("--guidance-sweep", help="Compare guidance weights, too, against training images."),
]

# reconstruct

PictureFile = Annotated[Path, Option(metavar="PNG", help="The picture.", show_default=False)]
Depths = Annotated[str, Option(help="Rows: how many stochastic layers may look at the image.")]
ImageCount = Annotated[int, Option("--n", min=1, help="How many images, spread evenly over the data.")]

# encode

CodesFolder = Annotated[
    Path, Option(metavar="DIR", help="The folder for latents.npy and latents.json.", show_default=False)
]
Flip = Annotated[bool, Option("--flip", help="Encode every image's mirror image too.")]

# demo and train-features

DemoFolder = Annotated[Path, Option(metavar="DIR", help="The run folder.")]
WeightsFolder = Annotated[Path, Option(metavar="DIR", help="The folder for the weights.", show_default=False)]

# bench

BenchPreset = Annotated[
    str | None,
    Option(
        "--preset",
        metavar="NAME",
        help="A named recipe; cifar10 on a GPU and shapes-demo on a CPU if not given.",
        show_default=False,
    ),
]
Scale = Annotated[
    bool, Option("--scale", help="Show, too, how costs grow with layers, width, resolution and batch.")
]
BenchFolder = Annotated[  # as text, since the path of an empty text is that of this folder
    str | None,
    Option("--out", metavar="DIR", help="A folder for the numbers and the figure.", show_default=False),
]

# compare

ComparedPreset = Annotated[
    str,
    Option("--preset", metavar="NAME", help="A named recipe; see cfvae presets.", show_default=False),
]
ComparisonFolder = Annotated[
    Path,
    Option(
        "--out",
        metavar="DIR",
        help="The comparison's folder; one that was begun in it goes on.",
        show_default=False,
    ),
]
Budget = Annotated[
    float | None,
    Option(
        metavar="PFLOP",
        help="Training of a model, in 10^15 operations; what the preset's VAE takes if not given.",
        show_default=False,
    ),
]
Seeds = Annotated[int, Option(min=1, help="Trainings of each model.")]
ComparedModels = Annotated[
    str | None,
    Option(
        "--models",
        metavar="NAMES",
        help="Of vae, flow, autoregressive, pixel-vae, pixel-autoregressive; all that apply if not given.",
        show_default=False,
    ),
]
ComparedCount = Annotated[int, Option("--n", min=1, help="Samples, and real images, that are judged.")]
Jobs = Annotated[int, Option(min=1, help="Above 1: train so many at a time, each on one CPU thread.")]
GivenFirstStage = Annotated[
    str | None,
    Option(
        "--first-stage",
        metavar="MODEL",
        help="Take its first stage, rather than train one: a run, a saved or a shipped pipeline, or an "
        "autoencoder alone, such as cifar10-stage-one.",
        show_default=False,
    ),
]
GivenVAE = Annotated[
    str | None,
    Option(
        "--vae",
        metavar="MODEL",
        help="Take its VAE and first stage, rather than train them.",
        show_default=False,
    ),
]

# import-weights

WeightsFile = Annotated[
    Path, Argument(metavar="FILE", help="A released pipeline, .pt or .safetensors.", show_default=False)
]
PipelineFolder = Annotated[
    Path, Option(metavar="DIR", help="The folder for the pipeline.", show_default=False)
]
Config = Annotated[
    str | None,
    Option(
        metavar="NAME",
        help="imagenet256_kl8, church, bedroom, or a JSON file with the constructor arguments.",
        show_default=False,
    ),
]
Attention = Annotated[str, Option(help="published, as the weights were trained, or softmax.")]
ClassNames = Annotated[
    Path | None,
    Option(metavar="TXT", help="Class names, one per line; their numbers if not given.", show_default=False),
]

# push and export-onnx

Repository = Annotated[
    str,
    Argument(
        metavar="OWNER/NAME", help="Where on the Hugging Face hub; made if need be.", show_default=False
    ),
]
Private = Annotated[bool, Option("--private", help="Visible to you alone.")]
CardOnly = Annotated[bool, Option("--card-only", help="Print the model card and publish nothing.")]
GraphFolder = Annotated[
    Path, Option(metavar="DIR", help="The folder for model.onnx and model.json.", show_default=False)
]
