"""A sharper first stage: two players in one backward pass, resumable, started in the right step.

Where nothing is asked for it is the plain loss to the last bit."""

import ast
import dataclasses
import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cfvae import autoencoder_loss
from cfvae.autoencoder import Autoencoder, AutoencoderConfig, psnr, reconstruction_loss
from cfvae.autoencoder_loss import (
    RENAMED_FIELDS,
    AutoencoderLossConfig,
    PatchDiscriminator,
    TwoPlayers,
    adaptive_weight,
    autoencoder_of,
    first_stage,
    first_stage_loss,
    hinge_loss,
    sharpness,
)
from cfvae.runs.callbacks import Checkpointer
from cfvae.checkpoints import list_checkpoints
from cfvae.core import CfvaeError, config_from_dict, config_to_dict, make_generator, seed_everything
from cfvae.data import Shapes
from cfvae.training import Callback, StopTraining, TrainingConfig, fit

# Children are forked from a server that has imported everything once and computed nothing:
# cheap, and without inherited threads.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["cfvae.autoencoder_loss", "cfvae.checkpoints", "torch._dynamo"])

SIZES = AutoencoderConfig(size=16, widths=(8,), patch=4, latent_channels=2, groups=4)
GAME = AutoencoderLossConfig(disc_weight=0.5, disc_start=5, disc_width=4, disc_layers=1)
TRAINING = TrainingConfig(
    steps=10, batch_size=8, learning_rate=1e-2, warmup=2, device="cpu", precision="fp32"
)


class Features(nn.Module):
    "A small random stand-in for LPIPS."

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.calls = 0

    def forward(self, a, b):
        self.calls += 1
        return (self.conv(a) - self.conv(b)).square().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def x():
    return Shapes(8, size=16).batch(range(8))[0]


def build(loss=GAME, seed=0):
    torch.set_num_threads(1)
    seed_everything(seed)
    return first_stage(SIZES, loss)


def train(loss=GAME, callbacks=(), net=None, **changes):
    return fit(
        build(loss),
        Shapes(64, size=16),
        first_stage_loss(loss, flip=True, perceptual_net=net),
        dataclasses.replace(TRAINING, **changes),
        callbacks,
    )


def flatten(value, name="state") -> dict:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flatten(item, f"{name}.{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, item in enumerate(value) for k, v in flatten(item, f"{name}.{i}").items()}
    return {name: value}


def assert_same(a, b):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]) if torch.is_tensor(a[key]) else a[key] == b[key], key


# The loss and its parts


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"l2_weight": -1.0}, "l2_weight is -1.0"),
        ({"perceptual_weight": float("nan")}, "perceptual_weight is NaN"),
        ({"disc_weight": float("inf")}, "disc_weight is Infinity"),
        ({"disc_weight": "0.5"}, 'disc_weight is "0.5"'),
        ({"disc_start": 0}, "disc_start is 0"),
        ({"disc_start": 1.5}, "disc_start is 1.5"),
        ({"disc_layers": 0}, "disc_layers is 0"),
        ({"disc_width": 6}, "disc_width is 6"),
        ({"disc_width": 0}, "multiple of 4"),
    ],
)
def test_bad_configs_name_the_field(fields, message):
    with pytest.raises(CfvaeError, match=message):
        AutoencoderLossConfig(**fields)


def test_config_as_a_dictionary_and_back():
    assert config_from_dict(AutoencoderLossConfig, config_to_dict(GAME)) == GAME


def test_every_field_has_its_old_name():
    fields = [field.name for field in dataclasses.fields(AutoencoderLossConfig)]
    assert list(RENAMED_FIELDS.values()) == fields and not set(RENAMED_FIELDS) & set(fields)


def test_sharpness_counts_the_energy_of_detail(x):
    assert sharpness(x, x) == 1 and sharpness(torch.zeros_like(x), x) == 0
    assert sharpness(0.5 * x, x).item() == pytest.approx(0.25, rel=1e-5)
    slope = torch.linspace(-1, 1, 16).expand(16, 16)
    assert sharpness(x + slope + 2 * slope.T, x).item() == pytest.approx(1, abs=1e-4)
    dot = torch.zeros(1, 1, 5, 5)
    dot[..., 2, 2] = 1
    line = torch.zeros_like(dot)
    line[..., 2] = 1
    assert sharpness(dot, line).item() == pytest.approx((16 + 4) / (3 * 4 + 6 * 1))


