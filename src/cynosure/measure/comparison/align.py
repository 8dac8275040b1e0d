"""Align two runs: cut the text wherever a token ends in both, and sum the loss of each run between the cuts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cynosure.measure.results.scores import Scores, Setting
from cynosure.measure.statistics.classes import byte_class
from cynosure.measure.storage.rows import DocumentFacts, Ints, lost_text, numbers, told_per_byte
from cynosure.measure.storage.store import Store

COLUMNS = ["document", "token_id", "token_bytes", "byte_start", "byte_end", "nll", "argmax", "excluded"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class StoredTables:
    """The tables of a run on disk. Every iteration reads them again, one in memory at a time."""

    store: Store

    def __iter__(self) -> Iterator[pa.Table]:
        return (shard.table for shard, _ in self.store.read_all(COLUMNS))


class Side(NamedTuple):
    """What a comparison needs from a run: its documents, and its tokens as tables in the order of the text."""

    setting: Setting
    facts: list[DocumentFacts]  # of every document, by its number
    tables: Iterable[pa.Table]  # iterated more than once

    @classmethod
    def of_run(cls, run: Scores | str | Path) -> "Side":
        """Read scores whose tokens were kept, or the folder of a run. Errors are those of `open_run` and `Scores`."""
        if isinstance(run, Scores):
            if run.store is None:
                return cls.of_tables(run.setting, run.statistics.facts, list(run.shards()))
            store = run.store
        else:
            store = Store.open(Path(run))
        try:
            setting = Setting.of_json(store.manifest["setting"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{store.folder}: the manifest is not one of a run ({error}): give another run") from error
        facts = {fact.document: fact for shard, _ in store.read_all([]) for fact in shard.facts}
        return cls.of_tables(setting, facts, StoredTables(store))

    @classmethod
    def of_tables(cls, setting: Setting, facts: Mapping[int, DocumentFacts], tables: Iterable[pa.Table]) -> "Side":
        return cls(setting, [facts[key] for key in sorted(facts)], tables)

    def offsets(self) -> Ints:
        """Return where each document begins and the last one ends, in bytes of all documents end to end."""
        return np.cumsum([0, *(fact.n_bytes for fact in self.facts)])

    def without_bytes(self, chosen: Sequence[bool]) -> "Side":
        """Return the same run with the chosen documents marked as having no bytes."""
        return self._replace(
            facts=[fact._replace(n_bytes=0) if x else fact for fact, x in zip(self.facts, chosen, strict=True)]
        )


class TokenRows(NamedTuple):
    """N consecutive tokens of a run, in the order of the text; each field is (N,)."""

    pieces: pa.Array  # bytes
    document: Ints
    byte_start: Ints
    byte_end: Ints
    nll: NDArray[np.floating[Any]]  # nats; NaN if the token is not scored or does not carry its text
    token_id: Ints
    argmax: Ints

    @classmethod
    def of(cls, table: pa.Table) -> "TokenRows":
        pieces = pa.concat_arrays(table["token_bytes"].chunks or [pa.array([], pa.binary())])
        names = ("document", "byte_start", "byte_end", "nll", "token_id", "argmax")
        rows = cls(pieces, *(numbers(table, name) for name in names))
        return rows._replace(nll=np.where(table["excluded"].is_null().to_numpy(), rows.nll, np.nan))

    def then(self, other: "TokenRows") -> "TokenRows":
        columns: Any = (np.concatenate(pair) for pair in zip(self[1:], other[1:], strict=True))
        return TokenRows(pa.concat_arrays([self.pieces, other.pieces]), *columns)

    def part(self, start: int, stop: int | None = None) -> "TokenRows":
        columns: Any = (column[start:stop] for column in self)
        return TokenRows(*columns)

    def begins(self, offsets: Ints) -> Ints:
        """Return where each token begins, ascending, in bytes of all documents; documents begin at `offsets`.

        A token without bytes at the end of a document belongs to its last byte.
        """
        last = offsets[self.document + 1] - offsets[self.document] - 1
        return offsets[self.document] + np.clip(self.byte_start, 0, np.maximum(last, 0))

    @property
    def scored(self) -> Bools:
        scored: Bools = ~np.isnan(self.nll)
        return scored

    @property
    def right(self) -> Bools:
        """Whether the likeliest token was the right one; False for tokens that are not scored."""
        right: Bools = self.argmax == self.token_id
        return right


class Choices(NamedTuple):
    """The likeliest tokens of two runs of the same tokens: counts by segment, each (S,)."""

    agreed: Ints  # both have the same likeliest token
    right_a: Ints
    right_b: Ints
    broken: Ints  # right in A, wrong in B
    mended: Ints  # wrong in A, right in B


class Segments(NamedTuple):
    """S stretches of text between places where a token ends in both runs, in the order of the text.

    Each consists of whole tokens of both runs, all scored in both. A token without bytes belongs to the text after it.
    """

    document: Ints
    byte_start: Ints  # in the document
    byte_end: Ints
    nats_a: Floats  # infinite if a token was impossible
    nats_b: Floats
    tokens_a: Ints
    tokens_b: Ints
    kind: Ints  # byte class of A's first token
    choices: Choices | None  # None if the tokens differ

    @property
    def n_bytes(self) -> Ints:
        return self.byte_end - self.byte_start


def align(a: Side, b: Side) -> Iterator[Segments]:
    """Align two `comparable` runs byte by byte, so that the tokenizers may differ. If not, a segment is a token.

    The segments come in the order of the text, batch by batch, as the tables are read. The runs have the same tokens if
    `choices` is None in no batch. Raises ValueError at the end if no segment is scored in both.
    """
    offsets, n_segments = a.offsets(), 0
    for edges, of_a, of_b in stretches(a, b, offsets):
        part = segments(edges, of_a, of_b, offsets)
        n_segments += len(part.document)
        yield part
    if not n_segments:
        raise ValueError("the runs have nothing in common: no stretch of text is scored in both")


def comparable(a: Side, b: Side) -> tuple[Side, Side]:
    """Check that two runs can be compared byte by byte; raise ValueError if not.

    If a run loses unknown parts of a document, that document is returned without bytes, so that it is not compared.
    """
    if a.setting.protocol != b.setting.protocol:
        raise ValueError(
            f"A was scored under {a.setting.protocol} and B under {b.setting.protocol}: score both under one protocol"
        )
    for number, (of_a, of_b) in enumerate(zip_longest(a.facts, b.facts), start=1):
        if of_a is None or of_b is None:
            lacking, fact = ("A", of_b) if of_a is None else ("B", of_a)
            raise ValueError(f"{lacking} has no document {number}, {fact.name}: score the same texts in both")
        if of_a.sha256 != of_b.sha256:
            raise ValueError(
                f"document {number} is not the same text in both: it is {of_a.name} in A and {of_b.name} in B"
            )
    for name, side in (("A", a), ("B", b)):
        if not told_per_byte(side.facts):
            raise ValueError(f"the bytes of {name} cannot be compared: text is lost in {lost_text(side.facts)}")
    lost = [any(fact.loses and fact.n_lost is None for fact in pair) for pair in zip(a.facts, b.facts, strict=True)]
    if not any(lost):
        return a, b
    return a.without_bytes(lost), b.without_bytes(lost)


def stretches(a: Side, b: Side, offsets: Ints) -> Iterator[tuple[Ints, TokenRows, TokenRows]]:
    """Yield the tokens of both runs stretch by stretch, with the places where a token ends in both, ends included.

    A stretch ends where a token ends in both runs and all tokens that begin before it have been read.
    """
    readers, start = (Reader(a, offsets), Reader(b, offsets)), 0
    while min(reader.reached for reader in readers) < np.inf:
        min(readers, key=lambda reader: reader.reached).read()
        reached = min(reader.reached for reader in readers)
        end = min(reached, int(offsets[-1]))
        edges_a, edges_b = (reader.edges(start, int(end)) for reader in readers)
        edges = np.intersect1d(edges_a, edges_b, assume_unique=True)
        if reached < np.inf:
            end = int(edges[-1])
            if end == start:
                continue
        of_a, of_b = (reader.take(end if reached < np.inf else np.inf) for reader in readers)
        yield edges, of_a, of_b
        start = int(end)


class Reader:
    """The tokens of a run, read table by table and taken from the front."""

    def __init__(self, side: Side, offsets: Ints) -> None:
        self.tables, self.offsets = iter(side.tables), offsets
        self.rows: TokenRows | None = None
        self.reached: float = 0  # tokens not yet read begin here or later

    def read(self) -> None:
        """Read one more table."""
        table = next(self.tables, None)
        if table is None:
            self.reached = np.inf
        elif len(table):
            rows = TokenRows.of(table)
            self.reached = int(rows.part(len(table) - 1).begins(self.offsets)[0])
            self.rows = rows if self.rows is None else self.rows.then(rows)

    def edges(self, start: int, end: int) -> Ints:
        """Return the places from `start` (included) to `end` where a token or a document ends, ascending."""
        inside = slice(np.searchsorted(self.offsets, start), np.searchsorted(self.offsets, end, side="right"))
        parts = [np.array([start]), self.offsets[inside]]
        if self.rows is not None:
            parts.append(self.offsets[self.rows.document] + self.rows.byte_end)
        edges = np.unique(np.concatenate(parts))
        return edges[(edges >= start) & (edges <= end)]

    def take(self, end: float) -> TokenRows:
        """Remove and return the tokens that begin before `end`."""
        if self.rows is None:
            return TokenRows(pa.array([], pa.binary()), *np.zeros((6, 0), dtype=np.int64))
        n_rows = int(np.searchsorted(self.rows.begins(self.offsets), end))
        taken, self.rows = self.rows.part(0, n_rows), self.rows.part(n_rows)
        return taken


def segments(edges: Ints, a: TokenRows, b: TokenRows, offsets: Ints) -> Segments:
    """Return the segments between the edges that are scored in both runs."""
    part_a, part_b = UncountedSegments.of(a, offsets, edges), UncountedSegments.of(b, offsets, edges)
    counted = part_a.whole & part_b.whole
    start = edges[:-1][counted]
    document = np.searchsorted(offsets, start, side="right") - 1
    choices = Choices(*(x[counted] for x in choose(a, b, part_a))) if same_tokens(a, b) else None
    return Segments(
        document,
        start - offsets[document],
        edges[1:][counted] - offsets[document],
        part_a.nats[counted],
        part_b.nats[counted],
        part_a.tokens[counted],
        part_b.tokens[counted],
        kinds(a, part_a)[counted],
        choices,
    )


class UncountedSegments(NamedTuple):
    """A run cut into S segments, before those that are not scored in both runs are left out."""

    rows: Ints  # the tokens that matter
    segment: Ints  # the segment of each of them
    nats: Floats  # (S,)
    tokens: Ints  # (S,), scored ones
    whole: Bools  # (S,), all tokens are scored

    @classmethod
    def of(cls, side: TokenRows, offsets: Ints, edges: Ints) -> "UncountedSegments":
        scored, n_segments = side.scored, len(edges) - 1
        some = offsets[side.document + 1] > offsets[side.document]
        rows = np.flatnonzero(some & (scored | (side.byte_end > side.byte_start)))
        segment = np.searchsorted(edges, side.begins(offsets)[rows], side="right") - 1
        scored = scored[rows]
        nats = np.bincount(segment[scored], side.nll[rows][scored], n_segments).astype(np.float64, copy=False)
        tokens = np.bincount(segment[scored], minlength=n_segments)
        missed = np.bincount(segment[~scored], minlength=n_segments)
        return cls(rows, segment, nats, tokens, (tokens > 0) & (missed == 0))


def same_tokens(a: TokenRows, b: TokenRows) -> bool:
    return np.array_equal(a.token_id, b.token_id) and np.array_equal(a.byte_end, b.byte_end)


def choose(a: TokenRows, b: TokenRows, part: UncountedSegments) -> Choices:
    """Count tokens scored in both runs by segment; `part` of either run says which segment a token is in."""
    rows, segment, both = part.rows, part.segment, a.scored & b.scored
    facts = a.argmax == b.argmax, a.right, b.right, a.right & ~b.right, ~a.right & b.right
    return Choices(*(np.bincount(segment[(fact & both)[rows]], minlength=len(part.tokens)) for fact in facts))


def kinds(side: TokenRows, part: UncountedSegments) -> Ints:
    """Return the byte class of the first token of each segment; -1 if there is none."""
    encoded = pc.dictionary_encode(side.pieces)
    classes = np.array([byte_class(piece) for piece in encoded.dictionary.to_pylist()], dtype=np.int64)
    with_bytes = side.byte_end[part.rows] > side.byte_start[part.rows]
    rows, segment = part.rows[with_bytes], part.segment[with_bytes]
    first = np.flatnonzero(np.append(True, segment[1:] != segment[:-1]))[: len(segment)]
    kind = np.full(len(part.tokens), -1)
    kind[segment[first]] = classes[encoded.indices.to_numpy(zero_copy_only=False)[rows[first]]]
    return kind
