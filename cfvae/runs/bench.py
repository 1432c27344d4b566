"""How fast a recipe trains, draws and encodes on this machine, on random codes and images of its sizes."""

import dataclasses
import functools
import statistics
import typing
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..autoencoder import Autoencoder
from ..core import get_device, make_generator
from ..guidance import Guidance
from ..hvae import HierarchicalVAE
from ..latents import LatentScaler
from ..objective import vae_loss
from ..pipeline import LatentVAEPipeline, resolve_precision
from ..pretrained import PretrainedAutoencoder, PretrainedConfig
from ..recipes import Recipe
from .machine import (
    Machine,
    describe_machine,
    forget_peak,
    peak_memory,
    time_calls,
)
from .steps import class_names, random_codes, time_steps
from .train import check_recipe

SECONDS = 2.0  # that each measure goes on for, where a few repeats take less


@dataclasses.dataclass(frozen=True)
class Cost:
    "What one call costs: a training step, a batch of samples, a batch of codes."

    batch_size: int  # examples a call
    precision: str  # fp32 or bf16
    repeats: int  # that the medians are of
    milliseconds: float  # a call, median
    examples_per_second: float
    gflop_per_example: float  # counted: matrix products and convolutions
    tflops: float  # TFLOP/s
    matrix_share: float  # of the machine's rate for a matrix product in this precision
    peak_memory: int | None  # bytes, as `Machine.memory` says which; None: unknown
    data_share: float | None = None  # of the time, spent in fetching data; None: none is fetched


@dataclasses.dataclass(frozen=True)
class Benchmark:
    "What a recipe costs on a machine."

    preset: str
    machine: Machine
    guided: bool  # False: the recipe's samples cannot be guided
    training: Cost  # a step of stage two, through `fit`
    sampling: Cost  # images; codes where the first stage is pretrained
    encoding: Cost | None  # through the first stage; None where it is pretrained

    def to_dict(self) -> dict[str, typing.Any]:
        "As plain values, ready for JSON."
        return dataclasses.asdict(self)


def default_preset(
    device: torch.device,  # where to compute
) -> str:
    "The preset that suits the machine."
    return "cifar10" if device.type == "cuda" else "shapes-demo"


def bench(
    recipe: Recipe,  # what to measure
    device: str = "auto",  # where to compute
    seconds: float = SECONDS,  # that each of the three measures goes on for, at least
) -> Benchmark:
    "Measure training, sampling and encoding. Nothing is written; raises `CfvaeError` for a missing device."
    check_recipe(recipe)
    place = get_device(device)
    machine = describe_machine(place)
    recipe = _without_unused_classes(recipe)

    training = measure_training(recipe, machine, seconds)
    pipe = new_pipeline(recipe).to(place)
    sampling = measure_sampling(recipe, pipe, machine, seconds)
    encoding = None if recipe.is_pretrained else measure_encoding(recipe, pipe, machine, seconds)
    return Benchmark(recipe.name, machine, recipe.guidable, training, sampling, encoding)


def _without_unused_classes(recipe: Recipe) -> Recipe:
    "A recipe that does not tell the model the class has no classes, and one with none is not told them."
    conditional = recipe.conditional and recipe.vae.num_classes > 0
    vae = dataclasses.replace(recipe.vae, num_classes=recipe.vae.num_classes if conditional else 0)
    return dataclasses.replace(recipe, vae=vae, conditional=conditional)


def _cost(
    machine: Machine,
    times: Sequence[float],  # seconds of every call
    flops: int,  # of a call
    batch_size: int,
    precision: str,
    peak: int | None,  # bytes
) -> Cost:
    seconds = statistics.median(times)
    tflops = flops / seconds / 1e12
    return Cost(
        batch_size=batch_size,
        precision=precision,
        repeats=len(times),
        milliseconds=seconds * 1e3,
        examples_per_second=batch_size / seconds,
        gflop_per_example=flops / batch_size / 1e9,
        tflops=tflops,
        matrix_share=tflops / machine.matrix_tflops[precision],
        peak_memory=peak,
    )


def count_flops(
    call: Callable[[], typing.Any],  # called once
) -> int:
    "Floating-point operations of its matrix products and convolutions, backward passes included."
    # fused attention is not counted on every device; written out, it consists of matrix products
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


