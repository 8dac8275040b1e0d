"""The table with one row per token: scoring builds it, the store keeps it, all statistics are computed from it."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cynosure.system.numbers import counted

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


def schema(n_temperatures: int, topk: int) -> pa.Schema:
    """The columns. Statistics are null for tokens not scored, byte spans where the tokenizer changes the text."""
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
        ("window", pa.int32()),  # the window of its document that it belongs to
        ("excluded", pa.dictionary(pa.int8(), pa.string())),  # why it was not scored, or `LOST`
    ]
    return pa.schema(fields)


class DocumentFacts(NamedTuple):
    """Counts and names of a document, without its tokens. `n_bytes` counts its text in UTF-8."""

    document: int
    name: str
    n_joined: int  # documents in it, where the protocol joins them
    n_bytes: int
    n_chars: int
    n_words: int
    n_tokens: int
    n_replaced: int  # U+FFFD in the place of what was not UTF-8
    sha256: str
    drift: str | None  # why the tokens do not carry the whole text: it has no part then in what is per byte
    n_prompt_chars: int = 0
    n_special: int = 0  # strings that are special tokens to the tokenizer
    special: str = ""  # the first of them
    n_messages: int = 0  # of a chat
    n_lost: int | None = None  # bytes of tokens that do not carry them; None where that is not known

    @property
    def loses(self) -> bool:
        """Whether its tokens lose some of its text."""
        return self.drift is not None and self.n_tokens > 0

    @property
    def lost_bytes(self) -> int:
        """Bytes that no token carries: all, where it is not known which."""
        if not self.loses:
            return 0
        return self.n_bytes if self.n_lost is None else self.n_lost


LOST = "text lost"  # why a token has no part in what is per byte, though it is scored
MOST_LOST = 0.1  # of the bytes: where more of them are lost, nothing is told per byte


def told_per_byte(facts: Iterable[DocumentFacts]) -> bool:
    """Whether what is per byte can be told: of the tokens that carry their text, which are enough."""
    sizes = [(fact.n_bytes, fact.lost_bytes) for fact in facts]
    return sum(lost for _, lost in sizes) <= MOST_LOST * sum(size for size, _ in sizes)


def lost_text(facts: Iterable[DocumentFacts]) -> str | None:
    """How much text of how many documents is lost, in which, and why in the first; None where none is."""
    lossy = [fact for fact in facts if fact.loses]
    if not lossy:
        return None
    n_bytes = counted(sum(fact.lost_bytes for fact in lossy), "byte")
    return f"{n_bytes} of {counted(len(lossy), 'document')}: {lossy[0].drift} in {lossy[0].name}"


class Shard(NamedTuple):
    """Rows of consecutive windows, and the facts of their documents and of those without a token between them."""

    table: pa.Table
    facts: tuple[DocumentFacts, ...]


def numbers(table: pa.Table, name: str) -> NDArray[Any]:
    """A column as an array: (N,), or (N, k) of a list column; null is NaN among floats and -1 among integers."""
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of a table without rows
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), width)
    if column.null_count:
        column = column.fill_null(np.nan if pa.types.is_floating(column.type) else -1)
    return np.asarray(column.to_numpy(zero_copy_only=False))
