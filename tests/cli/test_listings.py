"What the tables of commands say, from numbers made up: every heading, every digit."

import types

import pytest

from cfvae.cli import benching, comparing, evaluating, looking
from cfvae.runs.judging import Row, Value


def cells(text: str) -> list[list[str]]:
    "Words of every line, as they stand between two blanks or more."
    return [
        [word.strip() for word in line.split("  ") if word.strip()]
        for line in text.splitlines()
        if line.strip()
    ]


def an_evaluation():
    def row(name, **measured):
        return Row(name, "judge", {key: Value(*value) for key, value in measured.items()})

    rows = [
        row("training images", frechet=(1.236, 0.041), kernel=(0.00123, 0.0001), precision=(0.5126, 0.0123),
            recall=(0.25, 0.01), density=(0.987, 0.012), coverage=(1.0, 0.0), accuracy=(0.75, 0.02)),
        row("samples", frechet=(12.5, 0.5), kernel=(0.02, 0.001), precision=(0.4, 0.01), recall=(0.1, 0.01),
            density=(0.5, 0.02), coverage=(0.125, 0.01)),
        Row("samples", "another judge", {"frechet": Value(99.0, 9.0)}),
    ]  # fmt: skip
    question = types.SimpleNamespace(n=1500, data="shapes")
    return types.SimpleNamespace(
        question=question, judges={"judge": "of shapes"}, rows=rows, chosen="guidance 1 / 1"
    )


def test_an_evaluation_in_a_table(capsys):
    evaluating.print_evaluation(an_evaluation())
    about, heading, *_, floor, samples, note, chosen = cells(capsys.readouterr().out)
    assert about == ["n = 1,500 on either side, features of judge (of shapes), data shapes"]
    assert heading == ["images", "frechet", "kernel x1000", "precision %", "recall %", "density",
                       "coverage %", "accuracy %"]  # fmt: skip
    assert floor == ["training images", "1.24 ± 0.04", "1.23 ± 0.10", "51.3 ± 1.2", "25.0 ± 1.0",
                     "0.99 ± 0.01", "100.0 ± 0.0", "75.0 ± 2.0"]  # fmt: skip
    assert samples == ["samples", "12.50 ± 0.50", "20.00 ± 1.00", "40.0 ± 1.0", "10.0 ± 1.0", "0.50 ± 0.02",
                       "12.5 ± 1.0"]  # fmt: skip
    assert "floor" in note[0] and chosen == ["guidance chosen against training images: guidance 1 / 1"]


def test_evaluate_says_what_it_wrote(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluating, "measure", lambda question: (an_evaluation(), None))
    monkeypatch.setattr(evaluating, "write_evaluation", lambda evaluation, shown, out: [out / "a", out / "b"])
    evaluating.evaluate(None, tmp_path / "out")
    assert capsys.readouterr().out.endswith(f"written: {tmp_path}/out/a\nwritten: {tmp_path}/out/b\n")


def test_a_comparison_in_a_table(capsys):
    measured = {"frechet": {"value": 1.2346, "error": 0.5, "mean": 2.0},
                "accuracy": {"value": 0.9, "error": 0.02, "mean": 0.8}}  # fmt: skip
    point = {"model": "vae", "title": "guidance 1", "gflop_per_image": 1.2345, "seconds_per_image": 0.0123,
             "measures": {"judge": measured}}  # fmt: skip
    floors = {"other real images": {"measures": {"judge": measured}}}
    comparing.print_comparison(
        {"judges": ["judge"], "n": 1000, "data": "shapes", "points": [point], "floors": floors}
    )
    about, heading, *_, floor, drawn = cells(capsys.readouterr().out)
    assert about == ["n = 1,000 on either side, features of judge, data shapes"]
    assert heading == ["images", "GFLOP", "ms", "accuracy", "frechet"]
    assert floor == ["other real images", "0.900 ± 0.020", "1.235 ± 0.500"]
    assert drawn == ["vae, guidance 1", "1.23", "12.3", "0.800 ± 0.020", "2.000 ± 0.500"]


def test_presets_have_a_heading_over_every_column(capsys):
    looking.print_presets()
    heading = " ".join(capsys.readouterr().out[:600].split())
    for word in ("name", "image", "code", "layers", "parameters", "steps", "data, what it is meant for"):
        assert word in heading
    assert "(millions)" in heading


@pytest.mark.parametrize("encoding", [True, False])
def test_a_benchmark_in_a_table(capsys, encoding):
    known = {"batch_size": 64, "precision": "fp32", "examples_per_second": 1234.5, "milliseconds": 51.84,
             "gflop_per_example": 1.2345, "tflops": 0.1234, "matrix_share": 0.256, "peak_memory": 2.5e9,
             "data_share": 0.125}  # fmt: skip
    cost = types.SimpleNamespace(**known)
    without = types.SimpleNamespace(**{**known, "peak_memory": None, "data_share": None})
    machine = types.SimpleNamespace(
        device="cpu",
        name="a processor",
        cores=4,
        threads=2,
        versions={"torch": "2"},
        matrix_tflops={"bf16": 1.5},
        memory="of the process",
    )
    benchmark = types.SimpleNamespace(
        machine=machine,
        preset="shapes",
        training=cost,
        sampling=without,
        guided=True,
        encoding=cost if encoding else None,
    )
    benching.print_benchmark(benchmark)
    out = capsys.readouterr().out
    for word in (
        "batch",
        "precision",
        "examples/s",
        "ms",
        "GFLOP an",
        "TFLOP/s",
        "matrix rate",
        "peak memory",
    ):
        assert word in out
    lines = {line[0]: line[1:] for line in cells(out)}
    row = ["64", "fp32", "1,234", "51.84", "1.23", "0.123", "25.6%"]
    assert lines["training step"] == [*row, "2.50"] and lines["guided sampling"] == row
    assert ("encoding" in lines) == encoding
    assert "12.5% of a step's time goes into fetching data" in out
    assert ("samples are codes" in out) != encoding


def test_costs_that_grow_in_a_table(capsys):
    sizes = types.SimpleNamespace(resolutions=(1, 4), layers=(2, 3), widths=(8, 16))
    point = types.SimpleNamespace(axis="width", size=2, step_milliseconds=12.3456, sample_milliseconds=1.5)
    for smaller, left_out in ((True, ["width 8"]), (False, [])):
        scaling = types.SimpleNamespace(
            points=[point], vae=sizes, batch_size=16, smaller=smaller, left_out=left_out
        )
        benching.print_scaling(scaling)
        out = capsys.readouterr().out
        lines = cells(out)
        assert lines[1] == ["axis", "size", "training step (ms)", "batch of samples (ms)"]
        assert ["width", "2", "12.35", "1.5"] in lines
        assert "around resolutions 1,4, layers 2,3, widths 8,16, batch 16" in out
        assert ("smaller than the preset" in out) == smaller
        assert ("left out for want of memory: width 8" in out) == bool(left_out)
