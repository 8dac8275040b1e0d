"""Sums over groups of tokens: integers, so that adding them up in any order gives the same bits."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.measure.sums import Ints, Sums, split_quanta

COUNTS = ("tokens", "impossible", "n_bytes", "n_chars", "correct")
AMOUNTS = ("nats", "entropy")


class Grouped(NamedTuple):
    """Sums of groups: `keys` (G,) ascending, and by column `table` (G, 5 counts + 2 halves of each of 2 amounts).

    `nats` are those of the tokens whose loss is finite; `impossible` counts the others.
    """

    keys: Ints
    table: Ints

    @classmethod
    def empty(cls) -> "Grouped":
        return cls(np.zeros(0, dtype=np.int64), np.zeros((0, len(COUNTS) + 2 * len(AMOUNTS)), dtype=np.int64))

    @classmethod
    def of(cls, keys: Ints, table: Ints) -> "Grouped":
        """Rows added up by key.

        >>> Grouped.of(np.array([7, 3, 7]), np.arange(27).reshape(3, 9)).table[:, 0]
        array([ 9, 18])
        """
        if len(keys) == 0:
            return cls.empty()
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
        return cls(ordered[starts], np.add.reduceat(table[order], starts, axis=0))

    def counts(self, name: str) -> Ints:
        column: Ints = self.table[:, COUNTS.index(name)]
        return column

    def amount(self, name: str) -> NDArray[np.float64]:
        """Nats."""
        at = len(COUNTS) + 2 * AMOUNTS.index(name)
        return Sums(self.table[:, at], self.table[:, at + 1]).values

    @property
    def total(self) -> "Grouped":
        """Everything in one group, of key 0."""
        return Grouped(np.zeros(1, dtype=np.int64), self.table.sum(axis=0, keepdims=True))


def rows(counts: dict[str, NDArray[Any]], amounts: dict[str, NDArray[Any]]) -> Ints:
    """The table of single tokens, to be added up."""
    parts = [counts[name] for name in COUNTS]
    for name in AMOUNTS:
        parts += split_quanta(amounts[name])
    return np.stack([np.asarray(part, dtype=np.int64) for part in parts], axis=1)


class Accumulator:
    """Sums that grow: parts are kept until they outweigh what they add up to, so that adding is cheap."""

    def __init__(self) -> None:
        self.parts: list[Grouped] = []
        self.size = 0

    def add(self, part: Grouped) -> None:
        self.parts.append(part)
        if sum(len(p.keys) for p in self.parts) > 2 * self.size + 100_000:
            self.size = len(self.sums().keys)

    def merge(self, other: "Accumulator") -> None:
        self.add(other.sums())

    def sums(self) -> Grouped:
        if len(self.parts) != 1:
            keys = np.concatenate([part.keys for part in self.parts] or [Grouped.empty().keys])
            table = np.concatenate([part.table for part in self.parts] or [Grouped.empty().table])
            self.parts = [Grouped.of(keys, table)]
        return self.parts[0]
