"Tests of cfvae.report: the page stands alone, tells nothing but measured numbers, and survives strange names and short runs."

import html.parser
import json
import math
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cfvae import report
from cfvae.core import CfvaeError, make_generator
from cfvae.data import ImageDataset, Shapes
from cfvae.guidance import Guidance
from cfvae.recipes import change, recipe_from_dict
from cfvae.runs.presets import preset
from cfvae.runs.train import train

TINY = {
    "held_out": 24,
    "autoencoder.size": 16,
    "autoencoder.widths": (8, 8),
    "autoencoder.groups": 4,
    "autoencoder_training.steps": 4,
    "vae.resolutions": (1, 4),
    "vae.widths": 8,
    "vae.encoder_widths": 8,
    "vae.multipliers": 1,
    "vae.layers": (1, 2),
    "vae.encoder_blocks": 1,
    "vae.attention": 0,
    "vae.heads": 2,
    "vae.latent_channels": 2,
    "vae_training.steps": 4,
    "objective.schedule": "shifted-exponential",
    "batch_size": 8,
    "warmup": 2,
    "log_every": 1,
    "precision": "fp32",
    "device": "cpu",
}
STRANGE = ("<script>alert(1)</script>", "cats & dogs", 'it\'s "quoted"')


def tiny(**settings):
    return change(preset("shapes-demo"), {**TINY, **settings})


def strange_images() -> ImageDataset:
    return ImageDataset(Shapes(60, seed=2, size=16).images, torch.arange(60) % 3, STRANGE, "<i>mine</i>")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Three tiny runs, trained once: labelled images with hostile names, Shapes without labels, and a run without a VAE."
    root = tmp_path_factory.mktemp("runs")
    assert train(tiny(), strange_images(), root / "strange")
    assert train(tiny(conditional=False), "shapes:n=60", root / "unlabelled")
    assert train(tiny(), "shapes:n=60", root / "half", stage="autoencoder")
    return root


class Page(html.parser.HTMLParser):
    "Collects what a browser would load, and the text."

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [
            value
            for name, value in attributes
            if name in ("src", "href", "srcset", "data", "action", "poster")
        ]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def strange(runs):
    path = report.write_report(runs / "strange", device="cpu", data=strange_images())
    return path, path.read_text(encoding="utf-8"), json.loads((runs / "strange" / "report.json").read_text())


def test_page_is_self_contained(strange):
    path, text, _ = strange
    assert path.name == "report.html"
    assert not re.search(r"https?://", text) and not re.search(r"url\(|@import", text)
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert page.tags.count("img") >= 6 and all(
        address.startswith("data:image/png;base64,") for address in page.addresses
    )
    assert (
        "default-src 'none'" in text and "width=device-width" in text and "prefers-color-scheme: dark" in text
    )


def test_names_are_escaped(strange):
    _, text, _ = strange
    assert "<script" not in text and "<i>mine" not in text
    page = Page(text)
    for name in (*STRANGE, "<i>mine</i>"):
        assert name in page.text  # the reader sees the name as it is


def test_numbers_are_measured(strange, runs):
    _, text, numbers = strange
    assert set(numbers["spread"]) == {"without guidance", "guidance 1 / 1", "guidance 2 / 2"}
    assert "class_accuracy" not in numbers and "entropy" not in numbers  # not Shapes
    assert numbers["vae"]["steps"] == numbers["vae"]["of"] == 4 and numbers["run"]["held_out_images"] == 6
    assert numbers["depths"]["3"] == 0 and len(numbers["nats"]["rates"]) == 3
    run = report.open_run(runs / "strange", "cpu", strange_images())
    assert numbers["run"]["parameters"]["vae"] == sum(p.numel() for p in run.pipe.vae.parameters())
    assert math.isclose(numbers["nats"]["rate"], sum(numbers["nats"]["rates"]), rel_tol=1e-4)
    low, high = zip(*numbers["nats"]["band"], strict=True)
    assert math.isclose(sum(low), 0.667 * numbers["nats"]["rate"], rel_tol=1e-3) and math.isclose(
        sum(high), 2 * sum(low), rel_tol=1e-6
    )


