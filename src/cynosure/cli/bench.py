"""`cynosure bench`: side by side with every peer that is installed, and with the limit."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="Side by side with every peer that is installed, and with the limit.")

WIDTH = 120  # of tables that go to a file


@app.callback()
def bench() -> None:
    """Side by side with every peer that is installed, and with the limit."""


@app.command()
def loss(
    contestants: Annotated[
        str, typer.Option(help="Names, comma-separated; `all` or e.g. `cynosure,eager,limit`.")
    ] = "all",
    heads: Annotated[str, typer.Option(help="`gemma3-270m`, `smollm2`, `synthetic:VxD`.")] = "gemma3-270m,smollm2",
    dtypes: Annotated[str, typer.Option(help="`float32`, `bfloat16`.")] = "float32,bfloat16",
    tokens: Annotated[str, typer.Option(help="Numbers of tokens; by default each head's own.")] = "",
    runs: Annotated[int, typer.Option(help="Timed runs of each; one for whoever takes over 10 s.")] = 3,
    cutoff: Annotated[float, typer.Option(help="Seconds after which a run is ended.")] = 60.0,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the report here as well.")] = None,
    format: Annotated[Literal["table", "json"], typer.Option(help="What goes to stdout.")] = "table",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Forward and backward of the loss: time, peak memory and errors, beside the peers and the limit.

    Gradients are checked against float64 before anything is timed. The first time inputs are prepared, for minutes.
    Exit status 1 when a check of ours fails.
    """
    from rich.console import Console

    from cynosure.bench.contestants import OURS
    from cynosure.bench.race import Settings, bench_loss, find_contestants
    from cynosure.bench.table import print_report

    try:
        chosen = find_contestants(names(contestants))
        counts = tuple(whole_number("--tokens", name) for name in names(tokens)) or None
        settings = Settings(names(heads), names(dtypes), counts, runs, cutoff_seconds=cutoff)
        if json_path is not None and not json_path.parent.is_dir():
            raise ValueError(f"--json: there is no folder {json_path.parent}")
    except ValueError as error:
        typer.echo(f"cynosure: {error}", err=True)
        raise typer.Exit(2) from None
    with progress(Console(stderr=True), quiet) as say:
        report = bench_loss(settings, chosen, say)
    record = json.dumps(report.to_json(), indent=1)
    if json_path is not None:
        partial = json_path.with_name(f"{json_path.name}.{os.getpid()}.partial")
        partial.write_text(record + "\n")
        partial.replace(json_path)
    if format == "json":
        print(record)
    else:
        print_report(report, Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False))
    if not report.cases:
        typer.echo("cynosure: no head could be prepared", err=True)
        raise typer.Exit(2)
    if not report.green(OURS):
        typer.echo("cynosure: a check of our own gradients is red", err=True)
        raise typer.Exit(1)


def names(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated list, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def whole_number(option: str, text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{option}: {text!r} is not a whole number")
    return int(text)


@contextmanager
def progress(console: "Console", quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A bar with the time left on a terminal, plain lines elsewhere, nothing when quiet."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if quiet or not console.is_terminal:

        def line(done: int, total: int, text: str) -> None:
            if not quiet:
                print(f"[{done}/{total}] {text}", file=sys.stderr, flush=True)

        yield line
        return
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda done, total, text: bar.update(task, completed=done, total=total, description=text)
