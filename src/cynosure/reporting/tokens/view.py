"""Pack the tokens of a run for the page that shows them."""

import base64
import gzip
import json
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cynosure.measure import Scores, numbers
from cynosure.reporting.tokens.changes import changes
from cynosure.reporting.tokens.sample import RowRange, count, excerpts, read
from cynosure.text import token_texts

Columns = dict[str, NDArray[Any]]


class TokenView(NamedTuple):
    """The tokens that a page shows."""

    data: str  # base64 of gzip of a JSON header and columns, which tokens.js reads
    note: str  # what is left out; empty if nothing is
    n_shown: int
    n_tokens: int  # of the run


def token_view(scores: Scores, other: Scores | None = None) -> TokenView:
    """Pack at most 100,000 tokens of a run; of larger runs evenly spaced excerpts and the worst tokens and spans.

    Args:
        scores: the run, whose tokens were kept.
        other: the baseline. The view then has the change from its loss to that of `scores`.

    Returns:
        The packed tokens.

    Raises:
        ValueError: the tokens were not kept, a shard is damaged, or the runs cannot be compared.
    """
    n_tokens = count(scores)
    chosen = excerpts(scores, n_tokens)
    table = read(scores, chosen)
    columns, header = columns_of(table)
    likeliest, header["texts"] = alternatives(table, scores)
    columns |= likeliest
    documents, columns["document"] = np.unique(numbers(table, "document"), return_inverse=True)
    facts = scores.statistics.facts
    header["documents"] = [facts[number].name for number in documents.tolist()]
    if other is not None:
        columns |= changes(table, other, scores)._asdict()
    header |= {"n": len(table), "excerpts": gaps(chosen), "left_out_after": n_tokens - chosen[-1].stop}
    return TokenView(packed(header, columns), note(chosen, n_tokens), len(table), n_tokens)


def columns_of(table: pa.Table) -> tuple[Columns, dict[str, Any]]:
    """Return what each token is and how it was predicted, and the texts that the columns refer to."""
    pieces = table["token_bytes"].to_pylist()
    reasons = pc.cast(table["excluded"], pa.string()).combine_chunks().dictionary_encode()
    columns: Columns = {
        **{name: numbers(table, name) for name in ("nll", "entropy", "confidence", "rank", "context")},
        "bytes": np.frombuffer(b"".join(pieces), np.uint8),
        "length": np.array([len(piece) for piece in pieces], np.int32),
        "reason": reasons.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int8),
    }
    return columns, {"reasons": reasons.dictionary.to_pylist()}


def alternatives(table: pa.Table, scores: Scores) -> tuple[Columns, list[str | int]]:
    """Return the likeliest tokens of each position, (N, k), as places in a list of texts; -1 for unscored tokens.

    `own` says which of them, if any, is the token itself. Scores without stored alternatives have only the likeliest.
    """
    if "top_ids" in table.column_names:
        ids, logprobs = numbers(table, "top_ids"), numbers(table, "top_logprobs")
    else:
        ids = numbers(table, "argmax")[:, None]
        logprobs = np.log(numbers(table, "confidence"))[:, None]
    known, places = np.unique(ids, return_inverse=True)
    places = places.reshape(ids.shape).astype(np.int32)
    if len(known) and known[0] < 0:
        known, places = known[1:], places - 1
    same = ids == numbers(table, "token_id")[:, None]
    own = np.where(same.any(axis=1), same.argmax(axis=1), -1).astype(np.int8)
    return {"top": places, "top_logprobs": logprobs.astype(np.float32), "own": own}, texts(scores, known)


def texts(scores: Scores, ids: NDArray[np.int64]) -> list[str | int]:
    """Return tokens as text, from the tokenizer or as stored with the run; as ids where there is neither."""
    if scores.tokenizer is not None:
        return list(token_texts(scores.tokenizer, ids))
    known = {} if scores.store is None else scores.store.token_texts()
    return [known.get(id_, id_) for id_ in ids.tolist()]


def gaps(chosen: list[RowRange]) -> list[list[int]]:
    """Return where each excerpt begins in the view, and how many tokens are left out before it."""
    rows, place, last = [], 0, 0
    for start, stop in chosen:
        rows.append([place, start - last])
        place, last = place + stop - start, stop
    return rows


def note(chosen: list[RowRange], n_tokens: int) -> str:
    """Say what is left out."""
    shown = sum(stop - start for start, stop in chosen)
    if shown == n_tokens:
        return ""
    return (
        f"This view shows {shown:,} of {n_tokens:,} tokens, in {len(chosen):,} excerpts: evenly spaced ones, and the "
        "text around the worst tokens and spans. All tokens count in the metrics."
    )


def packed(header: dict[str, Any], columns: Columns) -> str:
    """Return base64 of gzip of: the header's length in bytes (uint32), the header, padding to 8 bytes, the columns.

    The columns are little-endian, the widest first, so that each begins at a multiple of its item size. The header
    says where each begins after the padding, and of how many items of which type it consists.
    """
    parts, places, start = [], {}, 0
    for name, column in sorted(columns.items(), key=lambda item: -narrow(item[1]).itemsize):
        data = narrow(column)
        places[name] = [data.dtype.str[1:], start, data.size]
        parts.append(data.tobytes())
        start += data.nbytes
    head = json.dumps(header | {"columns": places}).encode()
    head += b" " * (-(len(head) + 4) % 8)
    whole = b"".join([len(head).to_bytes(4, "little"), head, *parts])
    return base64.b64encode(gzip.compress(whole, mtime=0)).decode()


def narrow(column: NDArray[Any]) -> NDArray[Any]:
    """Return a column as little-endian float32, int32 or less."""
    kind = {"f": "<f4", "i": f"<i{min(4, column.itemsize)}", "u": "<u1"}[column.dtype.kind]
    return np.ascontiguousarray(column, dtype=kind)
