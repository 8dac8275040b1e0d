"""Show the progress of scoring: a bar on a terminal, else a line every few seconds; nothing if quiet."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cynosure.cli import common

if TYPE_CHECKING:
    from cynosure.measure import Progress

LINE_SECONDS = 10  # between lines of progress without a terminal


@contextmanager
def shown_progress(total: int | None, quiet: bool) -> Iterator["Callable[[Progress], None] | None"]:
    """Yield the function to call after every batch, or None to show nothing.

    `total` is the number of bytes to score. With several processes, only the first shows progress.
    """
    if quiet or not common.leads():
        yield None
    elif sys.stderr.isatty():
        with bar(total) as advance:
            yield advance
    else:
        yield lines(total)


class ScoringTotals:
    """Running totals of a scoring, and how they are shown."""

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
    """Show the share of bytes done, tokens per second, ETA and running loss; the bar disappears at the end."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    from cynosure.cli.screen import stderr

    totals = ScoringTotals(total)
    columns = (
        TextColumn("scoring"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Display(*columns, console=stderr(), transient=True) as display:
        task = display.add_task("", total=total, rate="", loss="")

        def advance(step: "Progress") -> None:
            totals.add(step)
            completed = totals.n_bytes if total is None else min(totals.n_bytes, total)
            display.update(task, completed=completed, rate=totals.rate, loss=totals.loss)

        yield advance


def lines(total: int | None) -> "Callable[[Progress], None]":
    """Print one line every few seconds."""
    totals = ScoringTotals(total)
    last = totals.start

    def advance(step: "Progress") -> None:
        nonlocal last
        totals.add(step)
        now = time.monotonic()
        if now - last < LINE_SECONDS:
            return
        last, done = now, totals.done
        eta = f"{done:.0%}, ETA {(now - totals.start) * (1 - done) / done:,.0f} s, " if done else ""
        common.say(f"scored {totals.tokens:,} tokens: {eta}{totals.rate}, {totals.loss}")

    return advance
