"""The bound on models whose evidence is known."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.distributions import MultivariateNormal, Normal

from cfvae.core import CfvaeError, make_generator
from cfvae.elbo import ELBO, importance_weighted_bound
from cfvae.gaussian import DiagGaussian, kl_divergence

NOISE = 0.3
GRID = torch.linspace(-8, 8, 16001, dtype=torch.float64)
STEP = GRID[1] - GRID[0]


def log_joint(z, x):
    "A decoder that squares: log N(x; z^2, 0.3^2) + log N(z; 0, 1)."
    return Normal(z**2, NOISE).log_prob(torch.tensor(x, dtype=z.dtype)) + Normal(0.0, 1.0).log_prob(z)


def evidence(x):
    return torch.logsumexp(log_joint(GRID, x), 0) + STEP.log()


def bound(x, mean, std):
    "The package's ELBO with the distortion summed on the grid and the rate in closed form."
    log_q = Normal(torch.tensor(mean, dtype=torch.float64), std).log_prob(GRID)
    distortion = -(log_q.exp() * (log_joint(GRID, x) - Normal(0.0, 1.0).log_prob(GRID))).sum() * STEP
    q = DiagGaussian(
        torch.tensor([[mean]], dtype=torch.float64), torch.tensor([[std**2]], dtype=torch.float64)
    )
    prior = DiagGaussian(torch.zeros_like(q.mean), torch.ones_like(q.mean))
    return ELBO(distortion.view(1), kl_divergence(q, prior)[:, None]), log_q


@settings(max_examples=25, deadline=None)
@given(st.floats(-0.5, 3), st.floats(-2, 2), st.floats(0.05, 1.0))
def test_the_gap_is_the_divergence_from_the_true_posterior(x, mean, std):
    result, log_q = bound(x, mean, std)
    divergence = (log_q.exp() * (log_q - (log_joint(GRID, x) - evidence(x)))).sum() * STEP
    assert result.elbo.item() <= evidence(x).item() + 1e-6
    assert abs(evidence(x) - result.elbo - divergence).item() < 1e-4


def linear_model(x, noise=0.5):
    "z ~ N(0, 1), x ~ N(z, noise^2): evidence and posterior in closed form."
    precision = 1 + 1 / noise**2
    return Normal(0.0, math.sqrt(1 + noise**2)).log_prob(x), x / noise**2 / precision, 1 / precision


def test_elbo_equals_the_evidence_at_the_true_posterior():
    x, noise = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64), 0.5
    exact, mean, variance = linear_model(x, noise)
    distortion = 0.5 * (((x - mean) ** 2 + variance) / noise**2 + math.log(2 * math.pi * noise**2))
    q = DiagGaussian(mean[:, None], torch.full((3, 1), variance, dtype=torch.float64))
    rate = kl_divergence(q, DiagGaussian(torch.zeros_like(q.mean), torch.ones_like(q.mean)))
    assert torch.allclose(ELBO(distortion, rate[:, None]).elbo, exact, atol=1e-12)
    worse = DiagGaussian(q.mean + 0.1, q.variance)
    rate = kl_divergence(worse, DiagGaussian(torch.zeros_like(q.mean), torch.ones_like(q.mean)))
    distortion = 0.5 * (((x - mean - 0.1) ** 2 + variance) / noise**2 + math.log(2 * math.pi * noise**2))
    gap = exact - ELBO(distortion, rate[:, None]).elbo
    assert torch.allclose(gap, kl_divergence(worse, q), atol=1e-10) and (gap > 1e-3).all()


def test_importance_weights_are_all_the_evidence_at_the_true_posterior():
    x = torch.tensor([0.7], dtype=torch.float64)
    exact, mean, variance = linear_model(x)
    z = mean + math.sqrt(variance) * torch.randn(9, 1, generator=make_generator(0), dtype=torch.float64)
    log_p = Normal(z, 0.5).log_prob(x) + Normal(0.0, 1.0).log_prob(z)
    log_w = log_p - Normal(mean, math.sqrt(variance)).log_prob(z)
    assert torch.allclose(log_w, exact.expand(9, 1))
    assert torch.allclose(importance_weighted_bound(log_w), exact)


def test_rates_of_a_chain_add_up_to_the_joint_divergence():
    """Two layers, z2 given z1: KL of the joint = rate of the first + average rate of the second.

    All is linear and Gaussian, so both are known."""
    a, vq1, vq2, shift = 0.8, 0.4, 0.2, 0.5  # q: z1 ~ N(shift, vq1), z2 ~ N(a z1, vq2)
    b, vp2 = 0.3, 0.7  # p: z1 ~ N(0, 1), z2 ~ N(b z1, vp2)
    q_mean = torch.tensor([shift, a * shift], dtype=torch.float64)
    q_cov = torch.tensor([[vq1, a * vq1], [a * vq1, a * a * vq1 + vq2]], dtype=torch.float64)
    p_cov = torch.tensor([[1.0, b], [b, b * b + vp2]], dtype=torch.float64)
    joint_q = MultivariateNormal(q_mean, q_cov)
    joint_p = MultivariateNormal(torch.zeros_like(q_mean), p_cov)
    joint = torch.distributions.kl_divergence(joint_q, joint_p)

    z1 = shift + math.sqrt(vq1) * torch.randn(400_000, 1, generator=make_generator(0), dtype=torch.float64)
    first_q = DiagGaussian(torch.full_like(z1, shift), torch.full_like(z1, vq1))
    first_p = DiagGaussian(torch.zeros_like(z1), torch.ones_like(z1))
    second_q = DiagGaussian(a * z1, torch.full_like(z1, vq2))
    second_p = DiagGaussian(b * z1, torch.full_like(z1, vp2))
    first = kl_divergence(first_q, first_p)
    second = kl_divergence(second_q, second_p)
    total = ELBO(torch.zeros(len(z1)), torch.stack([first, second], dim=1)).rate
    assert abs(total.mean() - joint) < 5 * total.std() / math.sqrt(len(z1)) < 0.01


def test_elbo_sums_layers_and_averages_examples():
    result = ELBO(torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert torch.equal(result.rate, torch.tensor([6.0, 15.0]))
    assert torch.equal(result.elbo, torch.tensor([-7.0, -17.0]))
    assert result.loss.item() == 12.0


def test_bits_per_dim_of_a_fair_coin_per_entry():
    dims = 24
    result = ELBO(torch.tensor([dims * math.log(2)]), torch.zeros(1, 2))
    assert torch.allclose(result.bits_per_dim(dims), torch.ones(1))
    assert torch.allclose(result.bits_per_dim(dims // 2), torch.full((1,), 2.0))


@pytest.mark.parametrize("k", [1, 2, 7])
def test_importance_weighted_bound_against_the_naive_formula(k):
    log_w = torch.randn(k, 5, generator=make_generator(k))
    assert torch.allclose(importance_weighted_bound(log_w), log_w.exp().mean(0).log(), atol=1e-6)


def test_importance_weighted_bound_survives_very_small_weights():
    log_w = torch.tensor([[-5000.0, 3000.0], [-5001.0, 2990.0]])
    naive = log_w.double() - log_w.double().max(0).values
    expected = log_w.double().max(0).values + naive.exp().mean(0).log()
    assert torch.allclose(importance_weighted_bound(log_w).double(), expected, atol=1e-2)


def test_importance_weighted_bound_tightens_with_k_and_stays_below():
    z = 1.0 * torch.randn(100, 4000, generator=make_generator(0), dtype=torch.float64)
    log_w = log_joint(z, 1.0) - Normal(0.0, 1.0).log_prob(z)
    bounds = [importance_weighted_bound(log_w[:k]).mean().item() for k in (1, 3, 10, 100)]
    assert all(a + 0.05 < b for a, b in zip(bounds[:3], bounds[1:], strict=False))
    assert evidence(1.0).item() - 0.03 < bounds[-1] < evidence(1.0).item() + 0.01


@pytest.mark.parametrize(
    "shapes", [((3, 1), (3, 2)), ((3,), (3,)), ((), (3, 2)), ((2,), (3, 2)), ((3,), (1, 2))]
)
def test_halves_that_do_not_belong_together(shapes):
    with pytest.raises(CfvaeError, match=r"distortion \(b,\) and rates \(b, layers\) are needed"):
        ELBO(*map(torch.zeros, shapes))


@pytest.mark.parametrize("dims", [0, -3, 2.5, "3", True])
def test_an_example_has_a_whole_number_of_numbers(dims):
    with pytest.raises(CfvaeError, match="dims is"):
        ELBO(torch.zeros(1), torch.zeros(1, 1)).bits_per_dim(dims)


@pytest.mark.parametrize(
    "log_weights", [torch.zeros(0, 3), torch.zeros(3), torch.zeros(2, 3).int(), [torch.zeros(3)] * 2, None]
)
def test_a_bound_needs_the_weights_of_a_draw(log_weights):
    with pytest.raises(CfvaeError, match=r"log_weights: a tensor of floats, \(n, size\), is needed, not"):
        importance_weighted_bound(log_weights)
