"""The progress of scoring: a bar on a terminal, a plain line now and then elsewhere, nothing when quiet."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cynosure.cli import common

if TYPE_CHECKING:
    from cynosure.measure import Progress

LINE_SECONDS = 10  # between lines of progress where there is no terminal


@contextmanager
def shown_progress(total: int | None, quiet: bool) -> Iterator["Callable[[Progress], None] | None"]:
    """What to call after every batch; `total` are the bytes to come. Of several processes only the first shows any."""
    if quiet or not common.leads():
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
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    from cynosure.cli.screen import stderr

    meter = Meter(total)
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
        common.say(f"scored {meter.tokens:,} tokens: {left}{meter.rate}, {meter.loss}")

    return advance
