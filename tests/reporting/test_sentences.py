"""Sentences say what the numbers mean, whatever they are."""

import re
from typing import Any

import pytest

from cynosure.reporting import sentences


def metric(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def words(markup: Any) -> str:
    return re.sub("<[^>]*>", "", str(markup))


def loss(bits: float | None, perplexity: float | None = 23.4, nats: float | None = 9.0) -> dict[str, Any]:
    return {
        "nats": nats,
        "bits_per_byte": metric(bits),
        "token_perplexity": metric(perplexity),
        "nats_per_token": metric(3),
    }


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (loss(0.904), "could be stored in 0.904 bits per byte, 11% of its size; .* among 23.4 tokens"),
        (loss(9.5), "worse than a uniform guess would: 9.500 bits per byte, where 8 are enough"),
        (loss(None), "^Each token is as hard to guess as a fair draw among 23.4 tokens"),
        (loss(None, None, None), "The loss is infinite"),
    ],
)
def test_a_loss(values: dict[str, Any], said: str) -> None:
    assert re.search(said, words(sentences.reading(values)))
    assert sentences.reading({"scores": values}, "scores.").count("<data") == sentences.reading(values).count("<data")


def calibrated(confidence: float, accuracy: float, n: int = 10_000, **more: Any) -> dict[str, Any]:
    part = {"confidence": confidence, "accuracy": accuracy, "count": n}
    report = {
        "tokens": n,
        "bins": [part],
        "at_edge": False,
        "best_temperature": 1.2,
        "recoverable_nats_per_token": 0.03,
    }
    return {"calibration": report | more, "nats_per_token": metric(3.0)}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            calibrated(0.50, 0.40),
            "50.0% on average, and that token is right 40.0% of the time: it is over-confident by 10.0",
        ),
        (calibrated(0.40, 0.50), "under-confident by 10.0 points"),
        (calibrated(0.404, 0.40), "as sure as it should be"),
        (calibrated(0.50, 0.40, n=20), "as sure as it should be"),  # chance
    ],
)
def test_confidence(values: dict[str, Any], said: str) -> None:
    assert said in words(sentences.confidence(values))


def test_temperature() -> None:
    said = words(sentences.temperature(calibrated(0.5, 0.4)))
    assert "a temperature of 1.20 would recover 0.0300 nats per token, 1.00% of the loss: the model is too sure" in said
    assert "may lie beyond" not in said
    none = calibrated(0.5, 0.4, best_temperature=1.0, recoverable_nats_per_token=1e-6)
    assert words(sentences.temperature(none)).startswith("No single temperature lowers the loss: the best, 1.00, would")
    assert "too cautious" in words(sentences.temperature(calibrated(0.5, 0.4, best_temperature=0.8)))
    assert "may lie beyond" in words(sentences.temperature(calibrated(0.5, 0.4, best_temperature=2.0, at_edge=True)))


@pytest.mark.parametrize(("p", "said"), [(0.034, "p = 0.034"), (2 / 2001, "p ≤ 0.0010")])
def test_a_p_value(p: float, said: str) -> None:
    values = {"bits_per_byte": {"p": p}, "interval": {"n_resamples": 2000}}
    assert words(sentences.p_value(values)).replace("\N{NO-BREAK SPACE}", " ") == said


def test_the_hardest_document() -> None:
    rows = [
        {"document": name, "bits_per_byte": bits, "share_of_nats": 0.25, "low": low}
        | {"nats_per_token": 4.0, "bytes": 30, "tokens": 10}
        for name, bits, low in (("easy", 0.5, 0.4), ("<b>", 1.5, 1.2), ("empty", None, None))
    ]
    values = {"by_document": rows, "bits_per_byte": metric(1.0), "nats_per_token": metric(3.0)}
    values |= {"bytes": 450, "tokens": 100}
    said = sentences.hardest_document(values)
    assert "The hardest document is <b>" not in str(said)
    assert words(said).endswith(
        "1.500 bits per byte, where the whole text takes 1.000. Its tokens cost 4.000 nats, those of the whole 3.000; "
        "they hold 3.00 bytes, those of the whole 4.50. It holds 25.0% of all nats."
    )
    rows[1]["low"] = 0.9
    assert "may be chance" in words(sentences.hardest_document(values))
    assert sentences.hardest_document({**values, "by_document": rows[1:]}) is None


def test_documents_that_became_worse() -> None:
    rows = [
        {"document": f"{i}", "difference": i / 10, "low": i / 10 - 0.15, "high": i / 10 + 0.15} for i in range(-3, 6)
    ]
    rows.append({"document": "short", "difference": 9.0, "low": None, "high": None})
    said = words(sentences.hurt({"by_document": rows}))
    assert (
        "Of 9 documents with an interval, B is better on 2 and worse on 4 by more than chance explains: 5, 4, 3, ..."
        in said
    )
    assert sentences.hurt({"by_document": rows[-2:]}) is None
