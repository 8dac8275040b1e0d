"""Sums over the segments of two runs: what a comparison keeps of them as they go by."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cynosure.measure.comparison.align import Floats, Segments
from cynosure.measure.comparison.excerpts import Furthest
from cynosure.measure.statistics.classes import CLASSES
from cynosure.measure.storage.rows import Ints

CELL_BYTES = 64  # of the shortest blocks that are resampled


class Tally:
    """The sums of segments that come in the order of the text, however many at a time: that changes no bit of them."""

    def __init__(self) -> None:
        self.same = True  # whether the tokens are the same in both runs
        self.tokens, self.impossible = np.zeros(2, np.int64), np.zeros(2, np.int64)  # of A and B
        self.choices = np.zeros(5, np.int64)  # as of `Choices`
        self.classes = np.zeros((3, len(CLASSES)))  # bytes, nats of A and of B
        self.losses, self.gains = Furthest(), Furthest()
        self.keys: list[Ints] = []  # of cells that are whole
        self.sums: list[Floats] = []
        self.open = np.zeros(0, np.int64), np.zeros((7, 0))  # the segments of the last cell, which may go on

    def add(self, found: Segments) -> None:
        """Add the segments that come next."""
        apart = difference(found.nats_a, found.nats_b)
        choices = None if found.choices is None else np.stack(found.choices)
        self.same &= choices is not None
        self.tokens += [found.tokens_a.sum(), found.tokens_b.sum()]
        self.impossible += [np.isinf(found.nats_a).sum(), np.isinf(found.nats_b).sum()]
        if choices is not None:
            self.choices += choices.sum(axis=1)
        losses = (found.n_bytes, found.nats_a, found.nats_b)
        self.classes = np.stack([running(row, found.kind, x) for row, x in zip(self.classes, losses, strict=True)])
        self.losses.add(found, apart, apart)
        self.gains.add(found, apart, -apart)
        right = np.zeros((2, len(apart))) if choices is None else choices[1:3]
        columns = np.stack([np.where(np.isinf(apart), 0, apart), *losses, found.tokens_a, *right])
        self.add_cells((found.document << 32) + found.byte_start // CELL_BYTES, columns)

    def add_cells(self, keys: Ints, columns: Floats) -> None:
        """Add up what belongs to cells that are whole; the segments of the last one are kept as they are."""
        keys = np.concatenate([self.open[0], keys])
        columns = np.concatenate([self.open[1], columns], axis=1)
        n_whole = int(np.searchsorted(keys, keys[-1])) if len(keys) else 0
        self.open = keys[n_whole:], columns[:, n_whole:]
        if n_whole:
            whole, sums = grouped(keys[:n_whole], list(columns[:, :n_whole]))
            self.keys.append(whole)
            self.sums.append(sums)

    def cells(self) -> tuple[Ints, Floats]:
        """The keys (C,) of all cells, document << 32 and number, and their sums (7, C).

        B - A without what is infinite, bytes, nats of A and of B, tokens of A, and of these the ones right in A and in
        B, 0 where the tokens differ. A segment belongs where its first byte is.
        """
        last, sums = grouped(self.open[0], list(self.open[1]))
        keys, cells = np.concatenate([*self.keys, last]), np.concatenate([*self.sums, sums], axis=1)
        if not self.same:
            cells[5:] = 0
        return keys, cells


def running(sums: Floats, groups: Ints, values: NDArray[Any]) -> Floats:
    """Sums (G,) with values (N,) added to their groups one after another; a group of -1 is the last."""
    n_groups = len(sums)
    groups = np.concatenate([np.arange(n_groups), groups % n_groups])
    return np.bincount(groups, np.concatenate([sums, values]), n_groups).astype(np.float64, copy=False)


def difference(nats_a: Floats, nats_b: Floats) -> Floats:
    """B - A; infinite where one is, 0 where both are."""
    both = np.isinf(nats_a) & np.isinf(nats_b)
    return np.subtract(nats_b, nats_a, out=np.zeros_like(nats_a), where=~both)


def grouped(keys: Ints, columns: Sequence[NDArray[Any]]) -> tuple[Ints, Floats]:
    """The sums (k, G) of k columns over runs of equal ones of ascending keys, and those keys (G,)."""
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[starts], np.stack([np.add.reduceat(column, starts) for column in columns]).astype(np.float64)
