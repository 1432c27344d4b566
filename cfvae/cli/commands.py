"""What can be typed after `cfvae`.

Only names, options and a line of help stand here, which is all that `--help` needs. The work is in modules
that import torch, which takes seconds; so a command imports its module when it is called."""

from pathlib import Path

from . import options


def cfvae(debug: options.Debug = False, version: options.Version = False) -> None:
    "Deep hierarchical VAEs in latent space: train them, look inside, draw from them."


def presets() -> None:
    "List the named recipes: data, sizes, steps, and what hardware they are meant for."
    from . import looking

    looking.print_presets()


def train(
    out: options.RunFolder,
    preset: options.Preset = None,
    data: options.OtherData = None,
    autoencoder: options.FirstStage = None,
    stage: options.Stage = "all",
    steps: options.Steps = None,
    max_minutes: options.MaxMinutes = None,
    resume: options.Resume = False,
    settings: options.Settings = None,
    seed: options.TrainingSeed = None,
    device: options.OtherDevice = None,
    precision: options.Precision = None,
) -> None:
    "Train a model of a folder of images, or of any other data."
    from . import training

    short = {"data": data, "steps": steps, "seed": seed, "device": device, "precision": precision}
    changes = training.collect_changes(short, settings or [])
    recipe = training.choose_recipe(preset, out, resume, changes, autoencoder, stage)
    training.train(recipe, out, stage, resume, max_minutes)


def tune(
    model: options.Model,
    out: options.TunedFolder,
    data: options.OtherData = None,
    flip: options.MirrorImages = False,
    steps: options.TuningSteps = None,
    max_minutes: options.MaxMinutes = None,
    resume: options.Resume = False,
    settings: options.Settings = None,
    seed: options.TrainingSeed = None,
    device: options.OtherDevice = None,
    precision: options.Precision = None,
) -> None:
    "Teach a trained model's decoder to draw what stage two leaves out, against a discriminator."
    from . import training, tuning

    short = {"steps": steps, "seed": seed, "device": device, "precision": precision}
    changes = training.collect_changes(short, settings or [])
    chosen = tuning.choose(str(model), data, flip, changes)
    tuning.tune(chosen, out, resume, max_minutes)


def info(model: options.Model) -> None:
    "Show what a run or a saved pipeline holds, and how far its training is."
    from . import looking

    looking.print_info(model)


def report(run: options.Run, device: options.Device = "auto") -> None:
    "Write the report of a run anew: what it learned and how well, as a page and as numbers."
    from . import reporting

    reporting.report(run, device)


def evaluate(
    model: options.Model,
    data: options.Data,
    out: options.EvaluationFolder,
    features: options.Features = "own",
    n: options.EvaluationCount = 1000,
    guidance_sweep: options.GuidanceSweep = False,
    mean_weight: options.MeanWeight = "0",
    var_weight: options.VarWeight = "0",
    temperature: options.Temperature = "1",
    seed: options.Seed = 0,
    device: options.Device = "auto",
) -> None:
    "Measure how good a model is: samples, reconstructions and layers, against images it has not seen."
    from . import evaluating

    style = evaluating.read_style(mean_weight, var_weight, temperature)
    question = evaluating.Question(str(model), data, features, n, style, guidance_sweep, seed, device)
    evaluating.evaluate(question, out)


def sample(
    model: options.Model,
    n: options.SampleCount = 16,
    classes: options.Classes = None,
    labels: options.Labels = None,
    mean_weight: options.MeanWeight = "0",
    var_weight: options.VarWeight = "0",
    temperature: options.Temperature = "1",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.DrawingPrecision = "fp32",
    batch_size: options.BatchSize = 64,
    out: options.GridFile = None,
    out_dir: options.ImageFolder = None,
    npz: options.ArrayFile = None,
) -> None:
    "Draw images, guided or not."
    from . import drawing

    targets = drawing.Targets(out, out_dir, npz)
    targets.validate(n)
    style = drawing.read_style(mean_weight, var_weight, temperature, precision)
    pipe = drawing.load_pipeline(model, device)
    chosen = drawing.choose_labels(pipe, n, classes, labels)
    drawing.sample(pipe, chosen, n, style, seed, batch_size, targets)


def reconstruct(
    model: options.Model,
    data: options.Data,
    out: options.PictureFile,
    depths: options.Depths = "1,all",
    n: options.ImageCount = 8,
    validation: options.Validation = False,
    device: options.Device = "auto",
) -> None:
    "Draw images beside what the model remembers of them."
    from . import reconstructing

    reconstructing.reconstruct(model, data, out, depths, n, validation, device)


def encode(
    model: options.Model,
    data: options.Data,
    out: options.CodesFolder,
    flip: options.Flip = False,
    validation: options.Validation = False,
    device: options.Device = "auto",
) -> None:
    "Write the codes of a dataset to disk, where they can be memory-mapped."
    from . import converting

    converting.encode(model, data, out, flip, validation, device)


def demo(out: options.DemoFolder = Path("runs/demo")) -> None:
    "Train a small model on generated shapes and write a report: minutes on two CPU cores."
    from . import reporting

    reporting.demo(out)


def bench(
    preset: options.BenchPreset = None,
    device: options.Device = "auto",
    scale: options.Scale = False,
    out: options.BenchFolder = None,
) -> None:
    "Measure how fast this machine trains, draws and encodes with a preset, on random data."
    from . import benching

    benching.bench(preset, device, scale, out)


def compare(
    preset: options.ComparedPreset,
    out: options.ComparisonFolder,
    data: options.OtherData = None,
    budget: options.Budget = None,
    seeds: options.Seeds = 3,
    models: options.ComparedModels = None,
    n: options.ComparedCount = 1000,
    jobs: options.Jobs = 1,
    first_stage: options.GivenFirstStage = None,
    vae: options.GivenVAE = None,
    features: options.Features = "own",
    device: options.Device = "auto",
) -> None:
    "Train models of several kinds with the same data and computing, and judge what they draw."
    from ..runs.compare.material import Plan
    from . import comparing

    flops = None if budget is None else 1e15 * budget
    plan = Plan(
        seeds=seeds,
        n=n,
        budget=flops,
        first_stage=first_stage,
        vae=vae,
        features=features,
        jobs=jobs,
        device=device,
    )
    comparing.compare(preset, data, models, plan, out)


def train_features(out: options.WeightsFolder) -> None:
    "Train the judge of the shapes models again, as it was trained for the package."
    from . import training

    training.train_features(out)


def import_weights(
    weights: options.WeightsFile,
    out: options.PipelineFolder,
    config: options.Config = None,
    attention: options.Attention = "published",
    classes: options.ClassNames = None,
) -> None:
    "Turn a released model of the papers into a pipeline that every command reads."
    from . import converting

    converting.import_weights(weights, out, config, attention, classes)


def push(
    run: options.Run,
    repo: options.Repository,
    private: options.Private = False,
    card_only: options.CardOnly = False,
) -> None:
    "Publish a run's model on the Hugging Face hub, with a card made of its recipe and report."
    from . import publishing

    if card_only:
        publishing.print_card(run, repo)
    else:
        publishing.push(run, repo, private)


def export_onnx(model: options.Model, out: options.GraphFolder) -> None:
    "Write the half of a model that draws as a graph for other programs, such as a browser."
    from . import converting

    converting.export_onnx(model, out)
