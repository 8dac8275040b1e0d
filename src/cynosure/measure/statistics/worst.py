"""Find the tokens and spans of text that cost a model most."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cynosure.measure.storage.rows import Floats, Ints, numbers

KEPT = 50
SPAN_TOKENS = 32
BEFORE, AFTER = 24, 8  # tokens shown around a costly one


class Costly(NamedTuple):
    """A token or span, its loss, and the text around it."""

    document: int
    first: int  # index of its first token
    n_tokens: int
    byte_start: int  # -1 if bytes are unknown
    byte_end: int
    nll_nats: float
    before: bytes
    text: bytes
    after: bytes


def keep(parts: list[Costly]) -> list[Costly]:
    """Return the costliest, in an order that does not depend on the order of merging. Ties keep the first."""
    return sorted(parts, key=lambda part: (-part.nll_nats, part.document, part.first))[:KEPT]


def costly_tokens(kept: list[Costly], table: pa.Table, nll: Floats, at: Ints) -> list[Costly]:
    """Return the costliest single tokens of those kept and of a table; `nll` are the losses of its rows `at`."""
    return keep(kept + [costly(table, int(at[i]), 1, float(nll[i])) for i in costliest(kept, nll)])


def costly_spans(kept: list[Costly], table: pa.Table, nll: Floats, at: Ints) -> list[Costly]:
    """Return the costliest runs of 32 tokens, cut at multiples of 32 in each document and at the table's ends."""
    document, index = numbers(table, "document")[at].astype(np.int64), numbers(table, "index")[at].astype(np.int64)
    key = (document << 32) + index // SPAN_TOKENS
    starts = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    sums = np.add.reduceat(nll.astype(np.float64), starts)
    stops = np.append(starts[1:], len(key))
    return keep(
        kept
        + [
            costly(table, int(at[starts[i]]), int(at[stops[i] - 1] - at[starts[i]] + 1), float(sums[i]))
            for i in costliest(kept, sums)
        ]
    )


def costliest(kept: list[Costly], nll: Floats) -> list[int]:
    """Return the places of losses that may be among those kept: few, once there are many tokens."""
    least = kept[-1].nll_nats if len(kept) == KEPT else -np.inf
    large = np.flatnonzero(nll >= least)
    chosen: list[int] = large[np.argsort(-nll[large], kind="stable")[:KEPT]].tolist()
    return chosen


def costly(table: pa.Table, row: int, n_rows: int, nll_nats: float) -> Costly:
    """Return the rows `row` to `row + n_rows` with the text around them, as far as it is in the table."""
    part = table.slice(max(0, row - BEFORE), min(row, BEFORE) + n_rows + AFTER)
    at = min(row, BEFORE)
    document = part["document"].to_pylist()
    pieces = [
        piece if place == document[at] else b""
        for piece, place in zip(part["token_bytes"].to_pylist(), document, strict=True)
    ]
    starts, ends = part["byte_start"][at].as_py(), part["byte_end"][at + n_rows - 1].as_py()
    return Costly(
        document[at],
        part["index"][at].as_py(),
        n_rows,
        -1 if starts is None else starts,
        -1 if ends is None else ends,
        nll_nats,
        *(b"".join(pieces[i:j]) for i, j in ((0, at), (at, at + n_rows), (at + n_rows, None))),
    )
