"Checkpoint files: faults are injected, and processes really killed."

import contextlib
import errno
import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from cfvae import checkpoints
from cfvae.checkpoints import differences, list_checkpoints, load_checkpoint, save_checkpoint, write_synced
from cfvae.core import CfvaeError
from cfvae.training import TrainingConfig

# Children come from a server that has imported everything once: cheap, and without inherited threads.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["cfvae.checkpoints"])

WEIGHTS = {"weights": torch.arange(5000.0)}


def in_child(target, *arguments) -> int:
    "Run a function in a process of its own; returns its exit code, -9 after SIGKILL."
    process = context.Process(target=target, args=arguments)
    process.start()
    process.join(300)
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode


def flatten(value, name="state") -> dict:
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, item in items for k, v in flatten(item, f"{name}.{key}").items()}
    return {name: value}


@pytest.fixture
def folder(tmp_path) -> Path:
    "A folder with one good checkpoint, of step 1."
    save_checkpoint(tmp_path, 1, WEIGHTS)
    return tmp_path


@contextlib.contextmanager
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def assert_intact(folder: Path, step: int = 1) -> None:
    "The checkpoint of a step loads, without a word about damage, and nothing half-written lies beside it."
    with no_warnings():
        found, state = load_checkpoint(folder)
    assert found == step and torch.equal(state["weights"], WEIGHTS["weights"])
    assert not list(folder.glob("*.tmp"))


# ---------------------------------------------------------------- saving and loading


def test_round_trip(tmp_path):
    state = {
        "model": OrderedDict(w=torch.randn(3, 4), b=torch.tensor(1.5, dtype=torch.bfloat16)),
        "list": [1, 2.5, "text", None, True, (3, 4)],
        "index": {0: torch.arange(3), 1: float("inf")},
        "empty": {},
    }
    path = save_checkpoint(tmp_path / "new" / "folder", 12, state)
    step, found = load_checkpoint(path.parent)
    assert step == 12 and list_checkpoints(path.parent) == [path]
    a, b = flatten(found), flatten(state)
    assert a.keys() == b.keys()
    for name, value in b.items():
        assert (
            torch.equal(a[name], value) and a[name].dtype == value.dtype
            if isinstance(value, torch.Tensor)
            else a[name] == value
        )


def test_file_is_plain_and_its_name_holds_its_checksum(folder):
    (path,) = list_checkpoints(folder)
    assert torch.load(path, weights_only=True)["step"] == 1
    summed = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
    assert path.stem == f"step-1-{summed[:16]}"


def test_nothing_there(tmp_path):
    assert load_checkpoint(tmp_path) is None and load_checkpoint(tmp_path / "missing") is None


def test_newest_by_number_in_whatever_order_they_were_saved(tmp_path):
    for step in (97_500, 100_000, 9, 95_000):
        save_checkpoint(tmp_path, step, {"step": step}, keep=10)
    assert [torch.load(p, weights_only=True)["step"] for p in list_checkpoints(tmp_path)] == [
        9,
        95_000,
        97_500,
        100_000,
    ]
    assert load_checkpoint(tmp_path) == (100_000, {"step": 100_000})


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_keep(tmp_path, keep):
    for step in (8, 9, 10, 11):
        save_checkpoint(tmp_path, step, WEIGHTS, keep=keep)
    assert [int(p.name.split("-")[1]) for p in list_checkpoints(tmp_path)] == [8, 9, 10, 11][-keep:]
    assert len(list(tmp_path.iterdir())) == keep


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "make it writable"),
        (errno.EACCES, "make it writable"),
        (errno.ENOTDIR, "move away the file that is in its place"),
        (errno.EIO, "check the path and the disk"),
    ],
)
def test_the_advice_fits_what_the_system_says(tmp_path, monkeypatch, number, advice):
    def refuse(path, payload):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoints, "write_synced", refuse)
    message = rf"\({os.strerror(number)}\): {advice} or choose another folder"
    with pytest.raises(CfvaeError, match=message):
        save_checkpoint(tmp_path, 1, WEIGHTS)


@pytest.mark.parametrize("step", [-1, 1.5, "1", None, True])
def test_a_step_is_counted(tmp_path, step):
    with pytest.raises(CfvaeError, match="step is .*: a whole number from 0 is needed"):
        save_checkpoint(tmp_path, step, {})
    assert not list(tmp_path.iterdir())


def test_a_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CfvaeError, match="the folder is ''"):
        save_checkpoint("", 1, {})
    assert not list(tmp_path.iterdir())


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(CfvaeError, match="keep is 0"):
        save_checkpoint(tmp_path, 1, WEIGHTS, keep=0)
    with pytest.raises(CfvaeError, match="keep is '2'"):
        save_checkpoint(tmp_path, 1, WEIGHTS, keep="2")


