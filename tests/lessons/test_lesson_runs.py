"""The stored experiments of lessons 08 to 11, at a length that a test can afford."""

import json
import pickle
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "nbs/results/lessons"))

import runner as stored
from information import pull
from pixels_and_codes import SIDES, operations_a_step


def test_sides_compute_about_the_same_or_a_third():
    pixels, codes, larger = (operations_a_step(side) for side in SIDES)
    assert 3 < pixels / codes < 4
    assert 0.9 < larger / pixels < 1.1


def test_records_of_one_experiment_become_one_file_and_a_failure_costs_one_record(
    tmp_path, monkeypatch, capsys
):
    tasks = [
        ("09-pull", pull, {"steepness": 10, "seed": 0, "steps": 2}),
        ("09-pull", pull, {"steepness": -1, "seed": 0, "steps": 2}),  # refused by the objective
    ]
    monkeypatch.setattr(stored, "_tasks", lambda: tasks)
    with pytest.raises(SystemExit, match="1 of 2 records failed"):
        stored.main([str(tmp_path), "--only", "09-pull"])
    records = json.loads((tmp_path / "09-pull.json").read_text())["records"]
    assert [record["steepness"] for record in records] == [10]
    assert len(records[0]["rates"]) == 8 and records[0]["rate"] == pytest.approx(
        sum(records[0]["rates"]), rel=0.01
    )
    assert "failed" in capsys.readouterr().out


def test_processes_find_what_makes_a_record():
    "`python nbs/results/lessons` runs `__main__`, whose functions a new process cannot find."
    for experiment, make, _ in stored._tasks():
        assert pickle.loads(pickle.dumps(make)) is make, experiment
    assert stored._make.__module__ == "runner"
