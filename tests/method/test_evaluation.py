"Tests of cfvae.evaluation: the shipped judge is good; the measures see what they say, and no more."

import warnings
from pathlib import Path

import pytest
import torch

from cfvae import evaluation
from cfvae.core import CfvaeError, from_uint8, make_generator
from cfvae.data import BACKGROUNDS, FACTORS, ImageDataset, Shapes, render_shapes
from cfvae.distances import nearest_images
from cfvae.evaluation import (
    Classifier,
    ClassifierConfig,
    PhotoClassifier,
    PhotoClassifierConfig,
    class_accuracy,
    features,
    inside_balls,
    load_classifier,
    measure_shapes,
    precision_recall,
    predict,
    resize,
    shapes_classifier,
    shipped_classifier,
    train_classifier,
)
from cfvae.training import Callback, TrainingConfig, fit

SHIPPED = Path(evaluation.__file__).parent / "weights" / "shapes-classifier"
TINY = ClassifierConfig(size=8, widths=(8, 8), num_classes=2)


class Known(torch.nn.Module):
    "A judge whose answer is known: the class whose number the first pixel holds."

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        return torch.nn.functional.one_hot(((x[:, 0, 0, 0] + 1) * 5).round().long(), 11).float()


def pictures(classes) -> torch.Tensor:
    return (torch.tensor(classes) / 5 - 1).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def test_shipped_judge_knows_new_images():
    images, labels = Shapes(2000, seed=12345).batch(range(2000))
    assert class_accuracy(shapes_classifier(), images, labels) >= 0.97


@pytest.mark.parametrize(
    ("images", "labels", "complaint"),
    [
        (pictures([0, 1]), [0, 11], "labels must be 0 to 10"),
        (pictures([0, 1]), [-1, 1], "labels must be 0 to 10"),
        (pictures([0, 1]), [0.0, 1.0], "labels are of the type float32"),
        (pictures([0, 1]), [True, False], "labels are of the type bool"),
        (pictures([0, 1]), [[0], [1]], "labels have the shape"),
        (pictures([0, 1]), [0], "2 images but 1 labels"),
        (pictures([0, 1])[:0], [], "images: .*not"),
        (pictures([0, 1]) / 0, [0, 1], "images: finite numbers"),
        (pictures([0, 1]).byte(), [0, 1], "images: .*not of uint8"),
        (pictures([0, 1])[:, :1], [0, 1], "images: .*not"),
    ],
)
def test_what_cannot_be_judged(images, labels, complaint):
    with pytest.raises(CfvaeError, match=complaint):
        class_accuracy(Known(), images, labels)


def test_images_of_another_size_than_the_judge_knows():
    for judge in (Classifier(TINY), PhotoClassifier(PhotoClassifierConfig(size=8, widths=(8, 8)))):
        with pytest.raises(CfvaeError, match=r"images: .*\(n, 3, 8, 8\), is needed, not \(2, 3, 16, 16\)"):
            class_accuracy(judge, torch.zeros(2, 3, 16, 16), [0, 1])


def test_shipped_judge_is_ready_to_use():
    judge = shapes_classifier()
    assert not judge.training and all(p.dtype == torch.float32 for p in judge.parameters())
    assert judge.config == ClassifierConfig()
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 1_000_000


def test_one_picture_per_class_scores_all():
    "What the measure cannot see, asserted: ten pictures, a hundred times each."
    factors = torch.tensor([[c, 2, 3, 12, 4, 0, 2] for c in range(10)])
    images = from_uint8(render_shapes(factors)).repeat(100, 1, 1, 1)
    assert class_accuracy(shapes_classifier(), images, torch.arange(10).repeat(100)) > 0.99


def test_accuracy_counts():
    assert class_accuracy(Known(), pictures([0, 1, 2, 3]), [0, 1, 2, 4]) == 0.75
    assert class_accuracy(Known(), pictures([0, 1]), torch.tensor([0, 1])) == 1.0
    assert class_accuracy(Known(), pictures([0, 1]), (1, 0)) == 0.0
    with pytest.raises(CfvaeError, match="2 images but 3 labels"):
        class_accuracy(Known(), pictures([0, 1]), [0, 1, 2])


