"""The rule, the exact tilt, and guided sampling."""

import dataclasses
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from cfvae.core import CfvaeError, make_generator, seed_everything
from cfvae.gaussian import DiagGaussian
from cfvae.guidance import Guidance, exact_tilt, guide
from cfvae.hvae import HierarchicalVAE, HierarchicalVAEConfig

CONFIG = HierarchicalVAEConfig(
    data_channels=2,
    resolutions=(1, 4),
    widths=8,
    encoder_widths=8,
    multipliers=0,
    layers=(1, 2),
    encoder_blocks=1,
    latent_channels=3,
    num_classes=3,
)


def gaussian(mean: float, variance: float) -> DiagGaussian:
    return DiagGaussian(
        torch.tensor([[mean]], dtype=torch.float64), torch.tensor([[variance]], dtype=torch.float64)
    )


def tiny(device: str = "cpu") -> HierarchicalVAE:
    seed_everything(0)
    model = HierarchicalVAE(CONFIG)
    for (
        block
    ) in model.decoder.blocks:  # priors start at N(0, 1), whatever the label; give them something to say
        torch.nn.init.normal_(block.prior_block.last.weight, std=0.5, generator=make_generator(3))
    return model.to(device).eval()


finite, positive, weight = st.floats(-5, 5), st.floats(0.05, 5), st.floats(0, 6)


# --- the rule


@given(finite, positive, finite, positive, st.floats(-3, 6), st.floats(-3, 6))
@settings(deadline=None, max_examples=100)
def test_the_rule_is_the_formula(m_c, v_c, m_u, v_u, w_m, w_v):
    p = Guidance(w_m, w_v)(gaussian(m_c, v_c), gaussian(m_u, v_u), 0)
    assert p.mean.item() == pytest.approx(m_c + w_m * (m_c - m_u), abs=1e-9)
    assert p.variance.item() == pytest.approx(v_c * (v_c / v_u) ** w_v, rel=1e-9)


def test_weights_minus_one_give_the_unconditional_prior():
    p = Guidance(-1, -1)(gaussian(1.0, 0.5), gaussian(-2.0, 3.0), 0)
    assert p.mean.item() == pytest.approx(-2) and p.variance.item() == pytest.approx(3)


def test_weights_may_differ_per_resolution():
    guidance = Guidance((0, 2), [1, 0])
    low, high = (guidance(gaussian(1.0, 0.5), gaussian(0.0, 1.0), level) for level in (0, 1))
    assert (low.mean.item(), high.mean.item()) == (1, 3)
    assert (low.variance.item(), high.variance.item()) == pytest.approx((0.25, 0.5))
    assert guidance.var_weight == (1.0, 0.0) and hash(guidance) == hash(Guidance((0, 2), (1, 0)))
    with pytest.raises(CfvaeError, match="mean_weight has 2 entries"):
        guidance(gaussian(1.0, 0.5), gaussian(0.0, 1.0), 2)


def test_whole_numbers_are_weights_too():
    whole, decimal = (Guidance(*w)(gaussian(1.0, 0.5), gaussian(0.0, 1.0), 0) for w in ((2, 4), (2.0, 4.0)))
    assert whole.mean == decimal.mean and whole.variance == decimal.variance
    assert Guidance(2, 4) == Guidance(2.0, 4.0)


@pytest.mark.parametrize(
    "weights, on",
    [
        ((), False),
        ((0, 0), False),
        (((0, 0), 0.0), False),
        ((0.1, 0), True),
        ((0, -1), True),
        (((0, 0, 2), 0), True),
    ],
)
def test_guidance_is_true_exactly_where_it_is_on(weights, on):
    assert bool(Guidance(*weights)) is on


NO_NUMBERS = [
    math.nan,
    math.inf,
    "2",
    None,
    (),
    (1, math.nan),
    (1, "2"),
    1j,
    torch.zeros(2),
    torch.tensor(1j),
]
TOO_LARGE = [
    1e39,
    -1e39,
    10**400,
    (1.0, 1e40),
    np.float64(1e39),
    np.float16(math.inf),
    torch.tensor(math.inf),
]


