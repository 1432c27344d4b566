"Tests of cfvae.cli.reporting: a report on demand, and a demo that can be interrupted."

import json
import signal
from pathlib import Path

import pytest
import torch
from commandline import SETTINGS, at_step, call, done, refused

from cfvae.cli import reporting
from cfvae.recipes import change
from cfvae.runs.presets import PRESETS, preset


def test_report_is_written_anew(run):
    Path("run/report.html").write_text("an old one")
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
    monkeypatch.setattr(reporting, "faster_threads", lambda: faster)
    monkeypatch.setattr(
        reporting, "train_or_exit", lambda *given, **options: trained_with.append(torch.get_num_threads())
    )
    monkeypatch.setattr(reporting, "write_report", lambda run: run / "report.html")
    torch.set_num_threads(2)
    try:
        out = done("demo --out runs/threads")
    finally:
        torch.set_num_threads(before)
    assert trained_with == [threads]
    assert ("training with one thread" in out) == (threads == 1)


def test_demo_goes_on_where_it_was_interrupted(monkeypatch):
    settings = SETTINGS | {"steps": 2, "device": "cpu", "precision": "fp32", "data": "shapes:n=60"}
    small = change(preset("shapes-demo"), settings)
    monkeypatch.setitem(PRESETS, "shapes-demo", lambda: small)
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
