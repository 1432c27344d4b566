"""What the shipped judge of `Shapes` makes of samples, and of real pictures as their yardstick."""

import functools

import torch

from cfvae.core import make_generator
from cfvae.data import Shapes
from cfvae.evaluation import class_accuracy, precision_recall, shapes_classifier
from jobs import Record, Setting

N = 1000  # samples, and real images beside them
REFERENCE_SEED = 9  # of the real images: no model is trained on them


@functools.cache
def judge() -> torch.nn.Module:
    "The shipped classifier."
    return shapes_classifier()


@torch.no_grad()
def features(
    images: torch.Tensor,  # (n, 3, 32, 32) in [-1, 1]
) -> torch.Tensor:
    "The judge's last maps, flattened: (n, 1536)."
    layers = judge().get_submodule("features")
    return torch.cat([layers(part.clamp(-1, 1)) for part in images.split(250)])


def frechet_distance(
    a: torch.Tensor,  # (n, d) features
    b: torch.Tensor,  # (m, d) features
) -> float:
    "The Frechet distance of the Gaussians with the means and covariances of a and b (Heusel et al. 2017)."
    a, b = a.double(), b.double()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    first, second = torch.cov(a.T), torch.cov(b.T)

    # the eigenvalues of the product of two covariances are real and not negative
    eigenvalues = torch.linalg.eigvals(first @ second).real.clamp_min(0)
    spread = first.trace() + second.trace() - 2 * eigenvalues.sqrt().sum()
    return float(shift + spread)


@functools.cache
def reference(
    n: int = N,  # how many
    seed: int = REFERENCE_SEED,  # which
) -> torch.Tensor:
    "The features of real images, (n, 1536)."
    images, _ = Shapes(n, seed=seed).batch(range(n))
    return features(images)


def pooled(
    vectors: torch.Tensor,  # (n, 1536)
) -> torch.Tensor:
    "Averaged over the places, (n, 96): few enough numbers for a covariance of 1,000 images."
    return vectors.unflatten(1, (96, -1)).mean(2)


def judged(
    images: torch.Tensor,  # (n, 3, 32, 32)
    labels: torch.Tensor,  # (n,) what was asked for
) -> Record:
    "Recognised, Frechet distance, precision and recall, against as many real images."
    drawn = features(images)
    real = reference(len(images))
    precision, recall = precision_recall(real, drawn)
    return {
        "recognised": class_accuracy(judge(), images, labels),
        "frechet": frechet_distance(pooled(real), pooled(drawn)),
        "precision": precision,
        "recall": recall,
    }


def floor(
    setting: Setting,  # for the number of images
    seed: int,  # of other real images
) -> Record:
    "Real images judged as if they were samples: the best that samples can do."
    n = setting.count(N)
    images, labels = Shapes(n, seed=1000 + seed).batch(range(n))
    return judged(images, labels)


def noise() -> torch.Generator:
    "The source of all samples' noise: the same for every model of a size."
    return make_generator(0)
