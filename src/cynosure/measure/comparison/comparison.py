"""The comparison of two runs: how much better one model predicts the same bytes, how sure that is, and where."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from cynosure.measure.comparison.align import Floats, Side, align, comparable
from cynosure.measure.comparison.excerpts import in_context
from cynosure.measure.comparison.tally import CELL_BYTES, Tally, difference, grouped
from cynosure.measure.results import wording
from cynosure.measure.results.figures import Figure, exponential
from cynosure.measure.results.scores import Setting
from cynosure.measure.statistics.bootstrap import BASE_TOKENS, Interval, Method, choose, interval, paired
from cynosure.measure.statistics.breakdown import MOST_DOCUMENTS
from cynosure.measure.statistics.classes import CLASSES
from cynosure.measure.statistics.stretches import stretch, stretch_interval
from cynosure.measure.storage.rows import DocumentFacts, Ints, lost_text
from cynosure.system.numbers import finite

METRICS = ("bits_per_byte", "nats_per_token", "token_perplexity", "top1_accuracy")
UNKNOWN = Figure(None)


class Change(NamedTuple):
    """A metric of A and of B, and its change."""

    a: float | None  # None if a token was impossible
    b: float | None
    difference: Figure  # B - A with its 95% interval, which is None if there is too little text
    relative: Figure  # (B - A) / A likewise
    p: float | None  # two-sided p-value of no difference

    def to_json(self) -> dict[str, Any]:
        return self._asdict() | {"difference": self.difference._asdict(), "relative": self.relative._asdict()}


class Resampling(NamedTuple):
    """What was resampled for the intervals, and how."""

    kind: Literal["documents", "blocks"]
    n_clusters: int
    block_bytes: int | None  # None if documents are resampled
    seed: int
    n_resamples: int
    optimistic: str | None  # a sentence on why the intervals are likely too narrow; None if they are not

    @classmethod
    def of(cls, method: Method) -> "Resampling":
        """Convert a method whose base blocks have 64 bytes."""
        if method.block_tokens is None:
            return cls(*method)
        n_bytes = method.block_tokens // BASE_TOKENS * CELL_BYTES
        why = method.optimistic and method.optimistic.replace(f"{method.block_tokens} tokens", f"{n_bytes} bytes")
        return cls(*method._replace(block_tokens=n_bytes, optimistic=why))


class Agreement(NamedTuple):
    """How often two models have the same likeliest token, as shares of the tokens."""

    top1_agreement: float
    flip_rate: float  # one is right and the other wrong
    right_to_wrong: float
    wrong_to_right: float


class Divergence(NamedTuple):
    """The Kullback-Leibler divergence KL(A || B) of the two models over the scored tokens, nats."""

    tokens: int
    mean: Figure
    median: float
    p99: float
    max: float
    method: Method  # of the mean's interval

    def to_json(self) -> dict[str, Any]:
        values = {name: finite(getattr(self, name)) for name in ("median", "p99", "max")}
        mean = {name: finite(x) for name, x in self.mean._asdict().items()}
        return {"tokens": self.tokens, "mean": mean, **values, "interval": self.method._asdict()}


@dataclass(frozen=True, repr=False)
class Comparison:
    """The comparison of B with A, the baseline, on the bytes that both have scored. It prints as a table.

    Example:
        >>> import cynosure
        >>> scores = cynosure.score("smollm2", ["the cat sat on the mat. " * 20])
        >>> comparison = cynosure.compare(scores, scores)
        >>> comparison.n_bytes, comparison.resampling.kind, list(comparison.changes)
        (480, 'blocks', ['bits_per_byte', 'nats_per_token', 'token_perplexity', 'top1_accuracy'])
    """

    a: Setting
    b: Setting
    documents: int  # with something scored in both
    n_bytes: int
    tokens_a: int
    tokens_b: int
    impossible_a: int  # segments of infinite loss
    impossible_b: int
    changes: dict[str, Change]  # by metric; metrics of tokens only if the tokens are the same in both
    resampling: Resampling
    agreement: Agreement | None
    wins: dict[str, int]  # documents on which A or B has the lower loss, and ties
    by_document: list[dict[str, Any]]
    by_class: list[dict[str, Any]]
    losses: list[dict[str, Any]]  # the segments on which B is worst compared with A
    gains: list[dict[str, Any]]
    notes: tuple[str, ...]
    divergence: Divergence | None = None

    def __str__(self) -> str:
        return wording.comparison_text(self)

    def __repr__(self) -> str:
        return f"<Comparison of {self.a.model} (A) and {self.b.model} (B): {wording.conclusion(self)}>"

    def _repr_html_(self) -> str:
        return wording.comparison_html(self)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values; None for what is infinite or unknown."""
        return {
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "documents": self.documents,
            "bytes": self.n_bytes,
            **{name: getattr(self, name) for name in ("tokens_a", "tokens_b", "impossible_a", "impossible_b")},
            **{name: self.changes[name].to_json() if name in self.changes else None for name in METRICS},
            "interval": self.resampling._asdict(),
            "agreement": self.agreement and self.agreement._asdict(),
            "divergence": self.divergence and self.divergence.to_json(),
            "notes": list(self.notes),
            **{name: getattr(self, name) for name in ("wins", "by_class", "by_document", "losses", "gains")},
        }


