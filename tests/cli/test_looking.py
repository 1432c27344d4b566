"Tests of cfvae.cli.looking: `presets` and `info`."

import json
import shutil
from pathlib import Path

from commandline import done, refused

from cfvae.autoencoder import Autoencoder
from cfvae.core import count_parameters
from cfvae.hvae import HierarchicalVAE
from cfvae.runs.folder import load_model, load_recipe
from cfvae.runs.presets import PRESETS, describe, preset
from cfvae.runs.trained import TRAINED


def test_presets_counts_parameters():
    out = done("presets")
    recipe = preset("shapes-demo")
    for model in (Autoencoder(recipe.autoencoder), HierarchicalVAE(recipe.vae)):
        assert f"{count_parameters(model) / 1e6:.2f}" in out
    for name in PRESETS:
        assert name in out and describe(name).split()[0] in out
    for text in ("386.37", "pretrained", "pixels"):  # the published models are among them
        assert text in out
    for text in ("32 x 32", "4 x 8 x 8", str(recipe.vae_training.steps)):
        assert text in out
    assert out.count("Trained in") == len(TRAINED)
    assert out.count("Not trained.") == len(PRESETS) - len(TRAINED)


def test_info_of_a_finished_run_and_of_its_pipeline(run):
    out = done("info run")
    lines = Path("run/vae/log.jsonl").read_text().splitlines()
    loss = json.loads(lines[-1])["loss"]
    assert f"30 of 30 steps saved; last logged: loss {loss:.4g} at step 30; checkpoints: 25, 30" in out
    for text in (
        "shapes:n=60",
        "shapes-demo",
        "32 x 32",
        "4 x 8 x 8",
        "3: 1 at 1 x 1, 1 at 4 x 4, 1 at 8 x 8",
        "10: disc, ring",
        "run/pipeline",
    ):
        assert text in out

    pipe = load_model("run")
    first = count_parameters(pipe.autoencoder) / 1e6
    second = count_parameters(pipe.vae) / 1e6
    of_pipeline = done("info run/pipeline")
    for text in (f"autoencoder {first:.2f} M, VAE {second:.2f} M", "10: disc, ring"):
        assert text in out and text in of_pipeline


def test_info_of_a_finished_run_without_checkpoints(run):
    for stage in ("autoencoder", "vae"):
        shutil.rmtree(run.path / stage / "checkpoints")
    out = done("info run")
    steps = [load_recipe(run.path).autoencoder_training.steps, 30]
    for step in steps:
        assert f"{step} of {step} steps saved" in out
    assert out.count("checkpoints: none") == 2


def test_info_of_a_model_without_classes(plain):
    assert "classes            none\n" in done("info plain")


def test_names_from_elsewhere_are_shown_and_not_obeyed(run):
    "A fetched model may have anything as the names of its classes."
    shutil.copytree("run/pipeline", "fetched")
    about = json.loads(Path("fetched/pipeline.json").read_text())
    about["classes"][0] = "\x1b]0;owned\x07\x1b[31mdisc\n"
    Path("fetched/pipeline.json").write_text(json.dumps(about))
    for line in ("info fetched", "sample fetched --n 1 --out fetched.png"):
        said = done(line)
        assert "\x1b" not in said and r"\x1b]0;owned\x07\x1b[31mdisc\n" in said
    refused("sample fetched --classes moon --out x.png", r"\x1b[31mdisc", "moon")

    shutil.copytree("run", "given")
    recipe = json.loads(Path("given/recipe.json").read_text())
    recipe["data"] = "folder:\x1b[2J"
    Path("given/recipe.json").write_text(json.dumps(recipe))
    assert "\x1b" not in done("info given")


def test_info_of_strange_places(run):
    Path("empty").mkdir()
    refused("info empty", "empty is neither a run folder", "recipe.json")
    refused("info nowhere", "nothing at nowhere")
    Path("broken").mkdir()
    Path("broken/recipe.json").write_text('{"name": "x", "autoencoder": {}, "vae": {}, "widht": 3}')
    refused("info broken", "broken/recipe.json cannot be read", "widht")
    Path("broken/recipe.json").write_text('{"name": "x"}')
    refused("info broken", "broken/recipe.json cannot be read", "no autoencoder")
    Path("broken/recipe.json").write_text("[1, 2")
    refused("info broken", "broken/recipe.json cannot be read")
