"""Printing that cannot end a run: its reader may have left, its terminal be gone, its alphabet be small."""

import sys
import typing
from pathlib import Path


class Forgiving:
    """A text stream that never fails. What cannot be written is dropped; characters that its encoding lacks
    are written as their numbers (`\\xe9`)."""

    def __init__(
        self,
        stream: typing.TextIO | None,  # None: it was closed before the process began
    ) -> None:
        self.stream = stream
        self.failure: OSError | ValueError | None = None  # the first thing that went wrong

    def write(
        self,
        text: str,  # what to write, or to drop
    ) -> int:
        "Write if possible; counts all of the text as written."
        if self.stream is not None:
            try:
                self._write(self.stream, text)
            except (OSError, ValueError) as error:  # ValueError: closed
                self.failure = self.failure or error
        return len(text)

    @staticmethod
    def _write(stream: typing.TextIO, text: str) -> None:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            known = text.encode(stream.encoding, "backslashreplace")
            stream.write(known.decode(stream.encoding))

    def flush(self) -> None:
        "Send what is waiting, if possible."
        if self.stream is not None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self.failure = self.failure or error

    def isatty(self) -> bool:
        "Whether somebody may be watching."
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:
            return False

    def __getattr__(self, name: str) -> typing.Any:
        return getattr(self.stream, name)


def as_argument(
    path: str | Path,  # to be typed after a command
) -> str:
    "The path in a form that no command takes for an option: before a dash stands ./"
    return f"./{path}" if str(path).startswith("-") else str(path)


def say(
    text: str,  # a line
) -> None:
    "Print a line at once, or go on without: a run does not end because nobody reads what it says."
    print(text, file=typing.cast(typing.TextIO, Forgiving(sys.stdout)), flush=True)
