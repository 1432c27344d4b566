"The training loop: schedule, averaging, skipping, accumulation, callbacks, several processes."

import copy
import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_fits import DATA, LOSS, Recorder, assert_same, config, new_model, noisy_loss
from torch import nn

from cfvae import training
from cfvae.core import CfvaeError, config_from_dict, config_to_dict, make_generator, randn
from cfvae.runs.callbacks import StopOnSignal, read_log
from cfvae.training import (
    Callback,
    EMA,
    StopTraining,
    TrainingConfig,
    TrainingState,
    bf16_is_fast,
    fit,
    join_processes,
    learning_rate,
)


def poisoned(bad_calls, value=math.nan):
    "The usual loss, multiplied by `value` at the given calls (counted from 0)."
    calls = iter(range(10**9))

    def loss_fn(model, batch, generator, step):
        loss, metrics = LOSS(model, batch, generator, step)
        return loss * (value if next(calls) in bad_calls else 1.0), metrics

    return loss_fn


# --- configuration and schedule


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 10, "accumulate": 3}, "3 equal parts"),
        ({"optimizer": "sgd"}, "use adam or adamax"),
        ({"precision": "fp16"}, "use auto, fp32 or bf16"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"warmup": -1}, "warmup is -1"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"betas": (0.9,)}, "betas"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"max_skipped": 0}, "max_skipped"),
        ({"log_every": 0}, "log_every"),
        ({"final_learning_rate": -1.0}, "final_learning_rate is -1.0"),
        ({"skip_norm": math.nan}, "skip_norm is NaN"),
    ],
)
def test_bad_configs_name_the_field(fields, message):
    with pytest.raises(CfvaeError, match=message):
        TrainingConfig(**fields)


def test_config_survives_json():
    c = config(betas=(0.9, 0.9), final_learning_rate=1e-5)
    assert config_from_dict(TrainingConfig, json.loads(json.dumps(config_to_dict(c)))) == c
    with pytest.raises(CfvaeError, match="did you mean learning_rate"):
        config_from_dict(TrainingConfig, {"learning_rat": 1})


def test_constant_rate_after_a_warm_up_that_does_not_start_at_zero():
    c = TrainingConfig(steps=10, learning_rate=0.4, warmup=4)
    assert [learning_rate(t, c) for t in range(10)] == pytest.approx([0.1, 0.2, 0.3] + [0.4] * 7)
    assert learning_rate(0, TrainingConfig(learning_rate=0.4, warmup=0)) == 0.4


def test_cosine_from_the_first_rate_to_the_last():
    c = TrainingConfig(steps=5, learning_rate=1.0, final_learning_rate=0.2, warmup=0)
    expected = [0.2 + 0.8 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(5)]
    assert [learning_rate(t, c) for t in range(5)] == pytest.approx(expected)
    assert expected[0] == 1.0 and learning_rate(4, c) == pytest.approx(0.2) == learning_rate(100, c)


@given(steps=st.integers(1, 500), warmup=st.integers(0, 600), final=st.none() | st.floats(0, 1))
def test_rates_stay_within_bounds_and_are_never_zero_at_first(steps, warmup, final):
    c = TrainingConfig(steps=steps, warmup=warmup, learning_rate=1.0, final_learning_rate=final)
    rates = [learning_rate(t, c) for t in range(steps)]
    assert 0 < rates[0] <= 1 and min(rates) >= 0 and max(rates) <= 1 + 1e-12


@pytest.mark.parametrize(
    "result",
    [
        lambda out: out.mean(),
        lambda out: (out, {}),
        lambda out: (out.detach().mean(), {}),
        lambda out: (out.mean().item(), {}),
        lambda out: (out.mean(), {}, 3),
        lambda out: (out.mean(), None),
    ],
)
def test_a_loss_that_cannot_be_learned_from(result):
    with pytest.raises(
        CfvaeError, match="the loss function has to return a pair: one number that depends on"
    ):
        fit(new_model(), DATA, lambda model, batch, *rest: result(model(batch[0])), config(steps=1))