def test_predict_takes_any_number():
    judge = Known()
    answers = torch.arange(11).repeat(3)
    assert torch.equal(predict(judge, pictures(answers.tolist()), batch_size=7), answers)
    assert judge.sizes == [7, 7, 7, 7, 5]
    assert not predict(judge, pictures([1])).requires_grad


def test_predict_clips_to_the_range_of_images():
    assert predict(Known(), torch.full((1, 3, 8, 8), 4.0)).item() == 10
    assert predict(Known(), torch.full((1, 3, 8, 8), -4.0)).item() == 0


class StepCounter(Callback):
    "Counts the steps that report an accuracy."

    def __init__(self):
        self.steps = 0

    def on_step(self, state, metrics):
        self.steps += "accuracy" in metrics


def test_a_classifier_learns():
    images = (torch.rand(64, 3, 8, 8, generator=make_generator(0)) * 40).byte()
    images[32:] += 200
    data = ImageDataset(images, [0] * 32 + [1] * 32, ("dark", "bright"))
    how = TrainingConfig(
        steps=30, batch_size=32, learning_rate=1e-2, warmup=2, ema_decay=0.5, precision="fp32", device="cpu"
    )
    counter = StepCounter()
    judge = train_classifier(data, TINY, how, [counter])
    assert counter.steps == 30
    assert not judge.training and class_accuracy(judge, *data.batch(range(64))) == 1.0

    again = train_classifier(data, TINY, how)  # the seed decides everything
    for a, b in zip(judge.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_classifier_is_the_averaged_one(monkeypatch):
    states = []

    def noted_fit(*arguments):
        states.append(fit(*arguments))
        return states[-1]

    monkeypatch.setattr(evaluation, "fit", noted_fit)
    data = ImageDataset(torch.zeros(8, 3, 8, 8).byte(), [0, 1] * 4, ("dark", "bright"))
    how = TrainingConfig(steps=4, batch_size=8, learning_rate=1e-2, precision="fp32", device="cpu")
    weights = train_classifier(data, TINY, how).state_dict()
    averaged, raw = states[0].ema.module.state_dict(), states[0].model.state_dict()
    assert all(torch.equal(weights[name], averaged[name]) for name in raw)
    assert not all(torch.allclose(weights[name], raw[name]) for name in raw)


def test_round_trip(tmp_path):
    judge = Classifier(TINY).eval()
    judge.save_pretrained(tmp_path / "judge")
    again = evaluation.load_local(Classifier, tmp_path / "judge")
    x = torch.rand(3, 3, 8, 8, generator=make_generator(0))
    assert again.config == TINY and torch.equal(judge(x), again(x))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 20}, "cannot be halved 3 times"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"size": 6, "widths": (8, 8)}, "halved 2"),
        ({"widths": (12,)}, r"widths is \(12,\): multiples of 8"),
        ({"widths": (-8,)}, "widths is"),
        ({"widths": (0,)}, "widths is"),
        ({"widths": ()}, r"widths is \(\): .*at least one"),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(CfvaeError, match=message):
        ClassifierConfig(**fields)


def test_shapes_of_the_classifier():
    assert ClassifierConfig(widths=[8, 8]).widths == (8, 8)
    for config in (TINY, ClassifierConfig(size=32, widths=(8, 16, 8), num_classes=12)):
        logits = Classifier(config)(torch.zeros(2, 3, config.size, config.size))
        assert logits.shape == (2, config.num_classes)
    assert ClassifierConfig().num_classes == len(FACTORS["class"])


def test_the_ruler_reads_real_shapes():
    data = Shapes(500, seed=7)
    measured = measure_shapes(data.batch(range(500))[0])
    assert (measured["background"] == data.factors[:, 5]).float().mean() > 0.99
    assert (measured["colour"] == data.factors[:, 1]).float().mean() > 0.99

    # a disc is its own centre; where it nearly has the background's colour a part is missed, hence medians
    discs = data.factors[:, 0] == 0
    y, x = torch.tensor(FACTORS["position"])[data.factors[discs, 3]].unbind(1)
    assert (measured["y"][discs] - y).abs().median() < 0.04
    assert (measured["x"][discs] - x).abs().median() < 0.04
    radius = torch.tensor(FACTORS["size"])[data.factors[discs, 2]] * 0.9
    area = torch.pi * radius**2 / 4
    assert (measured["area"][discs] - area).abs().median() < 0.04


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(3, 3, 32, 32),
        torch.full((3, 3, 16, 16), 1.0),
        torch.randn(3, 3, 32, 32, generator=make_generator(0)),
    ],
    ids=["grey", "white", "noise"],
)
def test_the_ruler_answers_on_any_picture(images):
    for values in measure_shapes(images).values():
        assert values.shape == (3,) and values.isfinite().all()


