"""What the lessons built, as commands: train, look inside, draw, and never lose a run.

`main` runs one command; `commands` lists them, `options` their options; `errors` says what the user sees
when something is wrong. The work of a command is in the module that it imports when it is called."""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence

import typer

from . import commands, errors

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.callback()(commands.cfvae)
for _command in (  # in the order of the help
    commands.presets,
    commands.train,
    commands.info,
    commands.report,
    commands.sample,
    commands.reconstruct,
    commands.encode,
    commands.demo,
    commands.bench,
    commands.train_features,
    commands.import_weights,
    commands.push,
    commands.export_onnx,
):
    app.command()(_command)


def _dispatch(arguments: list[str]) -> int:
    "Read the command line and call the command; every exception comes through."
    command = typer.main.get_command(app)
    try:
        with command.make_context("cfvae", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    sys.stdout.flush()
    return 0


def main(
    arguments: Sequence[str] | None = None,  # what stands after `cfvae`; None: this process's own
) -> int:
    """Run one command. Returns the exit code: 0 done, 2 an error the user can mend, 130 Ctrl-C, 143 SIGTERM,
    1 a defect."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments  # wherever it stands
    arguments = [argument for argument in arguments if argument != "--debug"]

    with warnings.catch_warnings():
        warnings.showwarning = errors.show_warning
        try:
            return _dispatch(arguments or ["--help"])
        except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return errors.DEFECT
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                traceback.print_exc()
            code, message = errors.explain(error)
            print(f"error: {message}", file=sys.stderr)
            return code
