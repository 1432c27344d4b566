"""What the shipped models of `Shapes` say of claims 3 and 4: no training, seconds each."""

import torch

from cfvae.autoencoder import psnr
from cfvae.core import make_generator, shipped_weights
from cfvae.evaluation import class_accuracy, resize
from cfvae.hvae import HierarchicalVAE
from cfvae.pipeline import LatentVAEPipeline
from jobs import Job, Record, Setting
from judging import N, REFERENCE_SEED, judge, shapes

PIXEL_MODELS = ("pixels-plain", "pixels-reweighted")
PIPELINE = "shapes"
COARSE = 4  # layers of a pixel model at 1 x 1 and 4 x 4


@torch.no_grad()
def shipped(job: Job, setting: Setting) -> Record:
    "The nats of a pixel model by resolution and what its coarse layers know; or what a code keeps."
    n = setting.count(N)
    if job.variant == PIPELINE:
        return _code(n)
    folder = shipped_weights(job.variant)
    assert folder is not None  # it comes with the package
    model = HierarchicalVAE.from_pretrained(folder).eval()
    x, labels = shapes(n, REFERENCE_SEED, 16).batch(range(n))
    rates = torch.cat([model(part, generator=make_generator(0)).rates for part in x.split(250)])
    record: Record = {
        "n": n,
        "rate": rates.sum(1).mean().item(),
        "rates": rates.mean(0).tolist(),
        "share_fine": (rates[:, COARSE:].sum() / rates.sum()).item(),
        "real_recognised": class_accuracy(judge(), resize(x, 32), labels),
    }
    for name, depth in (("coarse", COARSE), ("all", None)):
        again = model.reconstruct(x, depth=depth)
        record[f"error_{name}"] = (again - x).square().mean().sqrt().item() * 127.5  # grey levels
        record[f"recognised_{name}"] = class_accuracy(judge(), resize(again.clamp(-1, 1), 32), labels)
    return record


def _code(n: int) -> Record:
    pipe = LatentVAEPipeline.from_pretrained(PIPELINE)
    x, labels = shapes(n, REFERENCE_SEED).batch(range(n))
    codes = torch.cat([pipe.autoencoder.encode(part) for part in x.split(250)])
    again = torch.cat([pipe.autoencoder.decode(part) for part in codes.split(250)])
    return {
        "n": n,
        "numbers": codes[0].numel(),
        "psnr": float(psnr(again, x)),
        "recognised_all": class_accuracy(judge(), again, labels),
        "real_recognised": class_accuracy(judge(), x, labels),
    }
