"""Independent tasks of a comparison, one after the other or in several processes of one thread each."""

import concurrent.futures
import functools
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import typing
from collections.abc import Callable, Iterable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType

import torch

from ...core import CfvaeError

_Shared = typing.TypeVar("_Shared")
_Item = typing.TypeVar("_Item")

_shared: typing.Any = None  # in a process of a crew: what its tasks begin with


class Crew(typing.Generic[_Shared]):
    """Runs tasks on what they share, `task(shared, item)`, in so many processes; for one, in this process.

    A task writes its result to a place of its own, so that one which was done need not be done again."""

    def __init__(
        self,
        shared: _Shared,  # what every task begins with
        jobs: int,  # tasks at a time
    ) -> None:
        self.shared = shared
        self.pool: concurrent.futures.ProcessPoolExecutor | None = None
        if jobs > 1:
            # through a file: sent to them, it would make them start one after the other
            self.folder = tempfile.TemporaryDirectory()  # nobody else can write to it
            path = Path(self.folder.name) / "shared.pickle"
            path.write_bytes(pickle.dumps(shared))
            context = multiprocessing.get_context("spawn")
            self.pool = concurrent.futures.ProcessPoolExecutor(jobs, context, _begin, (path,))

    def __enter__(self) -> typing.Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            self.folder.cleanup()

    def run(
        self,
        task: Callable[[_Shared, _Item], None],  # a function of a module, or a partial of one
        items: Iterable[_Item],  # what to call it for, the longest first
    ) -> None:
        """All of them; the first error ends it once the tasks under way are done.

        Raises `CfvaeError` where a process was killed."""
        if self.pool is None:
            for item in items:
                task(self.shared, item)
            return
        try:
            futures = [self.pool.submit(_run, functools.partial(task), item) for item in items]
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BrokenProcessPool:
            way_out = "give the same command again, with fewer --jobs; what was done is kept"
            message = "one of the processes was killed, perhaps for want of memory"
            raise CfvaeError(f"{message}: {way_out}") from None


def _begin(path: Path) -> None:
    "In a process of a crew, before its first task."
    global _shared
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a trace
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _shared = pickle.loads(path.read_bytes())


def _end_with_parent() -> None:
    "A process whose parent was killed would wait for tasks for ever."
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(task: Callable[[typing.Any, typing.Any], None], item: typing.Any) -> None:
    task(_shared, item)
