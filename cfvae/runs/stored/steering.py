"""The stored experiment of lesson 11: guidance and temperature, one setting at a time."""

import typing
from collections.abc import Callable

import torch

from ...core import get_device, make_generator
from ...evaluation import class_accuracy, precision_recall
from ...guidance import Guidance
from ...pipeline import LatentVAEPipeline
from .common import Record


def settings(levels: int = 3) -> list[Record]:
    "What is tried: every mean weight at every temperature, both weights, and one resolution at a time."
    tried: list[Record] = []
    for weight in (0.0, 1.0, 2.0, 4.0, 8.0):
        for temperature in (0.7, 0.8, 0.9, 1.0):
            tried.append({"mean": weight, "var": 0.0, "temperature": temperature})
    tried += [{"mean": w, "var": w, "temperature": 1.0} for w in (1.0, 2.0, 4.0)]
    for weight in (2.0, 4.0):
        for level in range(levels):
            alone = [weight if i == level else 0.0 for i in range(levels)]
            tried.append({"mean": alone, "var": 0.0, "temperature": 1.0})
    return tried


@torch.no_grad()
def guided(
    model: str,  # a shipped pipeline
    setting: Record,  # one of `settings`
    seed: int,  # of the noise
    device: str,
    judge: Callable[[], torch.nn.Module],  # a classifier of the model's classes
    real: torch.Tensor | None,  # images to compare with, (n, 3, size, size) in [-1, 1]
    n: int = 600,  # samples
) -> Record:
    "What a judge makes of samples under one setting; precision and recall where there are real images."
    where = get_device(device)
    pipe, classifier = LatentVAEPipeline.from_pretrained(model).to(where), judge()
    asked = torch.arange(n) % len(pipe.classes)
    mean = setting["mean"]
    guidance = Guidance(tuple(mean) if isinstance(mean, list) else mean, setting["var"])
    generator = make_generator(seed, where)
    drawn = pipe(
        asked, None, guidance, setting["temperature"], generator=generator, output_type="pt", batch_size=n
    ).images
    drawn = (2 * drawn - 1).cpu()
    record: Record = {"recognised": class_accuracy(classifier, drawn, asked)}
    if real is not None:
        features = typing.cast(typing.Any, classifier).features
        precision, recall = precision_recall(
            torch.cat([features(part) for part in real.split(200)]),
            torch.cat([features(part) for part in drawn.split(200)]),
        )
        record |= {"precision": precision, "recall": recall}
    return record
