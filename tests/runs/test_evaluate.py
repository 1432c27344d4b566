"Tests of cfvae.runs.evaluate and what it is made of: floors, errors, judges, the page."

import builtins
import dataclasses
import html.parser
import json
import math
import re
import shutil

import pytest
import torch
from recipes_for_tests import tiny

from cfvae.core import CfvaeError, make_generator
from cfvae.data import FACTORS, ImageDataset, Shapes
from cfvae.distances import frechet_distance, nearest_images
from cfvae.evaluation import Classifier, ClassifierConfig, PhotoClassifier, PhotoClassifierConfig
from cfvae.files.open import open_dataset
from cfvae.guidance import Guidance
from cfvae.hvae import HierarchicalVAE, HierarchicalVAEConfig
from cfvae.latents import LatentScaler
from cfvae.pipeline import LatentVAEPipeline
from cfvae.pretrained import PretrainedConfig, load_pretrained
from cfvae.runs import evaluate as evaluating
from cfvae.runs import judges, judging
from cfvae.runs.bench import new_pipeline
from cfvae.runs.evaluate import ALONE, FLOOR, WHOLE, Question, evaluate
from cfvae.runs.folder import load_recipe
from cfvae.runs.evaluation_page import render_evaluation, write_evaluation
from cfvae.runs.image_sets import ImageSet, Style, choose_images, draw, open_images, reconstruct
from cfvae.runs.judges import ANSWERS, Judge, find_judges
from cfvae.runs.train import prepare
from cfvae.runs.judging import Value, compare_sets, jackknife, share
from cfvae.runs.layers import is_on_pixels, measure_layers

CPU = torch.device("cpu")
DATA = "shapes:n=80"
N = 64


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "An untrained model of Shapes with classes, saved as a pipeline."
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "model"
    new_pipeline(tiny(**{"vae__num_classes": 10})).save_pretrained(folder)
    pipe = LatentVAEPipeline.from_pretrained(folder)
    pipe.classes = FACTORS["class"]
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def measured(saved):
    "One evaluation with a sweep."
    return evaluate(Question(str(saved), DATA, n=N, sweep=True, device="cpu"))


# --- end to end


def test_every_set_is_judged(measured):
    evaluation, shown = measured
    assert [row.images for row in evaluation.rows[:3]] == [FLOOR, ALONE, WHOLE]
    assert all(row.images.startswith("samples, ") for row in evaluation.rows[3:])
    assert {row.judge for row in evaluation.rows} == set(evaluation.judges) == {"shapes-classifier"}
    for row in evaluation.rows:
        names = {"frechet", "kernel", "precision", "recall", "density", "coverage", "accuracy"}
        assert row.measures.keys() == names
    assert all(len(images.images) == N for images in shown.sets.values())


def test_noise_is_told_from_the_data(measured):
    "An untrained model: far above the floor, and its samples reach hardly any real image."
    rows = {row.images: row.measures for row in measured[0].rows}
    floor, samples = rows[FLOOR], rows["samples, unguided"]
    assert samples["frechet"].value > 5 * floor["frechet"].value
    assert samples["kernel"].value > 0.1 > abs(floor["kernel"].value)
    assert samples["recall"].value < 0.6 * floor["recall"].value
    assert floor["accuracy"].value > 0.7 > samples["accuracy"].value  # 16 pixels, made larger for the judge


def test_the_sweep_never_looks_at_held_out_images(saved, monkeypatch):
    seen = []

    def spying(pipe, chosen, training, temperature, seed):
        seen.append(training.images)
        return judging.sweep_guidance(pipe, chosen, training, temperature, seed)

    monkeypatch.setattr(evaluating, "sweep_guidance", spying)
    evaluate(Question(str(saved), DATA, n=N, sweep=True, device="cpu"))
    distance, _ = nearest_images(seen[0], Shapes(80, size=16))
    assert len(seen) == 1 and distance.max() == 0


def test_the_sweep_leads_to_its_best_row(measured):
    evaluation, _ = measured
    assert len(evaluation.swept) == len(judging.SWEEP)
    best = min(evaluation.swept, key=lambda row: row.measures["frechet"].value)
    assert evaluation.chosen == best.images
    assert f"samples, {evaluation.chosen}" in {row.images for row in evaluation.rows}


