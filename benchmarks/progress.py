"""Show the progress of a benchmark on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cynosure.cli import common

LINE_SECONDS = 10  # between lines of progress without a terminal


@contextmanager
def shown_progress(quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Yield a function that shows progress: a bar with an ETA on a terminal, else lines; nothing if quiet."""
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
