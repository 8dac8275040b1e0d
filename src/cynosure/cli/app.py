"""The command line: its commands, and how errors are reported."""

import logging
import os
import sys
import traceback
import warnings
from contextlib import suppress
from typing import Annotated, Any

import typer

from cynosure import __version__
from cynosure.cli import check, common, compare, info, predict, report, score, summary, train

app = typer.Typer(
    name="cynosure",
    help="The cross-entropy of language models: computed exactly, measured honestly.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (predict, score, summary, compare, report, train, check, info):
    command = getattr(module, module.__name__.rpartition(".")[2])
    app.command(epilog=common.shown_examples(module.EXAMPLES))(command)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cynosure {__version__}")
        raise typer.Exit


@app.callback()
def cynosure(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The cross-entropy of language models: computed exactly, measured honestly."""


def main(app: typer.Typer = app, name: str = "cynosure") -> None:
    """Run the command line `app`, which users start as `name`.

    Exit status: 0 for success, 1 if a gate or check failed or training diverged, 2 for any other error.
    """
    common.settings = common.Settings()
    logging.getLogger("cynosure").setLevel(logging.INFO)
    warnings.showwarning = show_warning
    try:
        status = invoke(app, name)
        sys.stdout.flush()  # here, where an error can still be reported in one line
    except ModuleNotFoundError:
        raise  # a missing extra: the entry point says which
    except SystemExit as stop:
        drop_output()
        if stop.code == 1 or isinstance(stop.code, str):  # raised by a library; we keep 1 for failed checks
            common.complain(f"a library ended the process: {stop.code}")
            sys.exit(2)
        raise
    except BrokenPipeError:  # the reader closed the pipe: not our failure, but a failed gate still counts
        drop_output()
        sys.exit(1 if common.settings.failed else 0)
    except KeyboardInterrupt:
        if common.leads():
            common.complain(interrupted())
        sys.exit(130)
    except BaseException as error:  # compiled libraries raise classes that do not derive from Exception
        drop_output()
        with suppress(OSError):  # stderr may be closed
            tell(error)
        sys.exit(2)
    sys.exit(status)


def interrupted() -> str:
    """Return the message of an interrupted command: whether and how to resume it."""
    kept = common.settings.kept_in
    if kept is None:
        return "interrupted"
    if not any(kept.glob(common.settings.kept_files)):
        return "interrupted before anything was saved"
    return f"interrupted; the same command{common.settings.way_on} resumes from {kept}"


def tell(error: BaseException) -> None:
    """Report an error on stderr, with its traceback under --debug."""
    if common.settings.debug:
        for line in traceback.format_exc().splitlines():
            common.say_in_one_line(line)
    if type(error).__name__ == "NoArgsIsHelpError":  # no arguments were given: the error is the help text
        print(error, file=sys.stderr, flush=True)
    else:
        common.complain(common.one_line(error))


def invoke(app: typer.Typer, name: str) -> int:
    """Run the command on `sys.argv` and return its exit status.

    We do not use typer's own `main`: it reports an EOFError as an interruption and a broken pipe as status 1.
    """
    command = typer.main.get_command(app)
    if f"_{name.upper()}_COMPLETE" in os.environ:  # shell completion
        command.main(prog_name=name)
    try:
        with command.make_context(name, sys.argv[1:]) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    return 0


def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Show a warning of any library as one line."""
    common.say(f"cynosure: {category.__name__}: {message}")


def drop_output() -> None:
    """Discard buffered output: the interpreter would try to write it again at exit."""
    with suppress(OSError):  # stdout may not be a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