def test_of_two_judges_the_last_one_chooses(saved):
    "The judge whose features were learned elsewhere; here the two are made to disagree."
    pipe = LatentVAEPipeline.from_pretrained(saved)
    training = choose_images(Shapes(80, size=16), N)

    def pixels(images):
        return images.flatten(1)[:, ::48]

    drawn = {weights: draw(pipe, N, Style(Guidance(*weights)), 0).images for weights in judging.SWEEP}
    worst = max(
        judging.SWEEP, key=lambda weights: frechet_distance(pixels(training.images), pixels(drawn[weights]))
    )

    def likes_the_worst(images):
        liked = torch.equal(images, drawn[worst]) or torch.equal(images, training.images)
        return pixels(images) if liked else pixels(images) + 100

    crew = [Judge("pixels", "", pixels), Judge("odd", "", likes_the_worst)]
    rows, best = judging.sweep_guidance(pipe, crew, training, 1.0, 0)
    assert best.guidance == Guidance(*worst)
    assert [row.judge for row in rows[:2]] == ["pixels", "odd"] and len(rows) == 2 * len(judging.SWEEP)


def test_evaluation_is_reproducible(saved, measured):
    again, _ = evaluate(Question(str(saved), DATA, n=N, sweep=True, device="cpu"))
    assert again.rows == measured[0].rows and again.layers == measured[0].layers


def test_a_model_without_classes(runs):
    evaluation, _ = evaluate(Question(str(runs / "unlabelled"), DATA, n=N, device="cpu"))
    measures = {row.images: row.measures for row in evaluation.rows}
    assert "accuracy" in measures[WHOLE] and "accuracy" not in measures["samples, unguided"]
    assert "recognised" in render_evaluation(evaluation, _)


def test_data_without_a_validation_split(runs, saved, tmp_path):
    "Held-out images of the run, which training has not seen; a pipeline alone does not know any."
    folder = tmp_path / "pictures"
    for label in range(3):
        (folder / str(label)).mkdir(parents=True)
    from PIL import Image

    shapes = Shapes(60, seed=2, size=16)
    for i, pixels in enumerate(shapes.images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / str(i % 3) / f"{i}.png")
    run = tmp_path / "run"
    shutil.copytree(runs / "strange", run)
    with pytest.raises(CfvaeError, match="run was trained on other images"):
        open_images(run, f"folder:{folder}", 16)
    _, learned, _ = prepare(load_recipe(run), open_dataset(f"folder:{folder}", 16))
    (run / "data.json").write_text(json.dumps({"fingerprint": learned.fingerprint}))
    rest, held = open_images(run, f"folder:{folder}", 16)
    assert len(rest) + len(held) == 60 and len(held) == 6
    with pytest.raises(CfvaeError, match="no validation split"):
        open_images(saved, f"folder:{folder}", 16)

    for split, names in (("train", "012"), ("val", "013")):  # a split that is there, and cannot be used
        for name in names:
            shutil.copytree(folder / "0", tmp_path / "divided" / split / name)
    with pytest.raises(CfvaeError, match="the validation split has classes that the training split lacks: 3"):
        open_images(run, f"folder:{tmp_path / 'divided'}", 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 81}, "--n is 81, but shapes has 80 training images and 80 held-out ones: choose 60 to 80"),
        ({"n": 59}, "--n is 59"),
        ({"data": "shapes:n=50"}, "at least 60 of each are needed"),
        ({"features": "nothing"}, "no file is called so"),
        ({"features": "."}, "that folder holds no classifier"),
        ({"device": "quantum"}, "unknown device"),
        ({"n": "64"}, 'Question.n is "64": a whole number is needed'),
        ({"n": True}, "Question.n is true: a whole number"),
        ({"data": None}, "Question.data is null"),
        ({"style": None}, "Question.style is null"),
        ({"seed": -1}, "the seed is -1"),
        ({"style": Style(temperature=(1.0, 2.0, 3.0))}, "temperature"),
        ({"style": Style(temperature=-1)}, "temperature is -1"),
    ],
)
def test_refusals_before_any_work(saved, settings, message, monkeypatch):
    monkeypatch.setattr(evaluating, "reconstruct", pytest.fail)
    with pytest.raises(CfvaeError, match=message):
        evaluate(Question(**{"model": str(saved), "data": DATA, "n": N, "device": "cpu", **settings}))


