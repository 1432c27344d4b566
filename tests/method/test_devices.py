"""What is made on the way lies on the model's device: checked on a GPU that need not be there.

PyTorch's fake tensors have a device and no memory; operations on tensors of two devices are refused as they
would be. What takes a generator on a GPU cannot be tried so, nor what copies a model or asks for values."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cfvae.baselines import (
    AutoregressiveConfig,
    AutoregressiveTransformer,
    FlowConfig,
    FlowTransformer,
    Quantiser,
    autoregressive_loss,
    flow_loss,
    sample_autoregressive,
    sample_flow,
)
from cfvae.core import randn
from cfvae.data import horizontal_flip
from cfvae.guidance import Guidance
from cfvae.hvae import HierarchicalVAE, HierarchicalVAEConfig
from cfvae.objective import ObjectiveConfig, vae_loss
from cfvae import training
from cfvae.training import TrainingConfig, bf16_is_fast
from cfvae.vae import VAE, VAEConfig, one_layer_loss

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def nothing_is_there():
    with FakeTensorMode():
        yield


def on_gpu(build, config):
    "A model in training, where labels are not looked at."
    with GPU:
        return build(config).train()


def hierarchy(**sizes):
    return on_gpu(HierarchicalVAE, HierarchicalVAEConfig(2, (1, 4), 8, 8, 1, 1, 1, 1, 2, 2, **sizes))


def batch(*shape):
    "Examples on the GPU, and their labels."
    return torch.zeros(2, *shape, device=GPU), torch.zeros(2, dtype=torch.int64, device=GPU)


def test_noise_and_coins_without_a_generator():
    assert randn((2, 3), None, GPU).device == GPU
    assert horizontal_flip(torch.zeros(2, 3, 4, 4, device=GPU)).device == GPU


@pytest.mark.parametrize("learned", [True, False])
def test_a_hierarchy_is_trained_and_drawn_from(learned):
    model = hierarchy(num_classes=3, learned_prior=learned)
    loss, metrics = vae_loss(ObjectiveConfig())(model, batch(2, 4, 4), None, 0)
    assert loss.device == GPU and {value.device for value in metrics.values()} == {GPU}
    for labels in (None, [0, 1], torch.tensor([0, 1])):
        assert model.sample(2, labels).device == GPU
    if learned:
        assert model.sample(2, [0, 1], Guidance(1.0, 0.5)).device == GPU
    x, labels = batch(2, 4, 4)
    assert model.reconstruct(x, labels, depth=1).device == GPU


def test_one_layer():
    model = on_gpu(VAE, VAEConfig(4, (8,), 2))
    loss, _ = one_layer_loss()(model, batch(3, 4, 4), None, 0)
    assert loss.device == model.sample(2).device == GPU


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_flow(solver):
    model = on_gpu(FlowTransformer, FlowConfig(2, 4, 8, 1, 1, 3))
    loss, _ = flow_loss()(model, batch(2, 4, 4), None, 0)
    assert loss.device == sample_flow(model, [0, 1], 2, 2, 1.0, solver).device == GPU
    assert sample_flow(model, None, 2, 1).device == GPU


def test_an_autoregressive_model():
    config = AutoregressiveConfig(2, 2, 8, 1, 1, 3, quantiser=Quantiser(4))
    model = on_gpu(AutoregressiveTransformer, config)
    loss, metrics = autoregressive_loss()(model, batch(2, 2, 2), None, 0)
    assert loss.device == metrics["bits_per_dim"].device == GPU
    assert sample_autoregressive(model, [0, 1], 2, 1.0).device == GPU


def test_what_is_asked_of_the_hardware(monkeypatch):
    "Emulated bf16 is slow; of a CPU it is AVX-512's instructions that count."
    for fast in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, fast=fast: (
            fast or including_emulation))  # fmt: skip
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        assert bf16_is_fast(GPU) == bf16_is_fast(torch.device("cpu")) == fast


@pytest.mark.parametrize("device", [torch.device("cpu"), GPU])
def test_an_optimiser_updates_all_weights_at_once(device, monkeypatch):
    "A recorded step needs its rate as a tensor on the GPU, and says so to the optimiser."
    asked = {}
    monkeypatch.setattr(
        training, "_Adam", lambda weights, *given, **options: asked.update(options, given=given)
    )
    model = torch.nn.Linear(3, 3, device=device)
    config = TrainingConfig(learning_rate=0.25, betas=(0.5, 0.75))
    training._new_optimizer(model, config)
    rate, betas = asked.pop("given")
    on_gpu = device == GPU
    assert asked == {"fused": True, "capturable": on_gpu} and betas == (0.5, 0.75)
    assert rate.device == GPU if on_gpu else rate == 0.25

    slower = dataclasses.replace(config, optimizer="adamax")
    (group,) = training._new_optimizer(model, slower).param_groups
    assert group["foreach"] and (group["lr"], group["betas"]) == (0.25, (0.5, 0.75))
