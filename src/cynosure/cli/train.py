"""`cynosure train`: train a model on texts."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cynosure.cli import common
from cynosure.cli.report import NoReport, add_report
from cynosure.cli.train_options import with_settings
from cynosure.training import TrainSettings

if TYPE_CHECKING:
    from cynosure.training import Trained


EXAMPLES = (
    "cynosure train notes/ --out run --preset tiny",
    "cynosure train notes/ --out run --init smollm2 --tokens 1M",
    "cynosure train --out run --resume",
)


@with_settings
def train(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT...",
            help="Texts to train on: files, directories, globs, - (stdin), tables, or dataset names (train split).",
            show_default=False,
        ),
    ] = None,
    *,
    out: Annotated[
        Path,
        typer.Option(
            metavar="RUN",
            help="Directory for checkpoints, metrics, curves and report.html; must not exist, or belong to the same "
            "run.",
        ),
    ],
    valid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="Texts to validate on; repeatable. [default: held-out documents of the training texts]"
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in --out; texts and other options may be left out.")
    ] = False,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Experiment tracker: tensorboard, wandb or trackio; repeatable. [default: none]"
        ),
    ] = None,
    no_report: NoReport = False,
    trust_remote_code: common.TrustRemoteCode = False,
    allow_unused_weights: common.AllowUnusedWeights = False,
    column: common.Column = None,
    split_at: common.SplitAt = None,
    bad_rows: common.BadRows = "stop",
    limit: common.Limit = None,
    errors: common.Errors = "strict",
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
    **settings: Any,
) -> None:
    """Train a new model on texts, or fine-tune an existing one.

    Documents are packed into rows and do not attend to each other; a prompt stays with its completion. A tenth of the
    documents is held out for validation. The directory --out gets the best model, checkpoints, metrics, samples,
    curves and a report. --resume continues an interrupted run bit for bit. torchrun shares every batch among
    processes. Exit status 1 if training diverges.
    """
    if not texts and not resume:
        raise ValueError("no texts to train on: give files, folders, globs, - (stdin) or a dataset, or --resume")
    common.show_notes(quiet)
    from cynosure.text import TRAINED, check_split_at, find_sources

    sources, held_out = find_sources(texts or [], column=column), find_sources(valid or [], column=column)
    check_split_at((*sources, *held_out), split_at)
    given = {name: value for name, value in settings.items() if value is not None and value is not False}
    if held_out and not resume:
        given.setdefault("hold_out", 0.0)
    train_settings = TrainSettings(**given)
    from cynosure.measure import Corpus

    reading: dict[str, Any] = {"column": column, "errors": errors, "split_at": split_at, "bad_rows": bad_rows}
    corpus = Corpus.of_sources(sources, limit=limit, splits=TRAINED, **reading)
    apart = Corpus.of_sources(held_out, **reading)
    from cynosure.cli.training import shown_training
    from cynosure.training import MANIFEST, Diverged
    from cynosure.training import train as run

    # These libraries warn about each other's future versions; our users can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|accelerate)\b")
    common.settings.kept_in, common.settings.kept_files = out, MANIFEST
    common.settings.way_on = " --resume"
    consent = {"trust_remote_code": trust_remote_code, "allow_unused_weights": allow_unused_weights}
    training: dict[str, Any] = {"valid": apart, "resume": resume, "report_to": tuple(report_to or ()), **consent}
    try:
        with shown_training(quiet) as watcher:
            trained = run(corpus, out, train_settings, watcher=watcher, **training)
    except Diverged as error:
        common.complain(str(error))
        add_report_of(out, no_report, quiet)
        raise typer.Exit(1) from None
    if common.leads():
        show(trained, format)
    add_report_of(out, no_report, quiet)


def add_report_of(out: Path, no_report: bool, quiet: bool) -> None:
    """Make the report of the run, in the process that prints."""
    if common.leads() and not no_report:
        from cynosure import reporting

        add_report(lambda: reporting.report(out), quiet)


def show(trained: "Trained", format: str) -> None:
    """Print the metrics of the best model on all held-out texts, and the paths of its files."""
    from cynosure.cli import tables
    from cynosure.cli.screen import stdout

    scores = trained.scores
    if format == "json":
        common.print_json({
            "run": str(trained.folder), "model": str(trained.model_folder), "parameters": trained.parameters,
            "steps": trained.plan.steps, "tokens": trained.plan.tokens, "best_step": trained.best_step,
            "unigram_bits_per_byte": trained.unigram_bits_per_byte,
            "scores": None if scores is None else scores.to_json(),
        })  # fmt: skip
        return
    if scores is not None:
        tables.show(scores)
    if trained.unigram_bits_per_byte is not None:
        stdout().print(f"byte-unigram model of the same text: {trained.unigram_bits_per_byte:.4f} bits per byte")
    step = "" if trained.best_step is None else f" (step {trained.best_step:,}, the best on the held-out texts)"
    stdout().print(f"model: {trained.model_folder}{step}")
    stdout().print(f"curves: {trained.folder / 'curves.svg'}")
