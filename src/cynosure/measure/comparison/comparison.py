"""Two runs compared: how much better one model guesses the same bytes, how sure that is, and where it comes from."""

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
from cynosure.measure.results.scores import MOST_DOCUMENTS, Setting
from cynosure.measure.statistics.bootstrap import BASE_TOKENS, Method, choose, interval, paired
from cynosure.measure.statistics.classes import CLASSES
from cynosure.measure.storage.rows import DocumentFacts, Ints, lost_text
from cynosure.system.numbers import finite

METRICS = ("bits_per_byte", "nats_per_token", "token_perplexity", "top1_accuracy")
UNKNOWN = Figure(None)


class Change(NamedTuple):
    """A figure of A and of B; B - A and (B - A) / A with their 95% intervals; the two-sided p-value of no difference.

    None is what is not known: figures where a token was impossible, intervals where there is too little text.
    """

    a: float | None
    b: float | None
    difference: Figure
    relative: Figure
    p: float | None

    def to_json(self) -> dict[str, Any]:
        return self._asdict() | {"difference": self.difference._asdict(), "relative": self.relative._asdict()}


class Resampling(NamedTuple):
    """What the intervals are made of; `optimistic` is a sentence where they are likely too narrow."""

    kind: Literal["documents", "blocks"]
    n_clusters: int
    block_bytes: int | None  # of a block, None where documents are resampled
    seed: int
    n_resamples: int
    optimistic: str | None

    @classmethod
    def of(cls, method: Method) -> "Resampling":
        """The method whose base blocks are of 64 bytes."""
        if method.block_tokens is None:
            return cls(*method)
        n_bytes = method.block_tokens // BASE_TOKENS * CELL_BYTES
        why = method.optimistic and method.optimistic.replace(f"{method.block_tokens} tokens", f"{n_bytes} bytes")
        return cls(*method._replace(block_tokens=n_bytes, optimistic=why))


class Agreement(NamedTuple):
    """How often two models of the same tokens think the same one likeliest, as shares of the tokens."""

    top1_agreement: float
    flip_rate: float  # where being right changed, either way
    right_to_wrong: float
    wrong_to_right: float


class Divergence(NamedTuple):
    """The Kullback-Leibler divergence of B's distributions from A's over the tokens scored, nats."""

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
    """B compared with A, the baseline, on the bytes that both have scored. Prints as a table.

    Example:
        >>> import cynosure
        >>> scores = cynosure.score("smollm2", ["the cat sat on the mat. " * 20])
        >>> comparison = cynosure.compare(scores, scores)
        >>> comparison.n_bytes, comparison.resampling.kind, list(comparison.changes)
        (480, 'blocks', ['bits_per_byte', 'nats_per_token', 'token_perplexity', 'top1_accuracy'])
    """

    a: Setting
    b: Setting
    documents: int  # of which something is scored in both
    n_bytes: int
    tokens_a: int
    tokens_b: int
    impossible_a: int  # segments of infinite loss
    impossible_b: int
    changes: dict[str, Change]  # by metric; of tokens only where they are the same in both
    resampling: Resampling
    agreement: Agreement | None
    wins: dict[str, int]  # documents on which A or B has the lower loss, and ties
    by_document: list[dict[str, Any]]
    by_class: list[dict[str, Any]]
    losses: list[dict[str, Any]]  # the segments on which B is worse than A by most
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
        """Everything as plain values; what is not finite or not known is None."""
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
    """The comparison of two runs that have been read."""
    lost, n_bytes_given = list(lossy(a, b)), sum(fact.n_bytes for fact in a.facts)
    a, b = comparable(a, b)
    tally = Tally()
    for found in align(a, b):
        tally.add(found)
    method, clusters, documents, sums = Clusters.of(tally)
    _, n_bytes, nats_a, nats_b, *_ = sums
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
        changes=clusters.changes(method, same=tally.same),
        resampling=Resampling.of(method),
        agreement=agreement(tally),
        wins={
            "a": int((nats_a < nats_b).sum()),
            "b": int((nats_b < nats_a).sum()),
            "ties": int((nats_a == nats_b).sum()),
        },
        by_document=by_document([a.facts[key] for key in documents.tolist()], n_bytes, nats_a, nats_b),
        by_class=by_class(tally),
        losses=shown[:n_losses],
        gains=shown[n_losses:],
        notes=(),
    )
    return replace(comparison, notes=(*lost, *notes(comparison, n_bytes_given)))


def lossy(a: Side, b: Side) -> Iterator[str]:
    """What is said of text that is left out."""
    for name, side in (("A", a), ("B", b)):
        if (why := lost_text(side.facts)) is not None:
            yield f"text that {name} loses is left out: {why}"


