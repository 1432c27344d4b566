"""Every JSON file that the package writes: damaged, it is named in words, made again, or not taken for ours.

The walk through a run's own files is in test_folder."""

import json
import re
from pathlib import Path

import pytest
from test_folder import READERS

import cfvae
from cfvae.cli.describing import newest_step
from cfvae.core import CfvaeError, shipped_weights
from cfvae.evaluation import load_classifier
from cfvae.runs.callbacks import read_log
from cfvae.runs.compare.run import SETTINGS, _check_folder, _keep
from cfvae.runs.compare.training import NUMBER, Job, keep, read_kept, read_result
from cfvae.runs.free import refuse_foreign

ELSEWHERE = {  # file -> where it is damaged
    "first_stage.json": "method/test_pretrained",
    "latents.json": "files/test_codes",
    "meta.json": "files/test_cache",
    "model.json": "method/test_onnx_export",
    "report.json": "runs/test_public",
    "log.jsonl": "runs/test_callbacks",
    "threads.json": "cli/test_reporting",
    "tuning.json": "runs/test_tune",
}
WRITTEN = {"evaluation.json", "bench.json", "bench-scale.json"}  # never read, but to know them as ours
HERE = {"settings.json", "result.json", "floors.json", "comparison.json"}

RESULT = {"rate": 1e-3, "loss": 2.0, "steps": 4}
DAMAGED = [b"", b"{", b"[]", b"3", b'"x"', b"null", b'{"a": 1}', b"\xff\xfe{}", b"[" * 100_000]


def test_every_json_file_is_damaged_somewhere():
    sources = "\n".join(path.read_text(encoding="utf-8") for path in Path(cfvae.__path__[0]).rglob("*.py"))
    named = set(re.findall(r'["/]([\w-]+\.jsonl?)"', sources))
    of_runs = {Path(name).name for name in READERS}
    assert named == of_runs | ELSEWHERE.keys() | WRITTEN | HERE
    for name, place in ELSEWHERE.items():
        test = (Path(__file__).parents[1] / f"{place}.py").read_text(encoding="utf-8")
        assert name in test or Path(name).stem.upper() in test, f"{place} says nothing of {name}"


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: str(content[:9]))
def test_what_a_comparison_kept(tmp_path, content):
    job = Job("vae", seed=0)
    result = tmp_path / job.folder / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps(RESULT))
    assert read_result(job, tmp_path) == RESULT

    floors = tmp_path / "floors.json"
    for path, read in (
        (result, lambda: read_result(job, tmp_path)),
        (floors, lambda: _keep(floors, {"real": dict}, lambda: {"real": {}})),
        (tmp_path / "point.json", lambda: read_kept(tmp_path / "point.json", {"measures": dict})),
    ):
        path.write_bytes(content)
        with pytest.raises(CfvaeError, match=f"{path.name} cannot be read .*: remove it, and") as caught:
            read()
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", ["abc", [1], {}])
def test_a_comparison_kept_a_value_of_another_kind(tmp_path, value):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(RESULT | {"loss": value}))
    with pytest.raises(CfvaeError, match=r"result.json cannot be read \(loss of another kind.*: remove it"):
        read_kept(path, {"rate": NUMBER, "loss": NUMBER | None})
    assert read_kept(path, {"loss": object})["loss"] == value


@pytest.mark.parametrize("name", ["result", "floors", "point", "cost"])
def test_a_comparison_kept_a_value_that_was_changed_since(tmp_path, name):
    path = tmp_path / "models" / f"{name}.json"
    fields = {
        "rate": 1e-3,
        "loss": 2.0,
        "measures": {"judge": {"frechet": {"value": 0.1}}},
        "curve": [[1, None]],
    }
    keep(path, fields)
    assert read_kept(path, {"rate": NUMBER}) == fields
    whole = path.read_text()
    for old, new in (("0.1", "0.2"), ("0.1", '"x"'), ("frechet", "kernel"), ("null", "3"), ("2.0", "NaN")):
        assert whole.count(old) == 1
        path.write_text(whole.replace(old, new))
        with pytest.raises(
            CfvaeError, match=f"{name}.json cannot be read .it was changed after.*: remove it"
        ):
            read_kept(path, {"rate": NUMBER})


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: str(content[:9]))
def test_settings_of_something_else(tmp_path, content):
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(CfvaeError, match="settings.json, which cfvae did not write or which is damaged"):
        _check_folder(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps(dict.fromkeys(SETTINGS)))
    _check_folder(tmp_path)


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_numbers_of_something_else(tmp_path, name):
    for content in DAMAGED:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CfvaeError, match=f"{name}, which cfvae did not write"):
            refuse_foreign(tmp_path, (name,), {"machine"})


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: str(content[:9]))
@pytest.mark.parametrize("judge", ["shapes-classifier", "cifar10-classifier"])
def test_the_config_of_a_judge(tmp_path, judge, content):
    for path in shipped_weights(judge).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    load_classifier(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CfvaeError, match=re.escape(str(tmp_path))):
        load_classifier(tmp_path)


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: str(content[:9]))
def test_a_log_without_a_line_that_can_be_read(tmp_path, content):
    (tmp_path / "log.jsonl").write_bytes(content)
    assert read_log(tmp_path / "log.jsonl") == [] and newest_step(tmp_path) == 0
