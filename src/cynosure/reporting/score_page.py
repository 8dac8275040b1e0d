"""The page of a scored run."""

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from cynosure.measure import MANIFEST, MEANINGS
from cynosure.reporting import sentences
from cynosure.reporting.page import Page
from cynosure.system.numbers import counted, number

if TYPE_CHECKING:
    from cynosure.measure import Scores
    from cynosure.reporting.tokens.view import TokenView

CALIBRATION = ("reliability", "confidence", "temperature")  # charts of that part; the others say where the loss is
SHOWN_SPANS = 8
SHOWN_TEXTS = 5


def score_page(scores: "Scores", protocols: "Mapping[str, Scores]") -> Page:
    """Return the page of a run.

    Args:
        scores: the run.
        protocols: scores of the same texts under other protocols, and under its own, by name; may be empty.
    """
    from cynosure.reporting.charts.score import score_charts

    values = scores.to_json()
    charts = score_charts(values)
    context: dict[str, Any] = {
        "sentences": sentences,
        "device": scores.setting.device,
        "facts": list(facts_of(scores)),
        "hashes": list(hashes_of(scores)),
        "protocols": [protocol_row(name, each) for name, each in protocols.items()] if len(protocols) > 1 else [],
        "view": view_of(scores),
        "where": [chart.name for chart in charts if chart.name not in CALIBRATION],
        "trust": [chart.name for chart in charts if chart.name in CALIBRATION],
        "meanings": [(key, *meaning) for key, meaning in MEANINGS.items()],
        "n_spans": SHOWN_SPANS,
    }
    title = f"{scores.setting.model} on {counted(scores.documents, 'document')}"
    return Page("score.html.j2", title, source_of(scores), values, charts, context)


def view_of(scores: "Scores", other: "Scores | None" = None) -> "TokenView | None":
    """Return the tokens to show; None if they were not kept."""
    from cynosure.reporting.tokens.view import token_view

    if scores.store is None and scores.tables is None:
        return None
    return token_view(scores, other)


def source_of(scores: "Scores") -> str:
    """Return the folder of a run, or what it is if it was not stored."""
    return scores.setting.model if scores.store is None else str(scores.store.folder)


def facts_of(scores: "Scores") -> Iterator[tuple[str, str]]:
    """Yield (name, value) of what identifies a run besides the numbers of its JSON."""
    if scores.store is None:
        return
    texts = [text["name"] for text in scores.store.manifest["corpus"].get("texts", [])]
    if texts:
        more = f" and {len(texts) - SHOWN_TEXTS:,} more" if len(texts) > SHOWN_TEXTS else ""
        yield "text", ", ".join(texts[:SHOWN_TEXTS]) + more
    finished = datetime.fromtimestamp((scores.store.folder / MANIFEST).stat().st_mtime, timezone.utc)
    yield "scored", f"{finished.day} {finished:%B %Y}"


def hashes_of(scores: "Scores") -> Iterator[tuple[str, str]]:
    """Yield (name, SHA-256) of the weights, the tokenizer, the manifest and the texts."""
    if scores.store is None:
        return
    manifest = scores.store.manifest
    yield "weights", manifest["model"]["weights_sha256"]
    yield "tokenizer", manifest["model"]["tokenizer_sha256"]
    yield "manifest", manifest.get("manifest_sha256") or ""
    for text in manifest["corpus"].get("texts", []):
        yield text["name"], text["sha256"] or ""


def protocol_row(name: str, scores: "Scores") -> dict[str, str]:
    """Return a protocol's metrics, as text."""
    from cynosure.text import PROTOCOLS

    metrics, context = scores.figures, scores.statistics.context
    rules = PROTOCOLS[name]
    return {
        "protocol": name,
        "bits per byte": number(metrics["bits_per_byte"].value, 4),
        "token perplexity": number(metrics["token_perplexity"].value, 2),
        "tokens": f"{scores.tokens:,}",
        "window": f"{scores.setting.window:,}",
        "stride": f"{scores.setting.stride:,}",
        "mean context": f"{context.mean:,.0f}",
        "how it differs": f"{rules.differs} ({rules.peer})",
    }
