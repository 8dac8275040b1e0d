"""Sum the segments of two runs, for a comparison that cannot keep them all."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cynosure.measure.comparison.align import Floats, Segments
from cynosure.measure.comparison.excerpts import Furthest
from cynosure.measure.statistics.classes import CLASSES
from cynosure.measure.storage.rows import Ints

CELL_BYTES = 64  # length of the shortest blocks that are resampled


class Tally:
    """Sums over segments in the order of the text. The number of segments per call does not change a bit of them."""

    def __init__(self) -> None:
        self.same = True  # whether the tokens are the same in both runs
        self.tokens, self.impossible = np.zeros(2, np.int64), np.zeros(2, np.int64)  # of A and B
        self.choices = np.zeros(5, np.int64)  # as in `Choices`
        self.classes = np.zeros((3, len(CLASSES)))  # bytes, nats of A and of B
        self.losses, self.gains = Furthest(), Furthest()
        self.keys: list[Ints] = []  # of complete cells
        self.sums: list[Floats] = []
        self.open = np.zeros(0, np.int64), np.zeros((7, 0))  # the segments of the last cell, which may continue

    def add(self, segments: Segments) -> None:
        """Add the segments that come next."""
        apart = difference(segments.nats_a, segments.nats_b)
        choices = None if segments.choices is None else np.stack(segments.choices)
        self.same &= choices is not None
        self.tokens += [segments.tokens_a.sum(), segments.tokens_b.sum()]
        self.impossible += [np.isinf(segments.nats_a).sum(), np.isinf(segments.nats_b).sum()]
        if choices is not None:
            self.choices += choices.sum(axis=1)
        losses = (segments.n_bytes, segments.nats_a, segments.nats_b)
        self.classes = np.stack([running(row, segments.kind, x) for row, x in zip(self.classes, losses, strict=True)])
        self.losses.add(segments, apart, apart)
        self.gains.add(segments, apart, -apart)
        right = np.zeros((2, len(apart))) if choices is None else choices[1:3]
        columns = np.stack([np.where(np.isinf(apart), 0, apart), *losses, segments.tokens_a, *right])
        self.add_cells((segments.document << 32) + segments.byte_start // CELL_BYTES, columns)

    def add_cells(self, keys: Ints, columns: Floats) -> None:
        """Sum the segments of complete cells, and keep those of the last cell, which may be incomplete."""
        keys = np.concatenate([self.open[0], keys])
        columns = np.concatenate([self.open[1], columns], axis=1)
        n_whole = int(np.searchsorted(keys, keys[-1])) if len(keys) else 0
        self.open = keys[n_whole:], columns[:, n_whole:]
        if n_whole:
            whole, sums = grouped(keys[:n_whole], list(columns[:, :n_whole]))
            self.keys.append(whole)
            self.sums.append(sums)

    def cells(self) -> tuple[Ints, Floats]:
        """Return the keys (C,) of all cells, (document << 32) + number, and their sums (7, C).

        The sums are: B - A without infinite values, bytes, nats of A, nats of B, tokens of A, tokens that are right in
        A, and those that are right in B. The last two are 0 if the tokens differ. A segment belongs to the cell of its
        first byte.
        """
        last, sums = grouped(self.open[0], list(self.open[1]))
        keys, cells = np.concatenate([*self.keys, last]), np.concatenate([*self.sums, sums], axis=1)
        if not self.same:
            cells[5:] = 0
        return keys, cells


def running(sums: Floats, groups: Ints, values: NDArray[Any]) -> Floats:
    """Add values (N,) one after another to the sums (G,) of their groups; a group of -1 is the last."""
    n_groups = len(sums)
    groups = np.concatenate([np.arange(n_groups), groups % n_groups])
    return np.bincount(groups, np.concatenate([sums, values]), n_groups).astype(np.float64, copy=False)


def difference(nats_a: Floats, nats_b: Floats) -> Floats:
    """Return B - A: infinite if one is infinite, 0 if both are."""
    both = np.isinf(nats_a) & np.isinf(nats_b)
    return np.subtract(nats_b, nats_a, out=np.zeros_like(nats_a), where=~both)


def grouped(keys: Ints, columns: Sequence[NDArray[Any]]) -> tuple[Ints, Floats]:
    """Sum k columns over equal keys, which are ascending; return the distinct keys (G,) and the sums (k, G)."""
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[starts], np.stack([np.add.reduceat(column, starts) for column in columns]).astype(np.float64)