@settings(deadline=None, max_examples=20)
@given(
    layers=st.integers(1, 3),
    cells=st.integers(3, 5),
    width=st.sampled_from([4, 8, 12]),
    batch=st.integers(1, 3),
)
def test_discriminator_gives_one_logit_per_patch(layers, cells, width, batch):
    size = cells * 2**layers
    logits = PatchDiscriminator(width, layers)(torch.zeros(batch, 3, size, size))
    assert logits.shape == (batch, 1, cells - 2, cells - 2)


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_patches_have_the_published_sizes(layers, patch):
    seed_everything(0)
    # without the normalisation, which lets a little of the rest in
    kept = [layer for layer in PatchDiscriminator(4, layers) if not isinstance(layer, nn.GroupNorm)]
    model = nn.Sequential(*kept)
    x = torch.rand(1, 3, 160, 160, requires_grad=True)
    logits = model(x)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = x.grad.abs().sum((0, 1)) > 0
    assert seen.any(0).sum() == seen.any(1).sum() == patch


def test_a_verdict_does_not_depend_on_the_rest_of_the_batch(x):
    model = PatchDiscriminator(8, 1)
    torch.testing.assert_close(model(x)[2:3], model(x[2:3]))
    torch.testing.assert_close(model(x), model.eval()(x), rtol=0, atol=0)


@settings(deadline=None, max_examples=30)
@given(
    real=st.lists(st.floats(-3, 3), min_size=1, max_size=5),
    fake=st.lists(st.floats(-3, 3), min_size=1, max_size=5),
)
def test_hinge_against_a_scalar_reference(real, fake):
    of_real = sum(max(0, 1 - v) for v in real) / len(real)
    of_fake = sum(max(0, 1 + v) for v in fake) / len(fake)
    expected = of_real / 2 + of_fake / 2
    assert hinge_loss(torch.tensor(real), torch.tensor(fake)).item() == pytest.approx(expected, abs=1e-5)


def test_adaptive_weight_is_the_ratio_of_the_pulls():
    layer = nn.Parameter(torch.tensor([1.0, 2.0]))
    weight = adaptive_weight(6 * layer.sum(), 2 * layer.sum(), layer)
    assert weight.item() == pytest.approx(3, rel=1e-3) and not weight.requires_grad
    assert adaptive_weight(6 * layer.sum(), 0 * layer.sum(), layer) == 1e4  # not infinity
    assert adaptive_weight(0 * layer.sum(), layer.sum(), layer) == 0


# With everything off


def test_with_everything_off_it_is_the_plain_loss_bit_for_bit(x):
    model = build(AutoencoderLossConfig())
    assert type(model) is Autoencoder
    results = []
    for loss_fn in (
        first_stage_loss(AutoencoderLossConfig(l2_weight=0.7), flip=True),
        reconstruction_loss(True, 0.7),
    ):
        model.zero_grad()
        loss, metrics = loss_fn(model, (x, None), make_generator(3), 0)
        loss.backward()
        results.append(
            {"loss": loss, "metrics": metrics, "gradients": [p.grad.clone() for p in model.parameters()]}
        )
    assert_same(*results)


def test_plain_training_is_the_same_to_the_last_bit():
    mine = train(AutoencoderLossConfig())
    reference = fit(build(AutoencoderLossConfig()), Shapes(64, size=16), reconstruction_loss(True), TRAINING)
    assert_same(mine.state_dict(), reference.state_dict())


# Two players


def test_the_discriminator_does_not_change_the_initial_weights():
    assert_same(autoencoder_of(build()).state_dict(), build(AutoencoderLossConfig()).state_dict())


def test_called_like_autoencoder_of(x):
    model = build()
    assert torch.equal(model(x), autoencoder_of(model)(x))
    assert autoencoder_of(autoencoder_of(model)) is model.autoencoder