def compare_sides(a: Side, b: Side) -> Comparison:
    """Compare two runs that have been read."""
    lost, n_bytes_given = list(lossy(a, b)), sum(fact.n_bytes for fact in a.facts)
    a, b = comparable(a, b)
    tally = Tally()
    for part in align(a, b):
        tally.add(part)
    method, clusters, documents, sums = Clusters.of(tally)
    _, n_bytes, nats_a, nats_b, *_ = sums
    changes = clusters.changes(method, same=tally.same)
    shown = in_context(a, tally.losses.excerpts() + tally.gains.excerpts())
    n_losses = len(tally.losses.worse)
    comparison = Comparison(
        a.setting,
        b.setting,
        documents=sum(a.facts[key].n_joined for key in documents.tolist()),
        n_bytes=int(n_bytes.sum()),
        tokens_a=int(tally.tokens[0]),
        tokens_b=int(tally.tokens[1]),
        impossible_a=int(tally.impossible[0]),
        impossible_b=int(tally.impossible[1]),
        changes=changes,
        resampling=Resampling.of(method),
        agreement=agreement(tally),
        wins={
            "a": int((nats_a < nats_b).sum()),
            "b": int((nats_b < nats_a).sum()),
            "ties": int((nats_a == nats_b).sum()),
        },
        by_document=by_document(a, tally, documents, sums, changes["bits_per_byte"].difference),
        by_class=by_class(tally),
        losses=shown[:n_losses],
        gains=shown[n_losses:],
        notes=(),
    )
    return replace(comparison, notes=(*lost, *notes(comparison, n_bytes_given)))


def lossy(a: Side, b: Side) -> Iterator[str]:
    """Yield notes on the text that is left out."""
    for name, side in (("A", a), ("B", b)):
        if (why := lost_text(side.facts)) is not None:
            yield f"text that {name} loses is left out: {why}"


class Clusters(NamedTuple):
    """Sums over each cluster that is resampled, (n_clusters,)."""

    n_bytes: Floats
    nats_a: Floats
    nats_b: Floats
    tokens: Floats  # of A
    right_a: Floats  # 0 if the tokens of A and B differ
    right_b: Floats

    @classmethod
    def of(cls, tally: Tally) -> "tuple[Method, Clusters, Ints, Floats]":
        """Choose what to resample; also return the numbers of all documents (G,) and their sums (7, G)."""
        keys, cells = tally.cells()
        numbers, documents = grouped(keys >> 32, list(cells))
        method, clusters = choose(documents.T, cells.T, keys >> 32)
        return method, cls(*clusters.T[1:]), numbers, documents

    def changes(self, method: Method, *, same: bool) -> dict[str, Change]:
        """Compute the change of every metric; metrics of tokens only if those are the `same` in both."""
        bits_a, bits_b = self.nats_a / math.log(2), self.nats_b / math.log(2)
        per_byte = change(bits_a, bits_b, self.n_bytes, method)
        if not same:
            return {"bits_per_byte": per_byte}
        per_token = change(self.nats_a, self.nats_b, self.tokens, method)
        right = change(self.right_a, self.right_b, self.tokens, method)
        return dict(zip(METRICS, (per_byte, per_token, exponential_change(per_token), right), strict=True))


def change(a: Floats, b: Floats, x: Floats, method: Method) -> Change:
    """Compare the ratios sum(a) / sum(x) and sum(b) / sum(x) over clusters. An infinite one has no difference."""
    values = finite(a.sum() / x.sum()), finite(b.sum() / x.sum())
    if None in values:
        return Change(*values, UNKNOWN, UNKNOWN, None)
    absolute, p = paired(b, a, x, seed=method.seed, n_resamples=method.n_resamples)
    relative = interval(b - a, a, seed=method.seed, n_resamples=method.n_resamples) if a.sum() > 0 else UNKNOWN
    return Change(*values, Figure(*absolute[:3]), Figure(*relative[:3]), p)


def exponential_change(nats: Change) -> Change:
    """Express a change of nats as one of perplexity.

    The ratio is e to the difference in nats, and so is its interval. The absolute difference has no interval, because
    it depends on the perplexity itself.
    """
    (a, b), ratio = (exponential(Figure(x)).value for x in nats[:2]), exponential(nats.difference)
    absolute = None if a is None or b is None else b - a
    return Change(a, b, Figure(absolute), Figure(*(None if x is None else x - 1 for x in ratio)), nats.p)


