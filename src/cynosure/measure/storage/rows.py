"""The table with one row per token. Scoring builds it, the store keeps it, and all statistics come from it."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cynosure.system.numbers import counted

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


def schema(n_temperatures: int, topk: int) -> pa.Schema:
    """Return the columns. Statistics are null for tokens that are not scored, byte spans if the bytes are unknown."""
    fields = [
        ("document", pa.int32()),
        ("index", pa.int32()),  # of the token in its document
        ("token_id", pa.int32()),
        ("token_bytes", pa.binary()),
        ("byte_start", pa.int64()),
        ("byte_end", pa.int64()),
        ("nll", pa.float32()),  # nats
        ("entropy", pa.float32()),  # nats
        ("rank", pa.int32()),
        ("confidence", pa.float32()),
        ("argmax", pa.int32()),
        ("brier", pa.float32()),
        ("nll_at_temperature", pa.list_(pa.float32(), n_temperatures)),
        *([("top_ids", pa.list_(pa.int32(), topk)), ("top_logprobs", pa.list_(pa.float32(), topk))] if topk else []),
        ("context", pa.int32()),  # tokens the model saw before this one
        ("window", pa.int32()),  # number of its window in the document
        ("excluded", pa.dictionary(pa.int8(), pa.string())),  # why it was not scored, or `LOST`
    ]
    return pa.schema(fields)


class DocumentFacts(NamedTuple):
    """Counts and names of a document, without its tokens."""

    document: int
    name: str
    n_joined: int  # number of documents, if the protocol joins them
    n_bytes: int  # in UTF-8
    n_chars: int
    n_words: int
    n_tokens: int
    n_replaced: int  # U+FFFD characters that replace what was not UTF-8
    sha256: str
    drift: str | None  # why the tokens do not carry the whole text; None if they do
    n_prompt_chars: int = 0
    n_special: int = 0  # strings that are special tokens to the tokenizer
    special: str = ""  # the first of them
    n_messages: int = 0  # of a chat
    n_lost: int | None = None  # bytes of tokens that do not carry them; None if unknown

    @property
    def loses(self) -> bool:
        """Whether its tokens lose some of its text."""
        return self.drift is not None and self.n_tokens > 0

    @property
    def lost_bytes(self) -> int:
        """Number of bytes that no token carries; all bytes if it is unknown which."""
        if not self.loses:
            return 0
        return self.n_bytes if self.n_lost is None else self.n_lost


LOST = "text lost"  # why metrics per byte leave out a scored token
MOST_LOST = 0.1  # share of the bytes: if more are lost, there are no metrics per byte


def told_per_byte(facts: Iterable[DocumentFacts]) -> bool:
    """Whether there are metrics per byte: enough of the text is carried by its tokens."""
    sizes = [(fact.n_bytes, fact.lost_bytes) for fact in facts]
    return sum(lost for _, lost in sizes) <= MOST_LOST * sum(size for size, _ in sizes)


def lost_text(facts: Iterable[DocumentFacts]) -> str | None:
    """Say how much text is lost in how many documents, and why in the first; None if none is lost."""
    lossy = [fact for fact in facts if fact.loses]
    if not lossy:
        return None
    n_bytes = counted(sum(fact.lost_bytes for fact in lossy), "byte")
    return f"{n_bytes} of {counted(len(lossy), 'document')}: {lossy[0].drift} in {lossy[0].name}"


class Shard(NamedTuple):
    """Rows of consecutive windows, and the facts of their documents, including documents without tokens."""

    table: pa.Table
    facts: tuple[DocumentFacts, ...]


def numbers(table: pa.Table, name: str) -> NDArray[Any]:
    """Return a column as an array, (N,) or for a list column (N, k). Null becomes NaN, or -1 in integers."""
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # the table has no rows
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), width)
    if column.null_count:
        column = column.fill_null(np.nan if pa.types.is_floating(column.type) else -1)
    return np.asarray(column.to_numpy(zero_copy_only=False))
