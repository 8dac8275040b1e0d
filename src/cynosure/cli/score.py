"""`cynosure score`: a model's loss on texts."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cynosure.cli import common

if TYPE_CHECKING:
    from cynosure.measure import Progress, Summary

LINE_SECONDS = 10  # between lines of progress where there is no terminal


def score(
    model: common.Model,
    texts: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT...",
            help="Files, folders, globs, - (stdin), .jsonl or .parquet with a text column, dataset names.",
        ),
    ],
    protocol: Annotated[str, typer.Option(help="sliding, or rolling as in lm-evaluation-harness.")] = "sliding",
    window: Annotated[
        int | None,
        typer.Option(help="Positions seen at once. [default: 1024, or all the model has]", show_default=False),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens scored by each further window. [default: half the window]", show_default=False),
    ] = None,
    dtype: common.Dtype = "auto",
    device: common.Device = "auto",
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            help="Positions computed at once: speed and memory only. [default: 1024 on a CPU, else 16384]",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Score the first documents only, this many.")] = None,
    tokenizer: common.Tokenizer = None,
    revision: common.Revision = None,
    errors: Annotated[
        Literal["strict", "replace"], typer.Option(help="What is done about text that is not UTF-8.")
    ] = "strict",
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Score texts with a model.

    Prints the loss per token, perplexity per token and per word, bits per byte and per character.
    """
    from cynosure.text import check_protocol, find_sources, read_documents

    common.show_notes(quiet)
    check_protocol(protocol, window or 1024, stride)  # before the seconds it takes to load a model
    sources = find_sources(texts)
    documents = read_documents(sources, errors=errors, limit=limit)
    from cynosure import measure, models

    loaded = models.load(model, dtype=dtype, device=device, tokenizer=tokenizer, revision=revision)
    sizes = [source.n_bytes for source in sources if source.n_bytes is not None]
    total = sum(sizes) if len(sizes) == len(sources) and limit is None else None
    with shown_progress(total, quiet) as progress:
        summary = measure.score(
            loaded,
            documents,
            protocol=protocol,
            window=window,
            stride=stride,
            batch_tokens=batch_tokens,
            progress=progress,
        )
    if format == "json":
        common.print_json(summary.to_json())
    else:
        show(summary, str(loaded.device))
    for note in () if quiet else summary.notes:
        print(f"cynosure: note: {note}", file=sys.stderr)


@contextmanager
def shown_progress(total: int | None, quiet: bool) -> Iterator["Callable[[Progress], None] | None"]:
    """A progress bar on a terminal, a plain line now and then elsewhere, nothing when quiet."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with bar(total) as advance:
            yield advance
    else:
        yield lines(total)


class Meter:
    """Sums of progress, and how they read."""

    def __init__(self, total: int | None) -> None:
        self.total, self.start = total, time.monotonic()
        self.tokens, self.nats, self.n_bytes = 0, 0.0, 0.0

    def add(self, step: "Progress") -> None:
        self.tokens += step.tokens
        self.nats += step.nats
        self.n_bytes += step.n_bytes

    @property
    def rate(self) -> str:
        return f"{self.tokens / max(time.monotonic() - self.start, 1e-9):,.0f} tokens/s"

    @property
    def loss(self) -> str:
        return f"{self.nats / max(self.tokens, 1):.4f} nats/token"

    @property
    def done(self) -> float | None:
        return min(1.0, self.n_bytes / self.total) if self.total else None


@contextmanager
def bar(total: int | None) -> Iterator["Callable[[Progress], None]"]:
    """Share of the bytes done, rate, time left, and the running loss; gone when finished."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    meter = Meter(total)
    columns = (
        TextColumn("scoring"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Display(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task("", total=total, rate="", loss="")

        def advance(step: "Progress") -> None:
            meter.add(step)
            completed = meter.n_bytes if total is None else min(meter.n_bytes, total)
            display.update(task, completed=completed, rate=meter.rate, loss=meter.loss)

        yield advance


def lines(total: int | None) -> "Callable[[Progress], None]":
    """One line every few seconds."""
    meter = Meter(total)
    last = meter.start

    def advance(step: "Progress") -> None:
        nonlocal last
        meter.add(step)
        now = time.monotonic()
        if now - last < LINE_SECONDS:
            return
        last, done = now, meter.done
        left = f"{done:.0%}, {(now - meter.start) * (1 - done) / done:,.0f} s left, " if done else ""
        print(f"scored {meter.tokens:,} tokens: {left}{meter.rate}, {meter.loss}", file=sys.stderr, flush=True)

    return advance


def show(summary: "Summary", device: str) -> None:
    """The summary as a table: the loss first, then the same in other units."""
    from rich.table import Table

    values = summary.to_json()
    console = common.stdout()
    console.print(summary.model, style="bold")
    documents = values["documents"]
    console.print(
        f"{summary.protocol} windows of {summary.window:,} tokens, stride {summary.stride:,}; "
        f"{summary.dtype} on {device}; {documents:,} document{'' if documents == 1 else 's'}\n"
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right", style="bold")
    table.add_column(style="dim")
    for name, value, meaning in rows(summary):
        table.add_row(name, value, meaning)
    console.print(table)


def rows(summary: "Summary") -> Iterator[tuple[str, str, str]]:
    """(name, value, what it means in plain words) for every figure."""
    figures, values = summary.figures, summary.to_json()
    perplexity = number(figures["token_perplexity"].value)
    yield "nats per token", number(figures["nats_per_token"].value, 4), "the loss: mean surprise of a token, in nats"
    yield "token perplexity", perplexity, "like guessing among that many equal choices"
    yield "word perplexity", number(figures["word_perplexity"].value), "the same counted per word"
    yield (
        "bits per byte",
        number(figures["bits_per_byte"].value, 4),
        "comparable across tokenizers; 8 is knowing nothing",
    )
    yield "bits per character", number(figures["bits_per_char"].value, 4), ""
    yield "top-1 accuracy", f"{values['top1_accuracy']:.1%}", "how often the likeliest token was right"
    yield "mean entropy", number(values["mean_entropy"], 4), "nats: the loss the model itself expected"
    yield "", "", ""
    counts = [(values["bytes"], "bytes"), (values["words"], "words")]
    covering = ", ".join(f"{count:,} {what}" for count, what in counts if count is not None)
    yield "tokens scored", f"{values['tokens']:,}", covering
    yield "in all", f"{number(summary.nats, 1)}", "nats"
    if summary.excluded:
        missed = sum(part.byte_end - part.byte_start for part in summary.excluded)
        yield "left out", f"{missed:,}", f"bytes: {summary.excluded[0].reason}"
    yield "time", f"{summary.seconds:,.1f}", f"seconds: {number(summary.tokens_per_second, 0)} tokens a second"


def number(value: float | None, digits: int = 2) -> str:
    return "unknown" if value is None else f"{value:,.{digits}f}"