def clouds(*centres: float, n: int = 200) -> torch.Tensor:
    "Points around some centres on a line, in ten dimensions."
    generator = make_generator(len(centres))
    return torch.cat([torch.randn(n, 10, generator=generator) * 0.1 + centre for centre in centres])


def test_precision_and_recall_tell_quality_from_coverage():
    real = clouds(0.0, 5.0)
    assert min(precision_recall(real, clouds(0.0, 5.0) + 0.001)) > 0.9

    half_missed = clouds(0.0)
    precision, recall = precision_recall(real, half_missed)
    assert precision > 0.7 and 0.3 < recall < 0.6

    half_nonsense = clouds(0.0, 5.0, 20.0, 30.0)
    precision, recall = precision_recall(real, half_nonsense)
    assert 0.3 < precision < 0.6 and recall > 0.7


def test_precision_and_recall_by_the_definition():
    real = torch.randn(30, 4, generator=make_generator(1))
    drawn = 0.8 * torch.randn(20, 4, generator=make_generator(2))
    k = 3

    def distance(a, b):
        return (a - b).norm().item()

    def share_on_map(points, others):
        radius = [sorted(distance(a, b) for b in others)[k] for a in others]
        inside = [any(distance(p, o) <= r for o, r in zip(others, radius, strict=True)) for p in points]
        return sum(inside) / len(points)

    expected = (share_on_map(drawn, real), share_on_map(real, drawn))
    assert precision_recall(real, drawn, k) == pytest.approx(expected, abs=0.051)  # a tie may fall either way
    assert 0 < precision_recall(real, drawn, k)[1] < 1


def test_precision_and_recall_do_not_depend_on_where_the_features_lie():
    generator = make_generator(3)
    real = torch.randn(200, 16, generator=generator)
    drawn = 0.9 * torch.randn(200, 16, generator=generator)
    real, drawn = (real * 1024).round() / 1024, (drawn * 1024).round() / 1024  # exact, shifted or not
    expected = precision_recall(real, drawn)
    assert expected == pytest.approx(precision_recall(real.double(), drawn.double()), abs=0.01)
    assert precision_recall(real + 1000, drawn + 1000) == pytest.approx(expected, abs=0.01)
    assert precision_recall(real - 5000, drawn - 5000) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("real", "drawn", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(9, 4), "real: features of more than 3"),
        (torch.zeros(9, 4), torch.zeros(9, 2, 2), "drawn: features"),
        (torch.zeros(9, 4), torch.zeros(9, 5), "4 and 5 numbers"),
    ],
)
def test_precision_and_recall_refuse_what_cannot_be_compared(real, drawn, message):
    with pytest.raises(CfvaeError, match=message):
        precision_recall(real, drawn)


# --- features


@pytest.mark.parametrize("neighbours", [0, -1, 1.5, True])
def test_balls_reach_at_least_one_neighbour(neighbours):
    points = torch.rand(9, 4, generator=make_generator(0))
    with pytest.raises(CfvaeError, match="neighbours is .*: a whole number from 1"):
        precision_recall(points, points, neighbours)


def test_features_whose_distances_no_float_holds():
    points = torch.rand(9, 4, generator=make_generator(0))
    for wrong in (1e30 * points, 1e200 * points.double()):
        with pytest.raises(CfvaeError, match="real: features must be finite numbers up to 1e"):
            precision_recall(wrong, points)
    large = 1e14 * points
    assert precision_recall(large, large) == (1.0, 1.0)
    assert precision_recall(large, -large) == (0.0, 0.0)


def test_features_of_every_type_of_number():
    real, drawn = torch.randint(0, 9, (2, 20, 4), generator=make_generator(0))
    expected = precision_recall(real.float(), drawn.float())
    assert precision_recall(real, drawn) == precision_recall(real.half(), drawn.half()) == expected


