"""`cynosure summary`: the metrics of a run, from its stored tokens."""

from pathlib import Path
from typing import Annotated

import typer

from cynosure.cli import common

EXAMPLES = ("cynosure summary run", "cynosure summary run --format json")


def summary(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory written by score --out.", show_default=False)],
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Show the metrics of a scored run again.

    Computes all metrics from the per-token losses that score --out stored. The model is not needed.
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
