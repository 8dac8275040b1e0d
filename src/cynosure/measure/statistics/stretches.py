"""Sum the loss over stretches of each document, for an interval of every document's own.

A document is cut into at most 40 consecutive stretches of equal length, which are resampled. This is the method of
batch means: stretches so long depend little on each other. The length follows from the document alone, so that shards
can be added in any order. Only the longest documents are kept, so that memory is bounded.
"""

from itertools import pairwise

import numpy as np

from cynosure.measure.statistics.bootstrap import (
    BASE_TOKENS,
    ENOUGH_CLUSTERS,
    Floats,
    Interval,
    paired,
    why_unreliable,
)
from cynosure.measure.statistics.groups import Accumulator, Grouped
from cynosure.measure.storage.rows import DocumentFacts, Ints

MOST_STRETCHES = 40
SHORTEST = BASE_TOKENS * ENOUGH_CLUSTERS  # tokens; a shorter document has no interval
KEPT = 10_000  # documents


class Stretches:
    """The sums of the stretches of the longest documents. `merge` adds those of other shards."""

    def __init__(self) -> None:
        self.sums = Accumulator()  # by document and stretch
        self.n_tokens: dict[int, int] = {}  # of the documents kept

    def add(self, facts: tuple[DocumentFacts, ...], document: Ints, index: Ints, table: Ints) -> None:
        """Add a table (12, N) of tokens; `document` and `index` (N,) say where each is."""
        long = {fact.document: fact.n_tokens for fact in facts if fact.n_tokens >= SHORTEST}
        if not long:
            return
        size = np.zeros(int(document.max()) + 1, dtype=np.int64)
        for key, n_tokens in long.items():
            if key < len(size):
                size[key] = stretch(n_tokens, BASE_TOKENS)
        at = np.flatnonzero(size[document] > 0)
        if len(at) < len(document):
            document, index, table = document[at], index[at], table[:, at]
        self.sums.add(Grouped.of((document << 32) + index // size[document], table))
        self.keep(self.n_tokens | long, KEPT + KEPT // 4)

    def merge(self, other: "Stretches") -> None:
        self.sums.merge(other.sums)
        self.keep(self.n_tokens | other.n_tokens, KEPT + KEPT // 4)

    def keep(self, n_tokens: dict[int, int], most: int) -> None:
        """Keep the longest documents if there are more than `most`. One left out has KEPT longer ones for good."""
        self.n_tokens = n_tokens
        if len(n_tokens) <= most:
            return
        longest = sorted(n_tokens, key=lambda key: (-n_tokens[key], key))[:KEPT]
        self.n_tokens = {key: n_tokens[key] for key in longest}
        sums, self.sums = self.sums.sums(), Accumulator()
        self.sums.add(sums.part(np.isin(sums.keys >> 32, longest)))

    def of_documents(self) -> dict[int, Grouped]:
        """Return the stretches of each document kept."""
        self.keep(self.n_tokens, KEPT)
        keys, table = self.sums.sums()
        documents, first = np.unique(keys >> 32, return_index=True)
        spans = pairwise([*first.tolist(), len(keys)])
        return {key: Grouped(keys[i:j], table[:, i:j]) for key, (i, j) in zip(documents.tolist(), spans, strict=True)}


def stretch(length: int, least: int) -> int:
    """Return the length of the stretches of a document: `least`, or more if that would make more than 40."""
    return max(least, -(-length // MOST_STRETCHES))


def stretch_interval(y: Floats, x: Floats) -> Interval | None:
    """Return the interval of sum(y) / sum(x) over stretches (n,) of a document; None if there is too little text.

    y may be a difference, so that the interval may reach below 0.

    >>> stretch_interval(np.ones(19), np.ones(19)), stretch_interval(np.ones(20), np.ones(20))
    (None, Interval(value=1.0, low=1.0, high=1.0, se=0.0))
    """
    y, x = y[x > 0], x[x > 0]
    if why_unreliable(np.stack([y, x], axis=1), "stretch"):
        return None
    return paired(y, np.zeros_like(y), x)[0]