@pytest.mark.parametrize("value", NO_NUMBERS + TOO_LARGE)
@pytest.mark.parametrize("name", ["mean_weight", "var_weight"])
def test_weights_that_are_no_numbers_or_no_float32_are_refused(name, value):
    with pytest.raises(CfvaeError, match=f"{name} is .*finite numbers are needed"):
        Guidance(**{name: value})


@pytest.mark.parametrize(
    "two",
    [2, 2.0, np.float32(2), np.float16(2), np.int64(2), np.uint8(2), torch.tensor(2), torch.tensor(2.0)],
)
def test_numbers_of_numpy_and_torch_are_weights_too(two):
    guidance = Guidance(two, [0, two])
    assert guidance == Guidance(2.0, (0.0, 2.0))
    assert type(guidance.mean_weight) is float and type(guidance.var_weight[1]) is float


def test_the_largest_float32_is_a_weight():
    largest = torch.finfo(torch.float32).max
    assert Guidance(largest, -largest).var_weight == -largest


@pytest.mark.parametrize("w", [-1000, -50, 50, 1000])
def test_variance_stays_finite_and_positive_for_extreme_weights(w):
    p = Guidance(0, w)(
        DiagGaussian(torch.zeros(1, 3), torch.tensor([[1e-6, 1.0, 50.0]])),
        DiagGaussian(torch.zeros(1, 3), torch.ones(1, 3)),
        0,
    )
    assert p.variance.isfinite().all() and (p.variance > 0).all() and p.std.isfinite().all()


def test_the_priors_are_not_changed():
    p_c, p_u = gaussian(1.0, 0.5), gaussian(0.0, 1.0)
    Guidance(2, 3)(p_c, p_u, 0)
    exact_tilt(p_c, p_u, 2.0)
    assert (p_c.mean.item(), p_c.variance.item(), p_u.mean.item(), p_u.variance.item()) == (1, 0.5, 0, 1)


# --- the exact tilt


@given(st.floats(-2, 2), st.floats(0.3, 2), st.floats(-2, 2), st.floats(0.3, 2), st.floats(0, 3))
@settings(deadline=None, max_examples=100)
def test_exact_tilt_against_densities_normalised_on_a_grid(m_c, v_c, m_u, v_u, w):
    p_c, p_u = gaussian(m_c, v_c), gaussian(m_u, v_u)
    tilted, exists = exact_tilt(p_c, p_u, w)
    precision = (1 + w) / v_c - w / v_u
    assert bool(exists) == (precision > 0)
    if precision < 0.05:  # the tilt does not exist, or is too wide for a grid
        return
    half = 10 / math.sqrt(precision)
    z = torch.linspace(tilted.mean.item() - half, tilted.mean.item() + half, 4001, dtype=torch.float64)
    log = (1 + w) * torch.distributions.Normal(m_c, v_c**0.5).log_prob(z) - w * torch.distributions.Normal(
        m_u, v_u**0.5
    ).log_prob(z)
    share = torch.softmax(log, 0)
    mean = (share * z).sum().item()
    assert tilted.mean.item() == pytest.approx(mean, abs=1e-4 * half)
    assert tilted.variance.item() == pytest.approx((share * (z - mean) ** 2).sum().item(), rel=1e-3)


def test_where_the_tilt_does_not_exist_the_conditional_prior_comes_back():
    p_c = DiagGaussian(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 2.0, 1.5]]))
    p_u = DiagGaussian(torch.zeros(1, 3), torch.ones(1, 3))
    tilted, exists = exact_tilt(p_c, p_u, 2.0)  # precisions 4, -0.5 and exactly 0
    assert exists.tolist() == [[True, False, False]]
    assert tilted.mean[0, 1:].tolist() == [2, 3] and tilted.variance[0, 1:].tolist() == [2, 1.5]
    assert tilted.variance[0, 0].item() == pytest.approx(0.25) and tilted.mean[0, 0].item() == pytest.approx(
        1.5
    )


