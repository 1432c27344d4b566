"""The scaler inverts what it did not clip, the dataset standardises, one changed weight shows."""

import math
import numpy as np
import pytest
import torch
from torch import nn

from cfvae.core import CfvaeError, make_generator
from cfvae.latents import LatentDataset, LatentScaler, weights_fingerprint


# --- scaler


def test_scaler_is_the_formula_and_inverts_what_it_did_not_clip():
    z = 10 * torch.randn(50, 3, 4, 4, generator=make_generator(0))
    scaler = LatentScaler([1.0, -2.0, 0.5], [2.0, 4.0, 8.0], clip=3.0)
    shift = torch.tensor([1.0, -2, 0.5]).view(1, 3, 1, 1)
    scale = torch.tensor([2.0, 4, 8]).view(1, 3, 1, 1)
    torch.testing.assert_close(scaler(z), ((z - shift) / scale).clip(-3, 3))
    assert scaler(z).abs().max() == 3
    inside = scaler(z).abs() < 3
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(scaler.invert(scaler(z))[inside], z[inside])


def test_scaler_takes_numbers_for_all_channels():
    z = torch.randn(2, 4, 3, 3, generator=make_generator(0))
    torch.testing.assert_close(LatentScaler(0.25, 4.4)(z), (z - 0.25) / 4.4)


def test_measure_standardises_every_channel():
    shift = torch.tensor([5.0, -1.0]).view(2, 1, 1)
    scale = torch.tensor([3.0, 0.1]).view(2, 1, 1)
    z = torch.randn(500, 2, 4, 4, generator=make_generator(0)) * scale + shift
    scaled = LatentScaler.measure(z, clip=100)(z)
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(2), atol=1e-3, rtol=0)


def test_measure_of_a_constant_channel_stays_finite():
    assert LatentScaler.measure(torch.ones(5, 2, 3, 3))(torch.ones(1, 2, 3, 3)).isfinite().all()


@pytest.mark.parametrize("scale", [0.0, -1.0, [1.0, 0.0], float("nan"), float("inf")])
def test_scale_must_be_positive(scale):
    with pytest.raises(CfvaeError, match="scale"):
        LatentScaler(0.0, scale)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), [0.0, float("-inf")]])
def test_shift_must_be_finite(wrong):
    with pytest.raises(CfvaeError, match="shift is .*: every value must be finite"):
        LatentScaler(wrong, 1.0)


@pytest.mark.parametrize("clip", [0, -1.0, float("nan")])
def test_clip_must_be_positive(clip):
    with pytest.raises(CfvaeError, match="clip is"):
        LatentScaler(0.0, 1.0, clip)


@pytest.mark.parametrize(
    ("shift", "scale", "clip", "complaint"),
    [
        ("a", 1.0, 4.0, "shift is 'a': one number, or one per channel"),
        (None, 1.0, 4.0, "shift is None: one number"),
        (torch.zeros(2, 2), 1.0, 4.0, r"shift has the shape \(2, 2\): one number, or one per channel"),
        ([], 1.0, 4.0, "shift has the shape"),
        ([0.0, 0.0, 0.0], [1.0, 1.0], 4.0, "shift has 3 numbers, and scale has 2"),
        (0.0, 1.0, "4", "clip is '4'"),
        (0.0, 1.0, None, "clip is None"),
    ],
)
def test_what_no_scaler_is_made_of(shift, scale, clip, complaint):
    with pytest.raises(CfvaeError, match=complaint):
        LatentScaler(shift, scale, clip)


def test_a_scaler_is_made_of_numbers_of_any_shape_that_is_per_channel():
    for shift in ([1.0, 2.0], (1, 2), np.array([1.0, 2.0]), torch.tensor([1.0, 2.0]).view(2, 1, 1)):
        assert LatentScaler(shift, 1.0).shift.flatten().tolist() == [1, 2]
    assert LatentScaler([1.0, 2.0], [3.0]).scale.numel() == 1 and LatentScaler(0, 1, np.float32(3)).clip == 3


def test_scaler_travels_in_the_state_dict():
    other = LatentScaler([0.0, 0.0], [1.0, 1.0])
    other.load_state_dict(LatentScaler([1.0, 2.0], [3.0, 4.0]).state_dict())
    assert other.shift.flatten().tolist() == [1, 2] and other.scale.flatten().tolist() == [3, 4]


# --- dataset


