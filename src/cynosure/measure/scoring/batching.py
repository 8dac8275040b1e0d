"""Batches: which windows may go through a model together without changing each other's results."""

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
    """A task in a batch, and the row of the unit where its rows begin."""

    task: Task
    at: int

    @property
    def scored(self) -> NDArray[np.int64]:
        """The unit's rows that the window's scored tokens fill."""
        text, start = self.task.text, self.task.start
        return self.at - text.lead - start + text.scored(self.task.window)


def rows_of(tasks: list[Task]) -> list[BatchRow]:
    """The tasks of a unit that see anything, each with its place among the rows."""
    starts = np.cumsum([0, *(task.stop - task.start for task in tasks)]).tolist()
    return [BatchRow(task, start) for task, start in zip(tasks, starts, strict=False) if task.window.n_seen]


def batches(rows: list[BatchRow], batch_tokens: int) -> Iterator[list[BatchRow]]:
    """Rows of like length, the longest first, as many together as pad to `batch_tokens` positions, at least one."""
    rows = sorted(rows, key=lambda row: -row.task.window.n_seen)
    while rows:
        n_rows = max(1, batch_tokens // rows[0].task.window.n_seen)
        yield rows[:n_rows]
        rows = rows[n_rows:]


# So many tokens at the start of a row tell whether others change it: what does so looks at their number or length.
ENOUGH = 32

APART = (
    "rows of one regime",
    "in this model a row depends on the length of the longest in its batch: rows of one length go together alone",
    "in this model a row depends on the others in its batch: each goes alone",
)


class Batching:
    """What is known of a model's rows: whether those that go through it together change each other.

    Where rotary positions depend on the longest row, rows of one regime go together. Any other model is tried: once for
    each length of the longest row, to a power of two, the start of the batch's shortest row also goes alone, and of one
    in its middle where the shortest is much shorter than the longest. Where one differs, rows of one length go
    together, which is tried as well, and in the end each goes alone.
    """

    def __init__(self, regimes: Regimes) -> None:
        self.regimes, self.level = regimes, 0
        self.tried: set[tuple[int, ...]] = set()

    def parts(self, batch: list[BatchRow]) -> list[list[BatchRow]]:
        """A batch, its rows sorted by length, in parts that go through the model apart."""
        lengths = [row.task.window.n_seen for row in batch]
        keys: list[int] = [list(map(self.regimes.of, lengths)), lengths, list(range(len(batch)))][self.level]
        places = groupby(range(len(batch)), key=keys.__getitem__)
        return [[batch[place] for place in part] for _, part in places]

    def to_try(self, part: list[BatchRow]) -> list[int]:
        """The places of rows that are to go alone as well; none where one like this was tried, or has a single row."""
        lengths = [row.task.window.n_seen for row in part]
        most, least, last = lengths[0], lengths[-1], len(part) - 1
        spread = (most > least) + ((most - 1).bit_length() > (least - 1).bit_length())
        kind = spread, (most - 1).bit_length() if spread else 0, self.regimes.of(most)
        if not last or kind in self.tried:
            return []
        self.tried.add(kind)
        # The shortest may be too short to tell.
        return sorted({last, (lengths.count(most) + last) // 2}) if spread == 2 else [last]

    def tighten(self) -> None:
        """Let fewer rows go together, because rows were seen to change each other."""
        self.level += 1
        self.tried.clear()

    def known(self, window: int) -> list[str]:
        """Notes known before scoring."""
        return [note] if (note := self.regimes.note(window)) else []

    @property
    def found(self) -> list[str]:
        """Notes made while scoring."""
        return [APART[self.level]] if self.level else []


def agree(alone: Tensor, together: Tensor) -> bool:
    """Whether hidden states are the same but for rounding, which is another in a batch of another shape."""
    tolerance = torch.finfo(alone.dtype).eps ** 0.5
    return not bool((alone - together).float().norm() > tolerance * alone.float().norm())
