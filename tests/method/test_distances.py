"Tests of cfvae.distances: closed forms, no bias where none is claimed, and copies that are found."

import math

import pytest
import torch

from cfvae.core import CfvaeError, make_generator
from cfvae.data import ImageDataset, Shapes
from cfvae.distances import density_coverage, frechet_distance, kernel_distance, nearest_images
from cfvae.evaluation import precision_recall


def normal(n: int, d: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return mean + scale * torch.randn(n, d, generator=make_generator(seed), dtype=torch.float64)


def exactly_white(n: int, d: int, seed: int) -> torch.Tensor:
    "Points whose mean is 0 and whose covariance is the identity, to rounding."
    points = normal(n, d, seed)
    points = points - points.mean(0)
    factor = torch.linalg.cholesky(torch.cov(points.T))
    return torch.linalg.solve_triangular(factor, points.T, upper=False).T


# --- Fréchet


def test_frechet_of_two_gaussians_in_closed_form():
    "Diagonal covariances: squared differences of means and of standard deviations, summed."
    white, other = exactly_white(500, 6, 0), exactly_white(400, 6, 1)
    scales = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.1, 1.0], dtype=torch.float64)
    means = torch.tensor([0.0, 1.0, -2.0, 0.0, 0.5, 0.0], dtype=torch.float64)
    expected = (means.square() + (scales - 1).square()).sum().item()
    assert frechet_distance(white, other * scales + means) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(other * scales + means, white) == pytest.approx(expected, rel=1e-9)


def test_frechet_where_the_covariances_do_not_commute():
    "Against the eigenvalues of the product of covariances, which is not symmetric."
    a = normal(300, 4, 2) @ normal(4, 4, 3)
    b = normal(300, 4, 4) @ normal(4, 4, 5) + 1
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    roots = torch.linalg.eigvals(cov_a @ cov_b).real.clamp_min(0).sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * roots
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-8)


@pytest.mark.parametrize("d", [1, 3])
def test_frechet_of_a_set_and_itself_is_nothing(d):
    points = normal(50, d, 6)
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(points, points + 2) == pytest.approx(4 * d)


def test_frechet_does_not_care_how_the_features_are_turned():
    a, b = normal(200, 5, 7), normal(200, 5, 8, 0.5, 2.0)
    turn, _ = torch.linalg.qr(normal(5, 5, 9))
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_frechet_with_fewer_images_than_features():
    "Covariances without full rank, in float32 and far from zero: still the mean's difference."
    points = torch.randn(20, 64, generator=make_generator(10)) + 100
    assert frechet_distance(points, points + 1) == pytest.approx(64, rel=1e-4)


def test_frechet_shrinks_with_n_and_the_kernel_does_not():
    def mean_of(measure, n):
        distances = [measure(normal(n, 8, seed), normal(n, 8, 1000 + seed)) for seed in range(60)]
        return sum(distances) / len(distances), torch.tensor(distances).std().item() / math.sqrt(60)

    few, _ = mean_of(frechet_distance, 40)
    many, _ = mean_of(frechet_distance, 160)
    assert 3 < few / many < 5.5  # a quarter
    for n in (40, 160):
        mean, error = mean_of(kernel_distance, n)
        assert abs(mean) < 3 * error


# --- kernel distance