@pytest.mark.parametrize(
    "given, complaint",
    [
        ({"data": torch.utils.data.TensorDataset(torch.zeros(3))}, "data is a TensorDataset: a length and"),
        ({"data": torch.zeros(9, 3, 8, 8)}, "data is a Tensor: a length and"),
        ({"config": {"steps": 1}}, "config is a dict: a TrainingConfig is needed"),
        ({"callbacks": Recorder()}, "a list of Callback objects"),
        ({"callbacks": [Recorder]}, "a list of Callback objects"),
        ({"callbacks": [print]}, "a list of Callback objects"),
    ],
)
def test_what_cannot_be_trained_with(given, complaint):
    with pytest.raises(CfvaeError, match=complaint):
        fit(**{"model": new_model(), "data": DATA, "loss_fn": LOSS, "config": config(steps=1)} | given)


@pytest.mark.parametrize("model", [new_model().requires_grad_(False), nn.Identity()])
def test_a_model_without_anything_to_train(model):
    with pytest.raises(CfvaeError, match="the model has no weight to train"):
        fit(model, DATA, LOSS, config(steps=1))


def test_the_optimiser_uses_the_schedule():
    watch = Recorder()
    c = config(steps=5, learning_rate=0.01, final_learning_rate=0.001, warmup=3)
    fit(new_model(), DATA, LOSS, c, [watch])
    used = [s["optimizer"]["param_groups"][0]["lr"] for s in watch.states]
    assert (
        used
        == pytest.approx([learning_rate(t, c) for t in range(5)])
        == [m["learning_rate"] for m in watch.metrics]
    )


# --- averaging


@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30), decay=st.floats(0, 0.999))
def test_average_against_a_scalar_reference(values, decay):
    model = nn.Linear(1, 1, bias=False)
    ema, expected = EMA(model, decay), None
    for n, value in enumerate(values):
        nn.init.constant_(model.weight, value)
        ema.update_parameters(model)
        d = min(decay, (1 + n) / (10 + n))
        expected = value if n == 0 else d * expected + (1 - d) * value
    assert ema.module.weight.item() == pytest.approx(expected, abs=1e-4)
    assert model.weight.item() == pytest.approx(values[-1])


def test_fit_averages_after_every_update():
    watch = Recorder()
    state = fit(new_model(), DATA, LOSS, config(steps=5, ema_decay=0.3), [watch])
    expected = None
    for n, s in enumerate(watch.states):
        w, d = s["model"]["encoder.1.weight"], min(0.3, (1 + n) / (10 + n))
        expected = w if n == 0 else d * expected + (1 - d) * w
    assert torch.allclose(state.ema.module.state_dict()["encoder.1.weight"], expected, atol=1e-6)
    assert not torch.equal(expected, state.model.state_dict()["encoder.1.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_average_is_that_of_a_rate_known_beforehand_to_the_last_bit(dtype):
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)).to(dtype)
    ema = EMA(model, 0.9)
    expected = [p.detach().clone() for p in model.parameters()]
    for n in range(40):
        for p in model.parameters():
            nn.init.normal_(p)
        nn.init.constant_(model[1].running_mean, n)
        before = copy.deepcopy(ema.state_dict())
        ema.update_parameters(model, torch.tensor(True))
        assert_same(ema.state_dict(), before)  # a skipped step leaves it as it is, buffers too
        ema.update_parameters(model, torch.tensor(False))
        weights = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(expected, weights, 1 - min(0.9, (1 + n) / (10 + n)) if n else 1.0)
        assert all(map(torch.equal, ema.module.parameters(), expected))
        assert ema.n_averaged == n + 1 and torch.equal(ema.module[1].running_mean, model[1].running_mean)


# --- the loop


