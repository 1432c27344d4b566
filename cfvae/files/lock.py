"""A folder that one process at a time may write to."""

import contextlib
import os
import re
import warnings
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from ..core import CfvaeError, check, check_path

LOCK_FILE = "run.lock"  # stays behind and means nothing; what counts is the system's lock on it
OWNER_FILE = "run.pid"  # the number of the process that holds the lock, only for the message


class FolderLock:
    """Keeps other processes out of a folder while the `with` block and its process last.
    Of several processes of one run only the first may ask for it; a forked child does not keep the lock.
    Raises `CfvaeError` where another process has the folder, or it cannot be written to."""

    def __init__(
        self,
        folder: str | Path,  # any folder; created where it is missing
    ) -> None:
        self.folder = check_path(folder)
        self._lock: FileLock | None = None
        self._made_folder = False
        self._owner = 0  # the process that took the lock: a forked child must not give it back

    def __enter__(self) -> "FolderLock":
        self._refuse_foreign()
        path = self._create_lock_file()
        lock = FileLock(path, blocking=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            raise CfvaeError(self._in_use()) from None
        except OSError as error:
            reason = error.strerror or error
            advice = "make sure that no other run uses it"
            warnings.warn(f"{self.folder} cannot be locked ({reason}): {advice}", stacklevel=2)
        else:
            self._lock = lock
            self._note_owner()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None and self._owner == os.getpid():
            with contextlib.suppress(OSError):
                (self.folder / OWNER_FILE).unlink()  # before the release: afterwards it may be another's
            if kind is not None:
                self._leave_nothing_empty()
            self._lock.release()
        self._lock = None

    def _leave_nothing_empty(self) -> None:
        "What was refused before anything was written leaves no folder behind; one that was there stays."
        with contextlib.suppress(OSError):  # Windows removes no file that is open
            if self._made_folder and [path.name for path in self.folder.iterdir()] == [LOCK_FILE]:
                (self.folder / LOCK_FILE).unlink()
                self.folder.rmdir()

    def _create_lock_file(self) -> Path:
        "The lock file, made where it is missing; so an error afterwards is one of locking, not of writing."
        path = self.folder / LOCK_FILE
        self._made_folder = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            reason = error.strerror or error
            message = f"cannot use {self.folder} ({reason}): choose a folder that you may write to"
            raise CfvaeError(message) from None
        return path

    def _refuse_foreign(self) -> None:
        "Raises `CfvaeError` where the files hold what is not theirs, and so is somebody's."
        for name, content in ((LOCK_FILE, rb""), (OWNER_FILE, rb"\d*\s*")):
            path = self.folder / name
            ours = not path.is_file() or re.fullmatch(content, path.read_bytes()) is not None
            check(ours, f"{self.folder} holds a {name} that cfvae did not write: move it away")

    def _note_owner(self) -> None:
        self._owner = os.getpid()
        with contextlib.suppress(OSError):  # on a full disk: the number is only for the message
            (self.folder / OWNER_FILE).write_text(f"{self._owner}\n", encoding="utf-8")

    def _in_use(self) -> str:
        try:
            owner = (self.folder / OWNER_FILE).read_text(encoding="utf-8").strip()
        except OSError:
            owner = ""
        by = f"another run (process {owner})" if owner else "another run"
        return f"{self.folder} is in use by {by}: wait for it, stop it, or choose another folder"
