"The training loop: schedule, averaging, skipping, accumulation, callbacks, several processes."

import copy
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from cfvae.autoencoder import Autoencoder, AutoencoderConfig, reconstruction_loss
from cfvae.core import CfvaeError, config_from_dict, config_to_dict, make_generator, randn, seed_everything
from cfvae.data import Shapes
from cfvae.training import (
    Callback,
    StopTraining,
    TrainingConfig,
    TrainingState,
    average_model,
    bf16_is_fast,
    fit,
    learning_rate,
)
from cfvae.runs.callbacks import (
    JsonLog,
    PictureLog,
    ProgressBar,
    TensorBoardLog,
    TimeLimit,
    plain_metrics,
    read_log,
)

DATA = Shapes(24, size=8)
LOSS = reconstruction_loss()


def new_model() -> Autoencoder:
    seed_everything(0)
    return Autoencoder(AutoencoderConfig(size=8, widths=(8,), patch=2, groups=4, latent_channels=2))


def config(**changes) -> TrainingConfig:
    return TrainingConfig(
        **{"steps": 4, "batch_size": 8, "warmup": 2, "precision": "fp32", "device": "cpu", **changes}
    )


def noisy_loss(model, batch, generator, step):
    x = batch[0] + 0.1 * randn(batch[0].shape, generator)
    return (model(x) - batch[0]).square().mean(), {}


def poisoned(bad_calls, value=math.nan):
    "The usual loss, multiplied by `value` at the given calls (counted from 0)."
    calls = iter(range(10**9))

    def loss_fn(model, batch, generator, step):
        loss, metrics = LOSS(model, batch, generator)
        return loss * (value if next(calls) in bad_calls else 1.0), metrics

    return loss_fn


