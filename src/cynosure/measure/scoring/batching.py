"""Batch windows that can go through a model together without changing each other's results."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cynosure.measure.scoring.units import Task
from cynosure.models import Regimes


class BatchRow(NamedTuple):
    """A task in a batch."""

    task: Task
    at: int  # where its rows begin among those of the unit

    @property
    def scored(self) -> NDArray[np.int64]:
        """The rows of the unit that belong to the window's scored tokens."""
        text, start = self.task.text, self.task.start
        return self.at - text.lead - start + text.scored(self.task.window)


def rows_of(tasks: list[Task]) -> list[BatchRow]:
    """Return the tasks of a unit whose windows are not empty, each with its place among the rows."""
    starts = np.cumsum([0, *(task.stop - task.start for task in tasks)]).tolist()
    return [BatchRow(task, start) for task, start in zip(tasks, starts, strict=False) if task.window.n_seen]


def batches(rows: list[BatchRow], batch_tokens: int) -> Iterator[list[BatchRow]]:
    """Batch rows of similar length, the longest first: up to `batch_tokens` positions with padding, or one row."""
    rows = sorted(rows, key=lambda row: -row.task.window.n_seen)
    while rows:
        n_rows = max(1, batch_tokens // rows[0].task.window.n_seen)
        yield rows[:n_rows]
        rows = rows[n_rows:]


# This many tokens at the start of a row show whether other rows change it, since models that do so look at their number
# or length.
ENOUGH = 32

APART = (
    "rows of one regime",
    "in this model a row depends on the longest row of its batch: only rows of equal length are batched",
    "in this model a row depends on the other rows of its batch: each row goes through the model alone",
)


class Batching:
    """Decides which rows go through a model together, so that they do not change each other.

    If rotary positions depend on the longest row, only rows of one regime are batched. Every model is also tested, once
    for each power of two of the longest row's length. The start of the batch's shortest row is then run alone too. If
    it is much shorter than the longest, so is the start of a row in the middle. If the results differ, only rows of
    equal length are batched, which is tested as well. As a last resort each row goes alone.
    """

    def __init__(self, regimes: Regimes) -> None:
        self.regimes, self.level = regimes, 0  # the level is a place in APART
        self.tried: set[tuple[int, ...]] = set()

    def parts(self, batch: list[BatchRow]) -> list[list[BatchRow]]:
        """Divide a batch, whose rows are sorted by length, into parts that go through the model separately."""
        lengths = [row.task.window.n_seen for row in batch]
        keys: list[int] = [list(map(self.regimes.of, lengths)), lengths, list(range(len(batch)))][self.level]
        places = groupby(range(len(batch)), key=keys.__getitem__)
        return [[batch[place] for place in part] for _, part in places]

    def to_try(self, part: list[BatchRow]) -> list[int]:
        """Return the places of rows to run alone as a test; none for a single row, or if a similar part was tested."""
        lengths = [row.task.window.n_seen for row in part]
        most, least, last = lengths[0], lengths[-1], len(part) - 1
        spread = (most > least) + ((most - 1).bit_length() > (least - 1).bit_length())
        kind = spread, (most - 1).bit_length() if spread else 0, self.regimes.of(most)
        if not last or kind in self.tried:
            return []
        self.tried.add(kind)
        # The shortest row may be too short to show a difference.
        return sorted({last, (lengths.count(most) + last) // 2}) if spread == 2 else [last]

    def tighten(self) -> None:
        """Batch fewer rows together, because rows have changed each other."""
        self.level += 1
        self.tried.clear()

    def known(self, window: int) -> list[str]:
        """Return notes known before scoring."""
        return [note] if (note := self.regimes.note(window)) else []

    @property
    def found(self) -> list[str]:
        """Notes made while scoring."""
        return [APART[self.level]] if self.level else []


def agree(alone: Tensor, together: Tensor) -> bool:
    """Whether hidden states agree up to rounding, which depends on the shape of the batch."""
    tolerance = torch.finfo(alone.dtype).eps ** 0.5
    return not bool((alone - together).float().norm() > tolerance * alone.float().norm())
