"""Where the nats go: the loss by document, by position in the window, by token frequency and by byte class."""

import math
from typing import Any

import numpy as np

from cynosure.loss import TokenSums
from cynosure.measure.classes import CLASSES
from cynosure.measure.groups import Grouped
from cynosure.measure.rows import Ints
from cynosure.measure.stats import Statistics
from cynosure.measure.worst import Costly
from cynosure.system.numbers import finite

N_DECILES = 10


def by_class(statistics: Statistics) -> list[dict[str, Any]]:
    """One row for each byte class there is."""
    sums = statistics.classes.sums()
    return rows(sums, [{"class": CLASSES[key]} for key in sums.keys.tolist()], all_carried(statistics))


def by_position(statistics: Statistics) -> list[dict[str, Any]]:
    """One row for each half octave of context: how many tokens the model saw before those it guessed."""
    sums = statistics.positions.sums()
    edges = [(math.ceil(2 ** (key / 2)), math.ceil(2 ** ((key + 1) / 2)) - 1) for key in sums.keys.tolist()]
    return rows(sums, [{"context_from": low, "context_to": high} for low, high in edges], all_carried(statistics))


def by_frequency(statistics: Statistics) -> list[dict[str, Any]]:
    """Ten rows of about as many scored tokens, those most frequent in the text first."""
    sums = statistics.tokens.sums()
    counts = sums.counts("tokens")
    order = np.lexsort((sums.keys, -counts))
    reached = np.cumsum(counts[order])
    decile = np.empty(len(counts), dtype=np.int64)
    decile[order] = np.minimum(N_DECILES - 1, (reached - (counts[order] + 1) // 2) * N_DECILES // reached[-1])
    grouped = Grouped.of(decile, sums.table)
    labels = [{"decile": key + 1, **seen(counts, decile == key)} for key in grouped.keys.tolist()]
    return rows(grouped, labels, all_carried(statistics))


def seen(counts: Ints, chosen: Any) -> dict[str, int]:
    """How many kinds of token are chosen, and how often the rarest and the most frequent of them are seen."""
    found = counts[chosen]
    return {"kinds": len(found), "seen_from": int(found.min()), "seen_to": int(found.max())}


def by_document(statistics: Statistics) -> list[dict[str, Any]]:
    """One row for each document of which a token is scored."""
    sums = statistics.documents.sums()
    labels = [{"document": statistics.facts[key].name} for key in sums.keys.tolist()]
    return rows(sums, labels, statistics.carried(sums.keys).tolist())


def all_carried(statistics: Statistics) -> bool:
    """Whether no document loses text, as a metric per byte needs it where a group has tokens of many."""
    return not any(fact.loses for fact in statistics.facts.values())


def metrics(group: TokenSums, carried: bool) -> dict[str, Any]:
    """The sums of a group and what follows of them; per byte where no text of it is lost (`carried`)."""
    return {
        "tokens": group.tokens,
        "bytes": group.n_bytes if carried else None,
        "nats": group.nats,
        "nats_per_token": group.nats_per_token,
        "bits_per_byte": group.bits_per_byte if carried else None,
        "top1_accuracy": group.accuracy,
    }


def rows(sums: Grouped, labels: list[dict[str, Any]], carried: bool | list[bool]) -> list[dict[str, Any]]:
    """The metrics of each group as plain values, beside its label; `carried` is of all groups, or of each."""
    nats = sums.amount("nats")
    share = nats / nats.sum() if nats.sum() else nats
    each = carried if isinstance(carried, list) else [carried] * len(labels)
    return [
        label | {name: finite(x) for name, x in metrics(group, known).items()} | {"share_of_nats": part}
        for label, group, part, known in zip(labels, sums.token_sums(), share.tolist(), each, strict=True)
    ]


def worst(statistics: Statistics, found: list[Costly], n: int) -> list[dict[str, Any]]:
    """The costliest tokens or spans as plain values: the text around them readable, bytes that are none as `\\xNN`."""
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
        for part in found[:n]
    ]
