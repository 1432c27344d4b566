"Tests of cfvae.runs.bench, steps and machine: what is counted, what is timed. No test depends on a clock."

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from recipes_for_tests import tiny

from cfvae.core import CfvaeError
from cfvae.pipeline import resolve_precision
from cfvae.pretrained import PretrainedConfig
from cfvae.runs import machine, recorded, steps
from cfvae.runs.bench import bench, count_flops, default_preset, draw_batch, new_pipeline
from cfvae.runs.machine import REPEATS, faster_threads, matrix_rate, time_calls
from cfvae.runs.steps import StepTimer, TimedData, random_codes, time_steps
from cfvae.training import TrainingConfig, fit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measured():
    return bench(tiny(), "cpu", seconds=0.0)


@pytest.mark.parametrize("part", ["training", "sampling", "encoding"])
def test_costs_are_positive_and_fit_together(measured, part):
    cost = getattr(measured, part)
    precision = resolve_precision("auto", CPU) if part == "sampling" else "fp32"
    assert cost.batch_size == 8 and cost.precision == precision and cost.repeats >= REPEATS
    assert cost.milliseconds > 0 and cost.peak_memory > 1e6
    seconds = cost.milliseconds / 1e3
    assert cost.examples_per_second == pytest.approx(8 / seconds)
    assert cost.tflops == pytest.approx(8 * cost.gflop_per_example / seconds / 1e3)
    assert cost.matrix_share == pytest.approx(cost.tflops / measured.machine.matrix_tflops[precision])


def test_only_training_fetches_data(measured):
    assert 0 < measured.training.data_share < 1
    assert measured.sampling.data_share is None and measured.encoding.data_share is None


def test_json_names_hardware_and_versions(measured):
    numbers = json.loads(json.dumps(measured.to_dict(), allow_nan=False))
    assert numbers["preset"] == "shapes-demo" and numbers["guided"] is True
    about = numbers["machine"]
    assert about["device"] == "cpu" and about["name"] and about["memory"]
    assert about["cores"] >= 1 and about["threads"] == torch.get_num_threads()
    assert about["versions"]["torch"] == torch.__version__
    assert set(about["versions"]) == {"cfvae", "python", "torch"}
    assert set(about["matrix_tflops"]) == {"bf16", "fp32"} and min(about["matrix_tflops"].values()) > 0


def test_flops_of_a_convolution():
    layer = torch.nn.Conv2d(3, 8, 3, padding=1)
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    forward = 2 * (2 * 5 * 5) * 8 * (3 * 3 * 3)  # two for every weight that an output value sees
    assert count_flops(lambda: layer(x)) == forward
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * forward  # by inputs and by weights


def test_flops_of_attention_are_counted():
    q = torch.randn(2, 4, 16, 8)
    products = 2 * 2 * (2 * 4 * 16 * 16 * 8)
    assert count_flops(lambda: F.scaled_dot_product_attention(q, q, q)) == products


def test_flops_of_an_example_do_not_depend_on_parts(measured):
    in_parts = bench(tiny(accumulate=2), "cpu", seconds=0.0)
    assert in_parts.training.batch_size == 8 and in_parts.sampling.batch_size == 4
    whole = measured.training.gflop_per_example
    assert in_parts.training.gflop_per_example == pytest.approx(whole, rel=0.01)


def test_a_recipe_without_classes_is_not_guided(measured):
    plain = bench(tiny(conditional=False), "cpu", seconds=0.0)
    assert not plain.guided
    assert plain.sampling.gflop_per_example < measured.sampling.gflop_per_example


def test_a_pretrained_first_stage_is_left_out():
    recipe = tiny()
    channels, side, _ = recipe.autoencoder.latent_shape
    borrowed = PretrainedConfig("", size=8 * side, latent_channels=channels, factor=8)
    recipe = dataclasses.replace(recipe, autoencoder=borrowed)
    assert bench(recipe, "cpu", seconds=0.0).encoding is None
    codes = draw_batch(recipe, new_pipeline(recipe))
    assert codes.shape == (8, side, side, channels) and codes.dtype == "uint8"


def test_samples_are_images_as_bytes():
    recipe = tiny()
    images = draw_batch(recipe, new_pipeline(recipe))
    assert images.shape == (8, 16, 16, 3) and images.dtype == "uint8"


