"The stored experiments: their programs at toy size, and their exact sums against plain ones."

import itertools
import json
import math
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "nbs/results/experiments"))

import ablations
import autoencoders
import claims
import grid
import judging
import one_layer
import summary
from cfvae.core import count_parameters, from_uint8, make_generator, seed_everything
from cfvae.data import FACTORS, Shapes, render_shapes
from cfvae.hvae import HierarchicalVAE
from cfvae.vae import VAE, VAEConfig
from jobs import Job, Record, Setting, run_all, write_json
from plan import EXPERIMENTS, jobs_of


@pytest.fixture
def toy(tmp_path: Path) -> Setting:
    "A setting in which a training has a few steps."
    return Setting(tmp_path, scale=0.002)


def double_the_seed(job: Job, setting: Setting) -> Record:
    "Stands in for an experiment; one of its jobs fails."
    if job.seed == 1:
        raise RuntimeError("out of luck")
    return {"doubled": 2 * job.seed}


def test_the_grid_holds_every_picture_once():
    settings = set()
    for factors, _ in itertools.islice(grid.blocks(), 3):
        settings.update(map(tuple, factors.tolist()))
    assert len(settings) == 3 * 2304
    blocks = math.prod(len(FACTORS[name]) for name in ("class", "size", "position"))
    assert 2304 * blocks == math.prod(len(values) for values in FACTORS.values())


def test_the_grid_draws_what_the_generator_draws():
    generator = make_generator(0)
    for factors, pictures in grid.blocks(stride=131):
        some = torch.randint(len(factors), (32,), generator=generator)
        assert torch.equal(pictures[some], from_uint8(render_shapes(factors[some], 16)))


def test_sums_are_those_of_all_pictures_at_once():
    seed_everything(0)
    model = VAE(VAEConfig(hidden=(16,), latent_dim=3))
    data = Shapes(6, seed=1, size=16)
    x, kinds = data.batch(range(6))[0], data.factors[:, 0]
    with torch.no_grad():
        z = model.posterior(x).sample(generator=make_generator(1))
        sums = grid.sum_over_all(model, z, kinds, stride=250)
        parts = list(grid.blocks(stride=250))
        everything = torch.cat([pictures for _, pictures in parts])
        of_kind = torch.cat([factors[:, 0] for factors, _ in parts])
        q = model.posterior(everything)
        logs = torch.stack([q.log_prob(one.expand(len(everything), -1)) for one in z]).double()
    weights = logs.softmax(1)
    torch.testing.assert_close(
        sums.log_aggregate, logs.logsumexp(1) - math.log(len(everything)), atol=1e-4, rtol=0
    )
    expected = weights.float() @ everything.flatten(1)
    torch.testing.assert_close(sums.expected_picture, expected, atol=1e-4, rtol=0)
    entropy = torch.distributions.Categorical(probs=weights).entropy()
    torch.testing.assert_close(sums.entropy_left, entropy, atol=1e-3, rtol=0)
    same = (weights * (of_kind == kinds[:, None])).sum(1)
    torch.testing.assert_close(sums.chance_of_kind, same, atol=1e-5, rtol=0)


def test_real_images_are_the_best_that_samples_can_be(tmp_path):
    setting = Setting(tmp_path, scale=0.2)
    real = judging.floor(setting, 0)
    images, labels = Shapes(200, seed=5).batch(range(200))
    noisy = judging.judged(images + torch.randn(images.shape, generator=make_generator(0)), labels)
    assert real["recognised"] > 0.98 and real["precision"] > 0.9
    assert real["frechet"] < 0.1 * noisy["frechet"] and real["precision"] > noisy["precision"]


def test_a_failed_job_stops_no_other_and_none_is_done_twice(tmp_path, capsys):
    setting = Setting(tmp_path)
    jobs = [Job("double", "seed", seed, 1.0) for seed in range(3)]
    write_json(setting.records / f"{jobs[0].name}.json", {"doubled": "kept"})
    run_all(jobs, setting, {"double": double_the_seed}, processes=1, minutes=10)
    records = [setting.records / f"{job.name}.json" for job in jobs]
    assert json.loads(records[0].read_text())["doubled"] == "kept"
    assert not records[1].exists()
    assert json.loads(records[2].read_text())["doubled"] == 4
    assert "double-seed-1 failed: RuntimeError: out of luck" in capsys.readouterr().out


def test_records_at_toy_size_are_no_others(tmp_path):
    places = {Setting(tmp_path, scale=scale).records for scale in (1.0, 0.5, 0.004)}
    assert len(places) == 3 and Setting(tmp_path).records == tmp_path / "records"


