"""What the lessons built, as commands: train, look inside, draw, and never lose a run.

`main` runs one command; `commands` lists them, `options` their options; `errors` says what the user sees
when something is wrong. The work of a command is in the module that it imports when it is called."""

import contextlib
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import TextIO, cast

import typer

from ..runs.output import Forgiving
from . import commands, errors

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.callback()(commands.cfvae)
for _command in (  # in the order of the help
    commands.presets,
    commands.train,
    commands.tune,
    commands.info,
    commands.report,
    commands.evaluate,
    commands.sample,
    commands.reconstruct,
    commands.encode,
    commands.demo,
    commands.bench,
    commands.compare,
    commands.train_features,
    commands.import_weights,
    commands.push,
    commands.export_onnx,
):
    app.command()(_command)


def _expand_home(argument: str) -> str:
    "With ~ as the home folder, which a shell leaves as it is in --out=~/x and in quotation marks."
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{equals}{os.path.expanduser(value)}"


def _dispatch(arguments: list[str]) -> int:
    "Read the command line and call the command; every exception comes through."
    errors.refuse_empty(arguments)
    errors.refuse_unknown_bytes(arguments)
    arguments = [_expand_home(argument) for argument in arguments]
    command = typer.main.get_command(app)
    try:
        with command.make_context("cfvae", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return 0


@contextlib.contextmanager
def _forgiving_streams() -> Iterator[tuple[Forgiving, Forgiving]]:
    "Within the block no print fails: what a command does is not cut off because nobody reads about it."
    earlier = sys.stdout, sys.stderr
    # a closed stream gets a file, so that no other file takes its number
    out, err = (Forgiving(stream or open(os.devnull, "w")) for stream in earlier)
    sys.stdout = cast(TextIO, out)
    sys.stderr = cast(TextIO, err)
    try:
        yield out, err
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = earlier


@contextlib.contextmanager
def _short_remarks(debug: bool) -> Iterator[None]:
    "Within the block warnings are one line, and so are the failures of threads unless traces are asked for."
    earlier_hook = threading.excepthook
    with warnings.catch_warnings():
        warnings.showwarning = errors.show_warning
        if not debug:
            threading.excepthook = errors.show_thread_failure
        try:
            yield
        finally:
            threading.excepthook = earlier_hook


def _run(arguments: list[str], debug: bool) -> int:
    "Run one command and explain what goes wrong; the exit code."
    with _short_remarks(debug):
        try:
            return _dispatch(arguments)
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                traceback.print_exc()
            code, message = errors.explain(error)
            print(f"error: {message}", file=sys.stderr)
            return code


def _discard_rest(stream: Forgiving) -> None:
    "Let what a failed stream still holds go nowhere, so that Python does not try again as it ends."
    if stream.failure is not None:
        with contextlib.suppress(OSError, ValueError):  # it may not be a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def main(
    arguments: Sequence[str] | None = None,  # what stands after `cfvae`; None: this process's own
) -> int:
    """Run one command. Returns the exit code: 0 done, 2 an error the user can mend, 129 SIGHUP, 130 Ctrl-C,
    143 SIGTERM, 1 a defect, or nobody read what was said."""
    os.environ["MPLBACKEND"] = "agg"  # no command opens a window, and what is set may not be installed
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments  # wherever it stands
    arguments = [argument for argument in arguments if argument != "--debug"]

    with _forgiving_streams() as (out, err):
        code = _run(arguments or ["--help"], debug)
        out.flush()
        if code == 0 and out.failure is not None:
            code = errors.explain_lost_output(out.failure)
    _discard_rest(out)
    _discard_rest(err)
    return code
