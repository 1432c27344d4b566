"""The one-layer VAE: shapes, noise, its loss, and training on a handful of images."""

import math

import pytest
import torch

from cfvae.core import CfvaeError, make_generator, seed_everything
from cfvae.data import Shapes
from cfvae.elbo import ELBO
from cfvae.gaussian import DiagGaussian, kl_divergence
from cfvae.training import TrainingConfig, fit
from cfvae.vae import VAE, VAEConfig, one_layer_loss

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
SMALL = VAEConfig(size=8, hidden=(24,), latent_dim=5)


@pytest.fixture
def model():
    seed_everything(0)
    return VAE(SMALL)


def images(n=4, seed=0):
    return Shapes(n=n, seed=seed, size=8).batch(range(n))[0]


@pytest.mark.parametrize("device", DEVICES)
def test_shapes_of_everything(model, device):
    model, x = model.to(device), images().to(device)
    out = model(x, generator=make_generator(0))
    p = out.distribution
    assert p.mean.shape == p.variance.shape == x.shape and out.rates.shape == (4, 1)
    assert torch.allclose(p.variance, torch.full_like(x, 0.01))
    assert model.posterior(x).mean.shape == (4, 5) and p.mean.dtype == torch.float32
    for n in (0, 1, 7):
        sample = model.sample(n, generator=make_generator(0))
        assert sample.shape == (n, 3, 8, 8) and sample.device.type == device and not sample.requires_grad


def test_forward_is_posterior_then_decoder(model):
    x, eps = images(), torch.randn(4, 5, generator=make_generator(1))
    before = x.clone()
    out, q = model(x, eps=eps), model.posterior(x)
    assert torch.equal(out.distribution.mean, model.decode(q.mean + q.std * eps).mean)
    assert torch.equal(out.rates[:, 0], kl_divergence(q, DiagGaussian.standard(q.mean)))
    assert torch.equal(x, before)


