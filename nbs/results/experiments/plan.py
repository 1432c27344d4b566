"""What is run: every experiment's jobs, the most wanted first."""

import itertools

import ablations
import autoencoders
import one_layer
import shipped
from jobs import Experiment, Job

SEEDS = (0, 1, 2)
EXPERIMENTS: dict[str, Experiment] = {
    "shipped": shipped.shipped,
    "02_autoencoder": autoencoders.long_autoencoder,
    "06_vae": one_layer.one_layer,
    "ablations": ablations.ablation,
    "code_length": autoencoders.code_length,
}


def jobs_of(
    experiment: str,  # a key of `EXPERIMENTS`
) -> list[Job]:
    "All jobs of an experiment."
    untrained = (autoencoders.LINEAR, shipped.PIPELINE, *shipped.PIXEL_MODELS)
    seeds = dict.fromkeys(untrained, (0,))
    return [
        Job(experiment, variant, seed, seconds)
        for variant, seconds in _costs(experiment).items()
        for seed in seeds.get(variant, SEEDS)
    ]


def _costs(experiment: str) -> dict[str, float]:
    "Every variant's seconds on one core, as measured on two busy ones; the pace of a run corrects them."
    if experiment == "shipped":
        return dict.fromkeys((*shipped.PIXEL_MODELS, shipped.PIPELINE), 10.0)
    if experiment == "ablations":
        return {ablations.FLOOR: 10} | dict.fromkeys(ablations.ABLATIONS, 230.0)
    if experiment == "02_autoencoder":
        runs = {name: 10 + 0.005 * steps for name, (_, steps, _) in autoencoders.RUNS.items()}
        return {autoencoders.LINEAR: 15} | runs
    if experiment == "code_length":
        return {f"{channels} channels": 100.0 for channels in autoencoders.LENGTHS}
    costs: dict[str, float] = {}
    for betas, steps in itertools.product(((1, 10), (0, 100)), (20000, 600, 6000)):
        costs |= {one_layer.variant(beta, steps): 75 + 0.007 * steps for beta in betas}
    return costs
