"""`cynosure summary`: the figures of a run again, from its stored tokens."""

from pathlib import Path
from typing import Annotated

import typer

from cynosure.cli import common


def summary(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder that score --out made.", show_default=False)],
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Show a run's figures again, from its tokens.

    Everything is made anew from what score --out has stored, without the model.
    """
    from cynosure.cli import tables
    from cynosure.measure import open_run

    common.show_notes(quiet)
    scores = open_run(run)
    if format == "json":
        common.print_json(scores.to_json())
    else:
        tables.show(scores)
    common.note(scores.notes, quiet)
