"""The stored experiment of lesson 11: guidance and temperature, one setting at a time."""

import torch

from cfvae.core import get_device, make_generator
from cfvae.evaluation import Classifier, PhotoClassifier, class_accuracy, features, precision_recall
from cfvae.guidance import Guidance
from cfvae.pipeline import LatentVAEPipeline
from common import Record


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
    judge: Classifier | PhotoClassifier,  # of the model's classes
    real: torch.Tensor | None,  # images to compare with, (n, 3, size, size) in [-1, 1]
    n: int = 600,  # samples
) -> Record:
    "What a judge makes of samples under one setting; precision and recall where there are real images."
    where = get_device(device)
    pipe = LatentVAEPipeline.from_pretrained(model).to(where)
    asked = torch.arange(n) % len(pipe.classes)
    mean = setting["mean"]
    guidance = Guidance(tuple(mean) if isinstance(mean, list) else mean, setting["var"])
    generator = make_generator(seed, where)
    drawn = pipe(
        asked, None, guidance, setting["temperature"], generator=generator, output_type="pt", batch_size=n
    ).images
    drawn = (2 * drawn - 1).cpu()
    record: Record = {"recognised": class_accuracy(judge, drawn, asked), "spread": _spread(drawn, asked)}
    if real is not None:
        record["precision"], record["recall"] = precision_recall(
            features(judge, real), features(judge, drawn)
        )
    return record


def _spread(pictures: torch.Tensor, labels: torch.Tensor) -> float:
    "How far pictures of a class lie from their mean: the root of summed variances, averaged over classes."
    flat = pictures.clamp(-1, 1).flatten(1)
    variances = torch.stack([flat[labels == label].var(0).sum() for label in labels.unique()])
    return variances.mean().sqrt().item()