@pytest.mark.parametrize("batch_size", [0, -5, 1.5])
def test_so_many_images_at_a_time_are_none(batch_size):
    judge = Classifier(TINY)
    for question in (evaluation.predict, evaluation.features):
        with pytest.raises(CfvaeError, match="batch_size is .*: a whole number from 1"):
            question(judge, torch.zeros(2, 3, 8, 8), batch_size)


def test_features_are_the_last_maps_averaged():
    x = torch.rand(5, 3, 8, 8, generator=make_generator(0)) * 2 - 1
    plain = Classifier(TINY).eval()
    maps = plain.features(x).unflatten(1, (8, 2, 2))
    assert torch.allclose(features(plain, x, batch_size=2), maps.mean((2, 3)), atol=1e-6)

    pooled = PhotoClassifier(PhotoClassifierConfig(size=8, widths=(8, 16), blocks=1)).eval()
    assert torch.allclose(features(pooled, x, batch_size=3), pooled.features(x), atol=1e-6)
    assert not features(pooled, x).requires_grad


def test_features_see_what_a_file_would_hold():
    judge = Classifier(TINY).eval()
    beyond = torch.full((2, 3, 8, 8), 3.0)
    assert torch.equal(features(judge, beyond), features(judge, beyond.clamp(-1, 1)))


def test_features_of_images_of_another_size():
    judge = Classifier(TINY).eval()
    large = torch.rand(2, 3, 32, 32, generator=make_generator(0))
    assert torch.equal(features(judge, large), features(judge, resize(large, 8)))


def test_resize_averages_where_it_shrinks():
    checkered = torch.ones(1, 3, 8, 8)
    checkered[..., ::2, ::2] = -1
    checkered[..., 1::2, 1::2] = -1
    small = resize(checkered, 2)
    assert small.abs().max() < 0.2  # a pick would be 1 or -1
    assert resize(checkered, 8) is checkered
    assert torch.allclose(resize(torch.full((1, 3, 4, 4), 0.3), 16), torch.tensor(0.3))


def test_inside_balls_by_hand():
    centres = torch.tensor([[0.0], [1.0], [3.0]])  # to the nearest neighbour: 1, 1, 2
    points = torch.tensor([[-0.9], [0.5], [2.1], [5.5]])
    expected = [[True, False, False], [True, True, False], [False, False, True], [False, False, False]]
    assert inside_balls(points, centres, 1).tolist() == expected


# --- judges from files


def test_a_classifier_of_either_kind_is_loaded(tmp_path):
    plain = Classifier(TINY)
    plain.save_pretrained(tmp_path / "plain")
    photo = PhotoClassifier(PhotoClassifierConfig(size=8, widths=(8, 8), blocks=1, num_classes=3))
    photo.save_pretrained(tmp_path / "photo")
    assert isinstance(load_classifier(tmp_path / "plain"), Classifier)
    again = load_classifier(tmp_path / "photo")
    assert isinstance(again, PhotoClassifier) and again.config == photo.config and not again.training
    with pytest.raises(CfvaeError, match="there is no folder"):
        load_classifier(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["shapes", "no-classifier", "../weights/shapes-classifier"])
def test_names_that_no_judge_has(name):
    with pytest.raises(CfvaeError, match="no classifier"):
        shipped_classifier(name)


def test_the_judge_of_shapes_is_one_of_the_shipped():
    one, other = shipped_classifier("shapes-classifier"), shapes_classifier()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# --- photographs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 6}, "size is 6, but must be a multiple of 4"),
        ({"widths": ()}, "at least one width"),
        ({"widths": (8, 0)}, "at least one width of at least 1"),
        ({"blocks": 0}, "blocks is 0"),
        ({"num_classes": 1}, "num_classes is 1"),
    ],
)
def test_bad_configs_of_photographs(fields, message):
    with pytest.raises(CfvaeError, match=message):
        PhotoClassifierConfig(**fields)


def test_sizes_that_just_fit():
    assert PhotoClassifierConfig(size=12, widths=[1, 8, 8], blocks=1, num_classes=2).widths == (1, 8, 8)
    assert ClassifierConfig(size=8, num_classes=2).size == 8
    maps = PhotoClassifier(PhotoClassifierConfig(size=12, widths=(4, 4, 4))).features[:-4]
    assert maps(torch.zeros(2, 3, 12, 12)).shape[2:] == (3, 3)


