"""Collect the segments on which two runs differ most, and show them in context."""

from typing import Any, NamedTuple

import numpy as np

from cynosure.measure.comparison.align import Segments, Side, TokenRows
from cynosure.measure.results.scores import SHOWN
from cynosure.measure.storage.rows import Floats, Ints
from cynosure.system.numbers import finite

BEFORE_BYTES, AFTER_BYTES = 80, 30  # shown around a segment
CHARACTER_BYTES = 4


class Furthest:
    """The segments with the largest difference so far. Of equal ones the first are kept."""

    def __init__(self) -> None:
        self.worse = np.zeros(0)
        self.columns = np.zeros((6, 0))  # document, byte_start, byte_end, nats_a, nats_b, B - A

    def add(self, segments: Segments, apart: Floats, worse: Floats) -> None:
        least = self.worse[-1] if len(self.worse) == SHOWN else 0.0
        at = np.flatnonzero(worse > least)
        parts = (
            segments.document,
            segments.byte_start,
            segments.byte_end,
            segments.nats_a,
            segments.nats_b,
            apart,
        )
        joined = np.concatenate([self.worse, worse[at]])
        order = np.argsort(-joined, kind="stable")[:SHOWN]
        self.worse = joined[order]
        self.columns = np.concatenate([self.columns, np.stack([part[at] for part in parts])], axis=1)[:, order]

    def excerpts(self) -> "list[Excerpt]":
        return [Excerpt(*map(int, column[:3]), *column[3:]) for column in self.columns.T.tolist()]


class Excerpt(NamedTuple):
    """A segment to show."""

    document: int
    byte_start: int
    byte_end: int
    nats_a: float
    nats_b: float
    apart: float

    def shown(self, name: str, before: int, data: bytes) -> dict[str, Any]:
        """Return plain values. The segment begins after the first `before` bytes of `data`.

        Bytes that are not a whole character are written as `\\xNN`.
        """
        start, end = before, before + self.byte_end - self.byte_start
        first, last = character(data, max(0, start - BEFORE_BYTES)), character(data, min(len(data), end + AFTER_BYTES))
        texts = (data[i:j].decode("utf-8", "backslashreplace") for i, j in ((first, start), (start, end), (end, last)))
        return {
            "document": name,
            "byte_start": self.byte_start,
            "byte_end": self.byte_end,
            "nats_a": finite(self.nats_a),
            "nats_b": finite(self.nats_b),
            "difference": finite(self.apart),
            **dict(zip(("before", "text", "after"), texts, strict=True)),
        }


def character(data: bytes, at: int) -> int:
    """Return where the character that contains a byte begins."""
    while 0 < at < len(data) and data[at] & 0xC0 == 0x80:
        at -= 1
    return at


def in_context(side: Side, excerpts: list[Excerpt]) -> list[dict[str, Any]]:
    """Return the segments with the text around them. This reads the run's tokens once more."""
    offsets = side.offsets()
    spans = np.zeros((len(excerpts), 2), dtype=np.int64)
    for span, part in zip(spans, excerpts, strict=True):
        first, last = offsets[part.document : part.document + 2]
        span[0] = max(first, first + part.byte_start - BEFORE_BYTES - CHARACTER_BYTES)
        span[1] = min(last, first + part.byte_end + AFTER_BYTES + CHARACTER_BYTES)
    texts = [b""] * len(excerpts)
    for table in side.tables if excerpts else ():
        rows = TokenRows.of(table)
        starts, ends = offsets[rows.document] + rows.byte_start, offsets[rows.document] + rows.byte_end
        for number, (begin, stop) in enumerate(spans.tolist()):
            texts[number] += between(rows, starts, ends, begin, stop)
    return [
        part.shown(side.facts[part.document].name, int(offsets[part.document]) + part.byte_start - begin, text)
        for part, begin, text in zip(excerpts, spans[:, 0].tolist(), texts, strict=True)
    ]


def between(rows: TokenRows, starts: Ints, ends: Ints, begin: int, stop: int) -> bytes:
    """Return the bytes from `begin` to `stop` that these tokens cover."""
    i, j = np.searchsorted(ends, begin, side="right"), np.searchsorted(starts, stop)
    if i >= j:
        return b""
    joined = b"".join(rows.pieces[int(i) : int(j)].to_pylist())
    return joined[max(0, begin - int(starts[i])) : stop - int(starts[i])]
