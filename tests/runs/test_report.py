"Tests of cfvae.runs.report: the page stands alone, tells what was measured, survives strange names and logs."

import base64
import dataclasses
import html.parser
import io
import json
import math
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_runs import STRANGE, strange_images, tiny

from cfvae.core import CfvaeError
from cfvae.recipes import change, with_pretrained
from cfvae.runs import report
from cfvae.runs.measure import Measurements, measure_run
from cfvae.runs.opened import open_run
from cfvae.runs.report import render_report, write_report
from cfvae.runs.train import train

ADDRESSES = ("src", "href", "srcset", "data", "action", "poster")  # attributes that make a browser load


class Page(html.parser.HTMLParser):
    "Collects what a browser would load, and the text, with single spaces between words."

    def __init__(self, text: str):
        super().__init__()
        self.tags = []
        self.addresses = []
        self.words = []
        self.feed(text)
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.words.append(" ")
        self.addresses += [value for name, value in attributes if name in ADDRESSES]

    def handle_data(self, data):
        self.words.append(data)


def written(folder, **options) -> tuple[str, Page, dict]:
    "The page's source, what a reader sees of it, and the numbers beside it."
    path = write_report(folder, device="cpu", **options)
    assert path == folder / "report.html"
    source = path.read_text(encoding="utf-8")
    numbers = (folder / "report.json").read_text(encoding="utf-8")
    return source, Page(source), json.loads(numbers, parse_constant=pytest.fail)


def copied(runs, name, tmp_path):
    return shutil.copytree(runs / name, tmp_path / "run")


@pytest.fixture(scope="module")
def strange(runs, tmp_path_factory):
    folder = copied(runs, "strange", tmp_path_factory.mktemp("strange"))
    return folder, *written(folder, data=strange_images())


@pytest.fixture(scope="module")
def measured(runs) -> Measurements:
    return measure_run(open_run(runs / "unlabelled", "cpu"))


def rendered(runs, measurements: Measurements) -> str:
    "What a reader sees of the run without labels, had it been measured so."
    return Page(render_report(open_run(runs / "unlabelled", "cpu"), measurements)).text


def test_page_is_self_contained(strange):
    _, source, page, _ = strange
    assert not re.search(r"https?://", source)
    assert not re.search(r"url\(|@import", source)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert page.tags.count("img") >= 6
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    for rule in ("default-src 'none'", "width=device-width", "prefers-color-scheme: dark"):
        assert rule in source


def test_names_are_escaped(strange):
    _, source, page, _ = strange
    assert "<script" not in source and "<i>mine" not in source
    for name in (*STRANGE, "<i>mine</i>"):
        assert name in page.text  # the reader sees the name as it is


def test_numbers_beside_the_page(strange):
    folder, _, page, numbers = strange
    assert numbers == measure_run(open_run(folder, "cpu", strange_images())).to_dict()
    assert f"{numbers['nats']['rate']:.1f} nats" in page.text
    assert f"{numbers['psnr']['whole_model']:.1f} dB for the whole model" in page.text
    for name, spread in numbers["spread"].items():
        assert f"{name} {spread:.3f}" in page.text


def test_report_is_reproducible(strange):
    folder, source, _, _ = strange
    again, _, _ = written(folder, data=strange_images())
    assert again == source
    assert not list(folder.glob("*.tmp"))


def test_unconditional(runs, tmp_path):
    _, page, numbers = written(copied(runs, "unlabelled", tmp_path))
    assert list(numbers["spread"]) == ["without guidance"]
    assert "class_accuracy" not in numbers  # 16 pixels: the judge knows 32
    assert "none (unconditional)" in page.text and "cfvae sample" in page.text
    assert "guidance 1 / 1" not in page.text and "--mean-weight" not in page.text


def test_half_trained_run(runs, tmp_path):
    with pytest.raises(CfvaeError, match="no model yet"):
        write_report(runs / "half")
    with pytest.raises(CfvaeError, match="not a run folder"):
        write_report(tmp_path)


def test_stopped_early(runs, tmp_path):
    folder = copied(runs, "unlabelled", tmp_path)
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["vae_training"]["steps"] = 9
    (folder / "recipe.json").write_text(json.dumps(recipe))
    _, page, _ = written(folder)
    assert "4 of 4 steps" in page.text and "4 of 9 steps" in page.text and "--resume" in page.text


def test_logs_with_strange_numbers(runs, tmp_path):
    folder = copied(runs, "unlabelled", tmp_path)
    log = folder / "vae" / "log.jsonl"
    strange = (
        '{"step": 4, "loss": NaN, "distortion": Infinity, "rate": -1, "skipped": 4, "examples_per_second": 1}'
    )
    log.write_text(f'{log.read_text()}{strange}\n{{"step": 5, "lo')
    (folder / "autoencoder" / "log.jsonl").unlink()

    _, page, numbers = written(folder)
    assert "4 of 4 steps were skipped" in page.text
    assert "Stage one has left no log" in page.text
    assert "Learn more slowly" in page.text
    assert numbers["vae"]["loss"] is None


def test_a_finished_run_whose_logs_are_gone(runs, tmp_path):
    folder = copied(runs, "unlabelled", tmp_path)
    for stage in ("autoencoder", "vae"):
        (folder / stage / "log.jsonl").unlink()
    _, page, numbers = written(folder)
    assert page.text.count("4 of 4 steps") == 2
    assert "Stage one has left no log" in page.text and "Stage two has left no log" in page.text
    assert "not known; the machine" in page.text and "nan" not in page.text.split()
    for stage in ("autoencoder", "vae"):
        known = [numbers[stage][name] for name in ("steps", "of", "skipped", "examples_per_second")]
        assert known == [4, 4, None, None]


