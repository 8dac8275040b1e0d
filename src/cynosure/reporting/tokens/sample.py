"""Choose the tokens that a report shows, and read them from no more shards than needed."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cynosure.measure import Scores, Store

MOST_TOKENS = 100_000  # in a report
EXCERPT_TOKENS = 2_048  # of each evenly spaced excerpt
BEFORE, AFTER = 64, 32  # tokens shown around the worst


class RowRange(NamedTuple):
    """Consecutive tokens: their places among all tokens of a run, as rows of its shards."""

    start: int
    stop: int


def excerpts(scores: Scores, n_tokens: int) -> list[RowRange]:
    """Return which of a run's `n_tokens` tokens to show: all, or excerpts of them in the order of the text."""
    if n_tokens <= MOST_TOKENS:
        return [RowRange(0, n_tokens)]
    worst = joined(around_the_worst(scores, n_tokens))
    room = MOST_TOKENS - sum(stop - start for start, stop in worst)
    starts = np.linspace(0, n_tokens - EXCERPT_TOKENS, room // EXCERPT_TOKENS).astype(int).tolist()
    return joined([*worst, *(RowRange(start, start + EXCERPT_TOKENS) for start in starts)])


def around_the_worst(scores: Scores, n_tokens: int) -> Iterator[RowRange]:
    """Yield an excerpt around each of the worst tokens and spans of a run."""
    facts = scores.statistics.facts
    numbers = sorted(facts)
    firsts = dict(zip(numbers, np.cumsum([0, *(facts[number].n_tokens for number in numbers)]).tolist(), strict=False))
    for costly in (*scores.statistics.worst_spans, *scores.statistics.worst_tokens):
        place = firsts[costly.document] + costly.first
        yield RowRange(max(0, place - BEFORE), min(n_tokens, place + costly.n_tokens + AFTER))


def joined(parts: Iterable[RowRange]) -> list[RowRange]:
    """Sort excerpts, and join those that overlap or touch.

    >>> joined([RowRange(6, 9), RowRange(0, 4), RowRange(3, 6)])
    [RowRange(start=0, stop=9)]
    """
    whole: list[RowRange] = []
    for part in sorted(parts):
        if whole and part.start <= whole[-1].stop:
            whole[-1] = RowRange(whole[-1].start, max(whole[-1].stop, part.stop))
        else:
            whole.append(part)
    return whole


def count(scores: Scores) -> int:
    """Return the number of tokens of a run, scored or not."""
    return sum(fact.n_tokens for fact in scores.statistics.facts.values())


def read(scores: Scores, chosen: list[RowRange]) -> pa.Table:
    """Return the rows of the chosen excerpts. Raise ValueError if the tokens were not kept, or a shard is damaged."""
    parts: list[pa.Table] = []
    start = 0
    for n_rows, table in shards(scores):
        inside = [np.arange(max(a, start), min(b, start + n_rows)) - start for a, b in chosen]
        rows = np.concatenate([np.zeros(0, np.int64), *inside])
        if len(rows) or not parts:  # a run without tokens still has columns
            parts.append(table().take(rows))  # copies: a slice would keep the whole shard in memory
        start += n_rows
    return pa.concat_tables(parts)


def shards(scores: Scores) -> Iterator[tuple[int, Callable[[], pa.Table]]]:
    """Yield the number of rows of each shard, and what reads it, in the order of the text."""
    store = scores.store
    if store is None:
        yield from ((len(table), partial(table.slice, 0)) for table in scores.shards())
    else:
        yield from ((store.n_rows(number), partial(read_shard, store, number)) for number in sorted(store.files))


def read_shard(store: Store, number: int) -> pa.Table:
    return store.read(number)[0].table