@given(finite, finite, positive, weight)
@settings(deadline=None, max_examples=50)
def test_rule_and_tilt_agree_for_equal_variances(m_c, m_u, v, w):
    p_c, p_u = gaussian(m_c, v), gaussian(m_u, v)
    tilted, exists = exact_tilt(p_c, p_u, w)
    rule = Guidance(w, w)(p_c, p_u, 0)
    assert bool(exists)
    torch.testing.assert_close(tilted.mean, rule.mean)
    torch.testing.assert_close(tilted.variance, rule.variance)


@pytest.mark.parametrize("rule", [lambda p, u: exact_tilt(p, u, 1.0), lambda p, u: guide(p, u, 1.0, 1.0)])
@pytest.mark.parametrize("shape", [(3, 3), (2, 1), (2,)])
def test_priors_that_do_not_belong_together(rule, shape):
    p, u = (DiagGaussian(torch.zeros(size), torch.ones(size)) for size in ((2, 3), shape))
    with pytest.raises(CfvaeError, match=r"p_uncond has the shape .*, which does not go with \(2, 3\)"):
        rule(p, u)


def test_weight_zero_is_the_conditional_prior():
    tilted, exists = exact_tilt(gaussian(1.0, 0.5), gaussian(0.0, 1.0), 0.0)
    assert (
        bool(exists)
        and tilted.mean.item() == pytest.approx(1)
        and tilted.variance.item() == pytest.approx(0.5)
    )


# --- sampling with it


def test_off_takes_the_plain_path_bit_for_bit():
    model, labels = tiny(), torch.tensor([0, 1, 2, 0])
    eps = model.noise(4, make_generator(0))
    plain = model.sample(4, labels, eps=eps)
    assert torch.equal(model.sample(4, labels, guidance=Guidance(0, 0), eps=eps), plain)
    assert torch.equal(model.sample(4, labels, guidance=Guidance((0, 0), 0), eps=eps), plain)


def test_two_states_without_weight_agree_with_one():
    model, labels = tiny(), torch.tensor([0, 1, 2, 0])
    eps = model.noise(4, make_generator(0))
    through = model.sample(
        4, labels, guidance=lambda p_c, p_u, level: Guidance(0, 0)(p_c, p_u, level), eps=eps
    )
    torch.testing.assert_close(through, model.sample(4, labels, eps=eps), atol=1e-5, rtol=1e-5)


def test_null_label_makes_every_weight_unguided():
    model, null = tiny(), torch.full((4,), 3)
    eps = model.noise(4, make_generator(0))
    torch.testing.assert_close(
        model.sample(4, null, guidance=Guidance(2, 4), eps=eps),
        model.sample(4, None, eps=eps),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
    ],
)
def test_guidance_changes_samples_and_keeps_them_finite(device):
    model, labels = tiny(device), [0, 1, 2]
    eps = model.noise(3, make_generator(0))
    plain, guided = (model.sample(3, labels, guidance=g, eps=eps) for g in (None, Guidance(1, 2)))
    assert (guided - plain).abs().max() > 1e-3 and guided.isfinite().all()
    assert model.sample(3, labels, guidance=Guidance(0, 500), eps=eps).isfinite().all()


def test_levels_are_counted_from_the_lowest_resolution():
    model, levels = tiny(), []

    def look(p_cond, p_uncond, level):
        levels.append((level, p_cond.mean.shape[-1]))
        return p_cond

    model.sample(2, [0, 1], guidance=look)
    assert levels == [(0, 1), (1, 4), (1, 4)]


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 3.0), (0.0, 0.0, 0.0)])
@pytest.mark.parametrize("name", ["mean_weight", "var_weight"])
def test_a_model_refuses_weights_for_another_number_of_resolutions(name, weights):
    guidance = Guidance(**{name: weights})
    with pytest.raises(CfvaeError, match=f"{name} has {len(weights)} entries: give 2, one per resolution"):
        tiny().sample(2, [0, 1], guidance=guidance)


def test_guidance_without_labels_or_with_a_unit_prior_is_an_error():
    with pytest.raises(CfvaeError, match="labels"):
        tiny().sample(2, None, guidance=Guidance(1, 1))
    unit = HierarchicalVAE(dataclasses.replace(CONFIG, learned_prior=False))
    with pytest.raises(CfvaeError, match="unit prior"):
        unit.sample(2, [0, 1], guidance=Guidance(1, 1))
