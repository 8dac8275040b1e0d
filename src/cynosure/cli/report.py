"""`cynosure report`: a run, or two runs compared, as one HTML page."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cynosure.cli import common
from cynosure.system.escapes import visible
from cynosure.system.panics import is_failure

EXAMPLES = ("cynosure report run --open", "cynosure report run-a run-b")

NoReport = Annotated[bool, typer.Option("--no-report", help="Leave report.html out.")]


def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Directory written by score --out or by train.", show_default=False),
    ],
    other: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN2]",
            help="Scored run of the same texts to compare with RUN, the baseline. [default: none]",
            show_default=False,
        ),
    ] = None,
    open: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File for the report. [default: RUN/report.html, or RUN2/report-vs-RUN.html]",
            show_default=False,
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Directory for every chart as SVG, PNG and CSV, and a summary as JSON and Markdown. [default: none]",
            show_default=False,
        ),
    ] = None,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Write the report of a run, or of two compared, as one HTML page.

    The page shows the metrics, the loss of each token in the text, where the loss is, and calibration; of a training,
    its curves and samples. It loads nothing from elsewhere. The model is not needed.
    """
    from cynosure import reporting

    common.show_notes(quiet)
    path = reporting.report(run, other, out=out, figures=figures)
    typer.echo(f"report: {visible(str(path))}")
    if open:
        typer.launch(path.resolve().as_uri())


def add_report(make: Callable[[], Path], quiet: bool) -> None:
    """Make the report at the end of another command, and say where it is; or why there is none: the work is done."""
    try:
        path = make()
    except BaseException as error:  # compiled libraries raise classes that do not derive from Exception
        if not is_failure(error):
            raise
        common.say(f"cynosure: note: there is no report: {common.one_line(error)}")
    else:
        common.note([f"the report is {path}"], quiet)
