"The other families: what their transformers see, what their losses are, and what their samplers draw."

import dataclasses
import math

import pytest
import torch
from torch.nn import functional

from cfvae.baselines import (
    AutoregressiveConfig,
    AutoregressiveTransformer,
    FlowConfig,
    FlowTransformer,
    KeyValueCache,
    Quantiser,
    autoregressive_loss,
    flow_loss,
    lean,
    sample_autoregressive,
    sample_flow,
    training_flops,
)
from cfvae.core import CfvaeError, count_parameters, make_generator, seed_everything
from cfvae.training import TrainingConfig, fit

SIZES = {"data_channels": 2, "resolution": 4, "width": 16, "depth": 2, "heads": 2, "num_classes": 3}
FLOW = FlowConfig(**SIZES)
AUTOREGRESSIVE = AutoregressiveConfig(**SIZES, quantiser=Quantiser(5, -2, 2))
LABELS = torch.tensor([0, 1, 2, 0, 1])


def awake(model: torch.nn.Module) -> torch.nn.Module:
    "What starts at zero says something, so that every part of a model has its influence."
    seed_everything(0)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def flow(**sizes) -> FlowTransformer:
    seed_everything(1)
    return awake(FlowTransformer(dataclasses.replace(FLOW, **sizes)))


def autoregressive(**sizes) -> AutoregressiveTransformer:
    seed_everything(1)
    return awake(AutoregressiveTransformer(dataclasses.replace(AUTOREGRESSIVE, **sizes)))


def a_batch(n: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 2, 4, 4, generator=make_generator(3)), torch.arange(n) % 3


class TwoCodes:
    "A data set of two codes, the second the negative of the first, as two classes."

    first = torch.randn(2, 2, 2, generator=make_generator(5)).sign()
    codes = torch.stack([first, -first])

    def __len__(self) -> int:
        return 64

    def batch(self, indices) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.as_tensor(indices) % 2
        return self.codes[labels], labels


TRAINING = TrainingConfig(
    steps=150,
    batch_size=16,
    learning_rate=1e-2,
    final_learning_rate=1e-4,
    warmup=10,
    ema_decay=0.9,
    precision="fp32",
    device="cpu",
)


# --- configs


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"depth": 0},
        {"heads": 3},
        {"data_channels": 0},
        {"num_classes": -1},
        {"width": 18},
    ],
)
def test_sizes_that_no_model_can_have_are_refused_by_name(wrong):
    for config in (FLOW, AUTOREGRESSIVE):
        with pytest.raises(CfvaeError, match=next(iter(wrong))):
            dataclasses.replace(config, **wrong)


def test_a_quantiser_needs_two_bins_in_order():
    with pytest.raises(CfvaeError, match="bins"):
        Quantiser(1)
    with pytest.raises(CfvaeError, match="low"):
        Quantiser(4, 1.0, 1.0)


# --- the transformer