def test_a_shift_moves_and_mirrors_the_edge():
    x = torch.arange(1024.0).view(1, 1, 32, 32).expand(200, 3, -1, -1)
    moved = evaluation._shift(x, make_generator(0))
    wide = torch.nn.functional.pad(x[:1], (4, 4, 4, 4), mode="reflect")[0, 0]
    places = {}
    for row in range(9):
        for column in range(9):
            places[wide[row : row + 32, column : column + 32].numpy().tobytes()] = (row, column)
    found = [places[image[0].contiguous().numpy().tobytes()] for image in moved]
    assert torch.equal(moved[:, 0], moved[:, 1]) and torch.equal(moved[:, 0], moved[:, 2])
    for axis in (0, 1):  # every distance from -4 to 4, up and down and left and right
        assert {place[axis] for place in found} == set(range(9))
    assert len(set(found)) > 60


def test_a_square_is_hidden():
    x = torch.ones(300, 3, 32, 32)
    hidden = evaluation._hide_square(x, make_generator(0)) == 0
    assert torch.equal(hidden[:, 0], hidden[:, 2])
    assert hidden[:, 0].flatten(1).sum(1).eq(64).all()
    for axis in (1, 2):
        along = hidden[:, 0].any(axis)
        assert along.sum(1).eq(8).all()
        assert set(along.float().argmax(1).tolist()) == set(range(25))


def test_the_loss_of_photographs_is_smoothed_and_augmented(monkeypatch):
    seen = []

    def noted(name):
        return lambda images, generator: seen.append(name) or images

    for name in ("horizontal_flip", "_shift", "_hide_square"):
        monkeypatch.setattr(evaluation, name, noted(name))
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    labels = torch.tensor([0, 2])
    loss, metrics = evaluation._photo_loss(lambda images: logits, (torch.zeros(2), labels), None, 0)
    assert seen == ["horizontal_flip", "_shift", "_hide_square"] and metrics["accuracy"] == 0.5
    target = 0.9 * torch.nn.functional.one_hot(labels, 3) + 0.1 / 3
    assert torch.allclose(loss, -(target * logits.log_softmax(1)).sum(1).mean())


def test_judges_are_trained_on_what_the_weights_were(monkeypatch):
    monkeypatch.setattr(evaluation, "Shapes", lambda n, seed: ("shapes", n, seed))
    monkeypatch.setattr(evaluation, "train_classifier", lambda *arguments: arguments)
    made = evaluation.train_shapes_classifier([1])
    assert made == (("shapes", 20000, 100), ClassifierConfig(), evaluation.SHAPES_TRAINING, [1])

    data = ImageDataset(torch.zeros(8, 3, 8, 8).byte(), [0, 1, 2, 0] * 2, ("a", "b", "c"))
    how = TrainingConfig(steps=1, batch_size=8, precision="fp32", device="cpu")
    monkeypatch.setattr(evaluation, "_photo_loss", evaluation._classifier_loss)
    judge = evaluation.train_photo_classifier(data, how)
    assert judge.config == PhotoClassifierConfig(size=8, num_classes=3) and not judge.training


def test_resize_leaves_the_middle_of_a_pixel_where_it_is():
    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    assert torch.allclose(resize(ramp, 4)[0, 0, 0, 1:-1], torch.tensor([2.5, 4.5]), atol=1e-5)
    assert torch.allclose(resize(ramp, 16)[0, 0, 0, 1:-1], torch.arange(14) / 2 + 0.25, atol=1e-5)


