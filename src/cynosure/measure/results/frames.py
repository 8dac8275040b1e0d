"""Convert scores to pandas DataFrames."""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow as pa

from cynosure.measure.statistics import breakdown
from cynosure.measure.statistics.stats import Statistics
from cynosure.measure.storage.rows import numbers, told_per_byte
from cynosure.system.extras import missing
from cynosure.text import token_texts


def token_frame(tables: Iterable[pa.Table], tokenizer: Any) -> Any:
    """Return one row per token; the text of `argmax` needs the tokenizer."""
    check_pandas()
    table = pa.concat_tables(tables, promote_options="permissive")
    frame = table.to_pandas()
    texts = [piece.decode("utf-8", "backslashreplace") for piece in frame["token_bytes"]]
    insert(frame, "token_bytes", "token", texts)
    if tokenizer is not None:
        ids, places = np.unique(numbers(table, "argmax"), return_inverse=True)
        unscored = int((ids < 0).sum())
        names = [None] * unscored + token_texts(tokenizer, ids[unscored:])
        insert(frame, "argmax", "argmax_token", np.array(names, dtype=object)[places])
    return frame


def document_frame(statistics: Statistics) -> Any:
    """Return one row per scored document."""
    check_pandas()
    sums = statistics.documents.sums()
    facts = [statistics.facts[key] for key in sums.keys.tolist()]
    metrics = breakdown.metrics(sums, [told_per_byte([fact]) for fact in facts])
    rows = [{"name": fact.name} | row for fact, row in zip(facts, metrics, strict=True)]
    frame = pa.Table.from_pylist(rows).to_pandas()
    insert(frame, "bits_per_byte", "perplexity", [group.perplexity for group in sums.token_sums()])
    return frame


def insert(frame: Any, before: str, name: str, values: Any) -> None:
    """Put a column before another."""
    frame.insert(list(frame.columns).index(before), name, values)


def check_pandas() -> None:
    """Raise ModuleNotFoundError, with how to install it, if pandas is missing."""
    if find_spec("pandas") is None:
        raise ModuleNotFoundError(missing("a DataFrame", "pandas"), name="pandas")