@pytest.mark.parametrize("perceptual", [0.0, 0.3])
def test_each_player_gets_the_gradient_of_its_own_loss(x, perceptual):
    loss = dataclasses.replace(GAME, disc_start=1, perceptual_weight=perceptual)
    model, net = build(loss), Features().requires_grad_(False)
    total, metrics = first_stage_loss(loss, perceptual_net=net)(model, (x, None), None, 0)
    total.backward()
    gradients = [p.grad for p in model.parameters()]
    decoded = model.autoencoder(x)
    reconstruction = F.l1_loss(decoded, x) + F.mse_loss(decoded, x) + perceptual * net(decoded, x).mean()
    adversarial = -model.discriminator(decoded).mean()
    judging = hinge_loss(model.discriminator(x), model.discriminator(decoded.detach()))
    last = model.autoencoder.decoder[-2].weight
    pulls = [
        torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (reconstruction, adversarial)
    ]
    weight = (pulls[0] / (pulls[1] + 1e-4)).clamp(0, 1e4).detach()
    own = torch.autograd.grad(
        reconstruction + 0.5 * weight * adversarial, list(model.autoencoder.parameters()), retain_graph=True
    )
    own += torch.autograd.grad(judging, list(model.discriminator.parameters()))
    assert len(gradients) == len(own)
    for a, b in zip(gradients, own, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(total, reconstruction + 0.5 * weight * adversarial + judging)
    for name, value in {
        "adversarial": adversarial,
        "adaptive_weight": weight,
        "discriminator": judging,
        "logits_real": model.discriminator(x).mean(),
        "logits_fake": model.discriminator(decoded).mean(),
    }.items():
        torch.testing.assert_close(metrics[name], value.detach())
        assert not metrics[name].requires_grad


def test_until_the_start_the_discriminator_rests_and_the_autoencoder_trains_as_if_alone():
    before, first = train(steps=4), train(steps=5)
    assert_same(before.model.discriminator.state_dict(), build().discriminator.state_dict())
    assert_same(
        autoencoder_of(before.model).state_dict(), train(AutoencoderLossConfig(), steps=4).model.state_dict()
    )
    assert not torch.equal(first.model.discriminator[0].weight, before.model.discriminator[0].weight)
    assert not torch.equal(
        autoencoder_of(first.model).decoder[0].weight,
        train(AutoencoderLossConfig(), steps=5).model.decoder[0].weight,
    )
    discriminator = {id(p) for p in before.model.discriminator.parameters()}
    assert not discriminator & {
        id(p) for p in before.optimizer.state
    }  # its averages start with the game, not with zeros before it


class Played(Callback):
    "In which steps there was a game."

    def on_start(self, state):
        self.played = []

    def on_step(self, state, metrics):
        self.played.append("discriminator" in metrics)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_the_game_starts_with_its_step_however_many_parts_a_step_has(accumulate):
    watch = Played()
    train(callbacks=[watch], accumulate=accumulate)
    assert watch.played == [False] * 4 + [True] * 6


def test_the_first_step_of_the_game_is_counted_from_one(x):
    model, loss_fn = build(), first_stage_loss(GAME)
    reports = [loss_fn(model, (x, None), None, step)[1] for step in range(6)]
    assert ["discriminator" in metrics for metrics in reports] == [False] * 4 + [True] * 2


def test_skipped_steps_count_too():
    watch = Played()
    state = train(callbacks=[watch], skip_norm=1e-9, skip_from=3)
    assert state.skipped == 7 and watch.played == [False] * 4 + [True] * 6


def test_the_players_hold_nothing_but_weights():
    assert list(build().state_dict()) == [name for name, _ in build().named_parameters()]


def test_a_step_that_is_not_finite_moves_neither_player():
    model, data = build(dataclasses.replace(GAME, disc_start=1)), Shapes(64, size=16)
    before = {name: p.clone() for name, p in model.named_parameters()}
    broken = first_stage_loss(dataclasses.replace(GAME, disc_start=1))

    def spoiled(model, batch, generator, step):
        return broken(model, (batch[0] * float("nan"), batch[1]), generator, step)

    with pytest.raises(CfvaeError, match="all 2 steps were skipped"):
        fit(model, data, spoiled, dataclasses.replace(TRAINING, steps=2))
    assert_same(before, dict(model.named_parameters()))


def test_without_gradients_there_is_no_game(x):
    loss = dataclasses.replace(GAME, disc_start=1)
    with torch.no_grad():
        value, metrics = first_stage_loss(loss)(build(loss), (x, None), None, 0)
    assert set(metrics) == {"l1", "psnr"} and torch.isfinite(value)


def test_mixed_precision_trains_both(x):
    state = train(dataclasses.replace(GAME, disc_start=2), precision="bf16", steps=6)
    assert state.skipped == 0 and all(p.isfinite().all() for p in state.model.parameters())
    assert not torch.equal(state.model.discriminator[-1].weight, build().discriminator[-1].weight)

    loss_fn = first_stage_loss(dataclasses.replace(GAME, disc_start=1))
    with torch.autocast("cpu", torch.bfloat16):
        _, half = loss_fn(build(), (x, None), None, 0)
    _, exact = loss_fn(build(), (x, None), None, 0)
    assert half["adaptive_weight"].dtype == torch.float32
    assert half["adaptive_weight"].item() == pytest.approx(exact["adaptive_weight"].item(), rel=0.1)


def test_an_autoencoder_alone_cannot_play(x):
    with pytest.raises(CfvaeError, match=r"no discriminator: train what first_stage"):
        first_stage_loss(GAME)(build(AutoencoderLossConfig()), (x, None), None, 0)


def test_images_too_small_for_the_discriminator_are_refused():
    with pytest.raises(CfvaeError, match="disc_layers is 3: images of 16 pixels"):
        first_stage(SIZES, dataclasses.replace(GAME, disc_layers=3))
    assert isinstance(first_stage(SIZES, dataclasses.replace(GAME, disc_layers=2)), TwoPlayers)


# Stopped, killed, resumed


@pytest.fixture(scope="module")
def undisturbed():
    return train(accumulate=2).state_dict()


class Stop(Callback):
    def __init__(self, at):
        self.at = at

    def on_step(self, state, metrics):
        if state.step == self.at:
            raise StopTraining


@pytest.mark.parametrize("at", [2, 4, 5, 7])  # the game starts with step 5
def test_stopped_and_resumed_is_equal_to_the_last_bit(tmp_path, undisturbed, at):
    train(callbacks=[Checkpointer(tmp_path, every=100), Stop(at)], accumulate=2)
    assert_same(
        train(callbacks=[Checkpointer(tmp_path, every=100, resume=True)], accumulate=2).state_dict(),
        undisturbed,
    )


class KillSelf(Callback):
    def on_step(self, state, metrics):
        if state.step == 7:
            os.kill(os.getpid(), signal.SIGKILL)


def doomed(folder):
    train(callbacks=[Checkpointer(folder, every=3), KillSelf()], accumulate=2)


def test_killed_and_resumed_is_equal_to_the_last_bit(tmp_path, undisturbed):
    process = context.Process(target=doomed, args=(tmp_path,))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL and [
        path.name.split("-")[1] for path in list_checkpoints(tmp_path)
    ] == ["3", "6"]
    assert_same(
        train(callbacks=[Checkpointer(tmp_path, every=3, resume=True)], accumulate=2).state_dict(),
        undisturbed,
    )


def test_an_error_within_a_step_does_not_cost_a_step(tmp_path, undisturbed):
    loss_fn, data = first_stage_loss(GAME, flip=True), Shapes(64, size=16)
    config = dataclasses.replace(TRAINING, accumulate=2)

    def breaks(model, batch, generator, step):
        if step == 6:
            raise RuntimeError("out of memory")
        return loss_fn(model, batch, generator, step)

    model = build()
    with pytest.raises(RuntimeError):
        fit(model, data, breaks, config, [Checkpointer(tmp_path, every=3)])
    resumed = fit(model, data, loss_fn, config, [Checkpointer(tmp_path, every=3, resume=True)])
    assert_same(resumed.state_dict(), undisturbed)


# The perceptual distance


def test_the_perceptual_part_is_added_by_its_weight(x):
    net, model = Features(), build(AutoencoderLossConfig())
    config = AutoencoderLossConfig(perceptual_weight=0.3)
    loss, metrics = first_stage_loss(config, perceptual_net=net)(model, (x, None), None, 0)
    plain, _ = reconstruction_loss()(model, (x, None), None, 0)
    torch.testing.assert_close(loss, plain + 0.3 * net(model(x), x).mean())
    torch.testing.assert_close(metrics["perceptual"], net(model(x), x).mean().detach())
    only = torch.autograd.grad(loss - plain, model.decoder[0].weight)[0]
    assert only.abs().sum() > 0


def test_in_half_precision_the_perceptual_distance_keeps_to_float32(x):
    net, features = Features(), []
    net.conv.register_forward_hook(lambda part, arguments, output: features.append(output.dtype))
    loss_fn = first_stage_loss(AutoencoderLossConfig(perceptual_weight=0.3), perceptual_net=net)
    with torch.autocast("cpu", torch.bfloat16):
        loss_fn(build(AutoencoderLossConfig()), (x, None), None, 0)
        assert net.conv(x).dtype == torch.bfloat16  # autocast is really on
    assert features == [torch.float32, torch.float32, torch.bfloat16]


def test_the_perceptual_network_is_not_trained_and_not_saved():
    net = Features()
    before = {name: p.clone() for name, p in net.state_dict().items()}
    state = train(dataclasses.replace(GAME, perceptual_weight=0.3), net=net)
    assert net.calls == 10 and not net.training and not any(p.requires_grad for p in net.parameters())
    assert_same(before, net.state_dict())
    assert_same(list(state.model.state_dict()), list(build().state_dict()))


def test_a_weight_of_zero_neither_loads_nor_calls_it(x, monkeypatch):
    monkeypatch.setattr("cfvae.autoencoder_loss.load_lpips", lambda: pytest.fail("loaded"))
    net = Features()
    first_stage_loss(AutoencoderLossConfig(), perceptual_net=net)(
        build(AutoencoderLossConfig()), (x, None), None, 0
    )
    assert net.calls == 0


def test_without_the_package_the_error_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(CfvaeError, match=r"(?s)packages lpips.*go on without: perceptual_weight=0"):
        first_stage_loss(AutoencoderLossConfig(perceptual_weight=1.0))


WITHOUT_WEIGHTS = """
import torch, urllib.error
try:
    import torchvision
except RuntimeError:  # of another build than torch: declare the operators that it misses; none is called
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

def no_network(request, *_, **__):
    print("asked for", request.full_url)
    raise urllib.error.URLError("no network")

torch.hub.urlopen = no_network
from cfvae.autoencoder_loss import load_lpips
with torch.device("meta"):  # VGG-16 without its half a gigabyte
    load_lpips()
"""


@pytest.mark.skipif(importlib.util.find_spec("lpips") is None, reason="lpips is an optional extra")
def test_without_the_weights_the_error_names_file_and_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_WEIGHTS],
        capture_output=True,
        text=True,
        env={**os.environ, "TORCH_HOME": str(tmp_path)},
    )
    last = done.stderr[done.stderr.rindex("CfvaeError") :]
    assert (
        "vgg16-397923af.pth" in done.stdout
    )  # torchvision's name for the file is still the one in the message
    assert (
        "(URLError)" in last
        and str(tmp_path / "hub" / "checkpoints") in last
        and "vgg16-397923af.pth" in last
        and "perceptual_weight=0" in last
    )


