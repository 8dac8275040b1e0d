"""Encode a shard as a Parquet file: its rows, and in the metadata its run, its number and its documents."""

import hashlib
import json
import math
from typing import NamedTuple, get_type_hints

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from cynosure.measure.storage.rows import DocumentFacts, Shard, numbers, schema

META = b"cynosure"
PLAIN = ("nll", "entropy", "confidence", "brier", "nll_at_temperature", "top_logprobs")  # too varied for a dictionary
KINDS = get_type_hints(DocumentFacts)


class Label(NamedTuple):
    """The label of a shard, which says where it belongs."""

    run: str | None  # `identity` of the manifest; None in shards of earlier versions
    number: int | None  # likewise
    seconds: float


def encode(shard: Shard, label: Label) -> bytes:
    """Return a shard as the bytes of a file."""
    meta = label._asdict() | {"documents": [fact._asdict() for fact in shard.facts]}
    table = shard.table.replace_schema_metadata({META: json.dumps(meta)})
    buffer = pa.BufferOutputStream()
    dictionary = [name for name in table.column_names if name not in PLAIN]
    parquet.write_table(table, buffer, compression="zstd", use_dictionary=dictionary)
    data: bytes = buffer.getvalue().to_pybytes()
    return data


def decode(data: bytes, columns: list[str] | None = None) -> tuple[Shard, Label]:
    """Read a shard, or some of its columns. Raise ValueError if the bytes are not a shard."""
    try:
        table = parquet.ParquetFile(pa.BufferReader(data)).read(columns=columns, use_threads=False)
        facts, label = parse(table.schema)
        check_columns(table, facts)
    except (pa.ArrowException, LookupError, TypeError, OSError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return Shard(table, facts), label


def decode_label(data: bytes) -> Label:
    """Read the label of a shard. Raise ValueError if the bytes are not a shard."""
    try:
        return parse(parquet.read_schema(pa.BufferReader(data)))[1]
    except (pa.ArrowException, LookupError, TypeError, OSError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def parse(stored: pa.Schema) -> tuple[tuple[DocumentFacts, ...], Label]:
    """Read the documents and the label of a shard. Raise ValueError, LookupError or TypeError if they are not ours."""
    meta = json.loads((stored.metadata or {})[META])
    facts = tuple(DocumentFacts(**fact) for fact in meta["documents"])
    label = Label(meta.get("run"), meta.get("number"), meta["seconds"])
    if not all(isinstance(getattr(fact, name), kind) for fact in facts for name, kind in KINDS.items()):
        raise TypeError("its documents have fields of unknown types")
    if not isinstance(label.run, str | None) or not isinstance(label.number, int | None):
        raise TypeError("it names neither its run nor its number")
    if not isinstance(label.seconds, int | float) or not 0 <= label.seconds < math.inf:
        raise ValueError(f"it took {label.seconds!r} seconds")
    return facts, label


def check_columns(table: pa.Table, facts: tuple[DocumentFacts, ...]) -> None:
    """Raise TypeError for columns that no shard has, ValueError for rows of documents that it does not describe."""
    lists = [field.type.list_size for field in table.schema if pa.types.is_fixed_size_list(field.type)]
    expected = schema(lists[0] if lists else 0, lists[-1] if lists else 0)
    for field in table.schema:
        if field.name in expected.names and field.type != expected.field(field.name).type:
            raise TypeError(f"its column {field.name} has type {field.type}")
    present = set(np.unique(numbers(table, "document")).tolist()) if "document" in table.column_names else set()
    if unknown := present - {fact.document for fact in facts}:
        raise ValueError(f"it has rows of document {min(unknown)}, which it does not describe")


def digest(data: bytes) -> str:
    """Return the checksum in a shard's name: the beginning of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]