def test_kernel_distance_by_its_definition():
    real, drawn = normal(7, 3, 11), normal(5, 3, 12, 0.5)

    def k(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    among = [k(a, b) for i, a in enumerate(real) for j, b in enumerate(real) if i != j]
    drawn_among = [k(a, b) for i, a in enumerate(drawn) for j, b in enumerate(drawn) if i != j]
    across = [k(a, b) for a in real for b in drawn]
    expected = sum(among) / 42 + sum(drawn_among) / 20 - 2 * sum(across) / 35
    assert kernel_distance(real, drawn) == pytest.approx(expected, rel=1e-12)
    assert kernel_distance(drawn, real) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_sees_mean_spread_and_skew():
    bell = normal(4000, 1, 13)
    skewed = -torch.rand(4000, 1, generator=make_generator(14), dtype=torch.float64).log() - 1
    assert kernel_distance(bell, bell + 0.5) > 0.3
    assert kernel_distance(bell, 2 * bell) > 0.3
    assert kernel_distance(bell, skewed) > 1 > 100 * frechet_distance(bell, skewed)


# --- density and coverage


def test_density_and_coverage_by_the_definition():
    real, drawn = normal(30, 4, 15), 0.8 * normal(20, 4, 16)
    k = 5
    balls = [sorted((a - b).norm().item() for b in real)[k] for a in real]
    inside = [[(s - x).norm().item() <= r for x, r in zip(real, balls, strict=True)] for s in drawn]
    density = sum(map(sum, inside)) / (k * 20)
    coverage = sum(any(row[i] for row in inside) for i in range(30)) / 30
    assert density_coverage(real, drawn, k) == pytest.approx((density, coverage), abs=1e-12)
    assert 0 < coverage < 1


def test_density_and_coverage_of_one_distribution():
    density, coverage = density_coverage(normal(600, 8, 17), normal(600, 8, 18))
    assert density == pytest.approx(1, abs=0.12) and coverage > 0.93


def test_copies_of_few_cover_little():
    real, drawn = normal(500, 8, 19), normal(500, 8, 20)
    density, coverage = density_coverage(real, drawn[:10].repeat(50, 1))
    assert coverage < 0.3 < density


def test_an_outlier_fools_precision_and_not_coverage():
    real, nonsense = normal(300, 8, 21), normal(200, 8, 22, mean=30)
    spoiled = torch.cat([real, normal(1, 8, 23, mean=30)])
    assert precision_recall(spoiled, nonsense)[0] == 1
    density, coverage = density_coverage(spoiled, nonsense)
    assert density == pytest.approx(1 / 5) and coverage == pytest.approx(1 / 301)


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, density_coverage, precision_recall])
def test_what_cannot_be_compared(measure):
    points = normal(9, 4, 24)
    with pytest.raises(CfvaeError, match="real: features of more than"):
        measure(points[:1], points)
    with pytest.raises(CfvaeError, match="drawn: features of more than"):
        measure(points, points[0])
    with pytest.raises(CfvaeError, match="4 and 3 numbers"):
        measure(points, points[:, :3])
    for wrong in (math.nan, math.inf):
        spoiled = points.clone()
        spoiled[4, 2] = wrong
        with pytest.raises(CfvaeError, match="real: features must be finite"):
            measure(spoiled, points)
        with pytest.raises(CfvaeError, match="drawn: features must be finite"):
            measure(points, spoiled)


# --- copies


@pytest.mark.parametrize("neighbours", [0, -1, 1.5])
def test_density_needs_a_neighbour(neighbours):
    points = normal(9, 4, 24)
    with pytest.raises(CfvaeError, match="neighbours is .*: a whole number from 1"):
        density_coverage(points, points, neighbours)


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, density_coverage])
def test_features_that_are_too_large_to_compare(measure):
    points = normal(9, 4, 24)
    for wrong in (1e30 * points, 1e200 * points.double()):
        with pytest.raises(CfvaeError, match="drawn: features must be finite numbers up to 1e"):
            measure(points, wrong)
    answers = torch.tensor(measure(1e14 * points, -1e14 * points), dtype=torch.float64)
    assert bool(answers.isfinite().all())


@pytest.mark.parametrize("batch_size", [0, -5, 1.5])
def test_the_nearest_of_none_at_a_time(batch_size):
    shapes = Shapes(4, size=8)
    with pytest.raises(CfvaeError, match="batch_size is .*: a whole number from 1"):
        nearest_images(shapes.batch(range(2))[0], shapes, batch_size)


def test_a_copy_is_found_and_lies_at_zero():
    training = Shapes(300, seed=1)
    rows = [299, 0, 7, 150]
    distance, index = nearest_images(training.batch(rows)[0], training, batch_size=70)
    assert index.tolist() == rows and distance.tolist() == [0] * 4


def test_the_nearest_by_the_definition():
    images = Shapes(20, seed=2, size=8).batch(range(20))[0]
    training = Shapes(50, seed=3, size=8)
    known = training.batch(range(50))[0]
    apart = (images[:, None] - known[None]).square().flatten(2).mean(2).sqrt()
    for batch_size in (7, 50, 1000):
        distance, index = nearest_images(images, training, batch_size)
        assert torch.allclose(distance, apart.min(1).values, atol=1e-6)
        assert torch.equal(index, apart.argmin(1))


def test_distances_are_of_what_a_file_would_hold():
    "Values outside of the range are clipped, as they are when an image is saved."
    white = ImageDataset(torch.full((2, 3, 8, 8), 255).byte(), [0, 0], ("white",))
    distance, _ = nearest_images(torch.full((1, 3, 8, 8), 1.7), white)
    assert distance.item() == 0


def test_images_of_another_size():
    with pytest.raises(CfvaeError, match=r"like shapes: .*\(n, 3, 8, 8\), is needed, not \(2, 3, 16, 16\)"):
        nearest_images(torch.zeros(2, 3, 16, 16), Shapes(4, size=8))


def test_no_images_are_nearest():
    nobody = ImageDataset(torch.zeros(0, 3, 8, 8).byte(), [], ["a"], "nobody")
    with pytest.raises(CfvaeError, match="nobody has no images"):
        nearest_images(torch.zeros(2, 3, 8, 8), nobody)
