"The recorded step: what it does is what the called one does; first with a fake CUDA, then on a GPU."

import contextlib
import copy
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_fits import DATA, Recorder, assert_same, config, new_model, noisy_loss
from tiny_runs import tiny

from cfvae import training
from cfvae.core import CfvaeError, make_generator, seed_everything
from cfvae.data import ImageDataset
from cfvae.hvae import HierarchicalVAE, HierarchicalVAEConfig
from cfvae.latents import LatentDataset, LatentScaler
from cfvae.objective import ObjectiveConfig, vae_loss
from cfvae.runs import recorded
from cfvae.runs.logs import plain_metrics
from cfvae.runs.recorded import RecordedStep
from cfvae.runs.train import train
from cfvae.training import Callback, TrainingState, fit

# --- moving data


def test_data_that_were_moved_give_the_same_batches(tmp_path):
    images = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, tuple(DATA.images.shape))
    images[:] = DATA.images.numpy()
    images.flush()
    on_disk = np.load(tmp_path / "images.npy", mmap_mode="r")
    codes = np.random.default_rng(0).normal(size=(24, 2, 4, 4)).astype(np.float16)
    scaler = LatentScaler(0.5, 2.0)
    for data in (
        DATA,
        ImageDataset(on_disk, DATA.labels, DATA.classes),
        ImageDataset(on_disk, DATA.labels, DATA.classes).subset(range(5, 24)),
        LatentDataset(codes, DATA.labels, DATA.classes, scaler, "codes"),
    ):
        assert isinstance(data, recorded._Movable)
        moved = data.to(torch.device("cpu"))
        assert type(moved) is type(data) and len(moved) == len(data) and moved is not data
        for indices in ([3, 1, 1], torch.tensor([0, 18])):
            assert_same(moved.batch(indices), data.batch(indices))
    assert DATA.nbytes == 24 * 3 * 8 * 8 and codes.nbytes == 24 * 2 * 4 * 4 * 2
    assert recorded.settle(DATA, torch.device("cpu")) is DATA


def test_data_that_cannot_be_moved_stay():
    class Lookup:
        "No size, no way to a device: such data are sent batch by batch."

        def __len__(self):
            return len(DATA)

        def batch(self, indices):
            return DATA.batch(indices)

    data = Lookup()
    assert not isinstance(data, recorded._Movable)
    assert recorded.settle(data, torch.device("cuda")) is data


# --- what can be seen without a GPU


