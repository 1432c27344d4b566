"""Residual blocks, attention, resampling, starting weights and the spectral term."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from cfvae.blocks import (
    Attention,
    ResidualBlock,
    Resample,
    SpectralTerm,
    attention_positions,
    initialise,
    scale_weight,
)
from cfvae.core import CfvaeError, make_generator, seed_everything

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
few = settings(max_examples=25, deadline=None)


@pytest.fixture(autouse=True)
def _same_weights_every_time():
    seed_everything(0)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=make_generator(seed))


# residual block


@few
@given(
    channels=st.integers(1, 6),
    resolution=st.sampled_from([1, 2, 5]),
    multiplier=st.integers(0, 3),
    out=st.one_of(st.none(), st.integers(1, 7)),
    label_width=st.integers(0, 3),
)
def test_residual_block_is_its_formula(channels, resolution, multiplier, out, label_width):
    skip = out is None
    block = ResidualBlock(channels, resolution, multiplier, out, label_width, skip)
    x = noise(2, channels, resolution, resolution)
    label = noise(2, label_width, seed=1) if label_width else None
    h = x
    if label_width:
        h = h + (label @ block.label_projection.weight.T + block.label_projection.bias)[:, :, None, None]
    kernels = []
    for layer in block.layers:
        kernels.append(layer.weight.shape[-1])
        h = F.conv2d(h * h.sigmoid(), layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)
    expected = x + h if skip else h
    assert torch.allclose(block(x, label), expected, atol=1e-5)
    wide = 3 if resolution > 1 else 1
    assert kernels == ([wide, wide, 1, 1] if multiplier else [wide, wide])
    assert block(x, label).shape == (2, out or channels, resolution, resolution)
    if multiplier:
        assert block.layers[2].out_channels == multiplier * channels
    assert block.last is block.layers[-1]


def test_the_skip_carries_the_input_without_the_label():
    block = ResidualBlock(4, 3, label_width=2)
    for part in (block.last.weight, block.last.bias):
        nn.init.zeros_(part)
    x = noise(2, 4, 3, 3)
    assert torch.equal(block(x, noise(2, 2)), x)


def test_a_skip_needs_equal_widths():
    with pytest.raises(CfvaeError, match="4 and 6"):
        ResidualBlock(4, 3, out_channels=6)


@pytest.mark.parametrize("device", DEVICES)
def test_blocks_leave_their_input_alone(device):
    x = noise(2, 8, 4, 4).to(device)
    before = x.clone()
    for block in (
        ResidualBlock(8, 4),
        Attention(8, 2),
        Attention(8, 1),
        Resample(8, 8, 2),
        Resample(8, 8, 8),
    ):
        block.to(device)(x)
        assert torch.equal(x, before)


# attention


@few
@given(heads=st.sampled_from([2, 3, 4, 12]), resolution=st.integers(1, 4), seed=st.integers(0, 50))
def test_attention_equals_torchs_multi_head_layer(heads, resolution, seed):
    ours, reference = Attention(12, heads), nn.MultiheadAttention(12, heads, batch_first=True)
    for part in ours.parameters():
        part.data.copy_(noise(*part.shape, seed=seed) / 3)
    reference.in_proj_weight.data = ours.project_in.weight.data
    reference.in_proj_bias.data = ours.project_in.bias.data
    reference.out_proj.load_state_dict(ours.project_out.state_dict())
    x = noise(2, 12, resolution, resolution, seed=seed)
    tokens = x.flatten(2).transpose(1, 2)
    expected = x + reference(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)
    assert torch.allclose(ours(x), expected, atol=1e-5)


def test_multi_head_attention_equals_scaled_dot_product_attention():
    layer, x = Attention(8, 2), noise(3, 8, 4, 4)
    tokens = x.flatten(2).transpose(1, 2)
    query, key, value = F.linear(tokens, layer.project_in.weight, layer.project_in.bias).split(8, dim=2)
    parts = [
        F.scaled_dot_product_attention(*(t[..., h : h + 4] for t in (query, key, value))) for h in (0, 4)
    ]
    expected = x + layer.project_out(torch.cat(parts, dim=2)).transpose(1, 2).reshape(x.shape)
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_one_head_projects_the_query_only():
    layer, x = Attention(6, 1), noise(2, 6, 3, 3)
    assert layer.project_in.weight.shape == (6, 6)
    tokens = x.flatten(2).transpose(1, 2)
    scores = layer.project_in(tokens) @ tokens.transpose(1, 2) / math.sqrt(6)
    weights = scores.exp() / scores.exp().sum(dim=2, keepdim=True)
    expected = x + layer.project_out(weights @ tokens).transpose(1, 2).reshape(x.shape)
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_attention_knows_no_positions():
    layer, x, order = Attention(8, 4), noise(2, 8, 3, 3), torch.randperm(9, generator=make_generator(1))
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    assert torch.allclose(layer(shuffled), layer(x).flatten(2)[:, :, order].view_as(x), atol=1e-6)


def test_published_mode_returns_the_query():
    layer, x = Attention(8, 2, mode="published"), noise(2, 8, 3, 3)
    query = layer.project_in(x.flatten(2).transpose(1, 2))[..., :8]
    assert torch.allclose(layer(x), x + layer.project_out(query).transpose(1, 2).reshape(x.shape), atol=1e-6)
    single, plain = Attention(8, 1, mode="published"), Attention(8, 1)
    plain.load_state_dict(single.state_dict())
    assert torch.equal(single(x), plain(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((8, 3), "3.*width 8"), ((8, 0), "0"), ((8, 2, "linear"), "linear.*softmax, published")],
)
def test_attention_refuses_what_cannot_work(arguments, message):
    with pytest.raises(CfvaeError, match=message):
        Attention(*arguments)


@few
@given(st.integers(1, 30), st.integers(0, 8))
def test_attention_positions(layers, count):
    places = attention_positions(layers, count)
    assert list(places) == sorted(set(places)) and len(places) <= count
    assert all(0 <= p <= layers for p in places)
    if count and layers > 2 * count:
        assert len(places) == count and 1 <= places[0] and places[-1] < layers


def test_attention_positions_of_the_published_sizes():
    assert attention_positions(10, 4) == (2, 4, 6, 8)
    assert attention_positions(12, 4) == (2, 5, 7, 10)
    assert attention_positions(5, 4) == (1, 2, 3, 4)
    assert attention_positions(1, 1) == (0,)  # 0.5 goes to the even neighbour
    assert attention_positions(3, 1) == (2,)  # so does 1.5


# resampling


@few
@given(before=st.sampled_from([1, 2, 4, 8]), after=st.sampled_from([1, 2, 4, 8]), same=st.booleans())
def test_resample(before, after, same):
    layer, x = Resample(3, 3 if same else 5, after), noise(2, 3, before, before)
    if after < before:
        factor = before // after
        expected = x.view(2, 3, after, factor, after, factor).mean((3, 5))
    else:
        expected = x.repeat_interleave(after // before, 2).repeat_interleave(after // before, 3)
    if same:
        assert sum(p.numel() for p in layer.parameters()) == 0
    else:
        weight, bias = layer.project.weight[:, :, 0, 0], layer.project.bias
        expected = torch.einsum("oc,bchw->bohw", weight, expected) + bias[:, None, None]
    assert torch.allclose(layer(x), expected, atol=1e-6)


# starting weights


def test_initialise_follows_its_rules():
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3), nn.Linear(30, 50), nn.Conv2d(4, 4, 1, bias=False), Attention(64, 4)
    )
    initialise(model)
    fans_of = {
        model[0]: (8 * 9, 16 * 9),
        model[1]: (30, 50),
        model[2]: (4, 4),
        model[3].project_in: (64, 192),
    }
    for part, fans in fans_of.items():
        bound = math.sqrt(6 / sum(fans))
        assert 0.8 * bound < part.weight.abs().max() <= bound
        assert part.weight.numel() < 100 or abs(part.weight.std() / (bound / math.sqrt(3)) - 1) < 0.05
        assert part.bias is None or not part.bias.any()
    assert not model[3].project_out.weight.any() and not model[3].project_out.bias.any()


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_starts_as_the_identity(heads):
    layer, x = nn.ModuleDict({"deep": Attention(8, heads)}), noise(2, 8, 4, 4)
    initialise(layer)
    assert torch.equal(layer["deep"](x), x)


def test_scaled_stack_keeps_the_size_of_a_signal():
    def growth(depth, scale):
        x = noise(8, 16, 6, 6)
        start = x.square().mean()
        with torch.no_grad():
            for _ in range(depth):
                block = ResidualBlock(16, 6, multiplier=0)
                initialise(block)
                if scale:
                    scale_weight(block.last, 1 / math.sqrt(depth))
                x = block(x)
        return (x.square().mean() / start).sqrt().item()

    assert growth(60, scale=False) > 10
    assert 1 < growth(60, scale=True) < 1.2 and 1 < growth(6, scale=True) < 1.2


def test_scale_weight_keeps_gradients_possible():
    layer = nn.Conv2d(3, 3, 1)
    before = layer.weight.detach().clone()
    scale_weight(layer, 0.25)
    assert torch.equal(layer.weight, before * 0.25) and layer.weight.requires_grad and layer.weight.is_leaf


# spectral term


@few
@given(
    out=st.integers(1, 8),
    channels=st.integers(1, 6),
    kernel=st.sampled_from([1, 3]),
    seed=st.integers(0, 100),
)
def test_spectral_term_finds_the_largest_singular_value(out, channels, kernel, seed):
    layer = nn.Conv2d(channels, out, kernel)
    weight = noise(*layer.weight.shape, seed=seed)
    rows = weight.permute(1, 2, 3, 0).reshape(-1, out)
    u, _, v = torch.linalg.svd(rows, full_matrices=False)
    spread = torch.linspace(2, 0.5, v.shape[0])  # well apart, so that few rounds are enough
    matrix = u @ torch.diag(spread) @ v
    layer.weight.data.copy_(matrix.view(channels, kernel, kernel, out).permute(3, 0, 1, 2))
    term = SpectralTerm(layer, factor=3.0)
    for _ in range(200):
        value = term(layer.weight)
    exact = torch.linalg.svdvals(layer.weight.permute(1, 2, 3, 0).reshape(-1, out))[0]
    assert torch.allclose(value, 3 * exact, rtol=1e-3)


def test_spectral_terms_gradient_is_that_of_the_singular_value():
    layer = nn.Conv2d(5, 7, 3)
    term = SpectralTerm(layer, factor=4.0)
    for _ in range(2000):
        value = term(layer.weight)
    (ours,) = torch.autograd.grad(value, layer.weight)
    (exact,) = torch.autograd.grad(4 * torch.linalg.svdvals(layer.weight.flatten(1))[0], layer.weight)
    assert ours.norm() > 1 and torch.allclose(ours, exact, atol=1e-3)


def test_spectral_term_never_overestimates_and_improves():
    layer = nn.Conv2d(16, 16, 3)
    term, exact = SpectralTerm(layer), torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]
    values = torch.stack([term(layer.weight).detach() for _ in range(40)])
    assert (values <= exact * (1 + 1e-5)).all() and (values.diff() >= -1e-5).all() and values[-1] > values[0]


def test_spectral_terms_vector_is_state_and_rests_in_evaluation():
    layer = nn.Conv2d(4, 4, 1)
    term = SpectralTerm(layer)
    assert dict(term.named_parameters()) == {} and list(term.state_dict()) == ["vector"]
    start = term.vector.clone()
    term.eval()(layer.weight)
    assert torch.equal(term.vector, start)
    term.train()(layer.weight)
    assert not torch.equal(term.vector, start)
    copy = SpectralTerm(layer)
    copy.load_state_dict(term.state_dict())
    assert torch.equal(copy(layer.weight), term(layer.weight))


def test_spectral_term_of_a_zero_weight_is_zero():
    layer = nn.Conv2d(4, 4, 3)
    nn.init.zeros_(layer.weight)
    term = SpectralTerm(layer)
    for _ in range(3):
        value = term(layer.weight)
    assert value == 0
    value.backward()
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_spectral_term_keeps_to_float32_in_half_precision(device):
    layer = nn.Conv2d(24, 32, 3).to(device)
    exact = SpectralTerm(layer).to(device)
    half = copy.deepcopy(exact)
    for _ in range(3):
        ours = exact(layer.weight)
        with torch.autocast(device, torch.bfloat16):
            theirs = half(layer.weight)
            assert (layer.weight.flatten(1) @ layer.weight.flatten(1).T).dtype == torch.bfloat16  # it is on
    assert theirs.dtype == torch.float32 and torch.equal(ours, theirs)
    assert torch.equal(exact.vector, half.vector)
    gradients = [torch.autograd.grad(value, layer.weight)[0] for value in (ours, theirs)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("heads, mode", [(1, "softmax"), (2, "softmax"), (2, "published")])
def test_attention_takes_no_images(heads, mode):
    for resolution in (1, 4):
        assert Attention(8, heads, mode)(torch.zeros(0, 8, resolution, resolution)).shape[0] == 0


@pytest.mark.parametrize("heads", [1, 3])
def test_on_a_cpu_attention_looks_in_float32_and_answers_in_the_precision_asked_for(heads):
    layer = Attention(24, heads)
    tokens = [torch.randn(2, 25, 24, generator=make_generator(seed)).bfloat16() for seed in range(3)]
    exact = layer._attend(*(part.float() for part in tokens))
    with torch.autocast("cpu", torch.bfloat16):
        ours = layer._attend(*tokens)
    assert ours.dtype == torch.bfloat16 and torch.equal(ours, exact.bfloat16())
    rounded = F.scaled_dot_product_attention(
        *(part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in tokens)
    )
    assert not torch.equal(ours, rounded.transpose(1, 2).flatten(2))  # the test can tell


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_spectral_term_moves_to_a_gpu():
    layer = nn.Conv2d(4, 4, 3).cuda()
    term = SpectralTerm(layer).cuda()
    assert term(layer.weight).is_cuda and term.vector.is_cuda


def test_a_resolution_that_does_not_divide():
    for before, after in ((8, 3), (5, 2)):
        with pytest.raises(CfvaeError, match=f"resolution {before} does not shrink to {after}"):
            Resample(4, 4, after)(torch.zeros(1, 4, before, before))
