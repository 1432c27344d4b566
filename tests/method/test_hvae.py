"""The hierarchical VAE: rates, sampling, guidance, labels, truncated depth, starting values, errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.distributions import MultivariateNormal
from torch.distributions import kl_divergence as reference_kl

from cfvae.blocks import Attention, ResidualBlock
from cfvae.core import CfvaeError, make_generator, seed_everything
from cfvae.gaussian import DiagGaussian, kl_divergence
from cfvae.hvae import (
    BottomUpEncoder,
    HierarchicalVAE,
    HierarchicalVAEConfig,
    HierarchicalVAEOutput,
    TopDownBlock,
    TopDownDecoder,
    per_level,
    sample_guided,
    sample_prior,
    temperature_per_level,
)

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
SMALL = {
    "data_channels": 2,
    "resolutions": (1, 2, 4),
    "widths": 6,
    "encoder_widths": 5,
    "multipliers": 1,
    "layers": (1, 2, 1),
    "encoder_blocks": 1,
    "latent_channels": 3,
}


def build(seed=0, lively=True, **changes):
    "A small model. A fresh one's prior depends on nothing, so `lively` fills every parameter with noise."
    seed_everything(seed)
    model = HierarchicalVAE(HierarchicalVAEConfig(**{**SMALL, **changes}))
    if lively:
        generator = make_generator(seed)
        with torch.no_grad():
            for name, part in model.named_parameters():
                fan = max(1, part[0].numel()) if part.dim() > 1 and "embedding" not in name else 1
                part.copy_(
                    torch.randn(part.shape, generator=generator)
                    * (0.7 / math.sqrt(fan) if part.dim() > 1 else 0.1)
                )
    return model.eval()


def data(model, n=3, seed=0):
    c = model.config
    return torch.randn(n, c.data_channels, c.resolution, c.resolution, generator=make_generator(seed))


def conditional(p_cond, p_uncond, level):
    return p_cond


def leaning(p_cond, p_uncond, level):
    "Guidance with weight 2 on means, 1 on log-variances."
    return DiagGaussian(3 * p_cond.mean - 2 * p_uncond.mean, p_cond.variance**2 / p_uncond.variance)


# rates


SLOPES = (
    (0.0, 0.0),
    (0.7, 0.4),
    (-0.5, 0.9),
)  # of the means of p and q, per layer, on the z of the layer below
OFFSETS = ((0.0, 0.3), (0.2, -0.5), (0.1, 0.4))
RAWS = ((0.0, -1.0), (-0.5, 0.4), (0.3, -0.8))


def linear_gaussian_chain():
    """A model whose p(z) and q(z | x) are jointly Gaussian: one number per layer.

    The state holds (z, -z) of the layer below; SiLU(z) - SiLU(-z) = z, so a mirrored pair passes unharmed."""
    model = HierarchicalVAE(
        HierarchicalVAEConfig(
            data_channels=1,
            resolutions=(1,),
            widths=2,
            encoder_widths=1,
            multipliers=0,
            layers=3,
            encoder_blocks=0,
            latent_channels=1,
        )
    )
    mirror = torch.tensor([1.0, -1.0])
    with torch.no_grad():
        for part in model.parameters():
            part.zero_()
        for block, slopes, offsets, raws in zip(model.decoder.blocks, SLOPES, OFFSETS, RAWS, strict=True):
            for made, slope, offset, raw in zip(
                (block.prior_block, block.posterior_block), slopes, offsets, raws, strict=True
            ):
                made.layers[0].weight[:, :, 0, 0] = torch.outer(mirror, mirror)
                made.layers[1].weight[0, :, 0, 0] = slope * mirror
                made.layers[1].bias[:2] = torch.tensor([offset, raw])
            block.join.weight[:, :2, 0, 0] = torch.eye(2)
            block.prior_block.layers[1].weight[2:, :, 0, 0] = -torch.outer(
                mirror, mirror
            )  # the residual takes the old z away
            block.project_z.weight[:, 0, 0, 0] = mirror  # and the new one comes in
    return model.eval()


def joint_distribution(which):
    "The joint of all three layers, p (0) or q (1), in closed form."
    matrix = torch.eye(3, dtype=torch.float64)
    for layer in (1, 2):
        matrix[layer, layer - 1] = -SLOPES[layer][which]
    inverse = torch.linalg.inv(matrix)
    raws = torch.tensor([r[which] for r in RAWS], dtype=torch.float64)
    variances = nn.functional.softplus(raws, beta=0.693)
    mean = inverse @ torch.tensor([o[which] for o in OFFSETS], dtype=torch.float64)
    return MultivariateNormal(mean, inverse @ torch.diag(variances) @ inverse.T)


def test_joint_kl_is_the_sum_of_layer_rates():
    "Rates are quadratic in the noise: their average over three well-chosen points per layer is exact."
    nodes, weights = (torch.tensor(t, dtype=torch.float32) for t in np.polynomial.hermite_e.hermegauss(3))
    weights = weights / weights.sum()
    eps = [e.reshape(27, 1, 1, 1) for e in torch.meshgrid(nodes, nodes, nodes, indexing="ij")]
    weight = torch.einsum("i,j,k->ijk", weights, weights, weights).view(27, 1)
    rates = linear_gaussian_chain()(torch.zeros(27, 1, 1, 1), eps=eps).rates
    exact = reference_kl(joint_distribution(1), joint_distribution(0)).item()
    assert rates[:, 1].std() > 0.05 and rates[:, 2].std() > 0.05  # each draw has its own rate
    assert abs((weight * rates).sum().item() / exact - 1) < 1e-5


def test_rates_are_the_divergences_of_the_walk():
    model = build()
    x = data(model)
    noise = model.noise(3, make_generator(1))
    features, h, level_of, expected = (
        model.encoder(x, None),
        model.decoder.start.expand(3, -1, -1, -1),
        [0, 1, 1, 2],
        [],
    )
    for block, level, eps in zip(model.decoder.blocks, level_of, noise, strict=True):
        h = model.decoder.ups[level](h) if h.shape[-1] != features[level].shape[-1] else h
        p, residual = block.prior(h, None)
        q = block.posterior(h, features[level], None)
        expected.append(
            reference_kl(
                torch.distributions.Normal(q.mean, q.std), torch.distributions.Normal(p.mean, p.std)
            ).sum((1, 2, 3))
        )
        h = block.merge(h, q.mean + q.std * eps, residual, None)
    mean, log_variance = model.decoder.head(h).chunk(2, dim=1)
    out = model(x, eps=noise)
    assert isinstance(out, HierarchicalVAEOutput) and out.rates.shape == (3, 4)
    assert torch.allclose(out.rates, torch.stack(expected, 1), rtol=1e-4, atol=1e-4)
    assert torch.allclose(out.distribution.mean, mean, atol=1e-5)
    assert torch.allclose(out.distribution.variance, log_variance.exp(), rtol=1e-4)


def test_posterior_equal_to_prior_costs_nothing():
    model = build(multipliers=0)
    for block in model.decoder.blocks:  # both blocks ignore what they see and say the same
        for made in (block.prior_block, block.posterior_block):
            nn.init.zeros_(made.last.weight)
            made.last.bias.data[:6] = torch.arange(6) / 3
    assert torch.equal(model(data(model)).rates, torch.zeros(3, 4))


# guidance


def test_guidance_that_is_off_takes_the_plain_path():
    class Off:
        def __bool__(self):
            return False

        def __call__(self, *arguments):
            raise AssertionError("guidance that is off was asked")

    model = build(num_classes=3)
    labels, eps = [0, 1, 2, 0], model.noise(4, make_generator(0))
    plain = model.sample(4, labels, eps=eps)
    assert torch.equal(model.sample(4, labels, guidance=Off(), eps=eps), plain)
    assert torch.equal(model.sample(4, labels, guidance=None, eps=eps), plain)
    assert torch.allclose(
        model.sample(4, labels, guidance=conditional, eps=eps), plain, atol=1e-5
    )  # two states, weight 0
    assert not torch.allclose(model.sample(4, labels, guidance=leaning, eps=eps), plain, atol=1e-2)


def test_unconditional_half_ignores_the_label():
    model = build(num_classes=3)
    eps = model.noise(2, make_generator(0))

    # with z from the null label's prior, the unconditional state must walk as in sampling without a label
    seen = []
    model.sample(2, [0, 1], guidance=lambda c, u, level: seen.append((level, c, u)) or u, eps=eps)
    plain = []
    original = TopDownBlock.prior
    try:
        TopDownBlock.prior = lambda self, h, label: plain.append(original(self, h, label)) or plain[-1]
        model.sample(2, eps=eps)
    finally:
        TopDownBlock.prior = original
    assert [level for level, _, _ in seen] == [0, 1, 1, 2]
    for (_, _, u), (p, _) in zip(seen, plain, strict=True):
        assert torch.allclose(u.mean, p.mean, atol=1e-5) and torch.allclose(u.variance, p.variance, atol=1e-5)
    assert not torch.allclose(seen[0][1].mean, seen[0][2].mean, atol=1e-3)


def test_null_label_makes_any_guidance_unguided():
    model = build(num_classes=3)
    eps = model.noise(4, make_generator(0))
    assert torch.allclose(
        model.sample(4, [3] * 4, guidance=leaning, eps=eps), model.sample(4, eps=eps), atol=1e-5
    )


def test_both_states_share_every_z():
    model, seen = build(num_classes=3), []
    original = TopDownBlock.merge
    try:
        TopDownBlock.merge = lambda self, h, z, residual, label: (
            seen.append((h, z)) or original(self, h, z, residual, label)
        )
        out = model.sample(2, [0, 1], guidance=leaning, generator=make_generator(0))
    finally:
        TopDownBlock.merge = original
    assert len(out) == 2 and len(seen) == 4
    for _, z in seen:
        assert len(z) == 4 and torch.equal(z[:2], z[2:])
    assert not torch.allclose(seen[-1][0][:2], seen[-1][0][2:], atol=1e-3)  # and yet the states differ


def test_guidance_needs_labels_and_a_learned_prior():
    with pytest.raises(CfvaeError, match="labels"):
        build(num_classes=3).sample(2, guidance=leaning)
    with pytest.raises(CfvaeError, match="learned prior"):
        build(num_classes=3, learned_prior=False).sample(2, [0, 1], guidance=leaning)
    with pytest.raises(CfvaeError, match="trained without any"):
        build().sample(2, guidance=leaning)


def test_guidance_takes_temperature():
    model = build(num_classes=3)
    eps, other = (model.noise(2, make_generator(s)) for s in (0, 1))
    assert torch.equal(
        model.sample(2, [0, 1], guidance=leaning, temperature=0, eps=eps),
        model.sample(2, [0, 1], guidance=leaning, temperature=0, eps=other),
    )


# labels


def label_calls(model, x, labels, **arguments):
    "What every block was given as label, by role."
    seen, handles = {"encoder": [], "prior": [], "posterior": [], "shared": []}, []

    def watch(role, part):
        handles.append(part.register_forward_pre_hook(lambda module, given: seen[role].append(given[1])))

    for level in model.encoder.levels:
        for part in level:
            watch("encoder", part)
    for block in model.decoder.blocks:
        for role in ("prior", "posterior", "shared"):
            watch(role, getattr(block, f"{role}_block"))
    model(x, labels, **arguments)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_dropped_labels_are_hidden_from_prior_and_decoder_only(drop):
    model = build(num_classes=3)
    labels = torch.tensor([0, 2, 1])
    true, null = model.embedding(labels), model.embedding(torch.tensor([3, 3, 3]))
    for role, vectors in label_calls(model, data(model), labels, label_drop=drop).items():
        hidden = drop and role in ("prior", "shared")
        assert len(vectors) == (3 if role == "encoder" else 4)
        assert all(torch.equal(v, null if hidden else true) for v in vectors), role


def test_labels_are_dropped_at_the_asked_rate():
    model, n, drop, asked = build(num_classes=3), 10_000, 0.1, []
    model.embedding.register_forward_pre_hook(lambda module, given: asked.append(given[0]))
    labels = torch.arange(n) % 3
    before = labels.clone()
    model.label_vectors(labels, n, drop, make_generator(0))
    assert torch.equal(labels, before)
    hidden = asked[0] == 3
    assert abs(hidden.float().mean().item() - drop) < 4 * math.sqrt(drop * (1 - drop) / n)
    assert torch.equal(asked[0][~hidden], labels[~hidden])
    model.label_vectors(labels, n)
    assert torch.equal(asked[1], labels)
    small = build(num_classes=3)
    small.embedding.register_forward_pre_hook(lambda module, given: asked.append(given[0]))
    small(data(small), torch.tensor([0, 1, 2]), label_drop=0.0)
    assert all(torch.equal(a, torch.tensor([0, 1, 2])) for a in asked[2:]) and len(asked) == 4


@pytest.mark.parametrize(
    "labels", [[-1, 0, 1], [0, 1, 4], [0, 1], [0.0, 1.0, 1.5], torch.zeros(3, 1, dtype=torch.int64)]
)
def test_labels_that_are_no_classes_are_refused(labels):
    model = build(num_classes=3)
    with pytest.raises(CfvaeError, match="labels"):
        model.sample(3, labels)


def test_labels_are_asked_for_and_refused():
    model, plain = build(num_classes=3), build()
    for call in (model, model.posterior_means, model.reconstruct):
        with pytest.raises(CfvaeError, match="needs labels"):
            call(data(model))
    for call in (lambda: plain(data(plain), torch.zeros(3)), lambda: plain.sample(3, [0, 0, 0])):
        with pytest.raises(CfvaeError, match="without classes"):
            call()


def test_labels_change_samples_and_codes():
    model = build(num_classes=3)
    eps, x = model.noise(3, make_generator(0)), data(model)
    a, b = torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1])
    assert not torch.allclose(model.sample(3, a, eps=eps), model.sample(3, b, eps=eps), atol=1e-3)
    assert not torch.allclose(model.sample(3, a, eps=eps), model.sample(3, eps=eps), atol=1e-3)
    assert not torch.allclose(model.posterior_means(x, a)[0], model.posterior_means(x, b)[0], atol=1e-3)


def test_unequal_widths_with_labels():
    model = build(
        num_classes=2, widths=(4, 6, 8), encoder_widths=(3, 4, 7), attention=(0, 1, 1), heads=(1, 2, 1)
    )
    assert model.embedding.weight.shape == (3, 4)
    out = model(data(model), torch.tensor([0, 1, 2]), label_drop=0.5)
    assert out.distribution.mean.shape == (3, 2, 4, 4)
    assert model.sample(2, [0, 1], guidance=leaning).shape == (2, 2, 4, 4)


# sampling, noise, temperature


@pytest.mark.parametrize("n", [0, 1, 2, 7, 33])
def test_sample_gives_as_many_as_asked(n):
    assert build().sample(n).shape == (n, 2, 4, 4)
    assert build(num_classes=3).sample(n, [1] * n, guidance=leaning).shape == (n, 2, 4, 4)
    attentive = build(num_classes=3, layers=2, attention=1, heads=(1, 2, 2), encoder_widths=6)
    assert any(isinstance(part, Attention) for part in attentive.modules())
    assert attentive.sample(n, [1] * n).shape == (n, 2, 4, 4)
    assert attentive.sample(n, [1] * n, guidance=leaning).shape == (n, 2, 4, 4)


def test_fewer_images_than_none_are_refused():
    with pytest.raises(CfvaeError, match="n is -1"):
        build().sample(-1)


def test_noise_decides_everything():
    model = build()
    x = data(model)
    eps = model.noise(3, make_generator(5))
    assert (
        [tuple(e.shape[1:]) for e in eps]
        == model.latent_shapes
        == [(3, 1, 1), (3, 2, 2), (3, 2, 2), (3, 4, 4)]
    )
    kept = [e.clone() for e in eps]
    assert torch.equal(model.sample(3, eps=eps), model.sample(3, eps=eps))
    assert torch.equal(model(x, eps=eps).distribution.mean, model(x, eps=eps).distribution.mean)
    assert all(torch.equal(a, b) for a, b in zip(eps, kept, strict=True))
    assert torch.equal(model.sample(3, generator=make_generator(5)), model.sample(3, eps=eps))
    assert not torch.equal(model.sample(3, eps=eps), model.sample(3, eps=model.noise(3, make_generator(6))))
    for layer in range(4):  # every layer's noise matters
        changed = [e + 1 if i == layer else e for i, e in enumerate(eps)]
        assert not torch.allclose(model.sample(3, eps=changed), model.sample(3, eps=eps), atol=1e-4)


def test_wrong_noise_is_refused():
    model = build()
    x, eps = data(model), model.noise(3)
    for wrong in (eps[:-1], eps[::-1], model.noise(2), [*eps, eps[0]], []):
        for call in (lambda e: model.sample(3, eps=e), lambda e: model(x, eps=e)):
            with pytest.raises(CfvaeError, match="4 tensors"):
                call(wrong)


def test_temperature():
    model = build()
    eps = model.noise(3, make_generator(0))
    still = model.sample(3, temperature=0.0, eps=eps)
    assert torch.allclose(still, still[:1].expand_as(still), atol=1e-6)
    assert torch.equal(model.sample(3, temperature=1.0, eps=eps), model.sample(3, eps=eps))
    assert torch.equal(
        model.sample(3, temperature=(0.5, 0.5, 0.5), eps=eps), model.sample(3, temperature=0.5, eps=eps)
    )
    shrunk = [e * t for e, t in zip(eps, (1, 0.5, 0.5, 0), strict=True)]
    assert torch.allclose(
        model.sample(3, temperature=(1.0, 0.5, 0.0), eps=eps), model.sample(3, eps=shrunk), atol=1e-6
    )
    half = model.sample(3, temperature=0.5, eps=eps)
    for number in (np.float32(0.5), torch.tensor(0.5), (0.5, np.float16(0.5), torch.tensor(0.5))):
        assert torch.equal(model.sample(3, temperature=number, eps=eps), half)
    for wrong in (
        -0.1,
        math.nan,
        math.inf,
        1e40,
        10**400,
        "1",
        None,
        (1.0, 1.0),
        (1.0, -1.0, 1.0),
        (1, 1, 1e39),
    ):
        with pytest.raises(CfvaeError, match="temperature"):
            model.sample(3, temperature=wrong)


# codes and truncated depth


@pytest.mark.parametrize("temperature", ["1", "1.0", None])
def test_a_temperature_is_a_number(temperature):
    with pytest.raises(CfvaeError, match=f"temperature is {temperature!r}: finite numbers"):
        temperature_per_level(temperature, 2)


def test_codes_decode_to_the_reconstruction():
    model = build(num_classes=3)
    x, labels = data(model), torch.tensor([0, 1, 2])
    code = model.posterior_means(x, labels)
    assert [tuple(z.shape) for z in code] == [(3, *shape) for shape in model.latent_shapes]
    assert torch.equal(model.decode(code, labels), model.reconstruct(x, labels))
    zero = [torch.zeros_like(z) for z in code]
    by_noise = model(x, labels, eps=zero).distribution.mean
    assert torch.allclose(by_noise, model.reconstruct(x, labels), atol=1e-6)


def test_truncated_depth_forgets_the_upper_layers():
    model = build()
    x = data(model)
    code = model.posterior_means(x)
    for depth in (1, 2, 3, 4):
        short = model.reconstruct(x, depth=depth)
        assert torch.equal(short, model.decode(code[:depth]))
        assert depth == 4 or not torch.allclose(short, model.reconstruct(x, depth=depth + 1), atol=1e-4)
    noise = [z if i < 1 else torch.zeros_like(z) for i, z in enumerate(code)]
    # depth 1 by hand: the first z given, then the prior's means
    given = iter(noise[:1])
    h = model.decoder(3, lambda p, block, h, level: next(given, p.mean))
    assert torch.allclose(model.decoder.output(h).mean, model.reconstruct(x, depth=1), atol=1e-6)
    assert torch.equal(model.reconstruct(x, depth=4), model.reconstruct(x))


@pytest.mark.parametrize("depth", [0, -1, 5])
def test_depth_out_of_range_is_refused(depth):
    with pytest.raises(CfvaeError, match=f"depth is {depth}.*1 to 4"):
        build().reconstruct(torch.zeros(1, 2, 4, 4), depth=depth)


def test_decode_refuses_no_code_and_too_long_a_code():
    model = build()
    for latents in ([], [*model.noise(2), torch.zeros(2, 3, 4, 4)]):
        with pytest.raises(CfvaeError, match="1 to 4 layers"):
            model.decode(latents)


@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (3, 2, 8, 8), (3, 2, 4, 8)])
def test_data_of_another_shape_are_refused(shape):
    model = build()
    for call in (model, model.posterior_means, model.reconstruct):
        with pytest.raises(CfvaeError, match=r"data: .*\(n, 2, 4, 4\)"):
            call(torch.zeros(shape))


# numbers that stay finite, starting values, learning


@pytest.mark.parametrize("raw", [-200.0, 200.0])
@pytest.mark.parametrize("learned", [True, False])
def test_loss_stays_finite_at_extreme_raw_values(raw, learned):
    for sign in (1, -1):  # posterior and prior at the same end, or at opposite ends
        model = build(learned_prior=learned)
        for block in model.decoder.blocks:
            block.posterior_block.last.bias.data[:] = raw
            block.prior_block.last.bias.data[:6] = sign * raw
        model.decoder.head.bias.data[:] = raw
        out = model.train()(data(model), generator=make_generator(0))
        distortion = -out.distribution.log_prob(data(model))
        loss = (distortion + out.rates.sum(1)).mean()
        loss.backward()
        assert loss.isfinite() and (out.distribution.variance > 0).all() and (out.rates >= -1e-3).all()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("attention", [0, 1])
def test_prior_starts_as_the_standard_normal(attention):
    model = build(lively=False, num_classes=3, attention=attention, heads=1)
    for block in model.decoder.blocks:
        h = (
            5 * torch.randn(2, 6, 2, 2, generator=make_generator(0))
            if block.prior_block.layers[0].weight.shape[-1] == 3
            else torch.ones(2, 6, 1, 1)
        )
        p, _ = block.prior(h, model.embedding(torch.tensor([0, 1])))
        assert p.mean.abs().max() < 1e-7 and torch.allclose(p.variance, torch.tensor(1.0002), atol=1e-4)
    for part in model.modules():
        if isinstance(part, Attention):
            x = torch.randn(
                2, 6 if part.project_out.in_features == 6 else 5, 2, 2, generator=make_generator(1)
            )
            assert torch.equal(part(x), x)


def test_starting_weights_are_scaled_by_the_number_of_blocks():
    model = build(
        lively=False, layers=(9, 9, 9), encoder_blocks=5, multipliers=0, widths=32, encoder_widths=32
    )

    def ratio(layers):  # measured spread over Xavier's
        fans = [(layer.in_channels + layer.out_channels) * layer.kernel_size[0] ** 2 for layer in layers]
        return (
            torch.stack(
                [layer.weight.std() / math.sqrt(2 / fan) for layer, fan in zip(layers, fans, strict=True)]
            )
            .mean()
            .item()
        )

    blocks = model.decoder.blocks
    assert abs(ratio([b.shared_block.last for b in blocks]) * math.sqrt(27) - 1) < 0.05
    assert abs(ratio([b.project_z for b in blocks]) * math.sqrt(27) - 1) < 0.05
    assert (
        abs(ratio([b.shared_block.layers[0] for b in blocks]) - 1) < 0.05
        and abs(ratio([b.posterior_block.last for b in blocks]) - 1) < 0.05
    )
    encoder = [part for level in model.encoder.levels for part in level if isinstance(part, ResidualBlock)]
    assert abs(ratio([b.last for b in encoder]) * math.sqrt(15) - 1) < 0.05
    assert not model.decoder.start.any() and blocks[0].project_z.bias is None


def plain_loss(model, x, labels=None, **arguments):
    out = model(x, labels, **arguments)
    mean = out.distribution.mean
    distortion = -DiagGaussian(mean, torch.full_like(mean, 0.05)).log_prob(x)
    return (distortion + out.rates.sum(1)).mean() + out.distribution.variance.log().square().mean()


def test_gradients_reach_every_parameter():
    "At the first step two kinds of weight wait for others to leave zero; a few steps later none does."
    model = build(
        lively=False, num_classes=2, attention=(0, 1, 1), heads=(1, 2, 1), layers=(1, 2, 2), encoder_widths=4
    ).train()
    x, labels = data(model, 8), torch.arange(8) % 2
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    dead = []
    for step in range(3):
        optimiser.zero_grad()
        generator = make_generator(step)
        (
            plain_loss(model, x, labels, label_drop=0.5, generator=generator) + model.spectral_penalty()
        ).backward()
        dead.append(
            {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-12}
        )
        optimiser.step()
    waiting = {
        name for name in dead[0] if "project_in" in name and ".levels." in name or "prior_block" in name
    }
    assert dead[0] == waiting, sorted(dead[0] - waiting)
    assert dead[-1] == set(), sorted(dead[-1])


def test_one_batch_overfits():
    model = build(
        lively=False,
        data_channels=3,
        resolutions=(1, 4, 8),
        widths=12,
        encoder_widths=12,
        layers=1,
        multipliers=0,
        latent_channels=4,
    ).train()
    x = (
        torch.rand(4, 3, 2, 2, generator=make_generator(0)).repeat_interleave(4, 2).repeat_interleave(4, 3)
        * 2
        - 1
    )
    optimiser, generator, errors = torch.optim.Adam(model.parameters(), lr=5e-3), make_generator(1), []
    for _ in range(150):
        out = model(x, generator=generator)
        mean = out.distribution.mean
        distortion = -DiagGaussian(mean, torch.full_like(mean, 0.01)).log_prob(x)
        loss = (distortion + out.rates.sum(1)).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 100)
        optimiser.step()
        errors.append((mean - x).square().mean().item())
    assert errors[-1] < 0.02 < 0.2 < errors[0]
    assert (model.eval().reconstruct(x) - x).square().mean() < 0.02


def test_inputs_are_not_changed():
    model = build(num_classes=3)
    x, labels, eps = data(model), torch.tensor([0, 1, 2]), model.noise(3)
    code = model.posterior_means(x, labels)
    kept = [t.clone() for t in (x, labels, *eps, *code)]
    model(x, labels, eps=eps, label_drop=0.9)
    model.sample(3, labels, guidance=leaning, eps=eps, temperature=0.5)
    model.reconstruct(x, labels, depth=2)
    model.decode(code, labels)
    assert all(torch.equal(a, b) for a, b in zip((x, labels, *eps, *code), kept, strict=True))


def test_evaluation_leaves_no_trace_in_the_model():
    model = build(num_classes=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(data(model), torch.tensor([0, 1, 2]))
    model.sample(2, [0, 1], guidance=leaning)
    model.spectral_penalty()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (
        not model.sample(2).requires_grad
        and not model.reconstruct(data(model), torch.tensor([0, 1, 2])).requires_grad
    )


# the spectral penalty of the model


@pytest.mark.parametrize("learned", [True, False])
def test_spectral_penalty_is_the_weighted_sum_over_priors_and_posteriors(learned):
    model = build(learned_prior=learned).train()
    for _ in range(300):
        value = model.spectral_penalty()
    layers = []
    for block, resolution in zip(model.decoder.blocks, (1, 2, 2, 4), strict=True):
        layers += [(block.posterior_block.last, resolution)] + (
            [(block.prior_block.last, resolution)] if learned else []
        )
    exact = sum(resolution * torch.linalg.svdvals(layer.weight.flatten(1))[0] for layer, resolution in layers)
    assert torch.allclose(value, exact, rtol=1e-3)
    value.backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert len(touched) == len(layers) and all(
        ".weight" in name and ("posterior_block" in name or "prior_block" in name) for name in touched
    )


# saving


def test_state_dict_round_trip():
    model, other = build(seed=0, num_classes=3), build(seed=1, num_classes=3)
    eps = model.noise(2, make_generator(0))
    assert not torch.allclose(other.sample(2, [0, 1], eps=eps), model.sample(2, [0, 1], eps=eps), atol=1e-3)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.sample(2, [0, 1], eps=eps), model.sample(2, [0, 1], eps=eps))
    assert torch.equal(other.spectral_penalty(), model.spectral_penalty())


def test_save_and_load(tmp_path):
    model = build(
        num_classes=3,
        attention=(0, 1, 0),
        heads=(1, 2, 1),
        attention_mode="published",
        widths=(4, 6, 8),
        encoder_widths=4,
    )
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model.safetensors", "config.json"} <= names and not any(
        name.endswith((".bin", ".pt", ".pkl")) for name in names
    )
    loaded = HierarchicalVAE.from_pretrained(tmp_path).eval()
    assert loaded.config == model.config
    eps = model.noise(2, make_generator(0))
    assert torch.equal(loaded.sample(2, [0, 1], eps=eps), model.sample(2, [0, 1], eps=eps))
    assert torch.equal(
        loaded.reconstruct(data(model), torch.tensor([0, 1, 2])),
        model.reconstruct(data(model), torch.tensor([0, 1, 2])),
    )


# configuration


def test_a_single_number_stands_for_all_levels():
    by_number = HierarchicalVAEConfig(resolutions=(1, 4), widths=8)
    assert by_number == HierarchicalVAEConfig(resolutions=(1, 4), widths=(8,))
    assert by_number.widths == (8, 8) and by_number.label_width == 0
    assert HierarchicalVAEConfig(resolutions=8).resolutions == (8,)
    assert per_level(0.5, 2, "temperature") == (0.5, 0.5) and per_level([1, 2], 2, "temperature") == (1, 2)
    with pytest.raises(CfvaeError, match="temperature has 1 entries: give 2"):
        per_level((0.5,), 2, "temperature")


def test_config_spreads_numbers_over_levels():
    config = HierarchicalVAEConfig(resolutions=[1, 4, 8], widths=[8, 16, 32], layers=2)
    assert config.layers == (2, 2, 2) and config.widths == (8, 16, 32) and config.resolutions == (1, 4, 8)
    assert config.layer_resolutions == (1, 1, 4, 4, 8, 8) and config.resolution == 8
    assert hash(config) == hash(
        HierarchicalVAEConfig(resolutions=(1, 4, 8), widths=(8, 16, 32), layers=(2, 2, 2))
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolutions": (4, 2, 1)}, "resolutions.*multiple"),
        ({"resolutions": (1, 2, 2)}, "resolutions.*multiple"),
        ({"resolutions": (1, 2, 5)}, "multiple"),
        ({"resolutions": (0, 2, 4)}, "resolutions"),
        ({"resolutions": ()}, "resolutions"),
        ({"layers": (1, 1)}, "layers has 2 entries: give 3, one per resolution"),
        (
            {"layers": (1, 1), "heads": (1, 2), "widths": 4},
            "layers has 2 entries, heads has 2 entries: give 3",
        ),
        ({"layers": 0}, "layers"),
        ({"layers": (1, 0, 1)}, "layers"),
        ({"widths": -4}, "widths"),
        ({"widths": (4, 4.5, 4)}, "widths"),
        ({"encoder_widths": 0}, "encoder_widths"),
        ({"encoder_blocks": -1}, "encoder_blocks"),
        ({"multipliers": "4"}, "multipliers"),
        ({"heads": (1, 2, 3, 4)}, "heads has 4"),
        ({"data_channels": 0}, "data_channels"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"num_classes": -1}, "num_classes"),
        ({"num_classes": 2.0}, "num_classes"),
        ({"data_channels": "3"}, "data_channels"),
        ({"attention_mode": "linear"}, "linear.*softmax, published"),
    ],
)
def test_config_refuses_what_cannot_work(changes, message):
    with pytest.raises(CfvaeError, match=message):
        HierarchicalVAEConfig(**{**SMALL, **changes})


def test_attention_that_cannot_work_is_refused_when_the_model_is_built():
    with pytest.raises(CfvaeError, match="4.*width"):
        build(attention=1, heads=4)


@st.composite
def configs(draw):
    resolutions = draw(st.sampled_from([(1,), (2,), (1, 2), (1, 4), (2, 4), (1, 2, 4), (1, 3, 6)]))

    def per_level(values):
        return tuple(draw(st.sampled_from(values)) for _ in resolutions)

    return HierarchicalVAEConfig(
        data_channels=draw(st.integers(1, 3)),
        resolutions=resolutions,
        widths=per_level((2, 4, 6)),
        encoder_widths=per_level((2, 4, 8)),
        multipliers=per_level((0, 1, 2)),
        layers=per_level((1, 2, 3)),
        encoder_blocks=per_level((0, 1, 2)),
        attention=per_level((0, 1, 2)),
        heads=per_level((1, 2)),
        latent_channels=draw(st.integers(1, 3)),
        num_classes=draw(st.sampled_from([0, 1, 3])),
        learned_prior=draw(st.booleans()),
        attention_mode=draw(st.sampled_from(["softmax", "published"])),
    )


@settings(max_examples=25, deadline=None)
@given(configs(), st.integers(1, 3), st.integers(1, 20))
def test_any_valid_config_works(config, n, depth):
    model = HierarchicalVAE(config)
    x = data(model, n)
    labels = torch.zeros(n, dtype=torch.int64) if config.num_classes else None
    layers = sum(config.layers)
    assert len(model.decoder.blocks) == layers == len(model.latent_shapes) == len(config.layer_resolutions)
    out = model(x, labels)
    assert out.distribution.mean.shape == out.distribution.variance.shape == x.shape
    assert out.rates.shape == (n, layers)
    assert out.rates.isfinite().all() and (out.rates > -1e-4).all()
    assert model.sample(n, labels).shape == model.sample(n).shape == x.shape
    assert model.reconstruct(x, labels, depth=min(depth, layers)).shape == x.shape
    features = model.encoder(x, model.label_vectors(labels, n))
    assert [tuple(f.shape[1:]) for f in features] == [
        (w, r, r) for w, r in zip(config.encoder_widths, config.resolutions, strict=True)
    ]
    if config.num_classes and config.learned_prior:
        assert model.sample(n, labels, guidance=leaning).shape == x.shape


def test_unit_prior():
    model = build(learned_prior=False)
    block = model.decoder.blocks[1]
    assert block.prior_block.last.out_channels == 6
    h = torch.randn(2, 6, 2, 2, generator=make_generator(0))
    p, residual = block.prior(h, None)
    assert p.mean.shape == p.variance.shape == (2, 3, 2, 2) and not p.mean.any() and (p.variance == 1).all()
    assert residual.shape == h.shape and torch.equal(residual, block.prior_block(h))


def test_attention_stands_where_the_rule_puts_it():
    model = build(layers=(3, 4, 5), encoder_blocks=(3, 4, 5), attention=(0, 1, 2), heads=1)
    places = [
        [i for i, part in enumerate(level) if isinstance(part, Attention)] for level in model.decoder.levels
    ]
    assert places == [
        [],
        [2],
        [2, 4],
    ]  # after layers 2; 2 and 3, counted from 1, each attention taking a place itself
    encoder = [
        [i for i, part in enumerate(level) if isinstance(part, Attention)] for level in model.encoder.levels
    ]
    assert encoder == [[3, 5], [3], []]  # highest resolution first; after blocks 2 and 3; 2, counted from 0


def test_the_walk_asks_where_z_comes_from_and_does_the_rest():
    "Every layer once, lowest resolution first, with its own prior, the state and the level."
    model, asked = build(num_classes=3), []
    label = model.label_vectors([0, 1], 2)
    eps = model.noise(2, make_generator(0))
    noise = iter(eps)

    def choose_z(p, block, h, level):
        own, _ = block.prior(h, label)
        assert torch.equal(own.mean, p.mean) and torch.equal(own.variance, p.variance)
        asked.append((block, level))
        return p.sample(next(noise))

    h = model.decoder(2, choose_z, label)
    assert asked == list(zip(model.decoder.blocks, [0, 1, 1, 2], strict=True))
    assert torch.equal(model.decoder.output(h).mean, model.sample(2, [0, 1], eps=eps))


def test_sampling_walks_are_those_of_the_model():
    model = build(num_classes=3)
    eps, temperatures = model.noise(2, make_generator(0)), (1.0, 0.5, 0.2)
    label, both = model.label_vectors([0, 1], 2), model.label_vectors([0, 1, 3, 3], 4)
    plain = sample_prior(model.decoder, 2, label, eps, temperatures).mean
    assert torch.equal(plain, model.sample(2, [0, 1], temperature=temperatures, eps=eps))
    guided = sample_guided(model.decoder, 2, both, eps, temperatures, leaning).mean
    assert torch.equal(guided, model.sample(2, [0, 1], leaning, temperatures, eps))


def test_parts_can_be_used_alone():
    config = HierarchicalVAEConfig(**SMALL)
    features = BottomUpEncoder(config)(torch.zeros(2, 2, 4, 4), None)
    decoder = TopDownDecoder(config)
    h = decoder(2, lambda p, block, h, level: block.posterior(h, features[level], None).mean)
    assert decoder.output(h).mean.shape == (2, 2, 4, 4)


def test_models_can_be_built_without_memory():
    with torch.device("meta"):
        model = HierarchicalVAE(
            HierarchicalVAEConfig(**{**SMALL, "num_classes": 3, "attention": 1, "heads": 1})
        )
    assert all(part.is_meta for part in (*model.parameters(), *model.buffers()))
    solid = build(num_classes=3, attention=1, heads=1)
    model.to_empty(device="cpu").load_state_dict(solid.state_dict())
    eps = solid.noise(2, make_generator(0))
    assert torch.equal(model.eval().sample(2, [0, 1], eps=eps), solid.sample(2, [0, 1], eps=eps))


@pytest.mark.parametrize("device", DEVICES)
def test_everything_stays_on_the_models_device(device):
    model = build(num_classes=3, attention=(0, 1, 0), heads=1).to(device).train()
    x, labels = data(model).to(device), torch.tensor([0, 1, 2])  # labels and generators may stay on the CPU
    out = model(x, labels.to(device), label_drop=0.5, generator=make_generator(0))
    tensors = (out.distribution.mean, out.distribution.variance, out.rates, model.spectral_penalty())
    assert all(t.device.type == device for t in tensors)
    assert model.sample(3, labels, guidance=leaning, generator=make_generator(0)).device.type == device
    assert model.reconstruct(x, labels, depth=2).device.type == device


def test_kl_is_shared_with_the_gaussian_lesson():
    "The rate of a layer whose q and p are known numbers."
    model = build(multipliers=0, resolutions=(1,), layers=1)
    block = model.decoder.blocks[0]
    for made in (block.prior_block, block.posterior_block):
        nn.init.zeros_(made.last.weight)
    block.prior_block.last.bias.data[:6] = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0, -0.5])
    block.posterior_block.last.bias.data[:] = torch.tensor([1.0, 1.0, 0.0, 0.0, -1.0, 2.0])
    q, p = (
        DiagGaussian.from_raw(*made.last.bias[None, :6].chunk(2, dim=1))
        for made in (block.posterior_block, block.prior_block)
    )
    assert torch.allclose(model(data(model)).rates[:, 0], kl_divergence(q, p).expand(3), rtol=1e-5)


# what is no label, no z, no rule and no count


def test_requests_that_would_be_taken_for_others():
    model = build(num_classes=3)
    with pytest.raises(CfvaeError, match="labels are of the type bool"):
        model.sample(2, torch.tensor([True, False]))
    for guidance in (3.0, "3", (1, 2), True, dict):  # the last a class in place of one of its rules
        with pytest.raises(CfvaeError, match="guidance is .*: a rule is needed"):
            model.sample(2, [0, 1], guidance=guidance)
    for n in (-1, 1.5, "2", True):
        with pytest.raises(CfvaeError, match="n is .*: a whole number from 0"):
            model.sample(n)


def test_z_of_another_shape_is_not_stretched():
    model = build(num_classes=3)
    z = [torch.zeros(2, *shape) for shape in model.latent_shapes]
    first = z[0]
    for wrong in (first.repeat(1, 1, 3, 3), first[:, :1], first[0]):
        with pytest.raises(CfvaeError, match="the z have the shapes"):
            model.decode([wrong], [0, 1])
    with pytest.raises(CfvaeError, match="the z have the shapes"):
        model.decode([first, z[1][:1]], [0, 1])
    for no_list in ([first.numpy()], iter([first]), first):
        with pytest.raises(CfvaeError, match="as a list of tensors"):
            model.decode(no_list, [0, 1])
    for depth in (1.5, "all"):
        with pytest.raises(CfvaeError, match="depth is .*: a whole number is needed"):
            model.reconstruct(torch.zeros(2, 2, 4, 4), [0, 1], depth)


@pytest.mark.parametrize("drop", [math.nan, -0.1, 1.5])
def test_a_probability_that_is_none(drop):
    model = build(num_classes=3)
    with pytest.raises(CfvaeError, match="probability"):
        model(data(model), [0, 1, 2], label_drop=drop)


@pytest.mark.parametrize(("kind", "classes"), [(torch.int8, 200), (torch.uint8, 300), (torch.int32, 3)])
def test_labels_in_few_bits_whose_null_label_needs_more(kind, classes):
    model, labels = build(num_classes=classes), torch.tensor([0, 1])
    eps = model.noise(2, make_generator(0))
    drawn = [model.sample(2, given, leaning, eps=eps) for given in (labels, labels.to(kind))]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("n", [-1, 1.5, True, "2", None])
def test_noise_for_a_whole_number_of_examples(n):
    with pytest.raises(CfvaeError, match="n is .*: a whole number from 0"):
        build().noise(n)


def test_noise_is_a_list_of_tensors():
    model = build()
    eps = model.noise(2)
    for wrong in (iter(eps), [None] * len(eps), [e.numpy() for e in eps], 0):
        with pytest.raises(CfvaeError, match="eps must be a list"):
            model.sample(2, eps=wrong)


def test_data_are_floats():
    model = build()
    for wrong in (data(model).byte(), data(model).long(), data(model).numpy(), None):
        with pytest.raises(CfvaeError, match="^data: a tensor of floats"):
            model(wrong)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_data_noise_and_weights_of_every_float(kind):
    model = build(num_classes=3)
    x, labels, eps = data(model), [0, 1, 2], model.noise(3, make_generator(0))
    expected = model(x, labels, eps).rates
    mixed = model(x.to(kind), labels, [e.double() for e in eps]).rates
    assert torch.allclose(mixed, expected, rtol=0.1, atol=0.1)

    other = build(num_classes=3).to(kind)
    for image in (x, x.to(kind)):
        assert torch.allclose(other(image, labels, eps).rates, expected, rtol=0.3, atol=0.3)
    assert other.sample(3, labels, leaning).isfinite().all()
    assert other.reconstruct(x, labels).isfinite().all() and other.spectral_penalty().isfinite()