@pytest.mark.parametrize("optimizer", ["adam", "adamax"])
def test_same_seed_twice_is_the_same_to_the_last_bit(optimizer):
    a, b = (fit(new_model(), DATA, noisy_loss, config(steps=6, optimizer=optimizer)) for _ in range(2))
    assert_same(a.state_dict(), b.state_dict())
    other = fit(new_model(), DATA, noisy_loss, config(steps=6, optimizer=optimizer, seed=1))
    assert not torch.equal(next(other.model.parameters()), next(a.model.parameters()))


def test_noise_and_order_do_not_depend_on_the_global_generator():
    class Disturb(Callback):
        def on_step(self, state, metrics):
            torch.rand(state.step)

    a, b = (fit(new_model(), DATA, noisy_loss, config(), callbacks) for callbacks in ([], [Disturb()]))
    assert_same(a.state_dict(), b.state_dict())


def test_noise_differs_between_steps():
    drawn = []

    def loss_fn(model, batch, generator, step):
        drawn.append(randn((3,), generator))
        return LOSS(model, batch, generator, step)

    fit(new_model(), DATA, loss_fn, config(steps=3))
    assert len({tuple(d.tolist()) for d in drawn}) == 3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_state_taken_up_half_way_ends_the_same(precision):
    watch = Recorder()
    how = config(steps=6, final_learning_rate=1e-4, precision=precision)
    whole = fit(new_model(), DATA, noisy_loss, how, [watch])

    class Resume(Callback):
        def on_start(self, state):
            state.load_state_dict(watch.states[2])

    resumed = fit(new_model(), DATA, noisy_loss, how, [Resume()])
    assert_same(resumed.state_dict(), whole.state_dict())
    with pytest.raises(CfvaeError, match="seed 0, this run has 1"):
        TrainingState(new_model(), config(seed=1)).load_state_dict(watch.states[2])


@pytest.mark.parametrize("precision, channels_last", [("fp32", False), ("bf16", True)])
def test_on_a_cpu_weights_lie_with_their_channels_together_in_mixed_precision_only(precision, channels_last):
    state = fit(new_model(), DATA, noisy_loss, config(steps=1, precision=precision))
    kernels = [weight for weight in state.model.parameters() if weight.ndim == 4 and weight.shape[-1] > 1]
    averages = [weight for weight in state.ema.parameters() if weight.ndim == 4 and weight.shape[-1] > 1]
    assert kernels and len(averages) == len(kernels)
    for weight in kernels + averages:
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert weight.is_contiguous() != channels_last


