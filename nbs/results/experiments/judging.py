"""What the shipped judge of `Shapes` makes of samples, and of real pictures as their yardstick."""

import functools

import torch

from cfvae.core import make_generator
from cfvae.data import Shapes
from cfvae.distances import frechet_distance
from cfvae.evaluation import Classifier, class_accuracy, features, precision_recall, shapes_classifier
from jobs import Record, Setting

N = 1000  # samples, and real images beside them
REFERENCE_SEED = 9  # of the real images: no model is trained on them


@functools.cache
def shapes(
    n: int,  # how many
    seed: int = 0,  # which
    size: int = 32,  # height and width
) -> Shapes:
    "A data set that several jobs of a process share: drawing it takes a while."
    return Shapes(n, seed, size)


@functools.cache
def judge() -> Classifier:
    "The shipped classifier."
    return shapes_classifier()


@functools.cache
def _reference(n: int) -> torch.Tensor:
    "The features of n real images, (n, 96)."
    images, _ = shapes(n, REFERENCE_SEED).batch(range(n))
    return features(judge(), images)


def judged(
    images: torch.Tensor,  # (n, 3, 32, 32)
    labels: torch.Tensor,  # (n,) what was asked for
) -> Record:
    "Recognised, Frechet distance, precision and recall, against as many real images."
    real, drawn = _reference(len(images)), features(judge(), images)
    precision, recall = precision_recall(real, drawn)
    return {
        "recognised": class_accuracy(judge(), images, labels),
        "frechet": frechet_distance(real, drawn),
        "precision": precision,
        "recall": recall,
    }


def floor(
    setting: Setting,  # for the number of images
    seed: int,  # of other real images
) -> Record:
    "Real images judged as if they were samples: the best that samples can do."
    n = setting.count(N)
    images, labels = shapes(n, 1000 + seed).batch(range(n))
    return judged(images, labels)


def noise() -> torch.Generator:
    "The source of all samples' noise: the same for every model of a size."
    return make_generator(0)