def test_the_ruler_is_as_exact_as_its_pixels():
    "A white square on every background: area, centre, and both names."
    for index, ends in enumerate(BACKGROUNDS.values()):
        top, bottom = (from_uint8(torch.tensor(end, dtype=torch.uint8)) for end in ends)
        ramp = ((torch.arange(32) + 0.5) / 32)[:, None]
        image = (top * (1 - ramp) + bottom * ramp).T[:, :, None].repeat(1, 1, 32)
        image[:, 8:16, 12:28] = -0.9  # 8 rows, 16 columns; the nearest colour is that of a dark blue
        measured = {name: value.item() for name, value in measure_shapes(image[None]).items()}
        assert measured["background"] == index
        if index > 0:  # night is as dark
            assert measured["area"] == pytest.approx(8 * 16 / 32**2)
            assert measured["y"] == pytest.approx(2 * 12 / 32 - 1) and measured["x"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    "question", [predict, features, lambda judge, x: class_accuracy(judge, x, [0] * len(x))]
)
def test_a_judge_in_training_is_asked_as_if_at_rest(question):
    "Batch norm in training would look at the other images, and remember them."
    judge = PhotoClassifier(PhotoClassifierConfig(size=8, widths=(8,), blocks=1, num_classes=3))
    x = torch.rand(32, 3, 8, 8, generator=make_generator(0)) * 2 - 1
    judge.features[1].eval()  # a part that was at rest before
    before = {name: value.clone() for name, value in judge.state_dict().items()}
    modes = [part.training for part in judge.modules()]
    answer = question(judge, x)
    assert modes == [part.training for part in judge.modules()] and any(modes) and not all(modes)
    assert all(torch.equal(value, before[name]) for name, value in judge.state_dict().items())
    again = question(judge.eval(), x)
    assert torch.equal(torch.as_tensor(answer), torch.as_tensor(again))


@pytest.mark.parametrize(
    "question", [lambda x: features(Classifier(TINY), x), lambda x: resize(x, 4), measure_shapes]
)
def test_what_is_measured_is_square_pictures(question):
    x = torch.zeros(2, 3, 8, 8)
    for wrong in (x[..., :4], x[..., :4, :], x[:, :1], x.byte(), x[0], x[:0], x.log() * 0, [x], None):
        with pytest.raises(CfvaeError, match="^images: "):
            question(wrong)
    for good in (x.double(), x.half()):
        question(good)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "8"])
def test_a_size_is_a_whole_number(size):
    with pytest.raises(CfvaeError, match="size is"):
        resize(torch.zeros(1, 3, 8, 8), size)


def test_small_images_are_not_hidden_altogether():
    for size in (4, 8, 16):
        x = torch.ones(50, 3, size, size)
        assert (evaluation._hide_square(x, make_generator(0)) == 1).float().mean() > 0.7
        assert torch.equal(evaluation._shift(x, make_generator(0)), x)


@pytest.mark.parametrize(
    ("size", "labels", "complaint"),
    [(8, [0, -1], "a label from 0 to 1"), (8, [0, 2], "a label"), (4, [0, 1], "size 8")],
)
def test_images_that_a_classifier_cannot_learn_from(size, labels, complaint):
    dataset = ImageDataset(torch.zeros(2, 3, size, size).byte(), labels, ["a", "b", "c"], "photos")
    with pytest.raises(CfvaeError, match=f"^photos: .*{complaint}"):
        train_classifier(dataset, TINY, TrainingConfig(steps=1, batch_size=2))


@pytest.mark.parametrize("points", [[[0.0] * 4] * 9, torch.zeros(9, 4).numpy(), torch.zeros(9, 0), None])
def test_features_are_a_tensor_of_some_numbers(points):
    with pytest.raises(CfvaeError, match="^real: .*features"):
        precision_recall(points, points)


def test_a_judge_has_a_folder():
    for folder in ("", None):
        with pytest.raises(CfvaeError, match="the folder is"):
            load_classifier(folder)


LOOKERS = {
    "predict": lambda images: predict(shapes_classifier(), images),
    "class_accuracy": lambda images: class_accuracy(shapes_classifier(), images, [0, 1]),
    "features": lambda images: features(shapes_classifier(), images),
    "measure_shapes": measure_shapes,
    "nearest_images": lambda images: nearest_images(images, Shapes(4)),
}


@pytest.mark.parametrize("look", LOOKERS.values(), ids=LOOKERS)
def test_pixels_of_another_range_are_told(look):
    images, _ = Shapes(2, seed=1).batch([0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look(images)
    with pytest.raises(CfvaeError, match="finite numbers up to 16 are needed"):
        look((images + 1) * 127.5)
    with pytest.warns(UserWarning, match="all pixels lie from 0 to 1, .*: of what .* give 2 . x - 1"):
        look((images + 1) / 2)
