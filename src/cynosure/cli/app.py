"""The command line as a whole: its verbs, and what becomes of an error."""

import errno
import logging
import os
import sys
import traceback
import warnings
from contextlib import suppress
from typing import Annotated, Any

import typer

from cynosure import __version__
from cynosure.cli import check, common, compare, info, predict, score, summary, train

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

app = typer.Typer(
    name="cynosure",
    help="The cross-entropy of language models: computed exactly, measured honestly.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(predict.predict)
app.command()(score.score)
app.command()(summary.summary)
app.command()(compare.compare)
app.command()(train.train)
app.command()(check.check)
app.command()(info.info)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cynosure {__version__}")
        raise typer.Exit


@app.callback()
def cynosure(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """The cross-entropy of language models: computed exactly, measured honestly."""


def main(app: typer.Typer = app, name: str = "cynosure") -> None:
    """Run a command line, which users start as `name`.

    Exit status: 0 done, 1 a gate or check failed or training diverged, 2 anything else.
    """
    common.settings = common.Settings()
    logging.getLogger("cynosure").setLevel(logging.INFO)
    warnings.showwarning = show_warning
    try:
        status = invoke(app, name)
        sys.stdout.flush()  # here, where an error of it is still said in one line
    except ModuleNotFoundError:
        raise  # a missing extra: the entry says which
    except SystemExit as stop:
        drop_output()
        if stop.code == 1 or isinstance(stop.code, str):  # by a library: 1 is kept for what has failed a check
            common.complain(f"a library ended the process: {stop.code}")
            sys.exit(2)
        raise
    except BrokenPipeError:  # the reader has seen enough: that is no failure, but a failed gate stays one
        drop_output()
        sys.exit(1 if common.settings.failed else 0)
    except KeyboardInterrupt:
        if common.leads():
            common.complain(interrupted())
        sys.exit(130)
    except BaseException as error:  # compiled libraries raise what is no Exception
        drop_output()
        with suppress(OSError):  # where nobody listens
            tell(error)
        sys.exit(2)
    sys.exit(status)


def interrupted() -> str:
    """What is said where a command was interrupted: whether it can go on."""
    kept = common.settings.kept_in
    if kept is None:
        return "interrupted"
    if not any(kept.glob(common.settings.kept_files)):
        return "interrupted before anything was finished: nothing is kept"
    return f"interrupted; the same command{common.settings.way_on} goes on from what is in {kept}"


def tell(error: BaseException) -> None:
    """Say what went wrong on stderr, and where in the program if that was asked for."""
    if common.settings.debug:
        for line in traceback.format_exc().splitlines():
            common.say_in_one_line(line)
    if type(error).__name__ == "NoArgsIsHelpError":  # nothing was asked for: the help itself
        print(error, file=sys.stderr, flush=True)
    else:
        common.complain(one_line(error))


def invoke(app: typer.Typer, name: str) -> int:
    """Run the command that was asked for; its exit status.

    Not by typer's own `main`, which reports an EOFError as an interruption and a broken pipe as status 1.
    """
    command = typer.main.get_command(app)
    if f"_{name.upper()}_COMPLETE" in os.environ:  # a shell asks what may follow
        command.main(prog_name=name)
    try:
        with command.make_context(name, sys.argv[1:]) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    return 0


def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """A warning of any library as a line."""
    common.say(f"cynosure: {category.__name__}: {message}")


def drop_output() -> None:
    """Forget what was not printed yet, for the interpreter would try again at its end."""
    with suppress(OSError):  # where it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def one_line(error: BaseException) -> str:
    """What went wrong and where, in one line; errors that are nobody's input carry their type."""
    if hasattr(error, "format_message"):  # of the command line's own parser
        context = getattr(error, "ctx", None)
        return f"{error.format_message()} (see {context.command_path if context else 'cynosure'} --help)"
    message = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and (error.filename or error.errno in FULL):
        way_out = "; make room, and give the same command again" if error.errno in FULL else ""
        return f"{error.filename or 'standard output'}: {error.strerror.lower()}{way_out}"
    if isinstance(error, UnicodeEncodeError):
        return f"the output cannot be written in {error.encoding}, {error.reason}: set PYTHONIOENCODING=utf-8"
    if isinstance(error, ValueError | OSError):
        return message
    if isinstance(error, MemoryError) or "can't allocate memory" in message:  # torch's, a RuntimeError
        return f"not enough memory: {message or 'an allocation failed'}; close other programs, or give less at once"
    return f"{type(error).__name__}: {message} (--debug shows where)"
