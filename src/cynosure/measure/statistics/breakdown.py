"""Break the loss down by document, position in the window, token frequency and byte class."""

import math
from typing import Any

import numpy as np

from cynosure.measure.statistics.bootstrap import Interval
from cynosure.measure.statistics.classes import CLASSES
from cynosure.measure.statistics.groups import Grouped
from cynosure.measure.statistics.stats import Statistics
from cynosure.measure.statistics.stretches import stretch_interval
from cynosure.measure.statistics.worst import Costly
from cynosure.measure.storage.rows import Ints, told_per_byte
from cynosure.system.numbers import finite

N_DECILES = 10
MOST_DOCUMENTS = 200


def by_class(statistics: Statistics) -> list[dict[str, Any]]:
    """Return a row for each byte class that occurs."""
    sums = statistics.classes.sums()
    return rows(sums, [{"class": CLASSES[key]} for key in sums.keys.tolist()], statistics.told_per_byte)


def by_position(statistics: Statistics) -> list[dict[str, Any]]:
    """Return a row for each half octave of context, the number of tokens the model saw before a scored one."""
    sums = statistics.positions.sums()
    edges = [(math.ceil(2 ** (key / 2)), math.ceil(2 ** ((key + 1) / 2)) - 1) for key in sums.keys.tolist()]
    return rows(sums, [{"context_from": low, "context_to": high} for low, high in edges], statistics.told_per_byte)


def by_frequency(statistics: Statistics) -> list[dict[str, Any]]:
    """Return ten rows with about equally many scored tokens each, the most frequent in the text first."""
    sums = statistics.tokens.sums()
    counts = sums.counts("tokens")
    order = np.lexsort((sums.keys, -counts))
    reached = np.cumsum(counts[order])
    decile = np.empty(len(counts), dtype=np.int64)
    decile[order] = np.minimum(N_DECILES - 1, (reached - (counts[order] + 1) // 2) * N_DECILES // reached[-1])
    grouped = Grouped.of(decile, sums.table)
    labels = [{"decile": key + 1, **seen(counts, decile == key)} for key in grouped.keys.tolist()]
    return rows(grouped, labels, statistics.told_per_byte)


def seen(counts: Ints, chosen: Any) -> dict[str, int]:
    """Count the distinct tokens chosen, and how often the rarest and the most frequent of them occur."""
    occurrences = counts[chosen]
    return {"kinds": len(occurrences), "seen_from": int(occurrences.min()), "seen_to": int(occurrences.max())}


def by_document(statistics: Statistics, of_all: Interval | None = None) -> list[dict[str, Any]]:
    """Return a row for each document with a scored token, in order. With very many, only those with the most nats.

    `low` and `high` are the interval of bits per byte; None if there is too little text. If there is one document, it
    is the interval `of_all` text.
    """
    sums = statistics.documents.sums()
    keys = sums.keys.tolist()
    labels = [{"document": statistics.facts[key].name} for key in keys]
    documents = rows(sums, labels, [told_per_byte([statistics.facts[key]]) for key in keys])
    chosen = sorted(range(len(keys)), key=lambda i: -documents[i]["share_of_nats"])[:MOST_DOCUMENTS]
    found = {keys[0]: of_all} if len(keys) == 1 else document_intervals(statistics, {keys[i] for i in chosen})
    ranges = ((i, found.get(keys[i])) for i in sorted(chosen))
    return [documents[i] | {"low": x and x.low, "high": x and x.high} for i, x in ranges]


def document_intervals(statistics: Statistics, chosen: set[int]) -> dict[int, Interval | None]:
    """Return the intervals of bits per byte of the documents chosen, as far as they are long enough."""
    return {
        key: stretch_interval(sums.carried_nats / math.log(2), sums.counts("n_bytes").astype(np.float64))
        for key, sums in statistics.stretches.of_documents().items()
        if key in chosen and told_per_byte([statistics.facts[key]])
    }


def along(statistics: Statistics, n: int) -> list[float]:
    """Return the nats per token in `n` parts of the text with equally many tokens, in the order of the text.

    Inside a block of 16 tokens, or with many documents inside a document, the loss is taken as constant. A token of
    infinite loss counts as 0.
    """
    groups = statistics.documents.sums() if statistics.blocks is None else statistics.blocks.sums()
    tokens, nats = (np.append(0.0, np.cumsum(x)) for x in (groups.counts("tokens"), groups.amount("nats")))
    edges = np.linspace(0, tokens[-1], n + 1)
    means: list[float] = (np.diff(np.interp(edges, tokens, nats)) * n / tokens[-1]).tolist()
    return means


def metrics(sums: Grouped, known: bool | list[bool]) -> list[dict[str, Any]]:
    """Return the sums of each group and the metrics computed from them.

    `known` says whether metrics per byte are known, for all groups or for each. They cover the tokens that carry their
    text.
    """
    each = known if isinstance(known, list) else [known] * len(sums.keys)
    return [
        {
            "tokens": group.tokens,
            "bytes": group.n_bytes if per_byte else None,
            "nats": group.nats,
            "nats_per_token": group.nats_per_token,
            "bits_per_byte": group._replace(nats=carried_nats).bits_per_byte if per_byte else None,
            "top1_accuracy": group.accuracy,
        }
        for group, carried_nats, per_byte in zip(sums.token_sums(), sums.carried_nats.tolist(), each, strict=True)
    ]


def rows(sums: Grouped, labels: list[dict[str, Any]], known: bool | list[bool]) -> list[dict[str, Any]]:
    """Return the label of each group with its metrics as plain values."""
    nats = sums.amount("nats")
    share = nats / nats.sum() if nats.sum() else nats
    return [
        label | {name: finite(x) for name, x in group.items()} | {"share_of_nats": part}
        for label, group, part in zip(labels, metrics(sums, known), share.tolist(), strict=True)
    ]


def worst(statistics: Statistics, costliest: list[Costly], n: int) -> list[dict[str, Any]]:
    """Return the `n` costliest tokens or spans as plain values. Bytes that are not text are written as `\\xNN`."""
    total = float(statistics.total.amount("nats")[0])
    return [
        {
            "document": statistics.facts[part.document].name,
            "index": part.first,
            "tokens": part.n_tokens,
            "byte_start": part.byte_start if part.byte_start >= 0 else None,
            "byte_end": part.byte_end if part.byte_end >= 0 else None,
            "nats": finite(part.nll_nats),
            "share_of_nats": part.nll_nats / total if math.isfinite(part.nll_nats) and total else None,
            **{name: getattr(part, name).decode("utf-8", "backslashreplace") for name in ("before", "text", "after")},
        }
        for part in costliest[:n]
    ]
