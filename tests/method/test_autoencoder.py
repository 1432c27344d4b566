"The deterministic autoencoder: shapes, errors, loss, saving."

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cfvae.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    Decoder,
    Encoder,
    NormalisedBlock,
    psnr,
    reconstruction_loss,
)
from cfvae.core import (
    CfvaeError,
    config_from_dict,
    config_to_dict,
    count_parameters,
    make_generator,
    randn,
    seed_everything,
)
from cfvae.data import Shapes, horizontal_flip

SMALL = AutoencoderConfig(size=16, widths=(8, 8), patch=2, latent_channels=3, groups=4)


@pytest.fixture
def model():
    seed_everything(0)
    return Autoencoder(SMALL)


@pytest.fixture
def x():
    return Shapes(6, size=16).batch(range(6))[0]


@settings(deadline=None, max_examples=25)
@given(
    levels=st.lists(st.sampled_from([4, 8]), min_size=1, max_size=3),
    patch=st.integers(1, 3),
    cells=st.integers(1, 3),
    latent_channels=st.integers(1, 5),
    blocks=st.integers(1, 2),
    batch=st.integers(1, 3),
)
def test_shapes_for_any_config(levels, patch, cells, latent_channels, blocks, batch):
    factor = patch * 2 ** (len(levels) - 1)
    config = AutoencoderConfig(
        size=factor * cells,
        widths=tuple(levels),
        patch=patch,
        blocks=blocks,
        latent_channels=latent_channels,
        groups=2,
    )
    assert config.factor == factor and config.latent_shape == (latent_channels, cells, cells)
    model = Autoencoder(config)
    x = torch.zeros(batch, 3, config.size, config.size)
    z = model.encode(x)
    assert z.shape == (batch, *config.latent_shape)
    assert model.decode(z).shape == model(x).shape == x.shape
    assert config_from_dict(AutoencoderConfig, config_to_dict(config)) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 30}, "size 30 does not fit.*multiple of 4"),
        ({"widths": ()}, "widths"),
        ({"widths": (0,)}, "widths"),
        ({"patch": 0}, "patch is 0"),
        ({"groups": 7}, "groups is 7"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"blocks": 0}, "blocks"),
    ],
)
def test_bad_configs_name_the_field(fields, message):
    with pytest.raises(CfvaeError, match=message):
        AutoencoderConfig(**fields)


def test_lists_become_tuples():
    assert AutoencoderConfig(widths=[64, 64]) == AutoencoderConfig(widths=(64, 64))


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 1, 16, 16), (3, 16, 16), (1, 3, 16, 8)])
def test_images_of_the_wrong_shape_are_refused(model, shape):
    with pytest.raises(CfvaeError, match=r"images: .*\(n, 3, 16, 16\), is needed, not"):
        model.encode(torch.zeros(shape))


def test_codes_of_the_wrong_shape_are_refused(model):
    with pytest.raises(CfvaeError, match=r"codes: .*\(n, 3, 4, 4\), is needed, not \(2, 4, 4, 4\)"):
        model.decode(torch.zeros(2, 4, 4, 4))


def test_it_is_deterministic_and_leaves_its_input_alone(model, x):
    before = x.clone()
    z = model.encode(x)
    assert (
        torch.equal(z, model.encode(x)) and torch.equal(model.decode(z), model(x)) and torch.equal(x, before)
    )


def test_each_image_is_coded_by_itself(model, x):
    assert torch.allclose(model.encode(x)[2:3], model.encode(x[2:3]), atol=1e-5)
    assert torch.allclose(model(x)[4:5], model(x[4:5]), atol=1e-5)


def test_outputs_are_float32_under_mixed_precision(model, x):
    with torch.autocast("cpu", torch.bfloat16):
        z = model.encode(x)
        assert model.encoder(x).dtype == torch.bfloat16  # autocast is really on
        assert z.dtype == model.decode(z).dtype == torch.float32
    assert torch.isfinite(z).all()


def test_the_block_adds_to_its_input():
    block = NormalisedBlock(8, 4)
    torch.nn.init.zeros_(block.layers[-1].weight)
    torch.nn.init.zeros_(block.layers[-1].bias)
    h = randn((2, 8, 4, 4), make_generator(0))
    assert torch.equal(block(h), h)


def test_encoder_runs_down_and_decoder_up():
    config = AutoencoderConfig(size=16, widths=(8, 16), patch=2, groups=4)  # lowest resolution first
    down = [m.out_channels for m in Encoder(config) if isinstance(m, torch.nn.Conv2d)]
    up = [m.out_channels for m in Decoder(config) if isinstance(m, torch.nn.Conv2d)]
    assert down == [16, 8, 4] and up == [8, 16, 12]
    assert count_parameters(Encoder(AutoencoderConfig(size=64))) == count_parameters(
        Encoder(AutoencoderConfig(size=32))
    )