def test_report_is_reproducible(strange, runs):
    path, text, _ = strange
    assert (
        report.write_report(runs / "strange", device="cpu", data=strange_images()).read_text(encoding="utf-8")
        == text
    )
    assert not list(path.parent.glob("*.tmp"))


def test_unconditional(runs):
    text = report.write_report(runs / "unlabelled", device="cpu").read_text(encoding="utf-8")
    numbers = json.loads((runs / "unlabelled" / "report.json").read_text())
    assert list(numbers["spread"]) == ["without guidance"] and "guidance 1 / 1" not in text
    assert "class_accuracy" not in numbers  # 16 pixels: the judge knows 32
    assert "none (unconditional)" in text and "--mean-weight" not in text and "cfvae sample" in text


def test_half_trained_run(runs, tmp_path):
    with pytest.raises(CfvaeError, match="no model yet"):
        report.write_report(runs / "half")
    with pytest.raises(CfvaeError, match="not a run folder"):
        report.write_report(tmp_path)


def test_stopped_early(runs, tmp_path):
    shutil.copytree(runs / "unlabelled", tmp_path / "run")
    fields = json.loads((tmp_path / "run" / "recipe.json").read_text())
    fields["vae_training"]["steps"] = 9
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(fields))
    text = report.write_report(tmp_path / "run", device="cpu").read_text(encoding="utf-8")
    assert "4 of 4 steps" in text and "4 of 9 steps" in text and "--resume" in text


def test_other_images_are_noticed(runs):
    assert report.open_run(runs / "strange", "cpu", strange_images()).same_images
    other = ImageDataset(Shapes(60, seed=3, size=16).images, torch.arange(60) % 3, STRANGE, "mine")
    assert not report.open_run(runs / "strange", "cpu", other).same_images
    renamed = ImageDataset(strange_images().images, torch.arange(60) % 3, ("a", "b", "c"), "mine")
    with pytest.raises(CfvaeError, match="classes are not those"):
        report.open_run(runs / "strange", "cpu", renamed)


def test_missing_images_are_named(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CfvaeError, match="<i>mine</i>"):
        report.write_report(runs / "strange", device="cpu")  # the recipe knows only a name that opens nothing


def test_logs_with_strange_numbers(runs, tmp_path):
    shutil.copytree(runs / "unlabelled", tmp_path / "run")
    log = tmp_path / "run" / "vae" / "log.jsonl"
    log.write_text(
        log.read_text()
        + '{"step": 5, "loss": NaN, "distortion": Infinity, "rate": -1, "skipped": 5, "examples_per_second": 1}\n{"step": 6, "lo'
    )
    (tmp_path / "run" / "autoencoder" / "log.jsonl").unlink()
    text = report.write_report(tmp_path / "run", device="cpu").read_text(encoding="utf-8")
    assert (
        "5 of 5 steps were skipped" in text
        and "Stage one has left no log" in text
        and "Learn more slowly" in text
    )
    numbers = json.loads(
        (tmp_path / "run" / "report.json").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is not JSON"),
    )
    assert numbers["vae"]["loss"] is None


