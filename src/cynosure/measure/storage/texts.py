"""Keep the texts of a run's likeliest tokens, so that they can be shown without the tokenizer."""

import hashlib
import json
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from cynosure.measure.storage.rows import Ints, numbers

TOKEN_TEXTS = "token_texts.parquet"
META = b"cynosure"
LIKELIEST = ["argmax", "top_ids"]  # columns
SCHEMA = pa.schema([("token_id", pa.int32()), ("text", pa.string())])


def likeliest_ids(tables: Iterable[pa.Table]) -> Ints:
    """Return the distinct ids in the columns of the likeliest tokens, ascending. Memory grows with the vocabulary."""
    seen: NDArray[np.bool_] = np.zeros(0, dtype=bool)
    for table in tables:
        for name in filter(table.column_names.__contains__, LIKELIEST):
            ids = numbers(table, name).reshape(-1)
            ids = ids[ids >= 0]
            if len(ids) and ids.max() >= len(seen):
                seen = np.append(seen, np.zeros(int(ids.max()) + 1 - len(seen), dtype=bool))
            seen[ids] = True
    return np.flatnonzero(seen)


def encode_texts(texts: dict[int, str], run: str) -> bytes:
    """Return the texts of a run as the bytes of a Parquet file, which names the run and has a checksum of the texts."""
    table = pa.table([pa.array(texts.keys(), pa.int32()), pa.array(texts.values(), pa.string())], schema=SCHEMA)
    buffer = pa.BufferOutputStream()
    meta = {"run": run, "sha256": checksum(texts)}
    parquet.write_table(table.replace_schema_metadata({META: json.dumps(meta)}), buffer, compression="zstd")
    data: bytes = buffer.getvalue().to_pybytes()
    return data


def decode_texts(data: bytes, run: str) -> dict[int, str]:
    """Read the texts of a run; empty if the bytes are damaged or belong to another run."""
    try:
        table = parquet.ParquetFile(pa.BufferReader(data)).read(columns=SCHEMA.names, use_threads=False)
        meta = json.loads(table.schema.metadata[META])
        texts = dict(zip(*(table[name].to_pylist() for name in SCHEMA.names), strict=True))
        whole = meta == {"run": run, "sha256": checksum(texts)}
    except (pa.ArrowException, LookupError, TypeError, ValueError, OSError):
        return {}
    return texts if whole else {}


def checksum(texts: dict[int, str]) -> str:
    """Return the SHA-256 of texts and their ids."""
    return hashlib.sha256(json.dumps(list(texts.items())).encode()).hexdigest()