@pytest.mark.parametrize("settings", [{"sweep": True}, {"style": Style(Guidance(1.0))}])
def test_what_cannot_be_guided(runs, settings):
    with pytest.raises(CfvaeError, match="no classes that it could be guided to"):
        evaluate(Question(str(runs / "unlabelled"), DATA, n=N, device="cpu", **settings))


def test_images_of_other_classes(saved, monkeypatch):
    others = ImageDataset(torch.zeros(80, 3, 16, 16).byte(), [0] * 80, ("cloud",))
    monkeypatch.setattr(evaluating, "open_images", lambda *arguments: (others, others))
    monkeypatch.setattr(evaluating, "find_judges", lambda *arguments: [])
    with pytest.raises(CfvaeError, match="the model knows no class 'cloud'"):
        evaluate(Question(str(saved), DATA, n=N, device="cpu"))


@pytest.mark.parametrize(("labels", "warned"), [([0, 1], True), (range(10), False), ([-1], False)])
def test_classes_of_the_model_that_the_data_lack(saved, monkeypatch, recwarn, labels, warned):
    "Samples show them, and are then unlike the data."
    some = [list(labels)[i % len(labels)] for i in range(80)]
    images = ImageDataset(Shapes(80, size=16).images, some, FACTORS["class"], "mine")
    monkeypatch.setattr(evaluating, "open_images", lambda *arguments: (images, images))
    evaluating._open(Question(str(saved), DATA, n=N, device="cpu"))
    said = [str(one.message) for one in recwarn if "no held-out images" in str(one.message)]
    expected = "mine has no held-out images of crescent, heart, square and 5 more, which samples will show"
    assert said == warned * [f"{expected}: they count as unlike the data"]


@pytest.mark.parametrize(("first", "warned"), [(8, False), (40, True)])
def test_classes_that_the_data_show_more_often(saved, monkeypatch, recwarn, first, warned):
    labels = [0] * first + [i % 10 for i in range(80 - first)]
    images = ImageDataset(Shapes(80, size=16).images, labels, FACTORS["class"], "mine")
    monkeypatch.setattr(evaluating, "open_images", lambda *arguments: (images, images))
    evaluating._open(Question(str(saved), DATA, n=N, device="cpu"))
    said = [str(one.message) for one in recwarn if "equally often" in str(one.message)]
    assert len(said) == warned and all("disc is on 44 of 80 held-out images of mine" in one for one in said)


def test_training_images_that_a_run_has_not_learned_from(runs, recwarn):
    open_images(runs / "unlabelled", "shapes:n=60", 16)
    assert not [one for one in recwarn if "was trained on other images" in str(one.message)]
    with pytest.warns(UserWarning, match="unlabelled was trained on other images than those of shapes:n=70"):
        open_images(runs / "unlabelled", "shapes:n=70", 16)


# --- errors


def test_jackknife_of_a_mean_is_its_standard_error():
    values = torch.randn(1000, generator=make_generator(0))
    error = jackknife(lambda x: {"mean": x.mean().item()}, values)["mean"].error
    groups = values.view(10, 100).mean(1)
    assert error == pytest.approx((groups.std() / math.sqrt(10)).item(), rel=1e-4)
    assert 0.5 < error / (1 / math.sqrt(1000)) < 1.6


def test_jackknife_says_how_a_distance_scatters():
    "Its error beside the spread over 40 pairs of fresh sets: the same, within what ten groups can know."
    generator = make_generator(1)
    distances, errors = [], []
    for _ in range(40):
        real, drawn = torch.randn(2, 200, 8, generator=generator)
        value = jackknife(lambda a, b: {"d": frechet_distance(a, b)}, real, 1.3 * drawn)["d"]
        distances.append(value.value)
        errors.append(value.error)
    spread = torch.tensor(distances).std().item()
    assert 0.7 < torch.tensor(errors).median().item() / spread < 1.4


def test_shares_have_binomial_errors():
    assert share(torch.tensor([1.0, 0, 0, 0])) == Value(0.25, pytest.approx(math.sqrt(0.25 * 0.75 / 4)))


