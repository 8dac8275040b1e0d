"""Sum statistics over groups of tokens, as integers, so that any order of adding gives the same bits."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.loss import TokenSums
from cynosure.measure.statistics.sums import Ints, Sums, split_quanta

COUNTS = ("tokens", "impossible", "n_bytes", "n_chars", "correct", "carried_impossible")
AMOUNTS = ("nats", "entropy", "carried_nats")
SMALL = 2**16  # keys below this are sorted in a tenth of the time
PART = 100  # keeping one more part costs as much as this many groups


class Grouped(NamedTuple):
    """Sums of G groups.

    `nats` sums the tokens of finite loss; `impossible` counts the others. The `carried` sums, like bytes and
    characters, cover only the tokens that carry their text.
    """

    keys: Ints  # (G,), ascending
    table: Ints  # (12, G): COUNTS, then the two halves of each of AMOUNTS

    @classmethod
    def empty(cls) -> "Grouped":
        return cls(np.zeros(0, dtype=np.int64), np.zeros((len(COUNTS) + 2 * len(AMOUNTS), 0), dtype=np.int64))

    @classmethod
    def of(cls, keys: Ints, table: Ints) -> "Grouped":
        """Sum the columns of a table (12, n) by key (n,).

        >>> Grouped.of(np.array([7, 3, 7]), np.arange(36).reshape(12, 3)).table[0]
        array([1, 2])
        """
        if len(keys) == 0:
            return cls.empty()
        if np.any(keys[1:] < keys[:-1]):
            small = keys.min() >= 0 and keys.max() < SMALL
            order = np.argsort(keys.astype(np.uint16) if small else keys, kind="stable")
            keys, table = keys[order], table[:, order]
        starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
        return cls(keys[starts], np.add.reduceat(table, starts, axis=1))

    def part(self, chosen: NDArray[np.bool_]) -> "Grouped":
        """Return the chosen groups; `chosen` is (G,)."""
        return Grouped(self.keys[chosen], self.table[:, chosen])

    def counts(self, name: str) -> Ints:
        row: Ints = self.table[COUNTS.index(name)]
        return row

    def amount(self, name: str) -> NDArray[np.float64]:
        """Return one of AMOUNTS in nats, (G,)."""
        at = len(COUNTS) + 2 * AMOUNTS.index(name)
        return Sums(self.table[at], self.table[at + 1]).values

    @property
    def nats(self) -> NDArray[np.float64]:
        """Nats of all tokens of each group; infinite if one was impossible."""
        return np.where(self.counts("impossible") > 0, np.inf, self.amount("nats"))

    @property
    def carried_nats(self) -> NDArray[np.float64]:
        """Nats of the tokens of each group that carry their text; infinite if one was impossible."""
        return np.where(self.counts("carried_impossible") > 0, np.inf, self.amount("carried_nats"))

    @property
    def total(self) -> "Grouped":
        """All groups merged into one, with key 0."""
        return Grouped(np.zeros(1, dtype=np.int64), self.table.sum(axis=1, keepdims=True))

    def token_sums(self) -> list[TokenSums]:
        """Return the sums of each group, from which its metrics are computed."""
        columns = (
            self.counts("tokens"),
            self.nats,
            self.amount("entropy"),
            self.counts("correct"),
            self.counts("n_bytes"),
        )
        return [TokenSums(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def token_rows(
    nll: NDArray[Any],
    entropy: NDArray[Any],
    correct: NDArray[np.bool_],
    n_bytes: Ints,
    n_chars: Ints,
    carried: NDArray[np.bool_] | None = None,
) -> Ints:
    """Build the table (12, N) of N single tokens, to be summed. All arguments are (N,).

    `correct` says whether the argmax is the target. Tokens that are not `carried` have no bytes or characters.
    """
    possible = np.isfinite(nll)
    carried = np.ones_like(possible) if carried is None else carried
    counts = np.ones(len(nll)), ~possible, n_bytes * carried, n_chars * carried, correct, carried & ~possible
    halves = [split_quanta(np.where(chosen, x, 0)) for chosen, x in ((possible, nll), (True, entropy))]
    parts = [*counts, *halves[0], *halves[1], *(np.where(carried, half, 0) for half in halves[0])]  # as in COUNTS
    return np.stack([np.asarray(part, dtype=np.int64) for part in parts])


class Accumulator:
    """Growing sums. Parts are merged only once they outweigh their sums, so that adding is cheap."""

    def __init__(self) -> None:
        self.parts: list[Grouped] = []
        self.weight = self.limit = 0  # size of the parts, in groups

    def add(self, part: Grouped) -> None:
        self.parts.append(part)
        self.weight += len(part.keys) + PART
        if self.weight > self.limit:
            self.weight = len(self.sums().keys)
            self.limit = 2 * self.weight + 100_000

    def merge(self, other: "Accumulator") -> None:
        self.add(other.sums())

    def sums(self) -> Grouped:
        if len(self.parts) != 1:
            keys = np.concatenate([part.keys for part in self.parts] or [Grouped.empty().keys])
            table = np.concatenate([part.table for part in self.parts] or [Grouped.empty().table], axis=1)
            self.parts = [Grouped.of(keys, table)]
        return self.parts[0]