def assert_same(a, b, path="state"):
    "Nested state dicts, equal to the last bit."
    assert type(a) is type(b), path
    if torch.is_tensor(a):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for k in a:
            assert_same(a[k], b[k], f"{path}.{k}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (p, q) in enumerate(zip(a, b, strict=True)):
            assert_same(p, q, f"{path}[{i}]")
    else:
        assert a == b, path


class Recorder(Callback):
    def __init__(self):
        self.events, self.metrics, self.states = [], [], []

    def on_start(self, state):
        self.events.append("start")

    def on_step(self, state, metrics):
        self.events.append(state.step)
        self.metrics.append(plain_metrics(metrics))
        self.states.append(copy.deepcopy(state.state_dict()))
        assert all(p.grad is None for p in state.model.parameters())  # nothing is left for the next step

    def on_end(self, state):
        self.events.append("end")


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
    ema, expected = average_model(model, decay), None
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
        return LOSS(model, batch, generator)

    fit(new_model(), DATA, loss_fn, config(steps=3))
    assert len({tuple(d.tolist()) for d in drawn}) == 3


def test_a_state_taken_up_half_way_ends_the_same():
    watch = Recorder()
    whole = fit(new_model(), DATA, noisy_loss, config(steps=6, final_learning_rate=1e-4), [watch])

    class Resume(Callback):
        def on_start(self, state):
            state.load_state_dict(watch.states[2])

    resumed = fit(new_model(), DATA, noisy_loss, config(steps=6, final_learning_rate=1e-4), [Resume()])
    assert_same(resumed.state_dict(), whole.state_dict())
    with pytest.raises(CfvaeError, match="seed 0, this run has 1"):
        TrainingState(new_model(), config(seed=1)).load_state_dict(watch.states[2])


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


def test_the_model_is_trained_in_place_and_left_ready_for_use():
    model = new_model()
    before = copy.deepcopy(model.state_dict())
    modes = []
    state = fit(model, DATA, lambda m, b, g: (modes.append(m.training), LOSS(m, b, g))[1], config())
    assert state.model is model and not model.training and all(modes)
    assert not torch.equal(before["encoder.1.weight"], model.state_dict()["encoder.1.weight"])
    assert state.step == 4 and state.skipped == 0


def test_a_batch_larger_than_the_data_is_an_error():
    with pytest.raises(CfvaeError, match="the dataset has 24 images"):
        fit(new_model(), DATA, LOSS, config(batch_size=32))


def test_bf16_gives_a_finite_loss_and_keeps_weights_in_float32():
    inside, watch = [], Recorder()

    def loss_fn(model, batch, generator, step):
        inside.append(torch.is_autocast_enabled("cpu"))
        return LOSS(model, batch, generator)

    state = fit(new_model(), DATA, loss_fn, config(precision="bf16", steps=8, learning_rate=1e-2), [watch])
    losses = [m["loss"] for m in watch.metrics]
    assert all(inside) and all(map(math.isfinite, losses)) and losses[-1] < losses[0] and state.skipped == 0
    assert {p.dtype for p in state.model.parameters()} == {torch.float32}
    fit(new_model(), DATA, loss_fn, config(precision="fp32", steps=1))
    assert inside[-1] is False  # a second run in the same process gets its own precision
    assert bf16_is_fast(torch.device("cpu")) in (True, False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    state = fit(new_model(), DATA, noisy_loss, config(device="cuda", precision="auto"))
    assert next(state.model.parameters()).is_cuda and state.skipped == 0


def test_asking_for_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises(CfvaeError, match="cuda:99"):
        fit(new_model(), DATA, LOSS, config(device="cuda:99"))


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


def test_too_many_in_a_row_end_the_run_with_advice():
    watch = Recorder()
    with pytest.raises(
        CfvaeError, match="3 steps in a row were skipped.*\n.*learning_rate.*skip_norm.*--resume"
    ):
        fit(new_model(), DATA, poisoned(set(range(2, 99))), config(steps=50, max_skipped=3), [watch])
    assert watch.events == ["start", 1, 2, 3, 4, 5, "end"]
    state = fit(new_model(), DATA, poisoned({0, 1, 3, 4, 6, 7}), config(steps=10, max_skipped=3))
    assert state.skipped == 6  # never three in a row


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

    def broken(model, batch, generator):
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


def test_a_time_limit_stops_the_run():
    state = fit(new_model(), DATA, LOSS, config(steps=50), [TimeLimit(1e-9)])
    assert state.step == 1
    with pytest.raises(CfvaeError, match="max-minutes is 0"):
        TimeLimit(0)


def test_log_lines(tmp_path):
    path = tmp_path / "run" / "log.jsonl"
    fit(new_model(), DATA, LOSS, config(steps=7, log_every=3), [JsonLog(path)])
    lines = read_log(path)
    assert [line["step"] for line in lines] == [3, 6, 7]
    assert {
        "loss",
        "psnr",
        "l1",
        "gradient_norm",
        "learning_rate",
        "skipped",
        "examples_per_second",
    } <= lines[0].keys()
    fit(new_model(), DATA, LOSS, config(steps=2, log_every=1), [JsonLog(path)])
    assert [line["step"] for line in read_log(path)] == [1, 2]  # a new run begins a new log


def test_resuming_drops_lines_beyond_the_resumed_step(tmp_path):
    path, watch = tmp_path / "log.jsonl", Recorder()
    fit(new_model(), DATA, LOSS, config(steps=6, log_every=1), [watch, JsonLog(path)])
    first = read_log(path)
    with path.open("a") as file:
        file.write('{"step": 7, "lo')  # cut off by a crash

    class Resume(Callback):
        def on_start(self, state):
            state.load_state_dict(watch.states[3])

    fit(new_model(), DATA, LOSS, config(steps=6, log_every=1), [Resume(), JsonLog(path)])
    second = read_log(path)
    assert [line["step"] for line in second] == [1, 2, 3, 4, 5, 6]
    assert second[:4] == first[:4] and [line["loss"] for line in second] == [line["loss"] for line in first]


def test_reading_an_absent_or_damaged_log(tmp_path):
    assert read_log(tmp_path / "none.jsonl") == []
    (tmp_path / "cut.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_log(tmp_path / "cut.jsonl") == [{"step": 1}, {"step": 2}]


def test_pictures_come_from_the_averaged_weights(tmp_path):
    drawn = []

    def draw(model):
        drawn.append((model, model.training, torch.is_grad_enabled()))
        return torch.zeros(2, 3, 8, 8)

    state = fit(
        new_model(), DATA, LOSS, config(steps=5, sample_every=2), [PictureLog(tmp_path, draw, columns=2)]
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-00000002.png",
        "step-00000004.png",
        "step-00000005.png",
    ]
    assert all(d == (state.ema.module, False, False) for d in drawn)
    assert Image.open(tmp_path / "step-00000005.png").size == (22, 12)


def test_progress_bar_and_tensorboard_take_scalars_and_lists(tmp_path, capsys):
    def loss_fn(model, batch, generator, step):
        return LOSS(model, batch, generator)[0], {"rates": torch.tensor([1.0, 2.0])}

    fit(
        new_model(),
        DATA,
        loss_fn,
        config(steps=2, log_every=1),
        [ProgressBar("a title"), TensorBoardLog(tmp_path)],
    )
    assert "a title" in capsys.readouterr().err
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    assert {"loss", "rates/00", "rates/01"} <= set(events.Tags()["scalars"])
    assert [e.value for e in events.Scalars("rates/01")] == [2.0, 2.0]


def test_plain_metrics_are_json():
    metrics = {"loss": torch.tensor(1.5), "rates": torch.tensor([1.0, 2.0]), "skipped": False}
    assert json.loads(json.dumps(plain_metrics(metrics))) == {
        "loss": 1.5,
        "rates": [1.0, 2.0],
        "skipped": False,
    }


# --- several processes

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_training import DATA, LOSS, Recorder, config, new_model
from cfvae.core import seed_everything
from cfvae.training import Callback, StopTraining, fit
from cfvae.runs.callbacks import JsonLog
import os

rank = int(os.environ.get("RANK", 0))

class StopInTheLast(Callback):
    def on_step(self, state, metrics):
        if state.step == 4 and rank == int(os.environ.get("WORLD_SIZE", 1)) - 1:
            raise StopTraining  # the others have to follow, not to wait

model, watch = new_model(), Recorder()
if rank == 1:
    torch.nn.init.constant_(model.encoder[1].bias, 5.0)  # the main process's weights count
state = fit(model, DATA, LOSS, config(steps=9, log_every=1), [watch, JsonLog(sys.argv[2] + ".jsonl"), StopInTheLast()])
torch.save({"model": state.model.state_dict(), "ema": state.ema.state_dict(), "step": state.step, "metrics": watch.metrics}, f"{sys.argv[2]}-{rank}.pt")
"""


def _run_processes(folder: Path, world: int) -> list[dict]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    (folder / "script.py").write_text(SCRIPT)
    here = Path(__file__).resolve().parent
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")]),
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
    command = [sys.executable, str(folder / "script.py"), str(here), str(folder / f"of{world}")]
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


def test_two_processes_train_like_one(tmp_path):
    [one], two = _run_processes(tmp_path, 1), _run_processes(tmp_path, 2)
    for got in two:
        assert got["step"] == one["step"] == 4
        for name in ("loss", "gradient_norm", "learning_rate"):
            assert [m[name] for m in got["metrics"]] == pytest.approx(
                [m[name] for m in one["metrics"]], abs=1e-5
            )
        for part in ("model", "ema"):
            for name, value in one[part].items():
                assert torch.allclose(got[part][name].double(), value.double(), atol=1e-5), (part, name)
    assert_same(two[0]["model"], two[1]["model"])
    assert [line["step"] for line in read_log(tmp_path / "of2.jsonl")] == [
        line["step"] for line in read_log(tmp_path / "of1.jsonl")
    ]


def test_generators_differ_between_processes():
    from cfvae.training import _mix

    seeds = {_mix(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)}
    assert len(seeds) == 600
    assert make_generator(_mix(2**40, 10**9, 7)).initial_seed() == _mix(2**40, 10**9, 7)
