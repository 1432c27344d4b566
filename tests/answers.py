"""What every network answers with weights, inputs and noise that a formula gives: what stored weights mean.

A network that answers otherwise would still train, but what was trained before would no longer be itself."""

import warnings

import torch
from torch import nn

from cfvae.autoencoder import Autoencoder, AutoencoderConfig
from cfvae.autoencoder_loss import PatchDiscriminator
from cfvae.baselines import (
    AutoregressiveConfig,
    AutoregressiveTransformer,
    FlowConfig,
    FlowTransformer,
    Quantiser,
    sample_autoregressive,
    sample_flow,
)
from cfvae.evaluation import Classifier, ClassifierConfig, PhotoClassifier, PhotoClassifierConfig
from cfvae.guidance import Guidance
from cfvae.hvae import HierarchicalVAE, HierarchicalVAEConfig
from cfvae.vae import VAE, VAEConfig

Numbers = dict[str, list[float]]


def waves(*shape: int, turn: float = 0.0) -> torch.Tensor:
    "Numbers from -1 to 1 that do not repeat, float32."
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(count, dtype=torch.float64) * 1.7 + turn).float().view(shape)


@torch.no_grad()
def fill(model: nn.Module) -> nn.Module:
    "Every weight from `waves`, about as large as it would be drawn; in evaluation mode."
    for turn, (name, tensor) in enumerate(model.state_dict().items()):
        if tensor.is_floating_point():
            numbers = waves(*tensor.shape, turn=turn)
            inputs = max(1, tensor[0].numel()) if tensor.ndim > 1 else 4
            positive = name.endswith("running_var")
            tensor.copy_(numbers.abs() + 0.5 if positive else numbers * inputs**-0.5)
    return model.eval()


def summary(answer: torch.Tensor) -> list[float]:
    "Mean, root mean square, the first number and the last."
    answer = answer.detach().double()
    numbers = (answer.mean(), answer.square().mean().sqrt(), answer.flatten()[0], answer.flatten()[-1])
    return [float(f"{number.item():.6g}") for number in numbers]


def first_stages() -> Numbers:
    autoencoder = fill(Autoencoder(AutoencoderConfig(16, (8, 16), 2, 2, 3, 4)))
    code = autoencoder.encode(waves(2, 3, 16, 16))
    critic = fill(PatchDiscriminator(8, layers=2, groups=4))
    deep = fill(PatchDiscriminator(4, layers=4, groups=4))
    return {
        "autoencoder, code": summary(code),
        "autoencoder, image": summary(autoencoder.decode(waves(2, 3, 4, 4))),
        "discriminator": summary(critic(waves(2, 3, 32, 32))),
        "discriminator of four layers": summary(deep(waves(1, 3, 64, 64))),
    }


def judges() -> Numbers:
    plain = fill(Classifier(ClassifierConfig(16, (8, 16), 5)))
    photo = fill(PhotoClassifier(PhotoClassifierConfig(16, (8, 12, 16), 2, 5)))
    images = waves(3, 3, 16, 16)
    return {"classifier": summary(plain(images)), "classifier of photographs": summary(photo(images))}


def hierarchy(name: str, **sizes) -> Numbers:
    "Of a small hierarchical VAE: one pass, samples, a reconstruction, the penalty."
    usual = {
        "data_channels": 3,
        "resolutions": (1, 4, 8),
        "widths": (8, 12, 8),
        "encoder_widths": (8, 8, 4),
        "multipliers": (0, 2, 1),
        "layers": (1, 3, 1),
        "encoder_blocks": (1, 2, 1),
        "attention": (0, 1, 1),
        "heads": (1, 4, 1),
        "latent_channels": 2,
        "num_classes": 3,
    }
    model = fill(HierarchicalVAE(HierarchicalVAEConfig(**{**usual, **sizes})))
    labels = torch.tensor([2, 0]) if model.config.num_classes else None
    x = waves(2, 3, 8, 8)
    eps = [waves(2, *shape, turn=turn) for turn, shape in enumerate(model.latent_shapes)]
    out = model(x, labels, eps)
    numbers = {
        "mean": summary(out.distribution.mean),
        "variance": summary(out.distribution.variance),
        "rates": summary(out.rates),
        "sample": summary(model.sample(2, labels, temperature=(0.5, 1.0, 0.8), eps=eps)),
        "penalty": summary(model.spectral_penalty()),
    }
    if not sizes:
        guided = model.sample(2, labels, Guidance((0.5, 1.0, 0.2), 0.3), eps=eps)
        numbers["guided sample"] = summary(guided)
        numbers["reconstruction"] = summary(model.reconstruct(x, labels, depth=3))
    return {f"{name}, {part}": value for part, value in numbers.items()}


def hierarchies() -> Numbers:
    one = VAE(VAEConfig(size=4, hidden=(8, 6), latent_dim=3))
    out = fill(one)(waves(2, 3, 4, 4), waves(2, 3))
    return {
        "one layer, mean": summary(out.distribution.mean),
        "one layer, rate": summary(out.rates),
        **hierarchy("hierarchy"),
        **hierarchy("as published", attention_mode="published"),
        **hierarchy("unit prior", learned_prior=False),
        **hierarchy("no labels", num_classes=0),
    }


def transformers() -> Numbers:
    "The same noise for all: numbers that a seed gives are the same wherever PyTorch runs on a CPU."
    flow = fill(FlowTransformer(FlowConfig(2, 4, 16, 2, 2, 3)))
    labels = torch.tensor([2, 0, 1])
    label = flow.transformer.label_vectors(labels, 3)
    velocity = flow(waves(3, 2, 4, 4), torch.tensor([0.1, 0.5, 0.9]), label)
    config = AutoregressiveConfig(2, 3, 16, 2, 2, 3, quantiser=Quantiser(8, -2.0, 2.0))
    autoregressive = fill(AutoregressiveTransformer(config))
    bins = config.quantiser.indices(2 * waves(3, 9, 2))
    numbers = {
        "flow, velocity": summary(velocity),
        "autoregressive, logits": summary(autoregressive(bins, label)),
        "autoregressive, likeliest": summary(sample_autoregressive(autoregressive, labels, 3, 1.0, 0.0)),
    }
    for solver in ("euler", "heun"):
        for weight in (0.0, 1.0):
            drawn = sample_flow(flow, labels, 3, 4, weight, solver, torch.Generator().manual_seed(0))
            numbers[f"flow, {solver}, guidance {weight:g}"] = summary(drawn)
    return numbers


def beginning() -> Numbers:
    "How large the weights of a new model are, by the seed."
    torch.manual_seed(0)
    sizes = {"widths": (8,), "encoder_widths": (8,), "attention": (1,), "heads": (2,), "num_classes": 3}
    model = HierarchicalVAE(HierarchicalVAEConfig(resolutions=(4, 8), layers=(2,), **sizes))
    numbers = {}
    for name, tensor in model.state_dict().items():
        kind = ".".join(part for part in name.split(".") if not part.isdigit())
        numbers.setdefault(f"new {kind}", []).append(tensor.square().mean().sqrt().item())
    return {kind: [float(f"{value:.4g}") for value in values] for kind, values in numbers.items()}


@torch.no_grad()
def all_answers() -> Numbers:
    "Name of an answer -> numbers that it is told by."
    torch.manual_seed(0)
    with (
        warnings.catch_warnings(),
        torch.backends.mkldnn.flags(enabled=False),
    ):  # which would compile for long
        warnings.simplefilter("ignore")
        return {**first_stages(), **judges(), **hierarchies(), **transformers(), **beginning()}