def agreement(tally: Tally) -> Agreement | None:
    if not tally.same:
        return None
    agreed, broken, mended = (int(x) / int(tally.tokens[0]) for x in (tally.choices[0], *tally.choices[3:]))
    return Agreement(agreed, broken + mended, broken, mended)


def row(n_bytes: float, nats_a: float, nats_b: float) -> dict[str, Any]:
    """Return a part of the text as plain values: bits per byte of A and B, and the differences B - A."""
    per_byte = 1 / (n_bytes * math.log(2))
    return {
        "bytes": int(n_bytes),
        "bits_per_byte_a": finite(nats_a * per_byte),
        "bits_per_byte_b": finite(nats_b * per_byte),
        "difference": finite((nats_b - nats_a) * per_byte),
        "nats": finite(nats_b - nats_a),
    }


def by_document(side: Side, tally: Tally, keys: Ints, sums: Floats, of_all: Figure) -> list[dict[str, Any]]:
    """Return a row for each document, in order. With very many documents, only those with the largest difference.

    `keys` (G,) and `sums` (7, G) are those of all documents. `low` and `high` are the interval of the difference; None
    if there is too little text. If there is one document, it is the interval `of_all` text.
    """
    _, n_bytes, nats_a, nats_b, *_ = sums
    order = np.argsort(-np.abs(difference(nats_a, nats_b)), kind="stable")[:MOST_DOCUMENTS]
    chosen, values = np.sort(order), np.stack([n_bytes, nats_a, nats_b], axis=1)
    facts = [side.facts[key] for key in keys[chosen].tolist()]
    found: list[Any] = [of_all] if len(keys) == 1 else document_intervals(facts, *tally.cells())
    return [
        {"document": fact.name, **row(*part), "low": interval and interval.low, "high": interval and interval.high}
        for fact, part, interval in zip(facts, values[chosen].tolist(), found, strict=True)
    ]


def document_intervals(facts: list[DocumentFacts], keys: Ints, cells: Floats) -> list[Interval | None]:
    """Return the interval of the difference in bits per byte of each document; `keys` and `cells` as in `Tally`."""
    found: list[Interval | None] = []
    for fact in facts:
        inside = slice(*np.searchsorted(keys, [fact.document << 32, (fact.document + 1) << 32]))
        size = stretch(-(-fact.n_bytes // CELL_BYTES), 1)
        _, (_, n_bytes, nats_a, nats_b, *_) = grouped((keys[inside] & 0xFFFFFFFF) // size, list(cells[:, inside]))
        found.append(stretch_interval(difference(nats_a, nats_b) / math.log(2), n_bytes))
    return found


def by_class(tally: Tally) -> list[dict[str, Any]]:
    """Return a row for each byte class that A's tokens have."""
    return [
        {"class": name, **row(*values)}
        for name, values in zip(CLASSES, tally.classes.T.tolist(), strict=True)
        if values[0]
    ]


def opened(setting: Setting) -> str:
    """Say which windows of a run begin with BOS. Runs of earlier versions do not record it: it was `first`."""
    return {
        "every": "every window",
        "first": "only each document's first window",
        "none": "no window",
    }[setting.bos or "first"]


def notes(comparison: Comparison, n_bytes: int) -> Iterator[str]:
    """Yield what a reader of the comparison must know; `n_bytes` is the size of all texts."""
    a, b = comparison.a, comparison.b
    if comparison.resampling.optimistic:
        yield comparison.resampling.optimistic
    for name in ("window", "stride", "dtype"):
        if getattr(a, name) != getattr(b, name):
            yield f"the {name} is {getattr(a, name)} in A and {getattr(b, name)} in B"
    if (of_a := opened(a)) != (of_b := opened(b)):
        yield f"BOS begins {of_a} in A, and {of_b} in B"
    if (read_a := a.special or "parse") != (read_b := b.special or "parse"):
        yield f"strings that are special tokens are read with special={read_a!r} in A and {read_b!r} in B"
    if None not in (a.chat, b.chat) and a.chat != b.chat:
        yield f"the turns of chats that count are {a.chat!r} in A and {b.chat!r} in B"
    if comparison.n_bytes < n_bytes:
        yield f"{n_bytes - comparison.n_bytes:,} of {n_bytes:,} bytes are left out: they are not scored in both"
    if comparison.impossible_a or comparison.impossible_b:
        yield (
            f"the losses have no difference: {comparison.impossible_a:,} places have a token of probability 0 in A, "
            f"and {comparison.impossible_b:,} in B"
        )