def test_compare_sets_of_one_distribution():
    real, other = torch.randn(2, 400, 6, generator=make_generator(2))
    measures = compare_sets(real, other)
    assert measures["frechet"] < 0.3 and abs(measures["kernel"]) < 0.05
    assert min(measures["precision"], measures["recall"], measures["coverage"]) > 0.85
    assert 0.85 < measures["density"] < 1.15


# --- images


def test_chosen_images_are_spread_over_a_sorted_data_set():
    data = ImageDataset(torch.zeros(100, 3, 8, 8).byte(), [0] * 50 + [1] * 50, ("a", "b"))
    chosen = choose_images(data, 40)
    assert 10 < chosen.classes.count("a") < 30
    unlabelled = ImageDataset(torch.zeros(5, 3, 8, 8).byte(), [-1] * 5, ("all",))
    assert choose_images(unlabelled, 5).classes is None


def test_all_styles_share_their_noise(saved):
    pipe = LatentVAEPipeline.from_pretrained(saved)
    plain = draw(pipe, 6, Style(), 0)
    assert torch.equal(plain.images, draw(pipe, 6, Style(Guidance(0.0)), 0).images)
    assert not torch.equal(plain.images, draw(pipe, 6, Style(), 1).images)
    assert plain.classes == list(FACTORS["class"][:6]) and plain.images.abs().max() <= 1


def test_samples_that_are_no_numbers_are_named(saved):
    pipe = LatentVAEPipeline.from_pretrained(saved)
    pipe.decode = lambda latents: torch.full((len(latents), 3, 16, 16), math.nan)
    with pytest.raises(CfvaeError, match="samples, unguided, temperature 2: pixels are not finite .*: lower"):
        draw(pipe, 3, Style(temperature=2), 0)


@pytest.mark.parametrize("wrong", [{"temperature": math.nan}, {"temperature": "1"}, {"guidance": 2.0}])
def test_styles_of_other_kinds(wrong):
    with pytest.raises(CfvaeError, match=f"Style.{next(iter(wrong))} is "):
        Style(**wrong)


def test_styles_have_names():
    assert Style().name == "unguided"
    assert Style(Guidance(2.0, 0.5)).name == "guidance 2 / 0.5"
    assert Style(Guidance((1.0, 0.0), 0.0), 0.9).name == "guidance 1,0 / 0, temperature 0.9"


# --- judges


@pytest.fixture
def tiny_judges(monkeypatch):
    "Untrained classifiers in the place of the shipped ones."
    torch.manual_seed(0)
    config = PhotoClassifierConfig(size=16, widths=(8, 8), blocks=1, num_classes=10)
    monkeypatch.setattr(judges, "shipped_classifier", lambda name: PhotoClassifier(config).eval())


def photographs(classes=ANSWERS["cifar10-classifier"]) -> ImageDataset:
    pixels = torch.randint(256, (70, 3, 16, 16), generator=make_generator(0)).byte()
    return ImageDataset(pixels, torch.arange(70) % len(classes), classes, "photographs")


def test_photographs_have_two_judges(tiny_judges):
    first, second = find_judges("own", photographs(), CPU)
    assert [first.name, second.name] == ["cifar10-classifier", "tiny-imagenet-classifier"]
    images = photographs().batch(range(70))[0]
    assert first.see(images).shape == (70, 8)
    names = ["cat"] * 70
    assert first.recognises(images, names).shape == (70,)
    assert second.recognises(images, names) is None  # other labels


def test_a_judge_of_other_classes_names_none(tiny_judges):
    first, _ = find_judges("own", photographs(("cat", "teapot")), CPU)
    images = photographs().batch(range(3))[0]
    assert first.recognises(images, ["cat", "cat", "teapot"]) is None
    assert first.recognises(images, None) is None


def test_either_way_to_code_an_accent_is_recognised(tmp_path):
    Classifier(ClassifierConfig(size=8, widths=(8, 8), num_classes=2)).save_pretrained(tmp_path)
    [judge] = find_judges(str(tmp_path), photographs(("caf\u00e9", "b")), CPU)
    images = photographs().batch(range(3))[0]
    assert judge.recognises(images, ["cafe\u0301"] * 3) is not None
    assert judge.recognises(images, ["cafe"] * 3) is None