def test_the_module_itself_imports_neither():
    tree = ast.parse(Path(autoencoder_loss.__file__).read_text(encoding="utf-8"))
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names} | {
        n.module for n in tree.body if isinstance(n, ast.ImportFrom)
    }
    assert "torch" in top and not {name.split(".")[0] for name in top} & {"lpips", "torchvision"}


def test_psnr_in_the_metrics_is_that_of_the_reconstruction(x):
    model = build()
    assert torch.equal(
        first_stage_loss(GAME)(model, (x, None), None, 0)[1]["psnr"], psnr(model(x), x).detach()
    )


def test_sharpness_is_of_images_of_one_size_with_a_middle():
    x = torch.randn(2, 3, 8, 8)
    assert sharpness(torch.cat([x, x]), x).item() == pytest.approx(1)  # more of the ones than of the others
    for one, other in ((x, x[..., :4, :4]), (x[:0], x[:0]), (x[..., :2], x[..., :2])):
        with pytest.raises(CfvaeError, match="images"):
            sharpness(one, other)


def test_more_layers_than_any_image_has_pixels():
    loss = AutoencoderLossConfig(disc_weight=1.0, disc_layers=10**12)
    with pytest.raises(CfvaeError, match="disc_layers is"):
        first_stage(AutoencoderConfig(), loss)