def test_trainings_can_be_added_to_the_stored_ones(tmp_path):
    stored, records, out = ROOT / "nbs/results", tmp_path / "records", tmp_path / "out"
    summary.restore(stored, records)
    kept = json.loads((stored / "controls/06_vae.json").read_text())["runs"]
    changed = records / f"{Job('06_vae', kept[0]['variant'], kept[0]['seed'], 0).name}.json"
    write_json(changed, json.loads(changed.read_text()) | {"seconds": 1.0})
    summary.restore(stored, records)
    summary.summarise(records, out)
    again = json.loads((out / "controls/06_vae.json").read_text())["runs"]
    assert len(again) == len(kept) and kept[0] | {"seconds": 1.0} in again
    assert all(run in again for run in kept[1:])


def test_nothing_starts_that_would_end_too_late(tmp_path, capsys):
    jobs = [Job("double", "seed", 0, 1000.0)]
    run_all(jobs, Setting(tmp_path), {"double": double_the_seed}, processes=1, minutes=1)
    assert not (tmp_path / "records").exists()
    assert "no time for double-seed-0" in capsys.readouterr().out


@pytest.mark.parametrize("variant", ["half the layers", "twice the layers"])
def test_other_depths_have_as_many_parameters(variant):
    sizes = [
        count_parameters(HierarchicalVAE(ablations.recipe_of(name).vae)) for name in (variant, "the recipe")
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_an_ablation_is_judged_guided_where_it_can_be(toy):
    plain = ablations.ablation(Job("ablations", "standard prior", 0, 1), toy)
    guided = ablations.ablation(Job("ablations", "attention", 0, 1), toy)
    assert "recognised_guided" not in plain and "raw_recognised_guided" in guided
    assert 0 <= guided["recognised"] <= 1 and guided["frechet"] > 0
    assert sum(guided["rates"]) == pytest.approx(guided["rate"], rel=1e-4)


def test_errors_of_the_one_layer_model_add_up(toy, monkeypatch):
    monkeypatch.setattr(one_layer, "DRAWS", 256)  # all whose rate is measured
    name = one_layer.variant(1, 6000)
    record = one_layer.one_layer(Job("06_vae", name, 0, 1), toy)
    assert record["total"] == pytest.approx(record["open"] + record["network"] + record["cross"], rel=1e-4)
    assert record["rate"] == pytest.approx(record["information"] + record["hole"], rel=1e-3)
    assert [point["step"] for point in record["curve"]] == sorted({p["step"] for p in record["curve"]})


def test_linear_codes_of_full_length_lose_nothing(toy):
    x = autoencoders.lesson_images()[:64]
    mean, directions = autoencoders.principal_directions(x.flatten(1))
    assert torch.allclose(autoencoders.linear(x, mean, directions), x, atol=1e-4)
    record = autoencoders.long_autoencoder(Job("02_autoencoder", "1 channels 600 steps", 0, 1), toy)
    assert len(record["lost_by_frequency"]) == 9 and record["steps"] == 2


def test_tables_need_not_be_complete(tmp_path):
    records = tmp_path / "records"
    job = jobs_of("code_length")[0]
    for seed, value in ((0, 0.5), (2, 0.7)):
        about = {"experiment": "code_length", "variant": job.variant, "seed": seed, "machine": "one"}
        name = f"code_length-{job.variant.replace(' ', '-')}-{seed}"
        write_json(records / f"{name}.json", about | {"numbers": 64, "psnr": 20.0, "recognised": value})
    summary.summarise(records, tmp_path)
    table = json.loads((tmp_path / "controls/code_length.json").read_text())
    (row,) = table["rows"]
    assert row["seeds"] == 2 and row["numbers"] == 64
    assert row["recognised"] == {"mean": 0.6, "se": pytest.approx(0.1)}
    assert (tmp_path / "controls/code_length.png").exists()
    assert not (tmp_path / "ablations").exists()


def test_every_job_has_a_file_of_its_own():
    names = [job.name for experiment in EXPERIMENTS for job in jobs_of(experiment)]
    assert len(names) == len(set(names)) > 100


def test_a_claim_without_results_is_not_measured(tmp_path):
    run = {"variant": "pixels-plain", "rate": 80.0, "rates": [10.0] * 8, "share_fine": 0.5, "n": 1000}
    known = {"recognised_coarse": 0.25, "recognised_all": 0.95, "machine": "one core"}
    write_json(tmp_path / "controls/shipped.json", {"runs": [run | known]})
    claims.write_claims(tmp_path)
    rows = json.loads((tmp_path / "claims.json").read_text())["rows"]
    (measured,) = [row for row in rows if row["finding"] != claims.NOT_MEASURED]
    assert len(rows) == 7 and measured["claim"] == "Pixel VAEs spend bits on detail"
    assert "pays 50 % of its 80 nats at 8 x 8 and 16 x 16" in measured["numbers"]


def test_stored_claims_are_what_the_stored_results_say():
    results = Path(claims.__file__).parents[1]
    rows = json.loads((results / "claims.json").read_text())["rows"]
    for row, measure in zip(rows, claims.CLAIMS.values(), strict=True):
        assert row.items() >= measure(results).items()
        assert len(row["finding"]) < 400  # what it rests on stands in the numbers