def test_recognised_by_name_and_not_by_number(tiny_judges):
    judge, _ = find_judges("own", photographs(), CPU)
    images = photographs().batch(range(20))[0]
    answers = judge.classifier(images).argmax(1).tolist()
    assert judge.recognises(images, [judge.answers[answer] for answer in answers]).mean() == 1
    assert judge.recognises(images, [judge.answers[answer - 1] for answer in answers]).mean() == 0


def test_shapes_have_the_judge_of_shapes():
    [judge] = find_judges("own", Shapes(4, size=16), CPU)
    assert judge.name == "shapes-classifier" and judge.answers == FACTORS["class"]
    assert isinstance(judge.classifier, Classifier)


def test_a_classifier_of_ones_own(tmp_path, monkeypatch):
    config = ClassifierConfig(size=8, widths=(8, 8), num_classes=3)
    Classifier(config).save_pretrained(tmp_path / "mine")
    [judge] = find_judges(str(tmp_path / "mine"), photographs(("a", "b", "c")), CPU)
    assert judge.name == "mine" and judge.answers == ("a", "b", "c")
    assert judge.about == "your own; its answers are taken for the classes of photographs"
    monkeypatch.chdir(tmp_path / "mine")
    assert find_judges(".", photographs(("a", "b", "c")), CPU)[0].name == "mine"
    assert judge.weights != find_judges("own", Shapes(4, size=16), CPU)[0].weights
    assert judge.see(torch.zeros(5, 3, 16, 16)).shape == (5, 8)
    [judge] = find_judges(str(tmp_path / "mine"), photographs(("a", "b")), CPU)
    assert judge.answers == ()
    with pytest.raises(CfvaeError, match="settings are missing|cannot be read"):
        (tmp_path / "mine" / "config.json").write_text("{}")
        find_judges(str(tmp_path / "mine"), photographs(), CPU)


def no_library(monkeypatch, blocked):
    real_import = builtins.__import__

    def without(name, *arguments, **options):
        if name.partition(".")[0] == blocked:
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(judges.importlib, "import_module", lambda name: without(name))


def test_inception_names_the_ways_out(monkeypatch, tmp_path):
    no_library(monkeypatch, "torch_fidelity")
    with pytest.raises(CfvaeError, match=r"pip install 'cfvae\[evaluation\]', or use --features own"):
        find_judges("inception", photographs(), CPU)


class FakeLibrary:
    "What is used of torch-fidelity."

    class FeatureExtractorInceptionV3(torch.nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path):
            super().__init__()
            self.scale = torch.load(feature_extractor_weights_path, weights_only=True)["scale"]

        def forward(self, x):
            assert x.dtype == torch.uint8
            return (x.float().mean((2, 3)) * self.scale,)


def test_inception_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr(judges, "_import_inception", lambda: FakeLibrary)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(CfvaeError, match="no route to host.*use --features own, or --features FILE.pth"):
        find_judges("inception", photographs(), CPU)


def test_inception_from_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr(judges, "_import_inception", lambda: FakeLibrary)
    torch.save({"scale": torch.tensor(2.0)}, tmp_path / "inception.pth")
    [judge] = find_judges(str(tmp_path / "inception.pth"), photographs(), CPU)
    white = judge.see(torch.ones(60, 3, 16, 16))
    assert torch.equal(white, torch.full((60, 3), 510.0))
    assert judge.recognises(torch.ones(1, 3, 16, 16), ["cat"]) is None

    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit",))

    torch.save(Evil(), tmp_path / "evil.pth")
    with pytest.raises(CfvaeError, match="holds no weights of Inception"):
        find_judges(str(tmp_path / "evil.pth"), photographs(), CPU)


def test_ssim_needs_its_extra(monkeypatch, saved):
    no_library(monkeypatch, "torchmetrics")
    images = torch.zeros(4, 3, 16, 16)
    assert evaluating._likeness(images, images).keys() == {"psnr"}


# --- layers


@pytest.fixture(scope="module")
def on_pixels() -> LatentVAEPipeline:
    torch.manual_seed(0)
    config = HierarchicalVAEConfig(3, (1, 8), (8,), (8,), (0,), (1, 2), (1,), (0,), (1,), 2)
    vae = HierarchicalVAE(config)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    first = load_pretrained(PretrainedConfig("pixels", 8, shift=0.5, scale=2.0))
    return LatentVAEPipeline(first, vae, LatentScaler(0.5, 2.0))


