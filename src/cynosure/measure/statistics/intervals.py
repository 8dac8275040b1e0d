"""Compute the intervals of a run's metrics, from its documents or from blocks of tokens inside them."""

from typing import NamedTuple

import numpy as np

from cynosure.measure.statistics.bootstrap import Floats, Interval, Method, choose, effective_size, interval
from cynosure.measure.statistics.groups import Grouped
from cynosure.measure.statistics.stats import Statistics


class Intervals(NamedTuple):
    """95% intervals, all by one method."""

    method: Method
    nats_per_token: Interval
    bits_per_byte: Interval | None  # None if bytes and characters are unknown
    bits_per_char: Interval | None
    effective_tokens: float | None  # effective sample size


def intervals(statistics: Statistics) -> Intervals:
    """Resample documents if there are at least 30, else blocks of tokens inside them."""
    blocks = statistics.blocks.sums() if statistics.blocks is not None else None
    documents = statistics.documents.sums()
    method, clusters = choose(
        columns(documents),
        None if blocks is None else columns(blocks),
        None if blocks is None else blocks.keys >> 32,
    )
    nats, tokens, carried_nats, n_bytes, n_chars = clusters.T
    per_token = interval(nats, tokens, seed=method.seed, n_resamples=method.n_resamples)
    known, some = statistics.told_per_byte and n_bytes.sum() > 0, n_bytes > 0
    per_byte, per_char = (
        interval(carried_nats[some] / np.log(2), x[some], seed=method.seed, n_resamples=method.n_resamples)
        if known
        else None
        for x in (n_bytes, n_chars)
    )
    n = tokens.sum()
    variance = statistics.squares.total / n - (nats.sum() / n) ** 2
    return Intervals(method, per_token, per_byte, per_char, effective_size(variance, per_token.se, n))


def columns(sums: Grouped) -> Floats:
    """Return five sums of each group, (G, 5).

    They are its nats (infinite if a token was impossible) and tokens, then the nats, bytes and characters of the tokens
    that carry their text.
    """
    counts = (sums.counts(name) for name in ("tokens", "n_bytes", "n_chars"))
    n_tokens, n_bytes, n_chars = counts
    return np.stack([sums.nats, n_tokens, sums.carried_nats, n_bytes, n_chars], axis=1)