def test_psnr_against_the_formula():
    a = randn((2, 3, 4, 4), make_generator(0)).clamp(-1, 1)
    b = randn((2, 3, 4, 4), make_generator(1)).clamp(-1, 1)
    assert psnr(a, b).item() == pytest.approx(10 * math.log10(4 / ((a - b) ** 2).mean().item()), abs=1e-4)
    assert psnr(a, a).item() == pytest.approx(10 * math.log10(4e12), abs=0.01)
    assert (
        psnr(torch.full_like(a, 3.0), torch.ones_like(a)) > 100
    )  # values beyond the range count as the nearest one inside
    assert psnr(torch.ones(1), -torch.ones(1)).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("other", [(1, 3, 4, 4), (8, 1, 4, 4), (3, 4, 4)])
def test_psnr_is_of_pairs(other):
    with pytest.raises(CfvaeError, match="are no pairs"):
        psnr(torch.zeros(8, 3, 4, 4), torch.zeros(other))


@pytest.mark.parametrize("squared", [0.0, 1.0, 2.5])
def test_loss_is_the_sum_of_both_errors(model, x, squared):
    loss, metrics = reconstruction_loss(squared=squared)(model, (x, None), None, 0)
    decoded = model(x)
    assert loss.item() == pytest.approx(
        (F.l1_loss(decoded, x) + squared * F.mse_loss(decoded, x)).item(), rel=1e-6
    )
    assert set(metrics) == {"l1", "psnr"} and not any(m.requires_grad for m in metrics.values())
    assert metrics["l1"].item() == pytest.approx((decoded - x).abs().mean().item(), rel=1e-5)


def test_flipping_changes_input_and_target_together(model, x):
    loss = reconstruction_loss(flip=True)(model, (x, None), make_generator(3), 0)[0]
    mirrored = horizontal_flip(x, make_generator(3))
    assert not torch.equal(mirrored, x)
    assert torch.equal(loss, reconstruction_loss()(model, (mirrored, None), None, 0)[0])


def test_every_weight_gets_a_gradient(model, x):
    reconstruction_loss()(model, (x, None), None, 0)[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_one_batch_overfits():
    seed_everything(0)
    model, loss_fn = (
        Autoencoder(AutoencoderConfig(size=8, widths=(16,), patch=2, groups=4)),
        reconstruction_loss(),
    )
    x = Shapes(4, size=8).batch(range(4))[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    for _ in range(150):
        loss, metrics = loss_fn(model, (x, None), None, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert metrics["psnr"] > 25


def test_saved_and_loaded_it_is_the_same(model, x, tmp_path):
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    again = Autoencoder.from_pretrained(tmp_path)
    assert again.config == model.config and torch.equal(again(x), model(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_computes_the_same(model, x):
    expected = model(x)
    assert torch.allclose(model.cuda()(x.cuda()).cpu(), expected, atol=1e-2)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_images_and_weights_of_every_float(model, x, kind):
    expected = model(x)
    assert torch.allclose(model(x.to(kind)), expected, atol=0.05)
    other = copy.deepcopy(model).to(kind)
    for image in (x, x.to(kind)):
        assert other(image).dtype == torch.float32 and torch.allclose(other(image), expected, atol=0.1)


def test_what_is_no_image_and_no_code(model, x):
    for wrong in (x.byte(), x.long(), x.numpy(), None, x.to(torch.complex64)):
        for question, name in ((model.encode, "images"), (model.decode, "codes")):
            with pytest.raises(CfvaeError, match=f"^{name}: a tensor of floats"):
                question(wrong)
    with pytest.raises(CfvaeError, match="images: there is none"):
        model.encode(x[:0])


def test_psnr_of_every_float():
    x = torch.zeros(2, 3, 4, 4)
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        assert psnr(x.to(kind), x.to(kind)).item() == pytest.approx(psnr(x, x).item())
        small = psnr((x + 1e-4).to(kind), x.to(kind)).item()
        assert small == pytest.approx(86, abs=0.2)  # half precision has no square of it
    for wrong in (x.byte(), x.long(), x[:0]):
        with pytest.raises(CfvaeError, match="images: "):
            psnr(wrong, wrong)


@pytest.mark.parametrize("squared", [-1, math.nan, math.inf, "1"])
def test_a_weight_of_the_squared_error(squared):
    with pytest.raises(CfvaeError, match="squared is "):
        reconstruction_loss(squared=squared)