def test_rates_are_those_of_the_model(on_pixels):
    images = Shapes(64, size=8).batch(range(64))[0]
    layers = measure_layers(on_pixels, images, None)
    out = on_pixels.vae(on_pixels.encode(images), generator=make_generator(0))
    assert layers.rates == pytest.approx(out.rates.mean(0).tolist(), rel=1e-4)
    assert layers.rate == pytest.approx(out.rates.sum(1).mean().item(), rel=1e-4)
    assert layers.units == [2, 128, 128]
    assert all(0 <= some <= of for some, of in zip(layers.active, layers.units, strict=True))
    error = (on_pixels.encode(images) - out.distribution.mean).square().mean().sqrt()
    assert layers.code_error == pytest.approx(error.item(), rel=1e-4)


def test_bits_per_dimension_of_a_model_on_pixels(on_pixels):
    images = Shapes(64, size=8).batch(range(64))[0]
    bounds = measure_layers(on_pixels, images, None).pixels
    (elbo, _), (tighter, _) = bounds.elbo, bounds.importance_weighted
    assert tighter < elbo

    # by hand: the density of standardised pixels, times the width of a grey level in those units
    x = on_pixels.encode(images)
    out = on_pixels.vae(x, generator=make_generator(1))
    nats = -out.distribution.log_prob(x) + out.rates.sum(1) - 192 * math.log(2 / 255 / 2)
    assert elbo == pytest.approx((nats.mean() / 192 / math.log(2)).item(), rel=0.02)


def test_a_model_of_codes_has_no_bits(measured, saved):
    assert measured[0].layers.pixels is None
    assert not is_on_pixels(LatentVAEPipeline.from_pretrained(saved))


def test_a_unit_that_says_nothing_is_not_active(on_pixels):
    vae = HierarchicalVAE(on_pixels.vae.config)
    with torch.no_grad():
        for block in vae.decoder.blocks:  # posterior and prior both N(0, 1)
            for layer in (block.posterior_block.last, block.prior_block.last):
                layer.weight.zero_()
                layer.bias.zero_()
    silent = LatentVAEPipeline(on_pixels.autoencoder, vae, on_pixels.scaler)
    layers = measure_layers(silent, Shapes(8, size=8).batch(range(8))[0], None)
    assert layers.active == [0, 0, 0] and layers.rate == pytest.approx(0, abs=1e-4)


# --- memorisation


def test_a_model_that_copies_is_found_out(saved, monkeypatch):
    "Samples that are training images, asserted: all of them lie nearer than held-out images do."
    training = Shapes(80, size=16)

    def copying(pipe, n, style, seed):
        images, labels = training.batch(torch.arange(n) % 80)
        return ImageSet(images, [FACTORS["class"][label] for label in labels.tolist()])

    monkeypatch.setattr(evaluating, "draw", copying)
    evaluation, shown = evaluate(Question(str(saved), DATA, n=N, device="cpu"))
    held, coded, samples = evaluation.nearest
    assert samples.median == 0 and samples.nearer.value == 1
    assert held.median > 0.05 and held.nearer.value < 0.05
    assert torch.equal(shown.neighbours["samples, unguided"], shown.sets["samples, unguided"].images)


# --- the page


