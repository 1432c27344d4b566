"""The stored experiments of lessons 08 and 09: where the nats sit, and what that does to samples."""

import dataclasses

import torch

from cfvae.core import CfvaeError, make_generator, shipped_weights
from cfvae.data import Shapes
from cfvae.evaluation import precision_recall
from cfvae.gaussian import DiagGaussian
from cfvae.hvae import HierarchicalVAE, TopDownBlock
from cfvae.objective import ObjectiveConfig
from cfvae.training import TrainingConfig
from cfvae.runs.pixel_models import PIXEL_MODEL, PIXEL_TRAINING, pixel_objective
from common import Record, bound, features, recognised, train, where_is


@torch.no_grad()
def draw_after(
    model: HierarchicalVAE,  # without labels
    x: torch.Tensor,  # (n, channels, r, r)
    depth: int,  # so many layers draw z from the posterior, the others from their priors
    generator: torch.Generator,  # source of the noise
) -> torch.Tensor:
    "Pictures whose first `depth` layers were drawn with x in sight, the others without."
    features = model.encoder(x, None)
    layers = iter(range(len(model.latent_shapes)))

    def choose_z(p: DiagGaussian, block: TopDownBlock, h: torch.Tensor, level: int) -> torch.Tensor:
        sees = next(layers) < depth
        source = block.posterior(h, features[level], None) if sees else p
        return source.sample(generator=generator)

    h = model.decoder(len(x), choose_z)
    return model.decoder.output(h).mean


def reweighting(
    name: str,  # of a pixel model
    seed: int,
    device: str,
    steps: int = PIXEL_TRAINING.steps,
    n: int = 1000,  # held-out images, and samples
) -> Record:
    "One pixel model, its bound, its samples, and the place where its priors fail; or why its training ended."
    training = dataclasses.replace(PIXEL_TRAINING, seed=seed, steps=steps, device=device)
    if dataclasses.replace(training, device=PIXEL_TRAINING.device) == PIXEL_TRAINING:
        model = HierarchicalVAE.from_pretrained(shipped_weights(name)).eval()  # this very training
    else:
        try:
            model = train(PIXEL_MODEL, Shapes(40000, size=16), pixel_objective(name), training)
        except CfvaeError as error:  # too many steps skipped in a row
            return {"message": str(error)}
    x, labels = Shapes(n, seed=1, size=16).batch(range(n))
    real, x = features(x), x.to(where_is(model))

    pairs = []
    for noise in range(3):
        drawn = model.sample(n, generator=make_generator(noise, where_is(model)))
        pairs.append(precision_recall(real, features(drawn)))

    depths = range(1, len(model.latent_shapes) + 1)
    errors, located = [], []
    for depth in depths:
        difference = model.reconstruct(x, depth=depth) - x
        errors.append(difference.square().mean().sqrt().item() * 127.5)
        drawn = draw_after(model, x, depth, make_generator(depth, where_is(model)))
        located.append(recognised(drawn, labels))
    return {
        **bound(model, x, labels, 0.05),
        "precision": [precision for precision, _ in pairs],
        "recall": [recall for _, recall in pairs],
        "error_by_depth": errors,  # of reconstructions from the first 1, 2, ... layers, in grey levels
        "recognised_by_depth": located,  # drawn from the posterior in the first 1, 2, ... layers
    }


TINY_MODEL = dataclasses.replace(PIXEL_MODEL, widths=(16,) * 4, encoder_widths=(16,) * 4, latent_channels=4)


def pull(
    steepness: float,  # of the schedule
    seed: int,
    device: str,
    steps: int = 1500,
) -> Record:
    "The rates of a tiny pixel model under one schedule."
    training = TrainingConfig(
        steps=steps,
        batch_size=16,
        learning_rate=3e-3,
        final_learning_rate=1e-4,
        ema_decay=0.98,
        warmup=30,
        precision="fp32",
        seed=seed,
        device=device,
    )
    objective = ObjectiveConfig(sigma_q=0.05, steepness=steepness, spectral_weight=0, label_drop=0)
    model = train(TINY_MODEL, Shapes(4000, size=16), objective, training)
    x, labels = Shapes(256, seed=1, size=16).batch(range(256))
    return bound(model, x.to(where_is(model)), labels, 0.05)
