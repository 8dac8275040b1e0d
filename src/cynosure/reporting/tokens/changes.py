"""Find how much the loss of each shown token changed against another run."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cynosure.measure import Scores, Side, align, comparable, numbers


class Changes(NamedTuple):
    """The segment of each of N shown tokens, and its loss in both runs; each field is (N,).

    A segment is a stretch of text between places where a token ends in both runs.
    """

    segment: NDArray[np.int32]  # its number, ascending; -1 if the token is in none
    nats_a: NDArray[np.float32]  # of the whole segment
    nats_b: NDArray[np.float32]


def changes(table: pa.Table, baseline: Scores, scores: Scores) -> Changes:
    """Return the changes of the tokens of `table`, which are rows of `scores` in the order of the text.

    Raises ValueError if the runs cannot be compared, as `cynosure.compare` does.
    """
    a, b = comparable(Side.of_run(baseline), Side.of_run(scores))
    begins, n_rows = begins_of(table, b.offsets()), len(table)
    found = Changes(np.full(n_rows, -1, np.int32), *np.full((2, n_rows), np.nan, np.float32))
    places = np.flatnonzero(begins >= 0)
    begins = begins[places]
    n_segments = 0
    for part in align(a, b):
        starts = b.offsets()[part.document] + part.byte_start
        ends = starts + part.n_bytes
        if len(starts):
            within = slice(*np.searchsorted(begins, [starts[0], ends[-1]]))
            at = np.searchsorted(starts, begins[within], side="right") - 1
            inside = begins[within] < ends[at]
            rows, at = places[within][inside], at[inside]
            found.segment[rows] = n_segments + at
            found.nats_a[rows], found.nats_b[rows] = part.nats_a[at], part.nats_b[at]
        n_segments += len(starts)
    return found


def begins_of(table: pa.Table, offsets: NDArray[np.int64]) -> NDArray[Any]:
    """Return where each scored token begins, in bytes of all documents end to end; -1 for tokens that do not count."""
    document, start = numbers(table, "document"), numbers(table, "byte_start")
    n_bytes = (offsets[1:] - offsets[:-1])[document]
    counted = table["excluded"].is_null().to_numpy() & (start >= 0) & (n_bytes > 0)
    return np.where(counted, offsets[document] + np.minimum(start, n_bytes - 1), -1)
