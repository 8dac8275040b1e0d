"""Two runs compared: how much better one model guesses the same bytes, how sure that is, and where it comes from."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.measure.align import Floats, Segments, Side, align
from cynosure.measure.bootstrap import BASE_TOKENS, Method, choose, interval, paired
from cynosure.measure.classes import CLASSES
from cynosure.measure.rows import Facts, Ints
from cynosure.measure.scores import MOST_DOCUMENTS, SHOWN, Figure, Scores, Setting, exponential, finite

CELL_BYTES = 64  # of the shortest blocks that are resampled
BEFORE_BYTES, AFTER_BYTES = 80, 30  # shown around a segment
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


@dataclass(frozen=True)
class Comparison:
    """B beside A, the baseline, on the bytes that both have scored.

    >>> from tests.lm.conftest import tiny
    >>> from cynosure.measure import score
    >>> a, b = (score(tiny(seed=seed), ["the cat sat on the mat. " * 20]) for seed in (0, 1))
    >>> found = compare(a, b)
    >>> found.n_bytes, found.resampling.kind, list(found.changes)
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


def compare(a: Scores | str | Path, b: Scores | str | Path) -> Comparison:
    """Compare two runs of the same texts, A the baseline: scores whose tokens were kept, or folders of runs.

    The tokenizers may differ: losses are compared on bytes, between those where a token ends in both. B - A and its
    p-value come from documents resampled where there are 30 or more, else from blocks of text inside them, the same
    ones in both. Where the tokens are the same there are also nats per token, perplexity, top-1 accuracy and agreement.

    ValueError where the runs are not of the same texts under the same protocol, where a tokenizer changes the text, and
    where nothing was scored in both; FileNotFoundError where there is no run.
    """
    return compare_sides(Side.of_run(a), Side.of_run(b))


def compare_sides(a: Side, b: Side) -> Comparison:
    """The comparison of two runs that have been read."""
    found = align(a, b)
    method, clusters = Clusters.of(found)
    documents, (n_bytes, nats_a, nats_b) = grouped(found.document, [found.n_bytes, found.nats_a, found.nats_b])
    losses, gains = extremes(found, a)
    comparison = Comparison(
        a.setting,
        b.setting,
        documents=sum(a.facts[key].n_joined for key in documents.tolist()),
        n_bytes=int(n_bytes.sum()),
        tokens_a=int(found.tokens_a.sum()),
        tokens_b=int(found.tokens_b.sum()),
        impossible_a=int(np.isinf(found.nats_a).sum()),
        impossible_b=int(np.isinf(found.nats_b).sum()),
        changes=clusters.changes(method, same=found.choices is not None),
        resampling=Resampling.of(method),
        agreement=agreement(found),
        wins={
            "a": int((nats_a < nats_b).sum()),
            "b": int((nats_b < nats_a).sum()),
            "ties": int((nats_a == nats_b).sum()),
        },
        by_document=by_document([a.facts[key] for key in documents.tolist()], n_bytes, nats_a, nats_b),
        by_class=by_class(found),
        losses=losses,
        gains=gains,
        notes=(),
    )
    return replace(comparison, notes=tuple(notes(comparison, sum(fact.n_bytes for fact in a.facts))))


