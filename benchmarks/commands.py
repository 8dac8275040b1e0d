"""`python -m benchmarks`: cynosure compared with other implementations, and with the limit."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cynosure.cli import common

LINE_SECONDS = 10  # between lines of progress where there is no terminal

app = typer.Typer(
    help="Benchmark against other implementations, and against the limit.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def loss(
    heads: Annotated[str, typer.Option(help="Comma-separated: gemma3-270m, smollm2, synthetic:VxD.")] = (
        "gemma3-270m,smollm2"
    ),
    tokens: Annotated[str, typer.Option(help="Numbers of tokens. [default: each head's own]", show_default=False)] = "",
    dtypes: Annotated[str, typer.Option(help="float32, bfloat16.")] = "float32,bfloat16",
    contestants: Annotated[str, typer.Option(help="all, or some: cynosure,eager,limit...")] = "all",
    runs: Annotated[int, typer.Option(help="Timed runs of each; whoever takes over 10 s has one.")] = 3,
    cutoff: Annotated[float, typer.Option(help="Seconds after which a run is ended.")] = 60.0,
    forward: Annotated[bool, typer.Option("--forward", help="The forward alone, as when a text is scored.")] = False,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report to this file as well.")
    ] = None,
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Time, peak memory and errors of the loss, forward and backward.

    One process for each contestant, their runs interleaved. Gradients are checked against float64 before anything is
    timed: who fails has no figure. The first time, inputs are made from the installed models, which takes minutes. Exit
    status 1 when our own check fails.
    """
    from benchmarks.contestants import OURS
    from benchmarks.race import Settings, bench_loss, find_contestants
    from benchmarks.table import print_report

    common.show_notes(quiet)
    chosen = find_contestants(names(contestants))
    counts = tuple(whole_number("--tokens", name) for name in names(tokens)) or None
    settings = Settings(names(heads), names(dtypes), counts, runs, cutoff_seconds=cutoff, backward=not forward)
    check_folder(json_path)
    with shown_progress(quiet) as say:
        report = bench_loss(settings, chosen, say)
    finish(report, json_path, format, print_report)
    if not report.green(OURS):
        common.complain("a check of our own gradients failed")
        raise typer.Exit(1)


@app.command()
def score(
    models: Annotated[str, typer.Option(help="Comma-separated, of the names that score takes.")] = (
        "smollm2,gemma3-270m"
    ),
    tokens: Annotated[int, typer.Option(help="Tokens of real text.")] = 20_000,
    window: Annotated[int, typer.Option(help="Tokens the model sees at once.")] = 1024,
    dtypes: Annotated[str, typer.Option(help="float32, bfloat16.")] = "float32,bfloat16",
    contestants: Annotated[str, typer.Option(help="all, or some: cynosure,lm-eval,limit...")] = "all",
    runs: Annotated[int, typer.Option(help="Timed runs of each.")] = 3,
    cutoff: Annotated[float, typer.Option(help="Seconds after which a run is ended.")] = 600.0,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report to this file as well.")
    ] = None,
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Tokens a second, peak memory and errors of scoring a text.

    One process for each contestant, their runs interleaved. Everyone's nats are checked first, against float64 from the
    model's own logits: who fails has no figure. Exit status 1 when our own check fails.
    """
    from benchmarks.contestants import OURS
    from benchmarks.race import find_contestants
    from benchmarks.score_race import ScoreSettings, bench_score
    from benchmarks.score_table import print_scores
    from benchmarks.scorers import COMPILED, SCORE_CONTESTANTS

    common.show_notes(quiet)
    chosen = find_contestants(names(contestants), SCORE_CONTESTANTS)
    settings = ScoreSettings(names(models), names(dtypes), tokens, window, runs, cutoff_seconds=cutoff)
    check_folder(json_path)
    with shown_progress(quiet) as say:
        report = bench_score(settings, chosen, say)
    finish(report, json_path, format, print_scores)
    if not (report.green(OURS) and report.green(COMPILED)):
        common.complain("a check of our own nats failed")
        raise typer.Exit(1)


@app.command()
def train(
    models: Annotated[
        str,
        typer.Option(help="Comma-separated, of the names that score takes; or new: small, small:32768 (vocabulary)."),
    ] = "smollm2,gemma3-270m",
    dtypes: Annotated[str, typer.Option(help="float32, bfloat16, autocast.")] = "float32,bfloat16",
    contestants: Annotated[str, typer.Option(help="all, or some: cynosure,transformers,loop,limit.")] = "all",
    rows: Annotated[int, typer.Option(help="Rows of real text a step.")] = 2,
    tokens: Annotated[int, typer.Option(help="Tokens of a row.")] = 512,
    steps: Annotated[int, typer.Option(help="Steps; all but the first are timed.")] = 50,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report to this file as well.")
    ] = None,
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Time, peak memory and loss curve of training by Hugging Face's Trainer, patched and as it is, and by a loop.

    One process for each contestant, their steps interleaved. Curves are held to the same training with an exact head,
    which is run first. Exit status 1 when ours goes farther from it than rounding would.
    """
    from benchmarks.contestants import OURS
    from benchmarks.race import find_contestants
    from benchmarks.train_race import TrainSettings, bench_train
    from benchmarks.train_table import print_training
    from benchmarks.trainers import TRAIN_CONTESTANTS

    common.show_notes(quiet)
    chosen = find_contestants(names(contestants), TRAIN_CONTESTANTS)
    settings = TrainSettings(names(models), names(dtypes), rows, tokens, steps)
    check_folder(json_path)
    with shown_progress(quiet) as say:
        report = bench_train(settings, chosen, say)
    finish(report, json_path, format, print_training)
    if not report.green(OURS):
        common.complain("our own loss curve disagrees")
        raise typer.Exit(1)