def test_the_generator_decides_the_draw(model):
    first, again, other = (
        model(images(), generator=make_generator(seed)).distribution.mean for seed in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_sample_uses_the_given_noise_and_temperature(model):
    eps = torch.randn(3, 5, generator=make_generator(0))
    with torch.no_grad():
        assert torch.equal(model.sample(3, eps=eps), model.decode(eps).mean)
        assert torch.allclose(model.sample(3, eps=eps, temperature=0.5), model.decode(0.5 * eps).mean)
        assert torch.equal(model.sample(3, temperature=0.0), model.decode(torch.zeros(3, 5)).mean)
    assert torch.equal(model.sample(3, generator=make_generator(0)), model.sample(3, eps=eps))


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_loss_is_distortion_plus_beta_times_rate(model, beta):
    x = images()
    loss, metrics = one_layer_loss(beta)(model, (x, None), make_generator(2), 0)
    out = model(x, generator=make_generator(2))
    p = torch.distributions.Normal(out.distribution.mean, out.distribution.std)
    distortion = -p.log_prob(x).sum((1, 2, 3))
    assert torch.allclose(loss, (distortion + beta * out.rates[:, 0]).mean(), rtol=1e-5)
    assert torch.allclose(metrics["elbo_loss"], ELBO(distortion, out.rates).loss, rtol=1e-5)
    assert torch.allclose(metrics["distortion"] + metrics["rate"], metrics["elbo_loss"])
    assert loss.requires_grad and not any(value.requires_grad for value in metrics.values())


def test_beta_and_output_variance_are_one_knob():
    "beta = 4 with std s has 4 times the gradient of beta = 1 with std 2 s."
    gradients = []
    for std, beta in ((0.1, 4.0), (0.2, 1.0)):
        seed_everything(0)
        model = VAE(VAEConfig(size=8, hidden=(24,), latent_dim=5, output_std=std))
        one_layer_loss(beta)(model, (images(), None), make_generator(2), 0)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(
        gradients[0], 4 * gradients[1], rtol=1e-4, atol=1e-2 * gradients[0].abs().mean().item()
    )
    assert gradients[0].abs().max() > 0


def test_every_parameter_gets_a_gradient(model):
    one_layer_loss()(model, (images(), None), make_generator(0), 0)[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_loss_is_finite_for_wild_inputs(model):
    loss, _ = one_layer_loss()(model, (200 * images(), None), make_generator(0), 0)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


def train(model, beta, steps):
    config = TrainingConfig(
        steps=steps, batch_size=8, learning_rate=5e-3, warmup=5, ema_decay=0.9, device="cpu", precision="fp32"
    )
    return fit(model, Shapes(n=8, size=8), one_layer_loss(beta), config).ema.module.eval()


def test_one_batch_overfits(model):
    x = images(8)
    with torch.no_grad():
        before = (model.decode(model.posterior(x).mean).mean - x).pow(2).mean()
    trained = train(model, 1.0, 200)
    with torch.no_grad():
        after = (trained.decode(trained.posterior(x).mean).mean - x).pow(2).mean()
    assert after < 0.01 < 0.1 < before


def test_a_high_beta_collapses_the_posterior(model):
    x = images(8)
    trained = train(model, 1e4, 150)
    with torch.no_grad():
        q = trained.posterior(x)
        assert kl_divergence(q, DiagGaussian.standard(q.mean)).mean() < 0.05
        rec = trained.decode(q.mean).mean
    assert rec.std(0).mean() < 0.05 < x.std(0).mean()  # all images are rebuilt as one


def test_state_dict_round_trip(model):
    other = VAE(SMALL)
    other.load_state_dict(model.state_dict())
    eps = torch.randn(2, 5, generator=make_generator(0))
    assert torch.equal(model.sample(2, eps=eps), other.sample(2, eps=eps))


@pytest.mark.parametrize(
    "fields, culprit",
    [
        ({"latent_dim": 0}, "latent_dim"),
        ({"size": 0}, "size"),
        ({"hidden": ()}, "hidden"),
        ({"hidden": (0,)}, "hidden"),
        ({"output_std": 0.0}, "output_std"),
        ({"output_std": -1.0}, "output_std"),
        ({"output_std": float("nan")}, "output_std"),
    ],
)
def test_bad_sizes_are_named(fields, culprit):
    with pytest.raises(CfvaeError, match=culprit):
        VAEConfig(**fields)


def test_bad_input_is_named(model):
    with pytest.raises(CfvaeError, match=r"images: .*\(n, 3, 8, 8\)"):
        model(torch.zeros(2, 3, 16, 16))
    with pytest.raises(CfvaeError, match=r"\(n, 5\)|\(4, 5\)"):
        model.sample(4, eps=torch.zeros(3, 5))
    for temperature in (-1.0, math.inf, math.nan, 1e39):
        with pytest.raises(CfvaeError, match="temperature is .*: (it must be 0 or more|finite)"):
            model.sample(2, temperature=temperature)
    with pytest.raises(CfvaeError, match="beta"):
        one_layer_loss(-1.0)


def test_config_accepts_lists_and_is_frozen():
    config = VAEConfig(hidden=[32, 16])
    assert config.hidden == (32, 16)
    with pytest.raises(AttributeError):
        config.size = 8


@pytest.mark.parametrize("n", [-1, 1.5, True, "2", None])
def test_so_many_cannot_be_drawn(model, n):
    with pytest.raises(CfvaeError, match="n is .*: a whole number from 0"):
        model.sample(n)


def test_what_is_no_number_no_noise_and_no_latent(model):
    for temperature in ("1", [1.0], None):
        with pytest.raises(CfvaeError, match="temperature is"):
            model.sample(2, temperature)
    for beta in ("1", math.nan, math.inf):
        with pytest.raises(CfvaeError, match="beta is"):
            one_layer_loss(beta)
    for eps in ([[0.0] * 5] * 2, torch.zeros(2, 5).numpy()):
        with pytest.raises(CfvaeError, match="eps must be a tensor"):
            model.sample(2, eps=eps)
    for z in (torch.zeros(2, 1, 5), torch.zeros(5), torch.zeros(2, 4), torch.zeros(2, 5).long()):
        with pytest.raises(CfvaeError, match=r"z: a tensor of floats, \(n, 5\)"):
            model.decode(z)


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_weights_of_every_float(model, kind):
    x = images()
    expected = model(x, generator=make_generator(0)).rates
    found = model.to(kind)(x.to(kind), eps=torch.zeros(4, 5).double()).rates
    assert torch.allclose(found, expected, atol=0.05) and model.sample(2).dtype == torch.float32


@pytest.mark.parametrize("output_std", [1e-30, 1e-19, 1e30])
def test_a_width_whose_square_no_float_holds(output_std):
    with pytest.raises(CfvaeError, match="output_std is"):
        VAEConfig(output_std=output_std)