class Clusters(NamedTuple):
    """Sums over each of what is resampled, (n_clusters,). Tokens are A's, right ones 0 where B's are others."""

    n_bytes: Floats
    nats_a: Floats
    nats_b: Floats
    tokens: Floats
    right_a: Floats
    right_b: Floats

    @classmethod
    def of(cls, found: Segments) -> tuple[Method, "Clusters"]:
        """Documents where there are 30, else blocks inside them; a segment belongs where its first byte is."""
        choices, none = found.choices, np.zeros(len(found.document))
        right = (none, none) if choices is None else (choices.right_a, choices.right_b)
        change = difference(found.nats_a, found.nats_b)
        columns = [
            np.where(np.isinf(change), 0, change),
            found.n_bytes,
            found.nats_a,
            found.nats_b,
            found.tokens_a,
            *right,
        ]
        keys, cells = grouped((found.document << 32) + found.byte_start // CELL_BYTES, columns)
        _, documents = grouped(keys >> 32, list(cells))
        method, clusters = choose(documents.T, cells.T, keys >> 32)
        return method, cls(*clusters.T[1:])

    def changes(self, method: Method, *, same: bool) -> dict[str, Change]:
        """Every metric that these runs have; those of tokens where they are the `same`."""
        bits_a, bits_b = self.nats_a / math.log(2), self.nats_b / math.log(2)
        per_byte = change(bits_a, bits_b, self.n_bytes, method)
        if not same:
            return {"bits_per_byte": per_byte}
        per_token = change(self.nats_a, self.nats_b, self.tokens, method)
        right = change(self.right_a, self.right_b, self.tokens, method)
        return dict(zip(METRICS, (per_byte, per_token, perplexity(per_token), right), strict=True))


def change(a: Floats, b: Floats, x: Floats, method: Method) -> Change:
    """Of the ratios sum(a) / sum(x) and sum(b) / sum(x) over clusters; without difference where one is infinite."""
    values = finite(a.sum() / x.sum()), finite(b.sum() / x.sum())
    if None in values:
        return Change(*values, UNKNOWN, UNKNOWN, None)
    absolute, p = paired(b, a, x, seed=method.seed, n_resamples=method.n_resamples)
    relative = interval(b - a, a, seed=method.seed, n_resamples=method.n_resamples) if a.sum() > 0 else UNKNOWN
    return Change(*values, Figure(*absolute[:3]), Figure(*relative[:3]), p)


def perplexity(nats: Change) -> Change:
    """The same change seen by perplexity. Its ratio is e to the difference of nats and has that interval; what is
    absolute has none, for it depends on the perplexity itself.
    """
    (a, b), ratio = (exponential(Figure(x)).value for x in nats[:2]), exponential(nats.difference)
    absolute = None if a is None or b is None else b - a
    return Change(a, b, Figure(absolute), Figure(*(None if x is None else x - 1 for x in ratio)), nats.p)


def difference(nats_a: Floats, nats_b: Floats) -> Floats:
    """B - A; infinite where one is, 0 where both are."""
    both = np.isinf(nats_a) & np.isinf(nats_b)
    return np.subtract(nats_b, nats_a, out=np.zeros_like(nats_a), where=~both)


def grouped(keys: Ints, columns: Sequence[NDArray[Any]]) -> tuple[Ints, Floats]:
    """The sums (k, G) of k columns over runs of equal ones of ascending keys, and those keys (G,)."""
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[starts], np.stack([np.add.reduceat(column, starts) for column in columns]).astype(np.float64)


def agreement(found: Segments) -> Agreement | None:
    if found.choices is None:
        return None
    n_tokens = int(found.tokens_a.sum())
    agreed, broken, mended = (int(x.sum()) / n_tokens for x in (found.choices.agreed, *found.choices[3:]))
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


def by_document(facts: list[Facts], n_bytes: Floats, nats_a: Floats, nats_b: Floats) -> list[dict[str, Any]]:
    """One row a document, in their order; of very many those where the runs are furthest apart."""
    order = np.argsort(-np.abs(difference(nats_a, nats_b)), kind="stable")[:MOST_DOCUMENTS]
    values = np.stack([n_bytes, nats_a, nats_b], axis=1).tolist()
    return [{"document": facts[i].name, **row(*values[i])} for i in np.sort(order).tolist()]


def by_class(found: Segments) -> list[dict[str, Any]]:
    """One row for each byte class there is of A's tokens."""
    order = np.argsort(found.kind, kind="stable")
    columns = (found.n_bytes, found.nats_a, found.nats_b)
    kinds, sums = grouped(found.kind[order], [column[order] for column in columns])
    return [
        {"class": CLASSES[kind], **row(*values)} for kind, values in zip(kinds.tolist(), sums.T.tolist(), strict=True)
    ]


def extremes(found: Segments, a: Side) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The segments on which B loses most against A, and those on which it gains most, in the text around them."""
    apart, text = difference(found.nats_a, found.nats_b), Text.of(a)
    both = []
    for worse in (apart, -apart):
        n = min(SHOWN, len(worse))
        at = np.flatnonzero((worse >= np.partition(worse, -n)[-n]) & (worse > 0))
        at = at[np.argsort(-worse[at], kind="stable")][:n]
        columns = (found.document, found.byte_start, found.byte_end, found.nats_a, found.nats_b, apart)
        both.append(
            [text.segment(*values) for values in zip(*(column[at].tolist() for column in columns), strict=True)]
        )
    return both[0], both[1]


class Text(NamedTuple):
    """All documents, one behind the other, to show parts of."""

    data: bytes
    offsets: list[int]  # where each begins, and the end
    names: list[str]

    @classmethod
    def of(cls, side: Side) -> "Text":
        offsets = np.cumsum([0, *(fact.n_bytes for fact in side.facts)]).tolist()
        return cls(side.text(), offsets, [fact.name for fact in side.facts])

    def segment(
        self, document: int, byte_start: int, byte_end: int, nats_a: float, nats_b: float, apart: float
    ) -> dict[str, Any]:
        """A segment as plain values, in the text around it; bytes that are no character of their own as `\\xNN`."""
        first, last = self.offsets[document : document + 2]
        start, end = first + byte_start, first + byte_end
        edges = (
            self.character(max(first, start - BEFORE_BYTES)),
            start,
            end,
            self.character(min(last, end + AFTER_BYTES)),
        )
        before, text, after = (self.data[i:j].decode("utf-8", "backslashreplace") for i, j in pairwise(edges))
        return {
            "document": self.names[document],
            "byte_start": byte_start,
            "byte_end": byte_end,
            "nats_a": finite(nats_a),
            "nats_b": finite(nats_b),
            "difference": finite(apart),
            "before": before,
            "text": text,
            "after": after,
        }

    def character(self, at: int) -> int:
        """Where the character of a byte begins."""
        while 0 < at < len(self.data) and self.data[at] & 0xC0 == 0x80:
            at -= 1
        return at


def notes(found: Comparison, n_bytes: int) -> Iterator[str]:
    """What a reader of the comparison must know; `n_bytes` are those of all texts."""
    if found.resampling.optimistic:
        yield found.resampling.optimistic
    for name in ("window", "stride", "dtype"):
        a, b = getattr(found.a, name), getattr(found.b, name)
        if a != b:
            yield f"the {name} is {a} in A and {b} in B"
    if found.n_bytes < n_bytes:
        yield f"{n_bytes - found.n_bytes:,} of {n_bytes:,} bytes are not scored in both, and left out"
    if found.impossible_a or found.impossible_b:
        yield (
            f"no difference of losses: tokens in {found.impossible_a:,} places were impossible to A, "
            f"in {found.impossible_b:,} to B"
        )
