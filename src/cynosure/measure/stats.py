"""Sums over scored tokens, exact and mergeable in any order, and the figures divided out of them once, at the end."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class DocumentTokens(NamedTuple):
    """What scoring says of each token of a document, all (N,): `nll` and `entropy` in nats, NaN where not scored."""

    name: str
    text: str
    nll: Floats
    entropy: Floats
    correct: Bools  # the likeliest token is the right one
    n_bytes: Ints | None
    n_chars: Ints | None
    drift: str | None  # why bytes and characters are not known


class Excluded(NamedTuple):
    """Bytes of a document that no scored token covers, and why."""

    document: str
    byte_start: int
    byte_end: int
    reason: str


def exact_sum(values: Floats) -> Fraction:
    """The sum without any rounding: mantissas are added as integers, one sum for each exponent.

    >>> exact_sum(np.array([1e16, 1.0, -1e16]))
    Fraction(1, 1)
    """
    mantissa, exponent = np.frexp(values)
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    parts = (Fraction(sum(whole[exponent == e].tolist())) * Fraction(2) ** (int(e) - 53) for e in np.unique(exponent))
    return sum(parts, Fraction(0))


def count_words(text: str) -> int:
    r"""Words as lm-evaluation-harness counts them, `len(re.split(r"\s+", text))`: space at an edge adds an empty one.

    >>> count_words("to be or"), count_words(" to be or")
    (3, 4)
    """
    return len(re.split(r"\s+", text))


def add_known(a: int | None, b: int | None) -> int | None:
    """a + b, unknown if either is."""
    return None if a is None or b is None else a + b


@dataclass(frozen=True)
class Totals:
    """Sufficient statistics of scored tokens. Adding two is exact, so their order never matters."""

    documents: int = 0
    tokens: int = 0
    nats: Fraction = Fraction(0)  # of the tokens with a finite loss
    impossible: int = 0  # tokens of infinite loss
    entropy: Fraction = Fraction(0)
    correct: int = 0
    bytes: int | None = 0
    chars: int | None = 0
    words: int | None = 0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(
            self.documents + other.documents,
            self.tokens + other.tokens,
            self.nats + other.nats,
            self.impossible + other.impossible,
            self.entropy + other.entropy,
            self.correct + other.correct,
            add_known(self.bytes, other.bytes),
            add_known(self.chars, other.chars),
            add_known(self.words, other.words),
        )

    @classmethod
    def of(cls, document: DocumentTokens) -> "Totals":
        """The totals of one document. Words are known only where every token of it is scored."""
        scored = ~np.isnan(document.nll)
        nll = document.nll[scored]
        finite = nll[np.isfinite(nll)]
        return cls(
            documents=1,
            tokens=len(nll),
            nats=exact_sum(finite),
            impossible=len(nll) - len(finite),
            entropy=exact_sum(document.entropy[scored]),
            correct=int(document.correct[scored].sum()),
            bytes=None if document.n_bytes is None else int(document.n_bytes[scored].sum()),
            chars=None if document.n_chars is None else int(document.n_chars[scored].sum()),
            words=count_words(document.text) if scored.all() else None,
        )


def excluded(document: DocumentTokens, reason: str) -> list[Excluded]:
    """The byte ranges of a document that were not scored; none where bytes are not known."""
    if document.n_bytes is None:
        return []
    stops = np.cumsum(document.n_bytes)
    missed = np.isnan(document.nll)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], missed, [False]]).astype(np.int8)))
    return [
        Excluded(document.name, int(stops[start] - document.n_bytes[start]), int(stops[stop - 1]), reason)
        for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    ]


class Figure(NamedTuple):
    """A figure and its 95% interval; None where it is not known."""

    value: float | None
    low: float | None = None
    high: float | None = None


def ratio(total: float, count: int | None) -> float | None:
    return total / count if count else None


def exponential(x: float | None) -> float | None:
    """e^x, infinite beyond what a float holds."""
    if x is None:
        return None
    return math.exp(x) if x < 709 else math.inf


@dataclass(frozen=True)
class Summary:
    """The figures of one run. `to_json` gives them under the keys that are a contract."""

    model: str
    protocol: str
    window: int
    stride: int
    dtype: str
    totals: Totals
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...]  # what a reader of the figures must know
    seconds: float

    @property
    def nats(self) -> float:
        return math.inf if self.totals.impossible else float(self.totals.nats)

    @property
    def figures(self) -> dict[str, Figure]:
        """The five figures that are the loss in different units."""
        totals, nats = self.totals, self.nats
        values = {
            "nats_per_token": ratio(nats, totals.tokens),
            "token_perplexity": exponential(ratio(nats, totals.tokens)),
            "word_perplexity": exponential(ratio(nats, totals.words)),
            "bits_per_byte": ratio(nats / math.log(2), totals.bytes),
            "bits_per_char": ratio(nats / math.log(2), totals.chars),
        }
        return {name: Figure(value) for name, value in values.items()}

    @property
    def tokens_per_second(self) -> float | None:
        return self.totals.tokens / self.seconds if self.seconds > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Everything by the names of the contract; what is not finite or not known is None."""
        totals = self.totals
        values: dict[str, Any] = {
            "model": self.model,
            "protocol": self.protocol,
            "window": self.window,
            "stride": self.stride,
            "dtype": self.dtype,
            "documents": totals.documents,
            "tokens": totals.tokens,
            "nats": finite(self.nats),
            "bytes": totals.bytes,
            "chars": totals.chars,
            "words": totals.words,
            **{
                name: {key: finite(value) for key, value in figure._asdict().items()}
                for name, figure in self.figures.items()
            },
            "top1_accuracy": ratio(totals.correct, totals.tokens),
            "mean_entropy": ratio(float(totals.entropy), totals.tokens),
            "calibration": None,
            "excluded": [part._asdict() for part in self.excluded],
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
        }
        return values


def finite(x: float | None) -> float | None:
    """JSON has no infinity."""
    return x if x is not None and math.isfinite(x) else None
