"""Schedules, reweighting, the blurred distortion and the whole loss."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from cfvae.core import CfvaeError, make_generator, seed_everything
from cfvae.elbo import ELBO
from cfvae.gaussian import DiagGaussian
from cfvae.hvae import HierarchicalVAE, HierarchicalVAEConfig
from cfvae.objective import (
    ObjectiveConfig,
    blurred_distortion,
    constant_per_resolution,
    rate_weights,
    shifted_exponential,
    vae_loss,
)

TINY = HierarchicalVAEConfig(
    data_channels=2,
    resolutions=(1, 4),
    widths=8,
    encoder_widths=8,
    multipliers=0,
    layers=(1, 2),
    encoder_blocks=1,
    latent_channels=2,
    num_classes=3,
)
PLAIN = {"schedule": "none", "spectral_weight": 0, "label_drop": 0}


def scalar_weight(kl: float, total: float, share: float) -> float:
    "The rule for one layer of one example, case by case."
    a = share * total / 100
    if kl < a:
        return max(0.1, kl / a)
    if kl < 2 * a:
        return 1.0
    if kl < 3 * a:
        return 1 + (kl - 2 * a) / a
    return 2.0


def tiny(classes: int = 3) -> HierarchicalVAE:
    seed_everything(0)
    model = HierarchicalVAE(HierarchicalVAEConfig(**{**vars(TINY), "num_classes": classes}))
    for block in model.decoder.blocks:  # priors start at N(0, 1); these tests want one that the label reaches
        torch.nn.init.normal_(block.prior_block.last.weight, std=0.1, generator=make_generator(3))
    return model


def batch_of(n: int = 6, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 2, 4, 4, generator=make_generator(1)).to(device), (torch.arange(n) % 3).to(device)


# --- schedules


@given(st.integers(2, 60), st.floats(1, 1e5))
@settings(deadline=None, max_examples=50)
def test_shifted_exponential_is_the_formula_and_sums_to_two_thirds(layers, steepness):
    schedule = shifted_exponential(layers, steepness)
    raw = torch.tensor([math.exp(i / (layers - 1) * math.log(steepness)) + 10 for i in range(layers)])
    assert schedule.shape == (layers,) and abs(schedule.sum().item() - 66.7) < 1e-2
    torch.testing.assert_close(schedule, 66.7 * raw / raw.sum(), rtol=1e-3, atol=1e-4)
    assert (schedule.diff() >= -1e-4).all()


def test_one_layer_gets_the_whole_schedule():
    torch.testing.assert_close(shifted_exponential(1), torch.tensor([66.7]))


def test_constant_per_resolution_repeats_each_value():
    schedule = constant_per_resolution((1, 4, 8), (2, 1, 3))
    torch.testing.assert_close(schedule, torch.tensor([1.0, 1, 4, 8, 8, 8]) * 66.7 / 30)


def test_constant_schedule_needs_one_value_per_resolution():
    with pytest.raises(CfvaeError, match="2 values.*3 resolutions"):
        constant_per_resolution((1, 2), (1, 1, 1))


# --- reweighting


@given(
    st.lists(st.lists(st.floats(0, 1e4, width=32), min_size=4, max_size=4), min_size=1, max_size=5),
    st.floats(1, 100),
)
@settings(deadline=None, max_examples=200)
def test_weights_equal_the_scalar_reference(rows, steepness):
    rates = torch.tensor(rows, dtype=torch.float64)
    schedule = shifted_exponential(4, steepness).double()
    weights = rate_weights(rates, schedule)
    assert weights.min() >= 0.1 and weights.max() <= 2
    for row, row_weights in zip(rates.tolist(), weights.tolist(), strict=True):
        total = sum(row)
        if total <= 1e-6:
            continue
        expected = [scalar_weight(kl, total, w) for kl, w in zip(row, schedule.tolist(), strict=True)]
        assert row_weights == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_weights_at_the_edges_of_the_band():
    # shares of 10 percent of 100 nats: the band is from 10 to 20
    kl = torch.tensor([0.0, 0.5, 5.0, 10.0, 20.0, 25.0, 39.5])
    assert kl.sum() == 100
    expected = torch.tensor([0.1, 0.1, 0.5, 1.0, 1.0, 1.5, 2.0])
    torch.testing.assert_close(rate_weights(kl[None], torch.full((7,), 10.0))[0], expected)


def test_weights_are_per_example_and_ignore_the_unit():
    rates = torch.rand(5, 4, generator=make_generator(0)) + 0.01
    schedule = shifted_exponential(4, 10)
    together = rate_weights(rates, schedule)
    torch.testing.assert_close(together[2:3], rate_weights(rates[2:3], schedule))
    torch.testing.assert_close(together, rate_weights(1000 * rates, schedule))


def test_all_rates_zero_gives_the_floor_and_no_nan():
    assert torch.equal(rate_weights(torch.zeros(2, 3), shifted_exponential(3)), torch.full((2, 3), 0.1))


def test_no_gradient_flows_through_the_weights():
    rates = (torch.rand(3, 4, generator=make_generator(0)) * 9).requires_grad_()
    weights = rate_weights(rates, shifted_exponential(4, 10))
    assert not weights.requires_grad
    (weights * rates).sum().backward()
    torch.testing.assert_close(rates.grad, weights)


def test_weights_do_not_change_their_input():
    rates = torch.rand(3, 4)
    before = rates.clone()
    rate_weights(rates, shifted_exponential(4))
    assert torch.equal(rates, before)


# --- distortion


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(1e-3, 10), st.floats(0.01, 1))
@settings(deadline=None, max_examples=100)
def test_distortion_is_the_formula(x, mean, variance, sigma):
    output = DiagGaussian(torch.tensor([[mean]]), torch.tensor([[variance]]))
    distortion = blurred_distortion(torch.tensor([[x]]), output, sigma)
    ratio = sigma**2 / variance
    expected = 0.5 * (ratio - 1 - math.log(ratio) + (x - mean) ** 2 / variance)
    assert distortion.shape == (1,)
    assert distortion.item() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_distortion_is_zero_only_for_the_blurred_data_themselves():
    x = torch.randn(3, 2, 4, 4, generator=make_generator(0))
    exact = DiagGaussian(x, torch.full_like(x, 0.05**2))
    assert blurred_distortion(x, exact, 0.05).abs().max() < 1e-4
    assert (blurred_distortion(x, DiagGaussian(x, 2 * exact.variance), 0.05) > 1).all()
    assert (blurred_distortion(x, DiagGaussian(x + 0.05, exact.variance), 0.05) > 1).all()


def test_distortion_and_expected_log_likelihood_differ_by_the_entropy_of_the_blur():
    d, sigma, draws = 5, 0.2, 200_000
    x = torch.randn(1, d, generator=make_generator(0))
    mean = torch.randn(1, d, generator=make_generator(1))
    output = DiagGaussian(mean, 0.3 + torch.rand(1, d, generator=make_generator(2)))
    blurred = x + sigma * torch.randn(draws, d, generator=make_generator(3))
    drawn = -output.log_prob(blurred)
    entropy = d / 2 * math.log(2 * math.pi * math.e * sigma**2)
    expected = blurred_distortion(x, output, sigma).item() + entropy
    assert abs(drawn.mean().item() - expected) < 5 * drawn.std().item() / math.sqrt(draws)


def test_distortion_of_half_precision_data_is_float32():
    x = torch.zeros(2, 3, dtype=torch.bfloat16)
    output = DiagGaussian(torch.zeros(2, 3), torch.full((2, 3), 0.05**2))
    distortion = blurred_distortion(x, output, 0.05)
    assert distortion.dtype == torch.float32 and distortion.abs().max() < 1e-6


# --- the whole loss


def test_everything_off_is_the_plain_bound():
    model, batch = tiny(), batch_of()
    loss, metrics = vae_loss(ObjectiveConfig(**PLAIN))(model, batch, make_generator(0), 0)
    out = model(*batch, generator=make_generator(0))
    bound = ELBO(blurred_distortion(batch[0], out.distribution, 0.07), out.rates)
    torch.testing.assert_close(loss, bound.loss)
    torch.testing.assert_close(metrics["elbo_loss"], bound.loss.detach())
    torch.testing.assert_close(metrics["distortion"] + metrics["rate"], metrics["elbo_loss"])
    torch.testing.assert_close(metrics["rates"], bound.rates.detach().mean(0))
    assert "spectral" not in metrics


def test_the_schedule_weighs_the_rates_and_metrics_stay_unweighted():
    model, batch = tiny(), batch_of()
    plain, before = vae_loss(ObjectiveConfig(**PLAIN))(model, batch, make_generator(0), 0)
    objective = ObjectiveConfig(**{**PLAIN, "schedule": "constant-per-resolution", "values": (30, 1)})
    loss, after = vae_loss(objective)(model, batch, make_generator(0), 0)
    rates = model(*batch, generator=make_generator(0)).rates
    weighted = rate_weights(rates, constant_per_resolution((30, 1), (1, 2))) * rates
    torch.testing.assert_close(loss - plain, (weighted - rates).sum(1).mean(), rtol=1e-3, atol=1e-3)
    assert abs(loss - plain) > 1e-3
    torch.testing.assert_close(after["elbo_loss"], before["elbo_loss"])


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
    ],
)
def test_loss_and_gradients_are_finite_with_labels_dropped(device):
    model = tiny().to(device).train()
    loss_fn = vae_loss(ObjectiveConfig(label_drop=0.5, flip=True))
    loss, metrics = loss_fn(model, batch_of(64, device), make_generator(0, device), 0)
    loss.backward()
    assert loss.isfinite()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)

    # three classes and the null label were all seen
    assert model.embedding.weight.grad.abs().sum(1).min() > 0
    assert "spectral" in metrics and not any(value.requires_grad for value in metrics.values())


def test_label_drop_zero_never_shows_the_null_label_to_the_model():
    model = tiny()
    loss, _ = vae_loss(ObjectiveConfig(label_drop=0))(model, batch_of(64), make_generator(0), 0)
    loss.backward()
    assert model.embedding.weight.grad[3].abs().sum() == 0


def test_spectral_term_counts_and_has_a_gradient():
    model, batch = tiny().eval(), batch_of()
    without, _ = vae_loss(ObjectiveConfig(**PLAIN))(model, batch, make_generator(0), 0)
    objective = ObjectiveConfig(**{**PLAIN, "spectral_weight": 0.5})
    with_term, metrics = vae_loss(objective)(model, batch, make_generator(0), 0)
    torch.testing.assert_close(with_term - without, 0.5 * metrics["spectral"])
    weight = model.decoder.blocks[0].posterior_block.last.weight
    gradient = torch.autograd.grad(with_term - without, weight)[0]
    assert metrics["spectral"] > 0 and gradient.abs().max() > 1e-3


def test_in_half_precision_the_spectral_term_is_that_of_float32():
    model, batch = tiny().eval(), batch_of()
    loss_fn = vae_loss(ObjectiveConfig(**{**PLAIN, "spectral_weight": 0.5}))
    _, exact = loss_fn(model, batch, make_generator(0), 0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, half = loss_fn(model, batch, make_generator(0), 0)
    assert torch.equal(half["spectral"], exact["spectral"]) and loss.dtype == torch.float32
    assert not torch.equal(half["distortion"], exact["distortion"])  # autocast is really on


def test_flip_mirrors_some_of_the_data():
    model, batch = tiny(), batch_of(32)
    seen = []
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    vae_loss(ObjectiveConfig(flip=True))(model, batch, make_generator(0), 0)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(seen[0], batch[0], strict=True)]
    same = [torch.equal(a, b) for a, b in zip(seen[0], batch[0], strict=True)]
    assert 4 < sum(mirrored) < 28 and sum(mirrored) + sum(same) == 32


def test_a_model_without_classes_ignores_labels():
    loss, _ = vae_loss(ObjectiveConfig())(tiny(classes=0), batch_of(), make_generator(0), 0)
    assert loss.isfinite()


# --- configuration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sigma_q": 0}, "sigma_q"),
        ({"sigma_q": 1e20}, "sigma_q is 1e\\+20: it must be above 1e-12, and below 1e12"),
        ({"sigma_q": 1e-23}, "sigma_q is 1e-23"),
        ({"sigma_q": -0.1}, "sigma_q"),
        ({"sigma_q": math.nan}, "sigma_q"),
        ({"schedule": "exponential"}, "unknown schedule 'exponential'"),
        ({"steepness": 0.5}, "steepness"),
        ({"spectral_weight": -1}, "spectral_weight"),
        ({"label_drop": 1.0}, "label_drop"),
        ({"label_drop": -0.1}, "label_drop"),
        ({"schedule": "constant-per-resolution"}, "needs values"),
        ({"schedule": "constant-per-resolution", "values": (1, 0)}, "values"),
        ({"schedule": "constant-per-resolution", "values": (1, -2)}, "values"),
    ],
)
def test_bad_objectives_name_their_field(fields, message):
    with pytest.raises(CfvaeError, match=message):
        ObjectiveConfig(**fields)


@pytest.mark.parametrize("sigma_q", [1.1e-12, 0.9e12])
def test_every_blur_that_is_accepted_is_one_to_compute_with(sigma_q):
    x = torch.zeros(1, 4)
    for variance in (math.exp(-30), 1.0, math.exp(30)):  # all that an output can have
        output = DiagGaussian(x, torch.full_like(x, variance))
        assert blurred_distortion(x, output, ObjectiveConfig(sigma_q=sigma_q).sigma_q).isfinite()


def test_shares_follow_the_config():
    assert ObjectiveConfig(schedule="none").shares((1, 2)) is None
    torch.testing.assert_close(ObjectiveConfig(steepness=50).shares((1, 2)), shifted_exponential(3, 50))
    objective = ObjectiveConfig(schedule="constant-per-resolution", values=[1, 2])
    assert objective.values == (1, 2)
    torch.testing.assert_close(objective.shares((1, 2)), constant_per_resolution((1, 2), (1, 2)))
    with pytest.raises(CfvaeError, match="2 values"):
        objective.shares((1, 1, 1))


@pytest.mark.parametrize(
    "fields",
    [
        {"values": (3e38, 3e38), "schedule": "constant-per-resolution"},
        {"steepness": 1e38},
    ],
)
def test_a_schedule_that_no_float_holds(fields):
    with pytest.raises(CfvaeError, match="values is|steepness is"):
        ObjectiveConfig(**fields)


def test_the_steepest_schedules_are_finite():
    assert ObjectiveConfig(steepness=1e30).shares((100,)).isfinite().all()
    flat = ObjectiveConfig(schedule="constant-per-resolution", values=(1e30, 1e30))
    assert flat.shares((2, 2)).isfinite().all()