def test_weights_may_lie_in_memory_otherwise_than_those_that_were_saved():
    watch = Recorder()
    whole = fit(new_model(), DATA, noisy_loss, config(steps=6), [watch])
    saved = watch.states[2]
    for moments in saved["optimizer"]["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            if moments[name].ndim == 4:
                moments[name] = moments[name].contiguous(memory_format=torch.channels_last)

    class Resume(Callback):
        def on_start(self, state):
            state.load_state_dict(saved)
            for weight, moments in state.optimizer.state.items():
                assert moments["exp_avg"].stride() == weight.stride()

    resumed = fit(new_model(), DATA, noisy_loss, config(steps=6), [Resume()])
    assert_same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_in_parts_is_the_same_as_the_whole_batch(parts):
    def loss_fn(model, batch, generator, step):  # without the casts to float32
        return (model.decoder(model.encoder(batch[0])) - batch[0]).square().mean(), {}

    watch, other = Recorder(), Recorder()
    whole = fit(new_model().double(), _Double(DATA), loss_fn, config(steps=3), [watch])
    split = fit(new_model().double(), _Double(DATA), loss_fn, config(steps=3, accumulate=parts), [other])
    for name in ("loss", "gradient_norm"):
        assert [m[name] for m in other.metrics] == pytest.approx([m[name] for m in watch.metrics], abs=1e-6)
    for p, q in zip(whole.model.parameters(), split.model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


class _Double:
    "float64 pixels, so that rounding cannot hide (or cause) a difference."

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def batch(self, indices):
        x, y = self.data.batch(indices)
        return x.double(), y


def test_who_takes_the_steps_is_an_argument():
    taken = []

    def noted_step(state, data, indices, loss_fn, generator):
        taken.append((state.step, data is DATA, len(indices)))
        return training.called_step(state, data, indices, loss_fn, generator)

    usual = fit(new_model(), DATA, noisy_loss, config())
    noted = fit(new_model(), DATA, noisy_loss, config(), take_step=noted_step)
    assert taken == [(step, True, 8) for step in range(4)]
    assert_same(noted.state_dict(), usual.state_dict())


def test_the_model_is_trained_in_place_and_left_ready_for_use():
    model = new_model()
    before = copy.deepcopy(model.state_dict())
    modes = []

    def loss_fn(model, batch, generator, step):
        modes.append(model.training)
        return LOSS(model, batch, generator, step)

    state = fit(model, DATA, loss_fn, config())
    assert state.model is model and all(modes)
    assert not any(module.training for module in (*model.modules(), *state.ema.modules()))
    assert not torch.equal(before["encoder.1.weight"], model.state_dict()["encoder.1.weight"])
    assert state.step == 4 and state.skipped == 0


def test_a_batch_larger_than_the_data_is_an_error():
    with pytest.raises(CfvaeError, match="the dataset has 24 images"):
        fit(new_model(), DATA, LOSS, config(batch_size=32))


def test_bf16_gives_a_finite_loss_and_keeps_weights_in_float32():
    inside, watch = [], Recorder()

    def loss_fn(model, batch, generator, step):
        inside.append(torch.is_autocast_enabled("cpu"))
        return LOSS(model, batch, generator, step)

    state = fit(new_model(), DATA, loss_fn, config(precision="bf16", steps=8, learning_rate=1e-2), [watch])
    losses = [m["loss"] for m in watch.metrics]
    assert all(inside) and all(map(math.isfinite, losses)) and losses[-1] < losses[0] and state.skipped == 0
    assert {p.dtype for p in state.model.parameters()} == {torch.float32}
    fit(new_model(), DATA, loss_fn, config(precision="fp32", steps=1))
    assert inside[-1] is False  # a second run in the same process gets its own precision


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    fit(new_model(), DATA, noisy_loss, config(device="cpu", precision="auto"))  # in the same process
    state = fit(new_model(), DATA, noisy_loss, config(device="cuda", precision="auto"))
    assert next(state.model.parameters()).is_cuda and state.skipped == 0
    last = torch.cuda.device_count() - 1
    state = fit(new_model(), DATA, noisy_loss, config(device=f"cuda:{last}"))
    assert next(state.model.parameters()).device == torch.device("cuda", last)


def test_asking_for_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises(CfvaeError, match="cuda:99"):
        fit(new_model(), DATA, LOSS, config(device="cuda:99"))


def test_the_device_is_the_one_of_the_config(monkeypatch):
    monkeypatch.setattr(training, "get_device", torch.device)  # which allows meta, here as everywhere else
    state = training._begin(new_model(), config(device="meta", optimizer="adamax"))
    assert {p.device.type for p in state.model.parameters()} == {"meta"}
    state = training._begin(new_model(), config(device="cpu"))  # afterwards, in the same process
    assert {p.device.type for p in state.model.parameters()} == {"cpu"}


def test_bf16_only_where_the_hardware_has_it(monkeypatch):
    for fast in (True, False):
        monkeypatch.setattr(training, "bf16_is_fast", lambda device, fast=fast: fast)
        with training._autocast(config(precision="auto"), torch.device("cpu")):
            assert torch.is_autocast_enabled("cpu") is fast
    assert not bf16_is_fast(torch.device("meta"))


def test_metrics_are_means_over_the_parts():
    def loss_fn(model, batch, generator, step):
        x = batch[0]
        loss, _ = LOSS(model, batch, generator, step)
        return loss, {"pixel": x.mean(), "channels": x.mean((0, 2, 3)), "half": 0.5}

    whole, split = Recorder(), Recorder()
    fit(new_model(), DATA, loss_fn, config(), [whole])
    fit(new_model(), DATA, loss_fn, config(accumulate=4), [split])
    for one, four in zip(whole.metrics, split.metrics, strict=True):
        assert four["pixel"] == pytest.approx(one["pixel"], abs=1e-6)
        assert four["channels"] == pytest.approx(one["channels"], abs=1e-6)
        assert four["half"] == one["half"] == 0.5


# --- skipping


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_skipped_step_leaves_everything_untouched(value):
    watch = Recorder()
    state = fit(new_model(), DATA, poisoned({2}, value), config(steps=5), [watch])
    assert [m["skipped"] for m in watch.metrics] == [False, False, True, False, False]
    assert not math.isfinite(watch.metrics[2]["gradient_norm"])
    for part in ("model", "ema"):
        assert_same(watch.states[2][part], watch.states[1][part])
    before, after = (s["optimizer"]["state"] for s in watch.states[1:3])
    assert_same(before, after)
    assert (state.step, state.skipped, state.skipped_in_a_row) == (5, 1, 0)
    assert all(torch.isfinite(p).all() for p in state.model.parameters())


def test_the_step_after_a_skipped_one_sees_only_its_own_gradient():
    with_skip, without = Recorder(), Recorder()
    fit(new_model(), DATA, poisoned({0}), config(steps=2, warmup=0), [with_skip])

    class Jump(Callback):
        def on_start(self, state):
            state.step = 1

    fit(new_model(), DATA, LOSS, config(steps=2, warmup=0), [Jump(), without])
    assert with_skip.metrics[1]["gradient_norm"] == without.metrics[0]["gradient_norm"]
    assert_same(with_skip.states[1]["model"], without.states[0]["model"])


def test_a_bad_part_spoils_only_its_own_step():
    state = fit(new_model(), DATA, poisoned({1}), config(steps=3, accumulate=2))
    assert state.skipped == 1 and all(torch.isfinite(p).all() for p in state.model.parameters())


def test_long_gradients_are_skipped_from_skip_from_on():
    watch = Recorder()
    fit(new_model(), DATA, poisoned({1, 3}, 1e4), config(steps=5, skip_norm=100.0, skip_from=2), [watch])
    assert [m["skipped"] for m in watch.metrics] == [False, False, False, True, False]
    assert watch.metrics[1]["gradient_norm"] > 100  # as long as the one skipped, but early


@pytest.mark.parametrize("step, norm, skipped", [(1, 9.0, False), (2, 9.0, True), (2, 8.9, False)])
def test_both_limits_belong_to_what_is_skipped(step, norm, skipped):
    state = TrainingState(new_model(), config(skip_norm=9.0, skip_from=2))
    LOSS(state.model, DATA.batch(range(4)), None, 0)[0].backward()
    state.step = step
    state.schedule()
    assert bool(training._update(state, torch.tensor(norm))) is skipped


def test_too_many_in_a_row_end_the_run_with_advice():
    watch = Recorder()
    with pytest.raises(
        CfvaeError, match="3 steps in a row were skipped.*\n.*learning_rate.*skip_norm.*--resume"
    ):
        fit(new_model(), DATA, poisoned(set(range(2, 99))), config(steps=50, max_skipped=3), [watch])
    assert watch.events == ["start", 1, 2, 3, 4, 5, "end"]
    state = fit(new_model(), DATA, poisoned({0, 1, 3, 4, 6, 7}), config(steps=10, max_skipped=3))
    assert state.skipped == 6  # never three in a row


def test_a_run_that_skipped_too_much_can_follow_the_advice():
    "Its checkpoint, from the midst of the row, is taken up with another setting and goes on."
    watch = Recorder()
    first = config(steps=9, max_skipped=3, skip_norm=1e-9, skip_from=1)
    with pytest.raises(CfvaeError, match="3 steps in a row"):
        fit(new_model(), DATA, LOSS, first, [watch])
    saved = watch.states[2]
    assert (saved["step"], saved["skipped"], saved["skipped_in_a_row"]) == (3, 2, 2)

    class TakeUp(Callback):
        def on_start(self, state):
            state.load_state_dict(saved)

    state = fit(new_model(), DATA, LOSS, config(steps=9, max_skipped=3, skip_norm=1e9), [TakeUp()])
    assert (state.step, state.skips.tolist()) == (9, [2, 0, 0])  # the longest row is counted anew, too
    again = Recorder()
    with pytest.raises(CfvaeError, match="3 steps in a row"):  # unchanged, the row is counted from its start
        fit(new_model(), DATA, LOSS, first, [TakeUp(), again])
    assert again.events == ["start", 4, 5, 6, "end"]


def test_a_run_that_skipped_all_of_its_steps_is_not_done():
    "Shorter than `max_skipped`, too; and where a checkpoint of its last step is taken up."
    watch = Recorder()
    with pytest.raises(CfvaeError, match="all 3 steps were skipped.*\n.*learning_rate.*skip_norm"):
        fit(new_model(), DATA, LOSS, config(steps=3, skip_norm=1e-9, skip_from=0), [watch])
    assert watch.events == ["start", 1, 2, 3, "end"]

    class TakeUp(Callback):
        def on_start(self, state):
            state.load_state_dict(watch.states[-1])

    with pytest.raises(CfvaeError, match="all 3 steps were skipped"):
        fit(new_model(), DATA, LOSS, config(steps=3), [TakeUp()])
    state = fit(new_model(), DATA, LOSS, config(steps=4), [TakeUp()])
    assert (state.step, state.skipped) == (4, 3)  # a run that has learned at all


def test_a_run_that_is_stopped_may_have_skipped_all():
    "It is not done: who goes on with it may choose other settings."

    class Stop(Callback):
        def on_step(self, state, metrics):
            raise StopTraining

    state = fit(new_model(), DATA, LOSS, config(steps=3, skip_norm=1e-9, skip_from=0), [Stop()])
    assert (state.step, state.skipped) == (1, 1)


@pytest.mark.parametrize("optimizer", ["adam", "adamax"])
def test_a_skip_decided_by_a_tensor_is_one_decided_beforehand(optimizer):
    c = config(steps=6, optimizer=optimizer, warmup=0)
    bad = {0, 3}
    watch = Recorder()
    fit(new_model(), DATA, poisoned(bad), c, [watch])
    model = new_model()
    ema = EMA(model, c.ema_decay)
    choices = {"adam": (torch.optim.Adam, {"fused": True}), "adamax": (torch.optim.Adamax, {"foreach": True})}
    kind, form = choices[optimizer]
    by_hand = kind(model.parameters(), c.learning_rate, c.betas, **form)
    order = training.ShuffledBatches(len(DATA), c.batch_size, c.seed)
    for step in range(c.steps):
        if step not in bad:
            LOSS(model, DATA.batch(order.batch(step)), None, step)[0].backward()
            by_hand.step()
            by_hand.zero_grad()
            ema.update_parameters(model)
        assert_same(watch.states[step]["model"], model.state_dict())
        assert_same(watch.states[step]["ema"], ema.state_dict())
    assert_same(watch.states[-1]["optimizer"]["state"], by_hand.state_dict()["state"])


def test_on_a_gpu_a_row_of_skipped_steps_is_noticed_at_the_next_look(monkeypatch):
    state = TrainingState(new_model(), config(steps=50, max_skipped=3, log_every=10))
    for norm in (math.nan, math.nan, math.nan, 1.0):
        LOSS(state.model, DATA.batch(range(4)), None, 0)[0].backward()
        state.schedule()
        training._update(state, torch.tensor(norm))
        state.step += 1
    assert (state.skipped, state.skipped_in_a_row) == (3, 0)

    state.skips = _OnGPU(state.skips)
    training._check_skipping(state, torch.tensor(1.0))  # not yet
    state.step = 10
    with pytest.raises(CfvaeError, match="3 steps in a row were skipped"):
        training._check_skipping(state, torch.tensor(1.0))


class _OnGPU:
    "A tensor that says it is on a GPU."

    device = torch.device("cuda")

    def __init__(self, tensor):
        self.tensor = tensor

    def __getitem__(self, index):
        return self.tensor[index]


# --- callbacks and logs


def test_callbacks_are_called_in_order_and_at_the_end_of_a_stopped_run():
    class StopAt2(Callback):
        def on_step(self, state, metrics):
            if state.step == 2:
                raise StopTraining

    watch, after = Recorder(), Recorder()
    state = fit(new_model(), DATA, LOSS, config(steps=9), [watch, StopAt2(), after])
    assert watch.events == after.events == ["start", 1, 2, "end"] and state.step == 2
    assert not state.model.training


def test_on_end_is_called_where_the_loss_fails():
    watch = Recorder()

    def broken(model, batch, generator, step):
        raise RuntimeError("broken loss")

    with pytest.raises(RuntimeError, match="broken loss"):
        fit(new_model(), DATA, broken, config(), [watch])
    assert watch.events == ["start", "end"]


def test_where_on_start_fails_only_those_that_began_are_ended():
    class Refuses(Recorder):
        def on_start(self, state):
            raise CfvaeError("refused")

    before, refuses, after = Recorder(), Refuses(), Recorder()
    with pytest.raises(CfvaeError, match="refused"):
        fit(new_model(), DATA, LOSS, config(), [before, refuses, after])
    assert before.events == ["start", "end"] and refuses.events == after.events == []


def test_where_on_end_fails_the_others_are_ended_all_the_same():
    class Fails(Recorder):
        def on_end(self, state):
            raise CfvaeError("the disk is full")

    before, after = Recorder(), Recorder()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(CfvaeError, match="the disk is full"):
        fit(new_model(), DATA, LOSS, config(steps=1), [before, Fails(), after, StopOnSignal()])
    assert before.events == after.events == ["start", 1, "end"]
    assert signal.getsignal(signal.SIGINT) is handler  # Ctrl-C works as before


# --- several processes

SCRIPT = """
import datetime, os, sys, torch
torch.set_num_threads(1)
from tiny_fits import DATA, LOSS, Recorder, config, new_model
from cfvae.core import CfvaeError, randn
from cfvae.training import Callback, StopTraining, fit
from cfvae.runs.callbacks import JsonLog

out = sys.argv[1]
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
begin, patience, noise = torch.distributed.init_process_group, [], []

def recorded(*arguments, **options):
    patience.append(options["timeout"])
    begin(*arguments, **options)

torch.distributed.init_process_group = recorded

class StopInTheLast(Callback):
    def on_step(self, state, metrics):
        if state.step == 4 and rank == world - 1:
            raise StopTraining  # the others have to follow, not to wait

def loss_fn(model, batch, generator, step):
    noise.append(randn((3,), generator))  # drawn, not used: a noisy loss is another one in every process
    loss, metrics = LOSS(model, batch, generator, step)
    return loss, {**metrics, "pixels": batch[0].mean((0, 2, 3)), "plain": 0.5}

complaint = ""
try:
    if world > 1:
        fit(new_model(), DATA, loss_fn, config(batch_size=4, accumulate=4))
except CfvaeError as error:
    complaint = str(error)
assert not noise  # refused before the first step

results = []
for changes in ({}, {"accumulate": 2}, {"precision": "bf16"}):  # one after the other, in the same processes
    model, watch = new_model(), Recorder()
    if rank == 1:
        torch.nn.init.constant_(model.encoder[1].bias, 5.0)  # the main process's weights count
    callbacks = [watch, JsonLog(out + ".jsonl"), StopInTheLast()]
    state = fit(model, DATA, loss_fn, config(steps=9, log_every=1, **changes), callbacks)
    results.append({"model": state.model.state_dict(), "ema": state.ema.state_dict(), "step": state.step})
    results[-1]["metrics"] = watch.metrics

waits = [time / datetime.timedelta(hours=1) for time in patience]
torch.save({"results": results, "complaint": complaint, "waits": waits, "noise": noise}, f"{out}-{rank}.pt")
"""


def _run_processes(folder: Path, world: int) -> list[dict]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    (folder / "script.py").write_text(SCRIPT)
    tests = Path(__file__).resolve().parents[1]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")]),
    }
    environment.update(
        {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(world),
            "ACCELERATE_USE_CPU": "true",
        }
        if world > 1
        else {}
    )
    command = [sys.executable, str(folder / "script.py"), str(folder / f"of{world}")]
    running = []
    for rank in range(world):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
        running.append(
            subprocess.Popen(
                command,
                env={**environment, **ranks},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        for process in running:
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output[-2000:]
    finally:
        for process in running:
            process.kill()
    return [torch.load(folder / f"of{world}-{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> tuple[Path, dict, list[dict]]:
    "The folder, what one process found, and what two of them found."
    folder = tmp_path_factory.mktemp("processes")
    [one] = _run_processes(folder, 1)
    return folder, one, _run_processes(folder, 2)


@pytest.mark.parametrize(
    "run, tolerance", [(0, 1e-5), (1, 1e-5), (2, 1e-2)], ids=["fp32", "in parts", "bf16"]
)
def test_two_processes_train_like_one(processes, run, tolerance):
    folder, one, two = processes
    expected = one["results"][run]
    assert expected["step"] == 4
    for rank in range(2):
        result = two[rank]["results"][run]
        assert result["step"] == 4
        for name in ("loss", "l1", "pixels", "plain", "gradient_norm", "learning_rate"):
            for ours, theirs in zip(result["metrics"], expected["metrics"], strict=True):
                assert ours[name] == pytest.approx(theirs[name], abs=tolerance), name
        for part in ("model", "ema"):
            for name, value in expected[part].items():
                other = result[part][name].double()
                assert torch.allclose(other, value.double(), atol=tolerance), (part, name)
    assert_same(two[0]["results"][run]["model"], two[1]["results"][run]["model"])
    lines = [[line["step"] for line in read_log(folder / f"of{world}.jsonl")] for world in (1, 2)]
    assert lines[0] == lines[1] == [1, 2, 3, 4]


def test_processes_draw_their_own_noise_and_wait_for_each_other_for_hours(processes):
    _, one, two = processes
    assert not any(torch.equal(a, b) for a, b in zip(two[0]["noise"], two[1]["noise"], strict=True))
    assert torch.equal(torch.stack(one["noise"]), torch.stack(two[0]["noise"]))
    assert one["waits"] == [] and all(len(each["waits"]) == 1 and each["waits"][0] > 5 for each in two)


def test_parts_that_cannot_be_equal_are_refused(processes):
    for each in processes[2]:
        assert "batch_size 4 cannot be divided equally among 2 processes" in each["complaint"]
        assert "4 parts each (accumulate): use a multiple of 8" in each["complaint"]


@pytest.mark.parametrize(
    "told",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "x"},
        {"WORLD_SIZE": "2", "RANK": "x", "MASTER_ADDR": "127.0.0.1"},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"},
        {"PMI_SIZE": "x"},
    ],
    ids=lambda told: " ".join(map("=".join, told.items())),
)
def test_what_is_left_of_a_launcher_is_named(monkeypatch, told):
    ours = dict(PartialState._shared_state)
    monkeypatch.setattr(os, "environ", {**os.environ, **told})
    PartialState._reset_state()
    try:
        with pytest.raises(CfvaeError, match="the processes cannot be joined") as caught:
            join_processes("cpu")
        assert not PartialState._shared_state, "a second attempt would go on with half a state"
    finally:
        PartialState._shared_state.update(ours)
    message = str(caught.value)
    assert len(message.splitlines()) == 2 and "accelerate launch" in message
    for name, value in told.items():
        assert f"{name}={value}" in message


def test_generators_differ_between_processes():
    from cfvae.training import _mix

    seeds = {_mix(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)}
    assert len(seeds) == 600
    assert make_generator(_mix(2**40, 10**9, 7)).initial_seed() == _mix(2**40, 10**9, 7)