class Clusters(NamedTuple):
    """Sums over each of what is resampled, (n_clusters,). Tokens are A's, right ones 0 where B's are others."""

    n_bytes: Floats
    nats_a: Floats
    nats_b: Floats
    tokens: Floats
    right_a: Floats
    right_b: Floats

    @classmethod
    def of(cls, tally: Tally) -> "tuple[Method, Clusters, Ints, Floats]":
        """Documents where there are 30, else blocks inside them; also all documents (G,) and their sums (7, G)."""
        keys, cells = tally.cells()
        numbers, documents = grouped(keys >> 32, list(cells))
        method, clusters = choose(documents.T, cells.T, keys >> 32)
        return method, cls(*clusters.T[1:]), numbers, documents

    def changes(self, method: Method, *, same: bool) -> dict[str, Change]:
        """Every metric that these runs have; those of tokens where they are the `same`."""
        bits_a, bits_b = self.nats_a / math.log(2), self.nats_b / math.log(2)
        per_byte = change(bits_a, bits_b, self.n_bytes, method)
        if not same:
            return {"bits_per_byte": per_byte}
        per_token = change(self.nats_a, self.nats_b, self.tokens, method)
        right = change(self.right_a, self.right_b, self.tokens, method)
        return dict(zip(METRICS, (per_byte, per_token, exponential_change(per_token), right), strict=True))


def change(a: Floats, b: Floats, x: Floats, method: Method) -> Change:
    """Of the ratios sum(a) / sum(x) and sum(b) / sum(x) over clusters; without difference where one is infinite."""
    values = finite(a.sum() / x.sum()), finite(b.sum() / x.sum())
    if None in values:
        return Change(*values, UNKNOWN, UNKNOWN, None)
    absolute, p = paired(b, a, x, seed=method.seed, n_resamples=method.n_resamples)
    relative = interval(b - a, a, seed=method.seed, n_resamples=method.n_resamples) if a.sum() > 0 else UNKNOWN
    return Change(*values, Figure(*absolute[:3]), Figure(*relative[:3]), p)


def exponential_change(nats: Change) -> Change:
    """The same change seen by perplexity. Its ratio is e to the difference of nats and has that interval; what is
    absolute has none, for it depends on the perplexity itself.
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
    """A part of the text as plain values: bits per byte of A and B, and what B adds to them and to the nats of A."""
    per_byte = 1 / (n_bytes * math.log(2))
    return {
        "bytes": int(n_bytes),
        "bits_per_byte_a": finite(nats_a * per_byte),
        "bits_per_byte_b": finite(nats_b * per_byte),
        "difference": finite((nats_b - nats_a) * per_byte),
        "nats": finite(nats_b - nats_a),
    }


def by_document(facts: list[DocumentFacts], n_bytes: Floats, nats_a: Floats, nats_b: Floats) -> list[dict[str, Any]]:
    """One row a document, in their order; of very many those where the runs are furthest apart."""
    order = np.argsort(-np.abs(difference(nats_a, nats_b)), kind="stable")[:MOST_DOCUMENTS]
    values = np.stack([n_bytes, nats_a, nats_b], axis=1).tolist()
    return [{"document": facts[i].name, **row(*values[i])} for i in np.sort(order).tolist()]


def by_class(tally: Tally) -> list[dict[str, Any]]:
    """One row for each byte class there is of A's tokens."""
    return [
        {"class": name, **row(*values)}
        for name, values in zip(CLASSES, tally.classes.T.tolist(), strict=True)
        if values[0]
    ]


def opened(setting: Setting) -> str:
    """Before what BOS stood in a run; earlier versions, which did not say, put it where `first` does."""
    return {
        "every": "every window",
        "first": "each document's first window alone",
        "none": "no window",
    }[setting.bos or "first"]


def notes(found: Comparison, n_bytes: int) -> Iterator[str]:
    """What a reader of the comparison must know; `n_bytes` are those of all texts."""
    if found.resampling.optimistic:
        yield found.resampling.optimistic
    for name in ("window", "stride", "dtype"):
        a, b = getattr(found.a, name), getattr(found.b, name)
        if a != b:
            yield f"the {name} is {a} in A and {b} in B"
    if (of_a := opened(found.a)) != (of_b := opened(found.b)):
        yield f"BOS stands before {of_a} in A, and before {of_b} in B"
    if (read_a := found.a.special or "parse") != (read_b := found.b.special or "parse"):
        yield f"strings that are special tokens are read by {read_a!r} in A and by {read_b!r} in B"
    if None not in (found.a.chat, found.b.chat) and found.a.chat != found.b.chat:
        yield f"of chats {found.a.chat!r} counts in A and {found.b.chat!r} in B"
    if found.n_bytes < n_bytes:
        yield f"{n_bytes - found.n_bytes:,} of {n_bytes:,} bytes are not scored in both, and left out"
    if found.impossible_a or found.impossible_b:
        yield (
            f"no difference of losses: tokens in {found.impossible_a:,} places were impossible to A, "
            f"in {found.impossible_b:,} to B"
        )
