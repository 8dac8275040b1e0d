"""Metrics with their intervals, and the sums that they are divided out of."""

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
        """The interval, for reading; empty where there is none."""
        if self.low is None or self.high is None:
            return ""
        return f"{number(self.low, digits)} to {number(self.high, digits)}"


MEANINGS = {  # their names, digits and meanings
    "nats_per_token": ("nats per token", 4, "the loss: mean surprise of a token"),
    "token_perplexity": ("token perplexity", 2, "like guessing among that many equal choices"),
    "word_perplexity": ("word perplexity", 2, "the same counted per word"),
    "bits_per_byte": ("bits per byte", 4, "comparable across tokenizers; 8 is a uniform guess"),
    "bits_per_char": ("bits per character", 4, ""),
}


@dataclass(frozen=True)
class Totals:
    """The sums that figures are divided out of; infinite nats where a token was impossible."""

    tokens: int
    nats: float
    carried_nats: float  # of the tokens that carry their text; so are bytes and characters
    n_bytes: int | None
    n_chars: int | None
    n_words: int | None

    @classmethod
    def of(cls, statistics: Statistics) -> "Totals":
        sums, total, known = statistics.sums, statistics.total, statistics.told_per_byte
        n_bytes, n_chars = (int(total.counts(name)[0]) if known else None for name in ("n_bytes", "n_chars"))
        return cls(sums.tokens, sums.nats, float(total.carried_nats[0]), n_bytes, n_chars, statistics.words())

    def as_printed(self, scores: "Scores") -> "Totals":
        """The sums of Hugging Face's page as printed: each window's mean, weighed by its labels less one.

        A window of n labels of which none is its first position has n terms in its mean, and only there is the weight
        too small; the bytes and words stay those of the tokens scored.
        """
        sums = scores.statistics.windows.sums()
        number, n_terms = sums.keys & 0xFFFFFFFF, sums.counts("tokens")
        whole = (number == 0) | (scores.setting.stride >= scores.setting.window)  # its first position had a label
        weight = np.where(whole, n_terms, n_terms - 1)
        tokens = int(weight.sum())
        nats = math.fsum((sums.amount("nats") * weight / n_terms).tolist()) if math.isfinite(self.nats) else math.inf
        return Totals(tokens, nats if tokens else math.nan, math.nan, None, None, None)


def figure(total: float, count: int | None, found: Interval | None) -> Figure:
    """A quotient and the interval that goes with it; without a count nothing."""
    if not count:
        return Figure(None)
    return Figure(total / count, *((found.low, found.high) if found else ()))


def scaled(found: Interval, factor: float) -> Interval:
    return Interval(*(None if x is None else x * factor for x in found))  # type: ignore[arg-type]


def exponential(found: Figure) -> Figure:
    """The perplexity of a figure in nats and of its ends."""
    return Figure(*(None if x is None else perplexity(x) for x in found))