@app.command()
def growth(
    dtypes: Annotated[str, typer.Option(help="float32, bfloat16.")] = "float32,bfloat16",
    runs: Annotated[int, typer.Option(help="Timed runs of each size.")] = 5,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write what was measured to this file as well.")
    ] = None,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """How time and memory of our loss grow: 64 to 65,536 tokens, 8,192 to 1,048,576 classes, and a fit of each."""
    from benchmarks.growth import bench_growth, print_growth, to_json
    from cynosure.cli import screen

    common.show_notes(quiet)
    with shown_progress(quiet) as say:
        axes, report = bench_growth(names(dtypes), runs, say)
    put(json_path, to_json(axes, report))
    print_growth(axes, report, screen.stdout())


def finish(report: Any, json_path: Path | None, format: str, show: Callable[..., None]) -> None:
    """Write and print a report; ValueError where nothing could be raced."""
    from cynosure.cli import screen

    put(json_path, report.to_json())
    if format == "json":
        common.print_json(report.to_json())
    else:
        show(report, screen.stdout())
    if not report.cases:
        raise ValueError("nothing could be prepared: " + "; ".join(report.skipped.values()))


def check_folder(json_path: Path | None) -> None:
    """ValueError, before the work is done, where the report could not be written."""
    if json_path is not None and not json_path.parent.is_dir():
        raise ValueError(f"--json: there is no folder {json_path.parent}")


def put(json_path: Path | None, values: Any) -> None:
    """Write a file of JSON, if one is wanted: beside, then renamed."""
    if json_path is not None:
        from cynosure.system.files import write_out

        write_out(json_path, f"{json.dumps(values, indent=1, allow_nan=False)}\n".encode())


def names(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated list, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def whole_number(option: str, text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{option}: {text!r} is not a whole number")
    return int(text)


@contextmanager
def shown_progress(quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A bar with the time left on a terminal, a plain line now and then elsewhere, nothing when quiet."""
    if quiet:
        yield lambda done, total, text: None
    elif sys.stderr.isatty():
        with bar() as say:
            yield say
    else:
        yield lines()


@contextmanager
def bar() -> Iterator[Callable[[int, int, str], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from cynosure.cli.screen import stderr

    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    text = TextColumn("{task.description}", markup=False)
    with Progress(*columns, text, console=stderr(), transient=True) as display:
        task = display.add_task("", total=None)
        yield lambda done, total, text: display.update(task, completed=done, total=total, description=text)


def lines() -> Callable[[int, int, str], None]:
    last = float(-LINE_SECONDS)

    def say(done: int, total: int, text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            common.say(f"[{done}/{total}] {text}")

    return say
