"""Metrics with their intervals, and the sums they are computed from."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cynosure.loss import perplexity
from cynosure.measure.statistics.bootstrap import Interval
from cynosure.measure.statistics.stats import Statistics
from cynosure.system.numbers import number

if TYPE_CHECKING:
    from cynosure.measure.results.scores import Scores


class Figure(NamedTuple):
    """A metric's value and its 95% interval; None if unknown."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def shown(self, digits: int) -> str:
        """Format the interval; empty if there is none."""
        if self.low is None or self.high is None:
            return ""
        return f"{number(self.low, digits)} to {number(self.high, digits)}"


MEANINGS = {  # name, digits and meaning of each metric
    "nats_per_token": ("nats per token", 4, "the loss: mean surprise of a token"),
    "token_perplexity": ("token perplexity", 2, "like guessing among that many equal choices"),
    "word_perplexity": ("word perplexity", 2, "the same counted per word"),
    "bits_per_byte": ("bits per byte", 4, "comparable across tokenizers; 8 is a uniform guess"),
    "bits_per_char": ("bits per character", 4, ""),
}


@dataclass(frozen=True)
class Totals:
    """The sums that metrics are computed from."""

    tokens: int
    nats: float  # infinite if a token was impossible
    carried_nats: float  # of the tokens that carry their text, like bytes and characters
    n_bytes: int | None
    n_chars: int | None
    n_words: int | None

    @classmethod
    def of(cls, statistics: Statistics) -> "Totals":
        sums, total, known = statistics.sums, statistics.total, statistics.told_per_byte
        n_bytes, n_chars = (int(total.counts(name)[0]) if known else None for name in ("n_bytes", "n_chars"))
        return cls(sums.tokens, sums.nats, float(total.carried_nats[0]), n_bytes, n_chars, statistics.words())

    def as_printed(self, scores: "Scores") -> "Totals":
        """Return the sums of Hugging Face's page as printed, which weighs each window's mean by its labels minus one.

        That weight is right if the first position has a label, since nothing predicts it. Any other window has as many
        terms as labels, so its weight is one too small.
        """
        sums = scores.statistics.windows.sums()
        number, n_terms = sums.keys & 0xFFFFFFFF, sums.counts("tokens")
        whole = (number == 0) | (scores.setting.stride >= scores.setting.window)  # its first position had a label
        weight = np.where(whole, n_terms, n_terms - 1)
        tokens = int(weight.sum())
        nats = math.fsum((sums.amount("nats") * weight / n_terms).tolist()) if math.isfinite(self.nats) else math.inf
        return Totals(tokens, nats if tokens else math.nan, math.nan, None, None, None)


def figure(total: float, count: int | None, interval: Interval | None) -> Figure:
    """Return the quotient with its interval; unknown without a count."""
    if not count:
        return Figure(None)
    return Figure(total / count, *((interval.low, interval.high) if interval else ()))


def scaled(interval: Interval, factor: float) -> Interval:
    return Interval(*(None if x is None else x * factor for x in interval))  # type: ignore[arg-type]


def exponential(nats: Figure) -> Figure:
    """Convert a metric in nats, and its interval, to perplexity."""
    return Figure(*(None if x is None else perplexity(x) for x in nats))