def test_unwritable_page(runs, tmp_path):
    shutil.copytree(runs / "unlabelled", tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink(missing_ok=True)
    (tmp_path / "run" / "report.html").mkdir()
    with pytest.raises(CfvaeError, match=r"cannot write .*report\.html"):
        report.write_report(tmp_path / "run", device="cpu")


def test_first_layers(runs):
    vae = report.open_run(runs / "strange", "cpu", strange_images()).pipe.vae
    noise, labels = vae.noise(3, make_generator(1)), torch.tensor([0, 1, 2])
    kept = report.first_layers(noise, 2)
    assert (
        torch.equal(kept[0], noise[0])
        and torch.equal(kept[1], noise[1])
        and not kept[2].any()
        and noise[2].any()
    )
    assert torch.equal(
        vae.sample(3, labels, eps=report.first_layers(noise, 3)), vae.sample(3, labels, eps=noise)
    )
    assert torch.allclose(
        vae.sample(3, labels, eps=report.first_layers(noise, 1)),
        vae.sample(3, labels, eps=noise, temperature=(1.0, 0.0)),
        atol=1e-6,
    )
    assert report.shown_depths((2, 3, 3)) == [1, 2, 5, 8] and report.shown_depths((1, 4)) == [1, 5]


def test_same_noise_at_every_strength(runs):
    run, labels = report.open_run(runs / "strange", "cpu", strange_images()), torch.arange(6) % 3
    plain = report._draw(run, labels, 6, Guidance())
    assert (
        torch.equal(plain, report._draw(run, labels, 6, Guidance()))
        and plain.min() >= -1
        and plain.max() <= 1
    )
    assert torch.allclose(
        plain, report._draw(run, labels, 6, Guidance(1e-9, 0)), atol=1e-5
    )  # the guided path, with next to no guidance


def test_train_command_makes_the_same_recipe(runs):
    recipe = recipe_from_dict(json.loads((runs / "strange" / "recipe.json").read_text()))
    words = shlex.split(report.train_command(recipe, "a folder; rm -rf x", {"vae_training.steps": 8}))
    assert words[:4] == ["cfvae", "train", "--preset", "shapes-demo"]
    assert (
        words[words.index("--out") + 1] == "a folder; rm -rf x"
        and words[words.index("--data") + 1] == "<i>mine</i>"
    )
    settings = dict(
        word.split("=", 1) for flag, word in zip(words, words[1:], strict=False) if flag == "--set"
    )
    again = change(preset("shapes-demo"), {**settings, "data": recipe.data})
    wanted = change(recipe, {"vae_training.steps": 8, "vae.num_classes": again.vae.num_classes})
    assert again == wanted
    assert report.train_command(change(recipe, {"name": "homemade"}), "x", {}) is None


def test_entropy():
    assert math.isclose(report.known_entropy(tiny()), Shapes.entropy() - math.log(10))
    assert math.isclose(report.known_entropy(tiny(conditional=False)), Shapes.entropy())
    assert "above" in report.entropy_sentence(14.0, 12.0) and "2.0 nats" in report.entropy_sentence(
        14.0, 12.0
    )
    assert "below" in report.entropy_sentence(9.5, 12.0) and "2.5 nats" in report.entropy_sentence(9.5, 12.0)


def test_data_uri():
    import base64
    import io

    array = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    uri = report.data_uri(Image.fromarray(array))
    again = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))
    assert np.array_equal(array, again)


def test_run_card(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / "unlabelled", run, ignore=shutil.ignore_patterns("report.*"))
    bare = report.run_card(run, "me/shapes")
    assert (
        "`shapes:n=60`" in bare and "Nobody has measured" in bare and "4 of 4" in bare and "# shapes" in bare
    )
    report.write_report(run, device="cpu")
    full = report.run_card(run, "me/shapes")
    numbers = json.loads((run / "report.json").read_text())
    assert (
        f"{numbers['psnr']['whole_model']:.1f} dB on 6 held-out images" in full
        and "Nobody has measured" not in full
    )
    settings = json.loads(full.split("```json")[1].split("```")[0])
    assert recipe_from_dict(settings).vae_training.steps == 4  # the card holds the whole recipe
    with pytest.raises(CfvaeError, match="no model yet"):
        report.run_card(runs / "half")


def test_the_card_keeps_the_folders_of_this_machine_to_itself(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / "unlabelled", run)
    fields = json.loads((run / "recipe.json").read_text()) | {"data": "folder:/home/somebody/private/cats"}
    fields["autoencoder"] = {
        "source": "/home/somebody/models/kl",
        "size": 16,
        "latent_channels": 4,
        "factor": 4,
    }
    (run / "recipe.json").write_text(json.dumps(fields))
    card = report.run_card(run)
    assert "somebody" not in card and "folder:cats" in card and "pretrained (kl)" in card


def test_a_run_on_pixels_has_a_report(tmp_path):
    from cfvae.recipes import with_pretrained

    recipe = with_pretrained(
        change(
            tiny(),
            {
                "vae.data_channels": 3,
                "vae.resolutions": (1, 16),
                "vae.layers": (1, 1),
                "autoencoder.widths": (8,),
                "autoencoder.patch": 1,
                "autoencoder.latent_channels": 3,
            },
        ),
        "pixels",
    )
    assert train(recipe, "shapes:n=60", tmp_path / "run")
    text = report.write_report(tmp_path / "run", device="cpu").read_text(encoding="utf-8")
    assert "pretrained: pixels" in text and "--autoencoder pixels" in text
