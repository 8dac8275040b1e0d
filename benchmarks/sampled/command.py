"""`python -m benchmarks.sampled`: train exactly and with sampled backwards, and compare the models."""

import json
import multiprocessing
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.commands import check_folder, names, whole_number, write_json
from benchmarks.sampled.report import print_cases
from benchmarks.sampled.training import Run, measure, runs_of
from cynosure.cli import common, screen
from cynosure.cli.train_options import count, tolerance

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


@app.command()
def sampled(
    json_path: Annotated[
        Path, typer.Option("--json", metavar="FILE", help="File for the report; runs that it has are not repeated.")
    ],
    model: Annotated[
        str,
        typer.Option(help="A new model and its vocabulary size (tiny:32768, untied-tiny:32768), or one to start from."),
    ] = "tiny:32768",
    tolerances: Annotated[
        str, typer.Option(help="Comma-separated tolerances: numbers, powers such as 2**-8, dtype; 0 is exact.")
    ] = "0,2**-6,2**-8,2**-10",
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds.")] = "0,1,2",
    tokens: Annotated[int, typer.Option(parser=count, metavar="TOKENS", help="Training tokens.")] = 400_000,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens per step. [default: as cynosure train]")] = None,
    row_tokens: Annotated[int | None, typer.Option(help="Tokens per row. [default: as cynosure train]")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate. [default: as cynosure train]")
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of matrices.")] = 0.1,
    dtype: Annotated[str, typer.Option(help="Dtype of matmuls: auto, float32, bfloat16.")] = "auto",
    held_out_chars: Annotated[int, typer.Option(help="Characters of each of the ten held-out addresses.")] = 12_000,
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Train with exact and with sampled backwards, and compare the models on held-out texts.

    Trains on 239 of the addresses of US presidents. Runs of one seed have the same initial weights and order of texts.
    Each has its own process, one at a time.
    """
    common.show_notes(quiet)
    check_folder(json_path)
    first = Run(
        model, 0.0, 0, tokens, batch_tokens, row_tokens, learning_rate, weight_decay, dtype, held_out_chars
    )  # fmt: skip
    chosen = [whole_number("--seeds", name) for name in names(seeds)]
    wanted = list(runs_of(first, [power(name) for name in names(tolerances)], chosen))
    for run in wanted:
        run.settings()  # raises ValueError, before any work is done
    report: dict[str, Any] = (
        json.loads(json_path.read_text()) if json_path.exists() else {"bench": "sampled", "runs": []}
    )
    for number, run in enumerate(wanted, 1):
        if find(report, run) is None:
            if not quiet:
                what = f"{run.model}, tolerance {run.tolerance}, seed {run.seed}"
                print(f"run {number} of {len(wanted)}: {what}", file=sys.stderr, flush=True)
            add(report, run)
            write_json(json_path, report)
    print_cases(report["runs"], screen.stdout())


def power(text: str) -> float | str:
    """Parse a tolerance, or a power of two.

    >>> power("2**-8"), power("0.01"), power("dtype")
    (0.00390625, 0.01, 'dtype')
    """
    base, _, exponent = text.partition("**")
    return 2.0 ** int(exponent) if base == "2" and exponent else tolerance(text)


def find(report: dict[str, Any], run: Run) -> dict[str, Any] | None:
    """Return the result of a run in a report; None if it is missing."""
    return next((made for made in report["runs"] if vars(run).items() <= made.items()), None)


def add(report: dict[str, Any], run: Run) -> None:
    """Add the result of a run, and how and where it was made."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        result, environment = process.submit(measured, run).result()
    report["environment"] = environment
    command = shlex.join(["python", "-m", "benchmarks.sampled", *sys.argv[1:]])
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    report["runs"].append(result | {"command": command, "date": date})


def measured(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the result of a run, and the environment of its process."""
    from benchmarks.environment import environment

    return measure(run), environment()