def test_a_missing_gpu_and_an_unknown_device():
    with pytest.raises(CfvaeError, match="unknown device 'quantum'"):
        bench(tiny(), "quantum")
    with pytest.raises(CfvaeError, match="the recipe is of the type str"):
        bench("shapes-demo", "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(CfvaeError, match="PyTorch sees 0 GPUs"):
            bench(tiny(), "cuda")


def test_default_preset():
    assert default_preset(CPU) == "shapes-demo"
    assert default_preset(torch.device("cuda")) == "cifar10"


# --- steps


class Clock:
    "A clock that stands still until somebody moves it."

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (steps, machine):
        monkeypatch.setattr(module, "time", clock)
    return clock


def fit_by_the_clock(clock, seconds):
    "Steps of which fetching takes 3 seconds and the rest 7."

    class Eight:
        def __len__(self):
            return 8

        def batch(self, indices):
            clock.now += 3
            return (torch.zeros(len(indices), 1),)

    def loss_fn(model, batch, generator, step):
        clock.now += 7
        return model(batch[0]).sum(), {}

    data = TimedData(Eight())
    timer = StepTimer(data, CPU, seconds)
    config = TrainingConfig(steps=1000, batch_size=4, device="cpu", precision="fp32")
    state = fit(torch.nn.Linear(1, 1), data, loss_fn, config, [timer])
    return timer, state


def test_step_timer_takes_time_and_data_share(clock):
    timer, state = fit_by_the_clock(clock, seconds=0.0)
    assert timer.times == [10.0] * REPEATS
    assert timer.data_shares == pytest.approx([0.3] * REPEATS)
    assert state.step == timer.warmup + REPEATS


def test_step_timer_goes_on_for_long_enough(clock):
    timer, _ = fit_by_the_clock(clock, seconds=95.0)
    assert len(timer.times) == 10


def test_time_calls_warms_up_and_goes_on_for_long_enough(clock):
    calls = []

    def call():
        calls.append(clock.now)
        clock.now += 2

    assert time_calls(call, CPU) == [2.0] * REPEATS
    assert len(calls) == REPEATS + 2
    assert len(time_calls(call, CPU, seconds=19)) == 10


def test_timed_data_are_the_data():
    data = random_codes(tiny())
    timed = TimedData(data)
    codes, labels = timed.batch([3, 1])
    assert len(timed) == len(data) == 32 and timed.nbytes == data.nbytes
    assert torch.equal(codes, data.batch([3, 1])[0]) and labels.tolist() == [3, 1]
    assert timed.to(CPU) is timed
    assert torch.equal(timed.batch([3, 1])[0], codes)


def test_steps_are_those_of_a_run(monkeypatch):
    recipe = tiny()
    made = []

    class Step(steps.RecordedStep):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr(steps, "RecordedStep", Step)
    monkeypatch.setattr(steps, "fit", lambda *arguments, take_step: made.append(take_step))
    time_steps(recipe, CPU)
    assert made[0] is made[1]
    assert isinstance(TimedData(random_codes(recipe)), recorded._Movable)


def test_steps_train_the_model():
    timer, model = time_steps(tiny(), CPU)
    assert len(timer.times) == REPEATS and min(timer.times) > 0
    fresh = type(model)(model.config)
    assert not torch.equal(model.decoder.start, fresh.decoder.start)


# --- the machine


def test_matrix_rate_leaves_the_precision_as_it_was():
    before = torch.get_float32_matmul_precision()
    assert matrix_rate(CPU, torch.float32) > 0
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("one, many, faster", [(2.0, 3.0, 1), (2.0, 1.1, 2)])
def test_faster_threads(monkeypatch, one, many, faster):
    before = torch.get_num_threads()
    tried = []

    def time_calls(call, device, seconds):
        assert call().shape == (48, 64, 8, 8)
        tried.append(torch.get_num_threads())
        mean = one if tried[-1] == 1 else many
        return [mean - 1, mean, mean + 1]

    monkeypatch.setattr(machine, "time_calls", time_calls)
    torch.set_num_threads(2)
    try:
        assert faster_threads() == faster
        assert torch.get_num_threads() == 2 and tried == [1, 2]
        torch.set_num_threads(1)
        assert faster_threads() == 1 and tried == [1, 2]  # nothing to choose from
    finally:
        torch.set_num_threads(before)


def test_matrices_grow_until_a_clock_can_be_trusted(monkeypatch):
    sizes = []

    def time_product(rows, device, dtype):
        sizes.append(rows)
        return 0.02 if rows == 1024 else 0.001

    monkeypatch.setattr(machine, "_time_product", time_product)
    assert matrix_rate(CPU, torch.float32) == 2 * 1024**3 / 0.02
    assert sizes == [256, 512, 1024]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    measured = bench(tiny(device="cuda", precision="auto"), "cuda", seconds=0.0)
    assert measured.machine.memory == "allocated on the GPU" and "cuda" in measured.machine.versions
    for cost in (measured.training, measured.sampling, measured.encoding):
        assert cost.peak_memory > 0 and cost.milliseconds > 0


def test_the_seed_decides_what_is_timed():
    torch.manual_seed(1)
    _, one = time_steps(tiny(), CPU)
    torch.manual_seed(2)
    _, other = time_steps(tiny(), CPU)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