def test_dataset_gives_standardised_codes_with_their_labels():
    codes = np.random.default_rng(0).normal(3, 5, (6, 2, 4, 4)).astype(np.float16)
    scaler = LatentScaler([3.0, 2.0], [5.0, 4.0])
    latents = LatentDataset(codes, torch.arange(6) % 2, ["a", "b"], scaler, "fingerprint")
    expected = scaler(torch.from_numpy(codes[[4, 1]]).float())
    z, labels = latents.batch([4, 1])
    assert torch.equal(z, expected) and labels.tolist() == [0, 1]
    assert torch.equal(latents.batch(torch.tensor([4, 1]))[0], expected)
    assert torch.equal(latents[4][0], expected[0]) and torch.equal(latents[-2][0], expected[0])
    assert latents[1][1] == 1 and len(latents) == 6 and latents.classes == ("a", "b")
    for i in (6, -7):
        with pytest.raises(IndexError, match=f"no code {i} among 6"):
            latents[i]


def test_masks_labels_and_names_that_do_not_fit_the_codes():
    codes, labels, scaler = np.zeros((2, 1, 2, 2), np.float16), torch.zeros(2).long(), LatentScaler(0.0, 1.0)
    latents = LatentDataset(codes, labels, ["a"], scaler, "fingerprint")
    for indices in ([True, False], torch.tensor([True, False]), [0.9, 1.9]):
        with pytest.raises(CfvaeError, match=r"indices are .*mask.nonzero\(\)"):
            latents.batch(indices)
    with pytest.raises(CfvaeError, match=r"codes: the labels are .*: .*one class index"):
        LatentDataset(codes, [0.5, 1.5], ["a"], scaler, "fingerprint")
    with pytest.raises(CfvaeError, match=r"codes: labels such as \[7\] are out of range: use 0 to 0"):
        LatentDataset(codes, [0, 7], ["a"], scaler, "fingerprint")
    as_list = LatentDataset(codes, [0, 0], ["a"], scaler, "fingerprint")
    assert as_list.batch([1])[1].tolist() == [0]
    with pytest.raises(CfvaeError, match="2 codes but 3 labels"):
        LatentDataset(codes, torch.zeros(3).long(), ["a"], scaler, "fingerprint")
    with pytest.raises(CfvaeError, match="codes: two classes are called a"):
        LatentDataset(codes, labels, ["a", "a"], scaler, "fingerprint")


@pytest.mark.parametrize("codes", [np.zeros((2, 4, 4), np.float16), [1, 2], None])
def test_codes_are_one_array(codes):
    with pytest.raises(CfvaeError, match=r"codes: an array or a tensor is needed, \(n, channels, r, r\)"):
        LatentDataset(codes, [0, 0], ["a"], LatentScaler(0.0, 1.0), "fingerprint")


@pytest.mark.parametrize("scaler", [LatentScaler([0.0] * 4, 1.0), LatentScaler(0.0, [1.0] * 4)])
def test_a_scaler_of_other_channels_does_not_repeat_the_codes(scaler):
    with pytest.raises(CfvaeError, match="the codes have 1 channels, and the scaler is for 4"):
        LatentDataset(np.zeros((2, 1, 4, 4), np.float16), [0, 0], ["a"], scaler, "fingerprint")


def test_a_scaler_keeps_what_it_was_given():
    given = torch.ones(2)
    scaler = LatentScaler(given, given)
    given *= 9
    assert scaler.shift.flatten().tolist() == scaler.scale.flatten().tolist() == [1, 1]


@pytest.mark.parametrize(
    "latents", [torch.zeros(3, 4, 4), np.zeros((3, 1, 4, 4)), torch.full((3, 1, 4, 4), math.nan)]
)
def test_nothing_is_measured_of_what_are_no_codes(latents):
    with pytest.raises(CfvaeError, match="^latents: "):
        LatentScaler.measure(latents)


# --- fingerprint


def constant_layer(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def test_fingerprint_sees_one_changed_weight_and_bfloat16():
    layer = constant_layer(2, 3)
    original = weights_fingerprint(layer)
    assert original == weights_fingerprint(constant_layer(2, 3))
    with torch.no_grad():
        layer.bias[0] += 1e-6
    assert weights_fingerprint(layer) != original
    half = weights_fingerprint(constant_layer(2, 3).half())
    assert weights_fingerprint(constant_layer(2, 3).bfloat16()) not in (original, half)


def test_fingerprint_sees_shapes():
    assert weights_fingerprint(constant_layer(6, 1)) != weights_fingerprint(constant_layer(3, 2))