class Reader(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(text)
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.words.append(" ")
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


def test_page_and_numbers(measured, tmp_path):
    evaluation, shown = measured
    numbers, path = write_evaluation(evaluation, shown, tmp_path)
    fields = json.loads(numbers.read_text(), parse_constant=pytest.fail)
    assert fields["question"]["n"] == N and len(fields["rows"]) == len(evaluation.rows)

    source = path.read_text()
    page = Reader(source)
    assert not re.search(r"https?://|url\(|@import", source) and not {"script", "link"} & set(page.tags)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    frechet = evaluation.rows[0].measures["frechet"]
    assert f"{FLOOR} {frechet.value:.3f} ± {frechet.error:.3f}" in page.text
    assert "bits per dimension of an image are not defined" in page.text
    assert f"Chosen: {evaluation.chosen}" in page.text


def test_the_folder_of_an_evaluation(measured, tmp_path):
    evaluation, shown = measured
    numbers, page = write_evaluation(evaluation, shown, f"{tmp_path}/new/folder")
    assert numbers.is_file() and page.is_file()
    numbers.write_text('{"mine": 1}')
    with pytest.raises(CfvaeError, match="evaluation.json.*, which cfvae did not write"):
        write_evaluation(evaluation, shown, numbers.parent)
    assert numbers.read_text() == '{"mine": 1}'


def test_every_table_says_what_it_rests_on(measured):
    source = render_evaluation(*measured)
    tables = re.findall(r"<table>(.*?)</table>", source, re.DOTALL)
    judged = [table for table in tables if "Frechet distance" in table]
    assert len(judged) == 2  # against held-out images, and the sweep's
    for table in judged:
        caption = re.search(r"<caption>(.*?)</caption>", table, re.DOTALL).group(1)
        for needed in (f"n = {N}", "shapes-classifier", DATA, "standard error"):
            assert needed in caption
    assert FLOOR in judged[0]


def test_classes_are_named_in_the_order_of_the_samples(measured):
    "Not as headings of ten columns: with three classes the second row begins with another one."
    evaluation, shown = measured
    images = shown.sets["samples, unguided"].images
    three = {"samples, unguided": ImageSet(images, [f"class-{i % 3}" for i in range(N)])}
    source = render_evaluation(evaluation, dataclasses.replace(shown, sets=shown.sets | three))
    assert "Samples, unguided, the classes in turn: class-0, class-1, class-2<" in " ".join(source.split())


def test_strange_names_are_escaped(measured):
    evaluation, shown = measured
    images = shown.sets["samples, unguided"].images
    names = ["<script>alert(1)</script>"] * N
    shown.sets["samples, unguided"] = ImageSet(images, names)
    source = render_evaluation(evaluation, shown)
    assert "<script" not in source and "&lt;script&gt;" in source


# --- what a model makes of images


def test_images_are_remembered_in_batches_and_cut_to_the_range(saved, monkeypatch):
    pipe = LatentVAEPipeline.from_pretrained(saved)
    real = choose_images(Shapes(80, size=16), 70)
    asked = []

    def louder(images, labels, depth):
        asked.append((len(images), labels.tolist(), depth))
        return 3 * images

    monkeypatch.setattr(pipe, "reconstruct", louder)
    made = reconstruct(pipe, real, depth=2)
    assert torch.equal(made.images, (3 * real.images).clamp(-1, 1)) and made.classes == real.classes
    assert [(n, depth) for n, _, depth in asked] == [(64, 2), (6, 2)]
    labels = [FACTORS["class"].index(name) for name in real.classes]
    assert asked[0][1] + asked[1][1] == labels
    with pytest.raises(CfvaeError, match="the images have no classes"):
        reconstruct(pipe, ImageSet(real.images, None))


def test_judges_look_at_what_a_file_would_hold(tmp_path):
    "Beyond the range of images there is nothing to be recognised by; other sizes are brought to the judge's."
    torch.manual_seed(0)
    judge = judges._judge("mine", "", Classifier(ClassifierConfig(8, (8, 8), 3)).eval(), ("a", "b", "c"))
    images = 3 * torch.randn(20, 3, 16, 16, generator=make_generator(0))
    small = judges.resize(images.clamp(-1, 1), 8)
    names = [judge.answers[answer] for answer in judge.classifier(small).argmax(1).tolist()]
    assert judge.recognises(images, names).tolist() == [1.0] * 20
    assert judge.recognises(-images, names).mean() < 1


def test_shapes_are_known_by_name_and_classes():
    assert judges.is_shapes(Shapes(1, size=8))
    renamed = ImageDataset(Shapes(1, size=8).images, [0], FACTORS["class"], "mine")
    assert not judges.is_shapes(renamed)
    assert not judges.is_shapes(ImageDataset(renamed.images, [0], ("disc",), "shapes"))


def test_inception_is_fetched_once_and_checked(monkeypatch, tmp_path):
    monkeypatch.setattr(judges, "_import_inception", lambda: FakeLibrary)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    calls = []

    def download(address, path, checksum, progress):
        calls.append((checksum, progress))
        torch.save({"scale": torch.tensor(1.0)}, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert find_judges("inception", photographs(), CPU)[0].name == "inception"
    assert calls == [("6726825d", False)]