# --- the three measures


def measure_training(
    recipe: Recipe,  # what to train
    machine: Machine,  # on what
    seconds: float = SECONDS,  # go on for so long, at least
) -> Cost:
    "A step of stage two: batch and precision are the recipe's."
    device = torch.device(machine.device)
    config = recipe.vae_training
    precision = resolve_precision(config.precision, device)
    forget_peak(device)
    timer, model = time_steps(recipe, device, seconds)
    peak = peak_memory(device)

    loss_fn = vae_loss(recipe.objective)
    examples = range(config.batch_size // config.accumulate)
    batch = tuple(tensor.to(device) for tensor in random_codes(recipe).batch(examples))
    model.train()

    def forward_backward() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = loss_fn(model, batch, make_generator(0, device), 0)
        loss.backward()

    flops = config.accumulate * count_flops(forward_backward)
    cost = _cost(machine, timer.times, flops, config.batch_size, precision, peak)
    return dataclasses.replace(cost, data_share=statistics.median(timer.data_shares))


class CodesAsImages(PretrainedAutoencoder):
    "In the place of a first stage that is not there: its images are the codes, of any number of channels."

    def __init__(
        self,
        config: PretrainedConfig,  # sizes of the codes
    ) -> None:
        nn.Module.__init__(self)
        self.model = nn.Identity()
        self.config = config


def new_pipeline(
    recipe: Recipe,  # what sizes
) -> LatentVAEPipeline:
    "An untrained pipeline. A first stage that is not trained here is left out: its images are the codes."
    first_stage: Autoencoder | PretrainedAutoencoder
    if isinstance(recipe.autoencoder, PretrainedConfig):
        codes = PretrainedConfig("", recipe.vae.resolution, recipe.vae.data_channels, factor=1)
        first_stage = CodesAsImages(codes)
    else:
        first_stage = Autoencoder(recipe.autoencoder)
    vae = HierarchicalVAE(recipe.vae)
    for model in (first_stage, vae):
        model.requires_grad_(False)  # the counter of FLOPs stumbles over weights that are not trained now
    return LatentVAEPipeline(first_stage, vae, LatentScaler(0.0, 1.0), class_names(recipe))


def draw_batch(
    recipe: Recipe,  # how many: a part of its batch
    pipe: LatentVAEPipeline,  # as from `new_pipeline`
) -> np.ndarray:
    "Images as bytes, guided where the recipe can be guided; in bf16 where the hardware has it."
    config = recipe.vae_training
    n = config.batch_size // config.accumulate
    classes = recipe.vae.num_classes
    labels = torch.arange(n) % classes if classes else None
    guidance = Guidance(1.0, 1.0) if recipe.guidable else None
    return pipe(labels, n, guidance, output_type="np", batch_size=n, precision="auto").images


def measure_sampling(
    recipe: Recipe,  # how to draw
    pipe: LatentVAEPipeline,  # with what
    machine: Machine,  # on what
    seconds: float = SECONDS,  # go on for so long, at least
) -> Cost:
    "A batch of samples, in the precision that `auto` means here."
    device = pipe.device
    draw = functools.partial(draw_batch, recipe, pipe)
    forget_peak(device)
    times = time_calls(draw, device, seconds)
    peak = peak_memory(device)
    n = len(draw())
    return _cost(machine, times, count_flops(draw), n, resolve_precision("auto", device), peak)


def measure_encoding(
    recipe: Recipe,  # how many images, of what size
    pipe: LatentVAEPipeline,  # with what
    machine: Machine,  # on what
    seconds: float = SECONDS,  # go on for so long, at least
) -> Cost:
    "A batch of images through the first stage, in float32."
    device = pipe.device
    n = recipe.vae_training.batch_size
    side = recipe.autoencoder.size
    images = torch.rand(n, 3, side, side, device=device) * 2 - 1

    @torch.no_grad()
    def encode() -> torch.Tensor:
        return pipe.encode(images)

    forget_peak(device)
    times = time_calls(encode, device, seconds)
    peak = peak_memory(device)
    return _cost(machine, times, count_flops(encode), n, "fp32", peak)