def test_unwritable_page(runs, tmp_path):
    folder = copied(runs, "unlabelled", tmp_path)
    (folder / "report.html").mkdir()
    (folder / "report.json").write_text('{"run": {}, "nats": {}}')  # so that it is one of cfvae's
    with pytest.raises(CfvaeError, match=r"cannot write .*report\.html"):
        write_report(folder, device="cpu")


def test_arguments_of_other_types(runs):
    for folder in (None, 5, "", []):
        with pytest.raises(CfvaeError, match=re.escape(f"the run is {folder!r}: give its path")):
            write_report(folder)
    for data in (5, ["shapes"]):
        with pytest.raises(CfvaeError, match=re.escape(f"data is {data!r}: give a text such as shapes")):
            write_report(runs / "unlabelled", "cpu", data)


def test_a_run_that_cannot_be_written_to_is_not_measured(runs, tmp_path, monkeypatch):
    folder = copied(runs, "unlabelled", tmp_path)

    def refuse(folder):
        raise CfvaeError(f"cannot write to {folder}")

    monkeypatch.setattr(report, "check_writable", refuse)
    monkeypatch.setattr(report, "measure_run", lambda run: pytest.fail("it was measured"))
    with pytest.raises(CfvaeError, match="cannot write to"):
        write_report(folder, device="cpu")


def test_a_run_on_pixels_has_a_report(tmp_path):
    sizes = {
        "vae.data_channels": 3,
        "vae.resolutions": (1, 16),
        "vae.layers": (1, 1),
        "autoencoder.widths": (8,),
        "autoencoder.patch": 1,
        "autoencoder.latent_channels": 3,
    }
    recipe = with_pretrained(change(tiny(), sizes), "pixels")
    assert train(recipe, "shapes:n=60", tmp_path / "run")
    _, page, _ = written(tmp_path / "run")
    assert "pretrained: pixels" in page.text and "--autoencoder pixels" in page.text


# --- what the page says of numbers


def test_rate_beside_the_entropy(runs, measured):
    nats = dataclasses.replace(measured.nats, rate_error=0.5)
    told = dataclasses.replace(measured, nats=nats)
    above = rendered(runs, dataclasses.replace(told, entropy=nats.rate - 2.0))
    assert "rate is above the entropy" in above and "about 2.0 nats or more go to posteriors" in above
    below = rendered(runs, dataclasses.replace(told, entropy=nats.rate + 2.5))
    assert "rate is below the entropy" in below and "about 2.5 nats or more of what tells" in below
    assert "standard error 0.5, " in below
    assert "A perfect code" not in rendered(runs, measured)


@pytest.mark.parametrize("error", [3.0, math.nan])
def test_no_conclusion_from_too_few_images(runs, measured, error):
    nats = dataclasses.replace(measured.nats, rate_error=error)
    page = rendered(runs, dataclasses.replace(measured, nats=nats, entropy=nats.rate + 2.5))
    assert "no conclusion" in page and "nan" not in page


def test_layers_and_their_bands(runs, measured):
    nats = dataclasses.replace(
        measured.nats, rates=[5.0, 0.01, 4.0], rate=9.01, band=[[2, 4], [0, 1], [3, 6]]
    )
    text = rendered(runs, dataclasses.replace(measured, nats=nats))
    assert "2 of 3 layers lie inside their band. Below one percent of the nats: layer 2." in text
    free = rendered(runs, dataclasses.replace(measured, nats=dataclasses.replace(nats, band=None)))
    assert "no schedule, so there are no bands" in free


def test_table_of_the_judge(runs, measured):
    accuracies = {"held-out images": 1.0, "their reconstructions": 0.5, "samples, without guidance": 0.2}
    text = rendered(runs, dataclasses.replace(measured, class_accuracy=accuracies))
    assert "Are they what was asked for?" in text
    assert "held-out images 100.0 % n = 6, standard error 0.0" in text
    assert "samples, without guidance 20.0 % n = 500, standard error 1.8" in text

    one = dataclasses.replace(measured.run, held_out_images=1)
    text = rendered(runs, dataclasses.replace(measured, run=one, class_accuracy=accuracies))
    assert "held-out images 100.0 % n = 1 their reconstructions" in text  # of one no error is known


@pytest.mark.parametrize(("fell", "said"), [(0.034, "loss fell by 3.4 %"), (-0.02, "loss rose by 2.0 %")])
def test_last_tenth_of_training(runs, measured, fell, said):
    stage = dataclasses.replace(measured.vae, fell_in_last_tenth=fell)
    assert said in rendered(runs, dataclasses.replace(measured, vae=stage))


def test_many_classes(runs, measured):
    facts = dataclasses.replace(measured.run, classes=200)
    text = rendered(runs, dataclasses.replace(measured, run=facts))
    assert "The first 10 of 200 classes are shown." in text


def test_changed_images_are_told(runs, measured):
    facts = dataclasses.replace(measured.run, same_images=False)
    text = rendered(runs, dataclasses.replace(measured, run=facts))
    assert "The images have changed since the run was made" in text


def test_data_uri():
    array = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    uri = report.data_uri(Image.fromarray(array))
    png = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    assert np.array_equal(array, np.asarray(Image.open(io.BytesIO(png))))
