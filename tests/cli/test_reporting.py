"Tests of cfvae.cli.reporting: a report on demand, and a demo that can be interrupted."

import json
import signal
from pathlib import Path

import pytest
import torch
from commandline import SETTINGS, at_step, call, done, refused

from cfvae.cli import reporting
from cfvae.recipes import change
from cfvae.runs import threads as threads_of_runs
from cfvae.runs.presets import PRESETS, preset


def test_report_is_written_anew(run):
    Path("run/report.html").write_text("an old one")
    Path("run/report.json").write_text('{"run": {}, "nats": {}}')  # by these it is known as one of cfvae's
    assert done("report run --device cpu").splitlines()[-1] == "report: run/report.html"
    assert "<html" in Path("run/report.html").read_text()
    assert json.loads(Path("run/report.json").read_text())


def test_report_needs_a_run(run):
    refused("report nowhere", "nowhere is not a run folder")
    refused("report run/pipeline", "run/pipeline is not a run folder")


@pytest.mark.parametrize("faster, threads", [(1, 1), (2, 2)])
def test_demo_takes_the_faster_number_of_threads(monkeypatch, faster, threads):
    before = torch.get_num_threads()
    trained_with = []
    monkeypatch.setattr(threads_of_runs, "faster_threads", lambda: faster)
    monkeypatch.setattr(
        reporting, "train_or_exit", lambda *given, **options: trained_with.append(torch.get_num_threads())
    )
    monkeypatch.setattr(reporting, "write_report", lambda run: run / "report.html")
    torch.set_num_threads(2)
    try:
        out = done(f"demo --out runs/threads-{threads}")
    finally:
        torch.set_num_threads(before)
    assert trained_with == [threads]
    assert ("training with one thread" in out) == (threads == 1)


@pytest.mark.parametrize("kept", [1, 2])
def test_a_demo_that_goes_on_keeps_its_number_of_threads(monkeypatch, kept):
    before = torch.get_num_threads()
    trained_with = []
    monkeypatch.setattr(
        reporting, "train_or_exit", lambda *given, **options: trained_with.append(torch.get_num_threads())
    )
    monkeypatch.setattr(reporting, "write_report", lambda run: run / "report.html")
    try:
        for measured in (kept, 3 - kept):  # the second time another number would be faster
            torch.set_num_threads(2)
            monkeypatch.setattr(threads_of_runs, "faster_threads", lambda measured=measured: measured)
            done(f"demo --out runs/kept-{kept}")
    finally:
        torch.set_num_threads(before)
    assert trained_with == [kept, kept]


@pytest.mark.parametrize(
    "note", ["", "{}", '{"threads": 0}', '{"threads": true}', '{"threads": 99999}', '{"threads": "two"}']
)
def test_a_damaged_note_of_threads_is_named(note):
    Path("runs/noted").mkdir(parents=True, exist_ok=True)
    Path("runs/noted/threads.json").write_text(note)
    refused("demo --out runs/noted", "runs/noted/threads.json cannot be read", "measured again")


def test_demo_notes_nothing_in_a_folder_that_is_not_its_own():
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    refused("demo --out mine", "holds files but no run (letter.txt)")
    assert [path.name for path in Path("mine").iterdir()] == ["letter.txt"]


def test_a_run_that_is_not_the_demo_is_not_trained_on(run):
    before = Path("run/recipe.json").read_bytes()
    refused("demo --out run", "run is a run of 30 steps, not the demo: choose another --out")
    assert Path("run/recipe.json").read_bytes() == before


def test_demo_trains_its_second_stage_longer_than_the_preset(monkeypatch):
    trained = []
    monkeypatch.setattr(reporting, "train_or_exit", lambda recipe, *given, **options: trained.append(recipe))
    monkeypatch.setattr(reporting, "write_report", lambda run: run / "report.html")
    done("demo --out runs/steps")
    settings = {"vae_training.steps": reporting.STEPS}
    assert trained == [change(preset("shapes-demo"), settings)]
    assert reporting.STEPS > preset("shapes-demo").vae_training.steps


def test_demo_goes_on_where_it_was_interrupted(monkeypatch):
    settings = SETTINGS | {"steps": 2, "device": "cpu", "precision": "fp32", "data": "shapes:n=60"}
    small = change(preset("shapes-demo"), settings)
    monkeypatch.setitem(PRESETS, "shapes-demo", lambda: small)
    monkeypatch.setattr(reporting, "STEPS", 2)
    reports = []

    def write_report(run):
        reports.append(run)
        return run / "report.html"

    monkeypatch.setattr(reporting, "write_report", write_report)
    with monkeypatch.context() as patch:
        at_step(patch, "autoencoder 1", lambda: signal.raise_signal(signal.SIGINT))
        code, out, _ = call("demo")
    assert code == 130 and "go on with: cfvae demo --out runs/demo" in out and not reports

    out = done("demo")
    assert "resuming after step 1" in out and "report: runs/demo/report.html" in out
    weights = Path("runs/demo/pipeline/vae/model.safetensors")
    written = weights.stat().st_mtime_ns

    out = done("demo --out runs/demo")
    assert "the demo in runs/demo is complete" in out and "report: runs/demo/report.html" in out
    assert reports == [Path("runs/demo")] * 2
    assert weights.stat().st_mtime_ns == written