FOREIGN = (
    "log.jsonl",
    "step-1.png",
    "model.pt",
    "stepwise-1.pt",
    "step-1-mine.pt",
    "step-2 copy.pt",
    "step-2-0123456789abcdef copy.pt",
    "step-3.pt.mine.tmp",
)


def test_only_checkpoints_are_deleted(tmp_path):
    others = [tmp_path / name for name in FOREIGN]
    for other in others:
        other.write_text("mine")
    for step in range(5):
        save_checkpoint(tmp_path, step, WEIGHTS, keep=1)
    assert all(other.read_text() == "mine" for other in others) and len(list_checkpoints(tmp_path)) == 1


@pytest.mark.parametrize("value", [np.float64(1), np.zeros(3), Path("x"), {1, 2}, print, TrainingConfig()])
def test_what_could_not_be_read_back_is_not_saved(folder, value):
    with pytest.raises(CfvaeError, match=r"state\.a\.0 is a .* cannot hold"):
        save_checkpoint(folder, 2, {"a": [value]})
    assert_intact(folder)


# ---------------------------------------------------------------- one file


@pytest.mark.parametrize("payload", [b"new", memoryview(b"new"), b""], ids=["bytes", "view", "empty"])
def test_write_synced_replaces_what_was_there(tmp_path, payload):
    path = tmp_path / "note.json"
    for _ in range(2):
        write_synced(str(path), payload)
        assert path.read_bytes() == bytes(payload) and list(tmp_path.iterdir()) == [path]
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode  # whoever may read other files may read this one


def test_write_synced_takes_a_new_name_aside_each_time(tmp_path, monkeypatch):
    sources = []
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (sources.append(Path(a)), rename(a, b)))
    for _ in range(3):
        write_synced(tmp_path / "note", b"text")
    assert len(set(sources)) == 3 and {path.parent for path in sources} == {tmp_path}


