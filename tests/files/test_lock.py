"The lock of a folder: refused while it is held, free when its process ends, however it ends."

import contextlib
import errno
import fcntl
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from cfvae.core import CfvaeError
from cfvae.files.lock import LOCK_FILE, OWNER_FILE, FolderLock

# Children come from a server that has imported everything once: cheap, and without inherited threads.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["cfvae.files.lock"])


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def refused(folder: Path) -> str:
    "The message for a second process, or a second run in this one."
    with pytest.raises(CfvaeError, match=re.escape(str(folder))) as caught:
        FolderLock(folder).__enter__()
    return str(caught.value)


def hold_lock(folder: Path, report: Path, fork_a_child: bool) -> None:
    with FolderLock(folder):
        child = os.fork() if fork_a_child else 1
        if child:
            report.with_suffix(".new").write_text(str(child))
            os.rename(report.with_suffix(".new"), report)
        time.sleep(300)


@pytest.mark.parametrize("fork_a_child", [False, True], ids=["alone", "with a forked child that lives on"])
def test_refused_while_held_and_free_after_kill(tmp_path, fork_a_child):
    report = tmp_path / "report"
    process = context.Process(target=hold_lock, args=(tmp_path, report, fork_a_child))
    process.start()
    wait_for(report.exists)
    try:
        assert f"{tmp_path} is in use by another run (process {process.pid})" in refused(tmp_path)
        process.kill()
        process.join()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with FolderLock(tmp_path):
                assert (tmp_path / OWNER_FILE).read_text() == f"{os.getpid()}\n"
    finally:
        if fork_a_child:
            os.kill(int(report.read_text()), signal.SIGKILL)
    assert (tmp_path / LOCK_FILE).exists() and not (tmp_path / OWNER_FILE).exists()


def test_a_forked_child_that_leaves_the_block_takes_nothing_with_it(tmp_path):
    with FolderLock(tmp_path) as lock:
        child = os.fork()
        if not child:
            lock.__exit__(None, None, None)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert str(os.getpid()) in refused(tmp_path)


def test_in_the_same_process(tmp_path):
    with FolderLock(tmp_path / "a"), FolderLock(tmp_path / "b"):
        assert f"process {os.getpid()}" in refused(tmp_path / "a")
    first = FolderLock(tmp_path / "a")
    with pytest.raises(KeyError), first:
        raise KeyError
    with FolderLock(tmp_path / "a"):
        pass
    with first:  # leaving the block releases it, and it can be used again
        refused(tmp_path / "a")


def test_a_holder_who_left_no_number(tmp_path):
    with FolderLock(tmp_path):
        (tmp_path / OWNER_FILE).unlink()
        assert "is in use by another run: wait for it" in refused(tmp_path)


def test_a_number_left_behind_locks_nothing(tmp_path):
    (tmp_path / LOCK_FILE).touch()
    (tmp_path / OWNER_FILE).write_text("1\n")
    with FolderLock(tmp_path):
        assert "(process 1)" not in refused(tmp_path)


@pytest.mark.parametrize("name", [LOCK_FILE, OWNER_FILE])
def test_a_file_of_that_name_that_is_somebodys(tmp_path, name):
    (tmp_path / name).write_text("notes")
    assert f"{name} that cfvae did not write" in refused(tmp_path)
    assert (tmp_path / name).read_text() == "notes"


@pytest.mark.parametrize("rank", ["1", "x"])
def test_whatever_a_launcher_left_behind_the_lock_holds(tmp_path, monkeypatch, rank):
    with FolderLock(tmp_path):
        monkeypatch.setenv("RANK", rank)
        refused(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_where_nothing_can_be_locked_the_run_goes_on_with_a_warning(tmp_path, monkeypatch, number):
    def no_flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_flock)
    with pytest.warns(UserWarning, match=f"{re.escape(str(tmp_path))} cannot be locked"):
        with FolderLock(tmp_path):
            pass


def test_folder_that_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("not a folder")
    assert "cannot use" in refused(path)
    assert path.read_text() == "not a folder"


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


def test_read_only_folder(tmp_path):
    with mounted(tmp_path / "disk", "size=128k") as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert "Read-only" in refused(disk)


def test_a_folder_that_is_not_there_yet_is_made(tmp_path):
    with FolderLock(tmp_path / "runs" / "new"):
        refused(tmp_path / "runs" / "new")


@pytest.mark.parametrize("was_there", [True, False])
def test_what_is_refused_takes_along_only_a_folder_of_its_own(tmp_path, was_there):
    folder = tmp_path / "run"
    if was_there:
        folder.mkdir()
    with pytest.raises(RuntimeError), FolderLock(folder):
        raise RuntimeError("refused")
    assert folder.exists() == was_there