class FakeCUDA:
    """Stands in for `torch.cuda`. What is recorded is undone, as on a GPU, where recording computes nothing.
    A replay runs `learn` once more with the very tensors that it was recorded with."""

    def __init__(self, monkeypatch):
        self.graphs, self.warn_at, self.learned = [], set(), []
        learn = training.learn
        fake = self

        def noted(*arguments):
            if len(self.learned) in self.warn_at:
                warnings.warn("called a synchronizing CUDA operation (somewhere)", stacklevel=1)
            self.learned.append(arguments)
            self.output = learn(*arguments)
            return self.output

        class Graph:
            def __init__(self):
                self.generators = []
                fake.graphs.append(self)

            def register_generator_state(self, generator):
                self.generators.append(generator)

            def replay(self):
                for name, value in learn(*self.arguments).items():
                    if torch.is_tensor(value):
                        self.output[name].copy_(value)  # in place, as a graph writes

        @contextlib.contextmanager
        def capturing(graph, stream):
            state = fake.learned[-1][0]  # of the last rehearsal
            before, loaded = copy.deepcopy(state.state_dict()), state.loaded
            yield
            graph.arguments, graph.output = fake.learned[-1], fake.output
            state.load_state_dict(before)
            state.loaded = loaded

        for module in (training, recorded):
            monkeypatch.setattr(module, "learn", noted)
        stream = SimpleNamespace(device=torch.device("cpu"), wait_stream=lambda other: None)
        cuda = recorded.torch.cuda
        monkeypatch.setattr(cuda, "Stream", lambda device: stream)
        monkeypatch.setattr(cuda, "current_stream", lambda device: stream)
        monkeypatch.setattr(cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(cuda, "get_sync_debug_mode", lambda: 0)
        monkeypatch.setattr(cuda, "set_sync_debug_mode", lambda mode: None)
        monkeypatch.setattr(cuda, "set_stream", lambda stream: None)
        monkeypatch.setattr(cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(cuda, "graph", capturing)


@pytest.fixture
def fake_cuda(monkeypatch):
    "Lets the recorded step believe that a CPU has graphs."
    monkeypatch.setattr(recorded, "_is_on_gpu", lambda state: True)
    return FakeCUDA(monkeypatch)


def recorded_fit(model, loss_fn, c, callbacks=()):
    return fit(model, DATA, loss_fn, c, callbacks, take_step=RecordedStep())


def nan_at_7(model, batch, generator, step):
    loss, metrics = noisy_loss(model, batch, generator, step)
    bad = torch.as_tensor(step) == 7
    return loss * torch.where(bad, math.nan, 1.0), {**metrics, "spread": batch[0].std(), "plain": 0.5}


RECORDED = {"steps": 12, "warmup": 5, "final_learning_rate": 1e-4, "skip_norm": 0.5, "skip_from": 9}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_recorded_step_reads_everything_from_its_own_tensors(fake_cuda, precision, capsys):
    called, replayed = Recorder(), Recorder()
    c = config(precision=precision, **RECORDED)
    one = fit(new_model(), DATA, nan_at_7, c, [called])
    step = RecordedStep()
    two = fit(new_model(), DATA, nan_at_7, c, [replayed], take_step=step)
    assert len(fake_cuda.graphs) == 1 and len(fake_cuda.learned) - 12 == recorded.REHEARSALS + 1
    assert fake_cuda.graphs[0].generators == [step.recording.generator]
    assert capsys.readouterr().out == ""
    assert one.skipped > 1  # at 7, and long ones from 9 on
    assert_same(replayed.metrics, called.metrics)
    assert_same(replayed.states, called.states)
    assert_same(two.state_dict(), one.state_dict())


def test_a_recorded_run_taken_up_half_way_ends_the_same(fake_cuda):
    watch, c = Recorder(), config(**RECORDED)
    whole = recorded_fit(new_model(), nan_at_7, c, [watch])

    class Resume(Callback):
        def on_start(self, state):
            state.load_state_dict(watch.states[1])

    resumed = recorded_fit(new_model(), nan_at_7, c, [Resume()])
    assert len(fake_cuda.graphs) == 2
    assert_same(resumed.state_dict(), whole.state_dict())


def test_a_state_loaded_in_the_middle_is_recorded_anew(fake_cuda):
    watch, c = Recorder(), config(**RECORDED)

    class GoBack(Callback):
        went = False

        def on_step(self, state, metrics):
            if state.step == 9 and not self.went:
                state.load_state_dict(watch.states[2])
                self.went = True

    again = recorded_fit(new_model(), nan_at_7, c, [watch, GoBack()])
    assert len(fake_cuda.graphs) == 2
    assert_same(watch.states[9:15], watch.states[3:9])
    assert_same(again.state_dict(), fit(new_model(), DATA, nan_at_7, c).state_dict())


def test_metrics_of_a_recorded_step_stay_what_they_were(fake_cuda):
    kept = []

    class Keep(Callback):
        def on_step(self, state, metrics):
            kept.append(metrics)

    watch = Recorder()
    recorded_fit(new_model(), nan_at_7, config(**RECORDED), [watch, Keep()])
    assert_same([plain_metrics(metrics) for metrics in kept], watch.metrics)


def test_a_loss_that_waits_is_called(fake_cuda, capsys):
    c = config(**RECORDED)
    fake_cuda.warn_at = {0}  # constants are sent in the first rehearsal
    recorded_fit(new_model(), nan_at_7, c)
    assert len(fake_cuda.graphs) == 1 and capsys.readouterr().out == ""
    fake_cuda.learned.clear()
    fake_cuda.warn_at = {1}
    state = recorded_fit(new_model(), nan_at_7, c)
    assert len(fake_cuda.graphs) == 1 and len(fake_cuda.learned) == 12
    line = "each step is called, not replayed: the loss makes the host wait for a number\n"
    assert capsys.readouterr().out == line
    assert_same(state.state_dict(), fit(new_model(), DATA, nan_at_7, c).state_dict())


def test_recording_that_fails_costs_no_step(fake_cuda, monkeypatch, capsys):
    @contextlib.contextmanager
    def failing(graph, stream):
        raise RuntimeError("not permitted\nwhile capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph", failing)
    c = config(**RECORDED)
    state = recorded_fit(new_model(), nan_at_7, c)
    assert capsys.readouterr().out == "each step is called, not replayed: recording failed, not permitted\n"
    assert_same(state.state_dict(), fit(new_model(), DATA, nan_at_7, c).state_dict())


def test_what_cannot_be_recorded_is_called(fake_cuda, capsys):
    c = config(optimizer="adamax")
    state = recorded_fit(new_model(), noisy_loss, c)
    assert "with adamax the host decides" in capsys.readouterr().out and not fake_cuda.graphs
    assert_same(state.state_dict(), fit(new_model(), DATA, noisy_loss, c).state_dict())


def test_the_parts_of_a_batch_are_recorded_together(fake_cuda):
    called, replayed = Recorder(), Recorder()
    c = config(accumulate=2, **RECORDED)
    fit(new_model(), DATA, nan_at_7, c, [called])
    recorded_fit(new_model(), nan_at_7, c, [replayed])
    assert len(fake_cuda.graphs) == 1
    assert_same(replayed.metrics, called.metrics)
    assert_same(replayed.states, called.states)


def test_of_several_processes_each_step_is_called_and_the_data_stay(fake_cuda, monkeypatch, capsys):
    monkeypatch.setattr(recorded, "PartialState", lambda: SimpleNamespace(num_processes=2))
    monkeypatch.setattr(recorded, "settle", None)
    state = recorded_fit(new_model(), noisy_loss, config())
    line = "each step is called, not replayed: several processes train together\n"
    assert capsys.readouterr().out == line and not fake_cuda.graphs
    assert_same(state.state_dict(), fit(new_model(), DATA, noisy_loss, config()).state_dict())


def test_data_are_moved_once_and_trained_on_where_they_went(fake_cuda, monkeypatch):
    moved = []

    def settle(data, device):
        moved.append(device)
        return data.to(device)

    monkeypatch.setattr(recorded, "settle", settle)
    step = RecordedStep()
    fit(new_model(), DATA, noisy_loss, config(), take_step=step)
    assert moved == [torch.device("cpu")] and step.recording.data is not DATA


def test_another_run_is_recorded_anew(fake_cuda):
    step, c = RecordedStep(), config(**RECORDED)
    states = [fit(new_model(), DATA, nan_at_7, c, take_step=step).state_dict() for _ in range(2)]
    assert len(fake_cuda.graphs) == 2
    assert_same(*states)


def test_a_batch_of_another_shape_is_an_error(fake_cuda):
    step = RecordedStep()
    state = TrainingState(new_model(), config())
    step(state, DATA, [0, 1], noisy_loss, make_generator(0))
    with pytest.raises(CfvaeError, match="all batches of a run need the same shape"):
        step(state, DATA, [0, 1, 2], noisy_loss, make_generator(0))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_on_a_cpu_it_is_the_called_step(accumulate, capsys):
    called, watch = Recorder(), Recorder()
    c = config(**RECORDED, accumulate=accumulate)
    one = fit(new_model(), DATA, nan_at_7, c, [called])
    two = recorded_fit(new_model(), nan_at_7, c, [watch])
    assert capsys.readouterr().out == ""
    assert_same(watch.metrics, called.metrics)
    assert_same(two.state_dict(), one.state_dict())


def test_both_stages_of_a_run_are_recorded_each_on_its_own(tmp_path, monkeypatch):
    steps = []

    def noted_fit(*arguments, take_step):
        steps.append(take_step)
        return fit(*arguments, take_step=take_step)

    monkeypatch.setattr("cfvae.runs.train.fit", noted_fit)
    assert train(tiny(), "shapes:n=60", tmp_path / "run")
    assert [type(step) for step in steps] == [RecordedStep, RecordedStep] and steps[0] is not steps[1]


# --- on a GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CUDA = torch.device("cuda")


def gpu_config(**changes):
    return config(**{**RECORDED, "device": "cuda", "precision": "auto", **changes})


def gpu_fits(new, loss_fn, **changes):
    "The same run with steps called, and recorded."
    c = gpu_config(**changes)
    called, replayed = Recorder(), Recorder()
    fit(new(), recorded.settle(DATA, CUDA), loss_fn, c, [called])
    fit(new(), DATA, loss_fn, c, [replayed], take_step=RecordedStep())
    return called, replayed


def new_vae() -> HierarchicalVAE:
    seed_everything(0)
    return HierarchicalVAE(
        HierarchicalVAEConfig(
            data_channels=3,
            resolutions=(1, 4, 8),
            widths=16,
            encoder_widths=16,
            attention=(0, 1, 1),
            num_classes=len(DATA.classes),
        )
    )


@needs_gpu
@pytest.mark.parametrize(
    "new, loss_fn",
    [(new_model, nan_at_7), (new_vae, vae_loss(ObjectiveConfig(flip=True)))],
    ids=["ae", "vae"],
)
@pytest.mark.parametrize("changes", [{"precision": "fp32"}, {"precision": "bf16"}, {"accumulate": 2}])
def test_gpu_recorded_steps_are_the_called_ones_to_the_last_bit(new, loss_fn, changes, capsys):
    called, replayed = gpu_fits(new, loss_fn, **changes)
    assert capsys.readouterr().out == ""  # it was recorded
    assert_same(replayed.metrics, called.metrics)
    assert_same(replayed.states, called.states)


@needs_gpu
@pytest.mark.parametrize("new, loss_fn", [(new_model, nan_at_7), (new_vae, vae_loss(ObjectiveConfig()))])
def test_gpu_a_resumed_run_is_the_run_to_the_last_bit(new, loss_fn):
    _, watch = gpu_fits(new, loss_fn)

    class Resume(Callback):
        def on_start(self, state):
            state.load_state_dict(watch.states[7])

    resumed = fit(new(), DATA, loss_fn, gpu_config(), [Resume()], take_step=RecordedStep())
    assert_same(resumed.state_dict(), watch.states[-1])


@needs_gpu
def test_gpu_a_loss_that_looks_at_its_step_is_called_and_says_so(capsys):
    def looks(model, batch, generator, step):
        loss, metrics = noisy_loss(model, batch, generator, step)
        return (2 * loss if step + 1 >= 6 else loss), metrics

    called, replayed = gpu_fits(new_model, looks)
    assert "called, not replayed: the loss makes the host wait" in capsys.readouterr().out
    assert_same(replayed.states, called.states)


@needs_gpu
def test_gpu_a_replayed_step_does_not_wait():
    state = training._begin(new_vae(), config(device="cuda", steps=99))
    step = RecordedStep()
    loss_fn = vae_loss(ObjectiveConfig())
    generator = make_generator(0, "cuda")
    for number in range(12):
        if number == recorded.REHEARSALS + 2:
            torch.cuda.set_sync_debug_mode("error")
        generator.manual_seed(number)
        step(state, DATA, list(range(8)), loss_fn, generator)
    torch.cuda.set_sync_debug_mode("default")
    assert step.recording.data.labels.is_cuda
    assert step.recording.graph is not None and state.step == 12


@needs_gpu
def test_gpu_data_that_stay_behind_are_sent(monkeypatch):
    c = gpu_config(precision="fp32")
    settled = recorded_fit(new_model(), nan_at_7, c)
    monkeypatch.setattr(recorded, "DATA_SHARE", 0.0)
    sent = recorded_fit(new_model(), nan_at_7, c)
    for p, q in zip(settled.model.parameters(), sent.model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-4)  # one divides pixels on the GPU, the other on the host


@needs_gpu
def test_gpu_and_cpu_read_each_others_checkpoints():
    on_gpu = recorded_fit(new_model(), nan_at_7, gpu_config(precision="fp32"))
    on_cpu = recorded_fit(new_model(), nan_at_7, config(**RECORDED))
    for state, device in ((on_gpu, "cpu"), (on_cpu, "cuda")):

        class Resume(Callback):
            def on_start(self, fresh, state=state):
                fresh.load_state_dict(state.state_dict())

        longer = config(**{**RECORDED, "steps": 20, "device": device})
        assert recorded_fit(new_model(), noisy_loss, longer, [Resume()]).step == 20