@pytest.mark.parametrize("stage", ["open", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_write_synced_fails_without_a_trace(tmp_path, monkeypatch, stage, error):
    def fail(*arguments):
        raise error

    path = tmp_path / "note"
    write_synced(path, b"old")
    if stage == "open":
        monkeypatch.setattr(checkpoints, "open", fail, raising=False)
    else:
        monkeypatch.setattr(os, stage, fail)
    with pytest.raises(type(error)) as raised:
        write_synced(path, b"new")
    monkeypatch.undo()
    assert getattr(raised.value, "filename", str(path)) == str(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_write_synced_needs_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_synced(tmp_path / "missing" / "note", b"text")
    with pytest.raises(TypeError):
        write_synced(tmp_path / "note", "text")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- faults while saving


class Failing:
    "A system call that fails at its n-th use, and works otherwise."

    def __init__(self, call, at=1):
        self.call, self.left = call, at

    def __call__(self, *arguments, **options):
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.call(*arguments, **options)


class HalfWritten:
    "An open file on a disk that becomes full in the middle of the write."

    def __init__(self, path, mode):
        self.file = open(path, mode)  # noqa: SIM115

    def write(self, payload):
        self.file.write(payload[: len(payload) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


@pytest.mark.parametrize("stage", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("keep", [1, 2])
def test_failure_leaves_the_one_before(folder, monkeypatch, stage, keep):
    if stage in ("open", "write"):
        monkeypatch.setattr(
            checkpoints, "open", Failing(open) if stage == "open" else HalfWritten, raising=False
        )
    else:
        monkeypatch.setattr(os, stage, Failing(getattr(os, stage)))
    with pytest.raises(CfvaeError, match=f"{re.escape(str(folder))}.*No space left"):
        save_checkpoint(folder, 2, WEIGHTS, keep=keep)
    monkeypatch.undo()
    assert_intact(folder)
    save_checkpoint(folder, 2, WEIGHTS)
    assert_intact(folder, step=2)


def test_failing_folder_sync_deletes_nothing(folder, monkeypatch):
    monkeypatch.setattr(os, "fsync", Failing(os.fsync, at=2))
    with pytest.raises(CfvaeError, match="No space left"):
        save_checkpoint(folder, 2, WEIGHTS, keep=1)
    assert len(list_checkpoints(folder)) == 2
    assert_intact(folder, step=2)


def test_content_reaches_the_disk_before_the_name_and_the_name_before_deletion(folder, monkeypatch):
    calls = []
    for name in ("fsync", "replace", "unlink"):
        monkeypatch.setattr(
            os,
            name,
            lambda *a, call=getattr(os, name), name=name, **k: (calls.append(name), call(*a, **k))[1],
        )
    monkeypatch.setattr(Path, "unlink", lambda path, **options: os.unlink(path))
    save_checkpoint(folder, 2, WEIGHTS, keep=1)
    assert calls == ["fsync", "replace", "fsync", "unlink"]


def test_interrupted_save_leaves_nothing_half_written(folder, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, 2, WEIGHTS)
    assert_intact(folder)


@contextlib.contextmanager
def mounted(path: Path, options: str):
    path.mkdir()
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root on Linux")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True).returncode:
        pytest.skip("this system does not allow mounting a small disk")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_disk_that_is_really_full(tmp_path):
    with mounted(tmp_path / "disk", "size=128k") as disk:
        save_checkpoint(disk / "run", 1, WEIGHTS)
        with pytest.raises(CfvaeError, match="disk/run.*No space left"):
            save_checkpoint(disk / "run", 2, {"weights": torch.zeros(50_000)})
        assert_intact(disk / "run")
        save_checkpoint(disk / "run", 3, WEIGHTS)
        assert_intact(disk / "run", step=3)


def test_read_only_folder(tmp_path):
    with mounted(tmp_path / "disk", "size=128k") as disk:
        save_checkpoint(disk, 1, WEIGHTS)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(CfvaeError, match=f"{disk}.*Read-only"):
            save_checkpoint(disk, 2, WEIGHTS)
        assert_intact(disk)


def test_folder_that_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("not a folder")
    for attempt in (lambda: save_checkpoint(path, 1, WEIGHTS), lambda: load_checkpoint(path)):
        with pytest.raises(CfvaeError, match=re.escape(str(path))):
            attempt()
    assert path.read_text() == "not a folder"


def killed_at_line(number: int, report: Path, action, *arguments) -> None:
    "Run `action`, and SIGKILL this process at the given line of checkpoints.py; write how many there were."
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if Path(frame.f_code.co_filename).name != "checkpoints.py":
            return None
        if event == "line":
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    action(*arguments)
    sys.settrace(None)
    report.write_text(str(count))


def kill_saves(folder: Path) -> None:
    "Fork once for each line that saving executes and die at that line; note which step is found afterwards."
    torch.set_num_threads(1)
    steps = []
    for number in itertools.count(1):
        run = folder / f"{number}"
        save_checkpoint(run, 1, WEIGHTS)
        child = os.fork()
        if not child:
            killed_at_line(number, folder / "lines", save_checkpoint, run, 2, WEIGHTS, 1)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break  # the save was complete before that line
        with no_warnings():
            steps.append(load_checkpoint(run)[0])
        save_checkpoint(run, 3, WEIGHTS, keep=1)
        assert_intact(run, step=3)
        assert len(list(run.iterdir())) == 1  # nothing of the killed save is left
    (folder / "steps").write_text(json.dumps(steps))


def test_killed_at_every_line_of_a_save(tmp_path):
    assert in_child(kill_saves, tmp_path) == 0
    steps = json.loads((tmp_path / "steps").read_text())
    assert steps == sorted(steps) and set(steps) == {1, 2} and len(steps) > 20


# ---------------------------------------------------------------- damage and strangers


def flip_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
    "truncated": lambda c: c[: len(c) // 2],
    "one byte short": lambda c: c[:-1],
    "longer": lambda c: c + b"\0",
    "bit flipped": flip_bit,
    "empty": lambda c: b"",
    "zeros": lambda c: bytes(len(c)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named_and_the_one_before_used(folder, damage):
    newest = save_checkpoint(folder, 2, {"weights": -WEIGHTS["weights"]})
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match=re.escape(newest.name)):
        step, state = load_checkpoint(folder)
    assert step == 1 and torch.equal(state["weights"], WEIGHTS["weights"])
    list_checkpoints(folder)[0].write_bytes(b"")
    with (
        pytest.warns(UserWarning),
        pytest.raises(CfvaeError, match=f"all 2 checkpoints in {re.escape(str(folder))}"),
    ):
        load_checkpoint(folder)


def test_damaged_step_is_replaced_when_saved_again(folder):
    good = save_checkpoint(folder, 2, WEIGHTS)
    good.rename(folder / "step-2-0123456789abcdef.pt")
    with pytest.warns(UserWarning, match="0123456789abcdef"):
        assert load_checkpoint(folder)[0] == 1
    save_checkpoint(folder, 2, WEIGHTS)
    assert [p.name for p in list_checkpoints(folder)][1:] == [good.name]
    assert_intact(folder, step=2)


def test_the_file_just_written_stays_even_if_a_damaged_one_has_a_higher_number(tmp_path):
    save_checkpoint(tmp_path, 9, WEIGHTS).write_bytes(b"damaged")
    save_checkpoint(tmp_path, 5, WEIGHTS, keep=1)
    with pytest.warns(UserWarning, match="step-9"):
        assert load_checkpoint(tmp_path)[0] == 5


def test_unfinished_file_is_never_read_and_goes_with_the_next_save(folder):
    unfinished = folder / "step-2-0123456789abcdef.pt.0123456789abcdef.tmp"
    unfinished.write_bytes(b"half a checkpoint")
    other = folder / "notes.tmp"
    other.write_text("mine")
    with no_warnings():
        assert load_checkpoint(folder)[0] == 1
    save_checkpoint(folder, 2, WEIGHTS)
    assert other.read_text() == "mine"
    other.unlink()
    assert_intact(folder, step=2)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def plant(folder: Path, payload, step: int = 9) -> Path:
    "A file with a right name and a right checksum, but of somebody else's making."
    path = folder / "made"
    torch.save(payload, path)
    return path.rename(folder / f"step-{step}-{checkpoints._checksum(path.read_bytes())}.pt")


def test_malicious_pickle_only_raises(folder, tmp_path):
    prey = tmp_path / "prey"
    planted = plant(folder, {"format": checkpoints._FORMAT, "version": 1, "step": 9, "state": Trap(prey)})
    with pytest.raises(
        CfvaeError, match=f"{re.escape(planted.name)} is not a checkpoint.*nothing in it was run"
    ):
        load_checkpoint(folder)
    assert not prey.exists()
    torch.load(planted, weights_only=False)
    assert prey.exists()  # the trap was live


@pytest.mark.parametrize(
    "payload, complaint",
    [
        ({"weights": torch.ones(2)}, "not a checkpoint of this package"),
        (torch.ones(2), "not a checkpoint of this package"),
        (
            {"format": "cfvae checkpoint", "version": 2, "step": 9, "state": {}},
            "has format version 2, this code reads 1",
        ),
        ({"format": "cfvae checkpoint", "step": 9, "state": {}}, "has format version None"),
        ({"format": "cfvae checkpoint", "version": 1, "state": {}}, "not a checkpoint of this package"),
        ({"format": "cfvae checkpoint", "version": 1, "step": 9}, "not a checkpoint of this package"),
        (
            {"format": "cfvae checkpoint", "version": 1, "step": 9, "state": [1]},
            "not a checkpoint of this package",
        ),
    ],
)
def test_strangers(folder, payload, complaint):
    planted = plant(folder, payload)
    with pytest.raises(CfvaeError, match=f"{planted.name} (is )?{complaint}"):
        load_checkpoint(folder)


def test_not_a_torch_file_at_all(folder):
    text = b"a text that somebody saved under a checkpoint's name"
    (folder / f"step-9-{checkpoints._checksum(text)}.pt").write_bytes(text)
    with pytest.raises(CfvaeError, match="step-9.*is not a checkpoint"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "found, lines",
    [
        ({"a": torch.ones(2, 3), "b": [1, 2], "c": {}}, []),
        ({"a": torch.ones(2, 3), "b": [7, 8], "c": {"anything": torch.ones(1)}}, []),
        ({"a": torch.ones(3, 2), "b": [1, 2], "c": {}}, ["a has shape (3, 2) instead of (2, 3)"]),
        ({"a": torch.ones(2, 3), "b": [1, 2, 3], "c": {}}, ["b.2 is not part of this run"]),
        ({"a": torch.ones(2, 3), "b": [1], "c": {}}, ["b.1 is missing"]),
        ({"b": [1, 2], "c": {}, "d": 0}, ["a is missing", "d is not part of this run"]),
        ({"a": 1, "b": [1, 2], "c": {}}, ["a is a int instead of a Tensor"]),
        ({"a": torch.ones(2, 3), "b": 5, "c": {}}, ["b is a int instead of a list"]),
    ],
)
def test_differences(found, lines):
    assert differences({"a": torch.zeros(2, 3), "b": [3, 4], "c": {}}, found) == lines


# ---------------------------------------------------------------- the lesson


NOTEBOOK = Path(__file__).parents[2] / "nbs" / "03b_checkpoints.ipynb"


def test_no_private_paths_in_the_stored_outputs():
    outputs = json.dumps(
        [cell.get("outputs") for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]]
    )
    assert not re.search(r"/(?:tmp|home|root)/|ipykernel_\d| at 0x[0-9a-f]{6}", outputs)