def test_attention_over_cached_keys_equals_attention_over_all():
    model = autoregressive()
    tokens = torch.randn(3, 16, 16, generator=make_generator(0))
    condition = torch.randn(3, 16, generator=make_generator(1))
    whole = model.transformer(tokens, condition)
    caches = [KeyValueCache() for _ in range(2)]
    steps = [model.transformer(tokens[:, i : i + 1], condition, i, caches) for i in range(16)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_no_logit_depends_on_its_own_entry_or_a_later_one():
    model = autoregressive()
    indices = AUTOREGRESSIVE.quantiser.indices(a_batch(1)[0]).flatten(2).transpose(1, 2)
    label = model.transformer.label_vectors([1], 1)
    before = model(indices, label).flatten(1, 2)
    for place in range(indices.numel()):
        other = indices.flatten().clone()
        other[place] = (other[place] + 1) % 5
        changed = (model(other.view_as(indices), label).flatten(1, 2) != before).any(-1)[0]
        assert not changed[: place + 1].any()
        assert changed[place + 1 :].all()


def test_the_velocity_at_a_place_depends_on_every_place_on_time_and_on_the_label():
    model = flow()
    x, _ = a_batch(1)
    label = model.transformer.label_vectors([1], 1)
    x.requires_grad_()
    velocity = model(x, torch.tensor([0.3]), label)
    (gradient,) = torch.autograd.grad(velocity[0, 0, 0, 0], x)
    assert velocity.shape == x.shape and (gradient != 0).all()
    assert not torch.allclose(velocity, model(x, torch.tensor([0.4]), label))
    assert not torch.allclose(
        velocity, model(x, torch.tensor([0.3]), model.transformer.label_vectors([2], 1))
    )


# --- the losses


def test_a_new_flow_model_predicts_no_velocity():
    x, labels = a_batch(4000)
    loss, _ = flow_loss()(FlowTransformer(FLOW), (x, labels), make_generator(0), 0)
    assert loss.item() == pytest.approx(2, rel=0.03)  # the variance of data plus that of noise


def test_a_new_autoregressive_model_finds_all_bins_equally_likely():
    model = AutoregressiveTransformer(AUTOREGRESSIVE)
    loss, metrics = autoregressive_loss()(model, a_batch(), make_generator(0), 0)
    assert loss.item() == pytest.approx(32 * math.log(5))
    assert metrics["bits_per_dim"].item() == pytest.approx(math.log2(5))


def test_probabilities_of_all_codes_sum_to_one():
    model = autoregressive(resolution=2, data_channels=1, num_classes=0)
    digits = torch.cartesian_prod(*[torch.arange(5)] * 4)
    logits = model(digits[..., None], model.transformer.label_vectors(None, len(digits)))
    nats = (
        functional.cross_entropy(logits.flatten(0, 2), digits.flatten(), reduction="none").view(-1, 4).sum(1)
    )
    assert torch.exp(-nats).sum().item() == pytest.approx(1, abs=1e-4)

    codes = model.config.quantiser.values(digits).view(-1, 1, 2, 2)
    loss, _ = autoregressive_loss()(model, (codes, torch.zeros(len(codes))), make_generator(0), 0)
    assert loss.item() == pytest.approx(nats.mean().item(), rel=1e-5)


@pytest.mark.parametrize("make_loss", [flow_loss, autoregressive_loss])
def test_label_drop_is_a_probability_below_one(make_loss):
    with pytest.raises(CfvaeError, match="label_drop"):
        make_loss(1.0)


@pytest.mark.parametrize(("model", "loss_fn"), [(flow(), flow_loss), (autoregressive(), autoregressive_loss)])
def test_hidden_labels_train_the_null_label(model, loss_fn):
    loss, _ = loss_fn(0.5)(model, a_batch(64), make_generator(0), 0)
    loss.backward()
    gradient = model.transformer.label_table.weight.grad
    assert (gradient.norm(dim=1) > 0).all()
    model.zero_grad()


@pytest.mark.parametrize(
    ("kind", "config", "loss_fn"),
    [
        (FlowTransformer, FLOW, flow_loss()),
        (AutoregressiveTransformer, AUTOREGRESSIVE, autoregressive_loss()),
    ],
)
def test_a_loss_can_be_recorded_it_asks_for_no_number_of_its_tensors(kind, config, loss_fn):
    "Tensors on the meta device have shapes and no numbers: whoever asks for one gets an error."
    with torch.device("meta"):
        model = kind(config)
        batch = (torch.empty(5, 2, 4, 4), torch.zeros(5, dtype=torch.int64))
        loss, metrics = loss_fn(model, batch, None, torch.zeros((), dtype=torch.int64))
        loss.backward()
    assert loss.is_meta and all(value.is_meta for value in metrics.values())
    with pytest.raises(RuntimeError):
        loss.item()


# --- quantising


def test_an_entry_moves_by_at_most_half_a_bin():
    quantiser = Quantiser(64, -4, 4)
    x = torch.linspace(-4, 4, 10001)
    moved = (quantiser.values(quantiser.indices(x)) - x).abs().max().item()
    assert quantiser.bin_width == pytest.approx(8 / 63)
    assert moved == pytest.approx(quantiser.bin_width / 2, rel=1e-3)
    assert quantiser.indices(torch.tensor([-9.0, 9.0])).tolist() == [0, 63]


def test_bytes_pass_through_256_bins_unchanged():
    pixels = torch.arange(256) / 127.5 - 1
    quantiser = Quantiser(256, -1, 1)
    assert quantiser.indices(pixels).tolist() == list(range(256))
    torch.testing.assert_close(quantiser.values(quantiser.indices(pixels)), pixels)


# --- sampling


def test_guidance_leans_from_without_past_with():
    states = torch.tensor([[1.0], [3.0], [0.0], [4.0]])
    assert lean(states, 0.5).tolist() == [[1.5], [2.5]]
    assert lean(states, 0) is states


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_constant_velocity_is_followed_exactly(solver):
    model = FlowTransformer(FLOW)
    torch.nn.init.constant_(model.project_out.bias, 2.0)
    still, moved = (
        sample_flow(m, LABELS, 5, 3, solver=solver, generator=make_generator(0))
        for m in (FlowTransformer(FLOW), model)
    )
    torch.testing.assert_close(moved, still + 2)


def test_heun_comes_closer_with_the_same_evaluations():
    model = flow()
    runs = {
        (solver, steps): sample_flow(model, LABELS, 5, steps, 1.0, solver, make_generator(0))
        for solver, steps in (("heun", 400), ("heun", 16), ("euler", 32))
    }
    true = runs.pop(("heun", 400))
    by_heun, by_euler = ((x - true).abs().max().item() for x in runs.values())
    assert by_heun < 0.2 * by_euler


@pytest.mark.parametrize("sample", [sample_flow, sample_autoregressive])
def test_samples_have_the_shape_of_codes_whatever_their_number(sample):
    model = flow() if sample is sample_flow else autoregressive()
    steps = (2,) if sample is sample_flow else ()
    for n in (0, 1, 5):
        for weight in (0.0, 1.0):
            assert sample(model, LABELS[:n], n, *steps, weight=weight).shape == (n, 2, 4, 4)
    unlabelled = sample(model, None, 3, *steps)
    assert unlabelled.shape == (3, 2, 4, 4) and not unlabelled.requires_grad


@pytest.mark.parametrize("sample", [sample_flow, sample_autoregressive])
def test_guidance_towards_the_null_label_changes_nothing(sample):
    model = flow() if sample is sample_flow else autoregressive()
    steps = (2,) if sample is sample_flow else ()
    null = torch.full((5,), 3)
    plain = sample(model, null, 5, *steps, generator=make_generator(0))
    guided = sample(model, null, 5, *steps, weight=3.0, generator=make_generator(0))
    torch.testing.assert_close(plain, guided, atol=1e-5, rtol=1e-5)
    strong = sample(model, LABELS, 5, *steps, weight=3.0, generator=make_generator(0))
    assert not torch.allclose(strong, sample(model, LABELS, 5, *steps, generator=make_generator(0)))


def test_what_cannot_be_sampled_is_refused():
    for wrong, name in (({"steps": 0}, "steps"), ({"solver": "dpm"}, "solver"), ({"n": -1}, "n is")):
        with pytest.raises(CfvaeError, match=name):
            sample_flow(**{"model": flow(), "labels": None, "n": 2, "steps": 1, **wrong})
    with pytest.raises(CfvaeError, match="temperature"):
        sample_autoregressive(autoregressive(), None, 2, temperature=-1.0)
    with pytest.raises(CfvaeError, match="labels"):
        sample_flow(flow(), None, 2, 1, weight=1.0)
    with pytest.raises(CfvaeError, match="labels"):
        sample_autoregressive(autoregressive(), [0, 4], 2)


def test_draws_follow_the_probabilities():
    model = autoregressive(resolution=1, data_channels=2, num_classes=0)
    n = 20_000
    drawn = sample_autoregressive(model, None, n, generator=make_generator(0))
    pairs = model.config.quantiser.indices(drawn).flatten(1)
    shares = torch.bincount(5 * pairs[:, 0] + pairs[:, 1], minlength=25) / n

    every = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    log_p = model(every[:, None], model.transformer.label_vectors(None, 25)).log_softmax(-1)
    p = log_p.gather(-1, every[:, None, :, None]).sum((1, 2, 3)).exp()
    assert ((shares - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 1e-4).all()


def test_at_temperature_zero_the_likeliest_bins_are_taken():
    model = autoregressive()
    first, second = (
        sample_autoregressive(model, LABELS, 5, temperature=0.0, generator=make_generator(seed))
        for seed in (0, 1)
    )
    assert torch.equal(first, second)
    indices = AUTOREGRESSIVE.quantiser.indices(first).flatten(2).transpose(1, 2)
    logits = model(indices, model.transformer.label_vectors(LABELS, 5))
    assert torch.equal(logits.argmax(-1), indices)


# --- learning


def test_both_learn_two_codes_and_tell_them_apart():
    data = TwoCodes()
    sizes = {**SIZES, "resolution": 2, "num_classes": 2}
    seed_everything(0)
    flows = fit(FlowTransformer(FlowConfig(**sizes)), data, flow_loss(), TRAINING).ema.module
    labels = torch.arange(20) % 2
    drawn = sample_flow(flows, labels, 20, 16, generator=make_generator(0))
    assert (drawn - data.codes[labels]).abs().mean() < 0.3

    model = AutoregressiveTransformer(AutoregressiveConfig(**sizes, quantiser=Quantiser(5, -2, 2)))
    model = fit(model, data, autoregressive_loss(), TRAINING).ema.module
    drawn = sample_autoregressive(model, labels, 20, weight=1.0, generator=make_generator(0))
    assert (drawn == data.codes[labels]).float().mean() > 0.95


# --- the currency


def test_flops_of_training_are_three_times_two_a_weight_and_token():
    config = FlowConfig(data_channels=2, resolution=4, width=64, depth=3, heads=1)
    model = FlowTransformer(config)
    batch = (torch.randn(4, 2, 4, 4), torch.zeros(4, dtype=torch.int64))
    weights = 3 * 12 * 64**2  # of attention and feed-forward, used by each of 16 tokens
    attention = 3 * 2 * 16 * 64  # of keys and values, for each
    expected = 6 * 16 * (weights + attention)
    counted = training_flops(model, flow_loss(), batch)
    assert expected < counted < 1.1 * expected
    assert counted == training_flops(model, flow_loss(), (batch[0][:1], batch[1][:1]))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_sizes_meant_for_photographs_cost_what_the_vae_costs():
    config = FlowConfig(data_channels=8, resolution=8, width=320, depth=9, heads=5, num_classes=10)
    model = FlowTransformer(config)
    batch = (torch.randn(1, 8, 8, 8), torch.zeros(1, dtype=torch.int64))
    assert training_flops(model, flow_loss(), batch) == pytest.approx(4.49e9, rel=0.05)
    assert count_parameters(model) < 20.9e6


@pytest.mark.parametrize(
    "sample", [lambda m, **given: sample_flow(m, steps=1, **given), sample_autoregressive]
)
@pytest.mark.parametrize(
    ("name", "values"),
    [("n", [1.5, True, "2", None]), ("weight", [math.nan, math.inf, "1", None])],
)
def test_numbers_that_nothing_is_drawn_with(sample, name, values):
    model = flow() if sample is not sample_autoregressive else autoregressive()
    for value in values:
        with pytest.raises(CfvaeError, match=f"{name} is"):
            sample(model, **{"labels": None, "n": 2, name: value})


def test_steps_and_temperatures_that_are_none():
    for steps in (1.5, True, "2"):
        with pytest.raises(CfvaeError, match="steps is"):
            sample_flow(flow(), None, 2, steps)
    for temperature in (math.inf, "1", None):
        with pytest.raises(CfvaeError, match="temperature is"):
            sample_autoregressive(autoregressive(), None, 2, temperature=temperature)


def test_labels_for_a_model_without_classes():
    with pytest.raises(CfvaeError, match="built without classes"):
        sample_flow(flow(num_classes=0), [0, 0], 2, 1)


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 2, 8), (2, 8, 8), (3, 4, 4), (4, 4)])
def test_codes_of_another_shape_have_other_positions(shape):
    x, labels = torch.zeros(2, *shape), torch.zeros(2, dtype=torch.int64)
    for loss, model in ((flow_loss(), flow()), (autoregressive_loss(), autoregressive())):
        with pytest.raises(CfvaeError, match=r"^codes: .*\(n, 2, 4, 4\), is needed"):
            loss(model, (x, labels), make_generator(0), 0)
    with pytest.raises(CfvaeError, match="^codes: "):
        flow()(x, torch.zeros(2), flow().transformer.label_vectors(labels, 2))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_weights_of_every_float(kind):
    for loss, model in ((flow_loss(), flow()), (autoregressive_loss(), autoregressive())):
        value, _ = loss(model, a_batch(), make_generator(0), 0)
        other, _ = loss(model.to(kind), a_batch(), make_generator(0), 0)
        assert other.item() == pytest.approx(value.item(), rel=0.1)
    assert sample_flow(flow().to(kind), LABELS, 5, 2, 1.0).isfinite().all()
    assert sample_autoregressive(autoregressive().to(kind), LABELS, 5, 1.0).isfinite().all()


def test_flops_are_counted_where_nothing_is_learned():
    with torch.no_grad():
        assert training_flops(flow(), flow_loss(), a_batch()) > 0
