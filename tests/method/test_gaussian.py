"""Draws, densities and divergences of independent normal distributions."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl

from cfvae.core import CfvaeError, make_generator
from cfvae.gaussian import (
    SOFTPLUS_BETA,
    VARIANCE_FLOOR,
    DiagGaussian,
    kl_divergence,
    smooth_variance,
    sum_dims,
)

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
few = settings(max_examples=25, deadline=None)


def some(shape, seed, dtype=torch.float32):
    "A Gaussian with nothing special about it."
    mean, raw = (torch.randn(shape, generator=make_generator(2 * seed + i)) for i in range(2))
    return DiagGaussian((2 * mean).to(dtype), (0.1 + raw.exp()).to(dtype))


def normal(g):
    return Normal(g.mean, g.std)


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(lambda dims: (3, *dims))


@few
@given(shapes, st.integers(0, 100))
def test_log_prob_and_kl_agree_with_torch(shape, seed):
    q, p, x = some(shape, seed), some(shape, seed + 1), torch.randn(shape, generator=make_generator(seed))
    assert torch.allclose(q.log_prob(x), normal(q).log_prob(x).flatten(1).sum(1), rtol=1e-4, atol=1e-4)
    assert torch.allclose(
        kl_divergence(q, p), reference_kl(normal(q), normal(p)).flatten(1).sum(1), rtol=1e-4, atol=1e-4
    )
    assert kl_divergence(q, p).shape == q.log_prob(x).shape == (3,)


def test_kl_agrees_with_monte_carlo():
    q, p = some((1, 2), 0), some((1, 2), 5)
    z = q.sample(torch.randn(200_000, 2, generator=make_generator(0)))
    differences = q.log_prob(z) - p.log_prob(z)
    error = 5 * differences.std() / math.sqrt(len(differences))
    assert abs(differences.mean() - kl_divergence(q, p)) < error < 0.2


def test_kl_is_zero_only_for_equals_and_has_a_direction():
    q, p = some((4, 3), 1), some((4, 3), 2)
    assert torch.equal(kl_divergence(q, q), torch.zeros(4))
    assert (kl_divergence(q, p) > 0).all() and (kl_divergence(q, p) - kl_divergence(p, q)).abs().min() > 1e-3


def test_kl_gradients_agree_with_torch():
    q, p = some((2, 3), 3, torch.float64), some((2, 3), 4, torch.float64)
    inputs = [t.requires_grad_() for t in (q.mean, q.variance, p.mean, p.variance)]
    ours = torch.autograd.grad(kl_divergence(q, p).sum(), inputs)
    theirs = torch.autograd.grad(reference_kl(normal(q), normal(p)).sum(), inputs)
    assert all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_sample_is_mean_plus_scaled_noise_and_lets_gradients_through(device):
    mean = torch.tensor([[1.0, -2.0]], device=device, requires_grad=True)
    variance = torch.tensor([[0.25, 4.0]], device=device, requires_grad=True)
    eps = torch.tensor([[0.5, -1.5]], device=device)
    z = DiagGaussian(mean, variance).sample(eps)
    assert torch.allclose(z, torch.tensor([[1.25, -5.0]], device=device))
    z.sum().backward()
    assert torch.equal(mean.grad, torch.ones_like(mean))
    assert torch.allclose(variance.grad, eps / (2 * variance.detach().sqrt()))


def test_temperature_scales_the_standard_deviation():
    g, eps = some((5, 3), 6), torch.randn(5, 3, generator=make_generator(0))
    assert torch.equal(g.sample(eps, temperature=0.0), g.mean)
    assert torch.allclose(g.sample(eps, temperature=0.5) - g.mean, 0.5 * (g.sample(eps) - g.mean), atol=1e-6)


def test_statistics_of_draws():
    z = DiagGaussian(torch.full((100_000, 1), 3.0), torch.full((100_000, 1), 4.0)).sample(
        generator=make_generator(0)
    )
    assert abs(z.mean() - 3) < 5 * 2 / math.sqrt(100_000) and abs(z.std() - 2) < 0.03


@pytest.mark.parametrize("device", DEVICES)
def test_a_generator_decides_the_draw_on_every_device(device):
    g = DiagGaussian(torch.zeros(2, 3, device=device), torch.ones(2, 3, device=device))
    assert g.sample(generator=make_generator(1)).device.type == device
    assert torch.equal(
        g.sample(generator=make_generator(1)).cpu(), torch.randn(2, 3, generator=make_generator(1))
    )
    assert not torch.equal(g.sample(generator=make_generator(1)), g.sample(generator=make_generator(2)))


def test_sampling_does_not_change_its_inputs():
    g, eps = some((2, 3), 7), torch.ones(2, 3)
    mean, variance = g.mean.clone(), g.variance.clone()
    g.sample(eps, temperature=2.0)
    assert (
        torch.equal(g.mean, mean) and torch.equal(g.variance, variance) and torch.equal(eps, torch.ones(2, 3))
    )


@few
@given(st.floats(-200, 200))
def test_variance_is_positive_with_finite_gradients(value):
    raw = torch.tensor([[value]], requires_grad=True)
    q = DiagGaussian.from_raw(torch.zeros(1, 1), raw)
    rate = kl_divergence(q, DiagGaussian.standard(q.mean))
    rate.sum().backward()
    assert q.variance.min() >= VARIANCE_FLOOR and rate.isfinite().all() and raw.grad.isfinite().all()
    assert abs(
        q.variance.item() - max(math.log1p(math.exp(SOFTPLUS_BETA * value)) / SOFTPLUS_BETA, VARIANCE_FLOOR)
    ) <= 1e-5 * max(1, abs(value))


def test_the_constants_of_the_variance():
    assert SOFTPLUS_BETA == 0.693 and 0 < VARIANCE_FLOOR <= 1e-6
    assert abs(smooth_variance(torch.zeros(1, dtype=torch.float64)).item() - math.log(2) / 0.693) < 1e-6
    assert smooth_variance(torch.tensor([-200.0])).item() == pytest.approx(VARIANCE_FLOOR)
    assert smooth_variance(torch.tensor([200.0])).item() == 200.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_become_float32(dtype):
    mean, raw = torch.tensor([[0.5, 3.0]], dtype=dtype), torch.tensor([[-1.0, 60.0]], dtype=dtype)
    g = DiagGaussian.from_raw(mean, raw)
    assert g.mean.dtype == g.variance.dtype == g.sample(generator=make_generator(0)).dtype == torch.float32
    assert torch.equal(g.variance, smooth_variance(raw.float()))
    prior = DiagGaussian.standard(mean)
    assert (
        prior.mean.dtype == torch.float32
        and torch.equal(prior.variance, torch.ones(1, 2))
        and torch.equal(prior.mean, torch.zeros(1, 2))
    )


def test_sum_dims_keeps_the_batch():
    x = torch.arange(24.0).view(2, 3, 4)
    assert torch.equal(sum_dims(x), torch.stack([x[0].sum(), x[1].sum()]))
    assert torch.equal(sum_dims(x[0, :, 0]), x[0, :, 0])
    assert sum_dims(x[:0]).shape == (0,)


def test_entries_that_do_not_belong_together():
    "PyTorch would repeat what is missing, and the sum would be over b x b entries."
    q = some((3, 1), 0)
    one_less = torch.zeros(3)
    for question in (
        lambda: q.log_prob(one_less),
        lambda: q.sample(one_less),
        lambda: DiagGaussian(q.mean, one_less),
        lambda: kl_divergence(q, DiagGaussian(one_less, one_less + 1)),
        lambda: some((3, 3, 4, 4), 0).log_prob(torch.zeros(3, 1, 4, 4)),
        lambda: q.log_prob(torch.zeros(2, 1)),
    ):
        with pytest.raises(CfvaeError, match="has the shape .*, which does not go with"):
            question()


def test_one_example_may_stand_for_all():
    q, one = some((3, 2), 0), torch.zeros(2)
    for x in (one, one[None]):
        assert torch.equal(q.log_prob(x), q.log_prob(torch.zeros(3, 2)))
    assert q[:1].log_prob(torch.zeros(3, 2)).shape == (3,)
