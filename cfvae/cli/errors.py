"""What the user sees in place of a trace: an exit code, and a message that names the way out."""

import errno
import os
import sys
import threading
from collections.abc import Sequence
from typing import TextIO

import typer

from ..files.names import printable

# exit codes: 0 done, 129 and 143 ended by SIGHUP and SIGTERM, and
DEFECT = 1  # of ours, to be reported
UNREAD = 1  # as other programs written in Python have it
MISTAKE = 2  # which the user can mend
INTERRUPTED = 130  # Ctrl-C: 128 and the signal's number, as shells have it

MOST_LINES = 10  # of a message
MOST_CHARACTERS = 800  # of a line
_NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", None))
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


def refuse_empty(arguments: Sequence[str]) -> None:
    """Raises a usage error where an argument is empty, as a variable in a script may be.

    The path of an empty text would be the current folder, and no other argument means anything when empty."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, assigned, value = argument.partition("=")
        if not argument.strip():
            name = before if before.startswith("--") else "an argument"
        elif option.startswith("--") and assigned and not value.strip():
            name = option
        else:
            continue
        raise typer.BadParameter(f"{name} is empty: give it a value, or leave it out")


def refuse_unknown_bytes(arguments: Sequence[str]) -> None:
    """Raises a usage error where an argument is no text in UTF-8, as a name in another alphabet may be.

    Python keeps such bytes as they are, but models and recipes cannot be written under them."""
    for argument in arguments:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError:
            way_out = "rename it, or set PYTHONUTF8=1 if it is text"
            raise typer.BadParameter(f"{argument!a} is no text in UTF-8: {way_out}") from None


def readable(message: str) -> str:
    """A message as a terminal should show it, whatever names and values are in it.

    Control characters are escaped; of very many lines, and of a very long one, the middle is left out, since
    the end says what to do."""
    lines = message.splitlines()
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 2], "...", lines[-1]]
    shown = []
    for line in map(printable, lines):
        half = MOST_CHARACTERS // 2
        shown.append(line if len(line) <= MOST_CHARACTERS else f"{line[:half]} ... {line[-half:]}")
    return "\n".join(shown)


def explain(error: BaseException) -> tuple[int, str]:
    "Exit code and message for an exception."
    code, message = _explain(error)
    return code, readable(message)


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, (
            "interrupted: it was not finished, and what was written before is still there;\n"
            "give the same command again, with an empty folder where it fills one"
        )
    if isinstance(error, typer.TyperException):
        return MISTAKE, _explain_usage(error)
    if _is_out_of_memory(error):
        return MISTAKE, (
            "out of memory: take fewer images (shapes:n=10000), or fewer at once "
            "(train: --set batch_size=16, sample: --batch-size 8, reconstruct: --n 8),\n"
            "or train every batch in parts (--set accumulate=4), which a run that has begun allows too, "
            "with --resume"
        )
    if isinstance(error, OSError):
        return MISTAKE, _explain_file(error)
    if type(error).__name__ == "SafetensorError":  # by name, as above
        return MISTAKE, f"a model cannot be read or written ({error}): check its file and the disk"

    from ..core import CfvaeError  # not at the top: it imports torch

    if isinstance(error, CfvaeError):
        return MISTAKE, str(error)
    if isinstance(error, Warning):
        return MISTAKE, f"{error}\nThis was meant as a warning: PYTHONWARNINGS, or -W, makes it an error"
    summary = " ".join(str(error).split())[:300]
    please = "This should not happen: please report it, with what --debug shows"
    return DEFECT, f"{type(error).__name__}: {summary}\n{please}"


def explain_lost_output(failure: OSError | ValueError) -> int:
    "Exit code where all was done but what was said about it got lost; a message, unless its reader left."
    if isinstance(failure, (ConnectionError, ValueError)) or failure.errno == errno.EIO:
        return UNREAD
    print(f"error: standard output: {_explain_file(failure)}", file=sys.stderr)
    return MISTAKE


def _explain_usage(error: typer.TyperException) -> str:
    "A command line that cannot be read: what is wrong with it, and which help to ask."
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "cfvae"
    message = " ".join(error.format_message().split())
    return f"{message}\nSee {command} --help"


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    of_the_gpu = type(error).__name__ == "OutOfMemoryError"  # by name, as torch may not be imported
    return of_the_gpu or "can't allocate memory" in str(error)


def _explain_file(error: OSError) -> str:
    "A system error as one line: the file, what is wrong, the way out."
    if error.errno in _NO_SPACE:
        way_out = "free some space, or write to another disk"
    elif error.errno == errno.EFBIG:
        way_out = "write less, or raise the limit on the size of a file (ulimit -f)"
    elif error.errno in _NO_PERMISSION:
        way_out = "choose a place where you have permission"
    else:
        way_out = "check the path"

    reason = f"{error.strerror or error}: {way_out}"
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename else reason


def show_thread_failure(failure: threading.ExceptHookArgs) -> None:
    "One line in place of a trace, for `threading.excepthook`: who waits for the thread hears of it, too."
    print(f"warning: {readable(f'{failure.exc_type.__name__}: {failure.exc_value}')}", file=sys.stderr)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    "A warning as one line on the error stream, in place of `warnings.showwarning`."
    print(f"warning: {readable(str(message))}", file=sys.stderr)
