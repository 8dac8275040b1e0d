"""Small values as scores, a comparison and a training have them in their JSON, with what a report needs."""

import math
from typing import Any

HOSTILE = '</script><img src=x onerror="boom()"> \u202e\x00 & =1+1 | ~`'


def score_values() -> dict[str, Any]:
    return {
        "model": "tiny",
        "tokens": 1000,
        "nats_per_token": {"value": 3.0, "low": 2.9, "high": 3.1},
        "bits_per_byte": {"value": 0.95, "low": 0.9, "high": 1.0},
        "word_perplexity": {"value": None, "low": None, "high": None},
        "calibration": calibration_values(),
        "interval": {"kind": "documents", "seed": 0},
        "notes": ["a note"],
        "by_loss": by_loss(),
        "by_class": [
            {"class": "letters", "tokens": 900, "nats": 2850.0, "nats_per_token": 3.17, "share_of_nats": 0.95},
            {"class": "digits", "tokens": 100, "nats": 150.0, "nats_per_token": 1.5, "share_of_nats": 0.05},
        ],
        "by_position": [
            {"context_from": low, "context_to": high, "tokens": 20 * high, "nats_per_token": 3 + 3 / low}
            for low, high in ((1, 1), (2, 2), (3, 3), (4, 5), (6, 7), (8, 11))
        ],
        "by_frequency": [
            {"decile": i + 1, "seen_from": 12 - i, "seen_to": 13 - i, "kinds": i + 1, "tokens": 100,
             "nats_per_token": 1 + 0.5 * i}
            for i in range(10)
        ],
        "by_document": by_document(60),
    }  # fmt: skip


def by_loss() -> list[dict[str, Any]]:
    """Return 81 rows, of which the first 40 have tokens."""
    return [
        {"nats_from": i / 4, "nats_to": None if i == 80 else (i + 1) / 4, "tokens": 25 * (i < 40),
         "nats": 3.0, "share_of_tokens": (i < 40) / 40, "share_of_nats": (2 * i + 1) / 1600 * (i < 40)}
        for i in range(81)
    ]  # fmt: skip


def by_document(n_documents: int) -> list[dict[str, Any]]:
    """Return rows of which the second has a hostile name, the third no interval and the fourth an infinite loss."""
    rows = [
        {"document": f"texts/{i:02}.txt", "tokens": 50, "nats_per_token": 3.0, "bits_per_byte": 0.8 + i / 100,
         "low": 0.7 + i / 100, "high": 0.9 + i / 100}
        for i in range(n_documents)
    ]  # fmt: skip
    rows[1]["document"] = HOSTILE
    rows[2] |= {"low": None, "high": None}
    rows[3] |= {"nats_per_token": None, "bits_per_byte": None}
    return rows


def calibration_values() -> dict[str, Any]:
    bins = [(i + 0.5) / 10 for i in range(10)]
    return {
        "ece": 0.05,
        "brier": 0.7,
        "best_temperature": 1.1,
        "recoverable_nats_per_token": 0.01,
        "bins": [
            {"low": x - 0.05, "high": x + 0.05, "count": 100, "confidence": x, "accuracy": 0.9 * x,
             "accuracy_low": 0.9 * x - 0.04, "accuracy_high": 0.9 * x + 0.04}
            for x in bins
        ],
        "confidence": [
            {"low": i / 20, "high": (i + 1) / 20, "tokens": 50, "correct": round(45 * (i + 1) / 20)} for i in range(20)
        ],
        "temperatures": [
            {"temperature": x, "nats_per_token": 2.99 + 1.1 * (1 / x - 1 / 1.1) ** 2} for x in (0.5, 0.7, 1.0, 1.4, 2.0)
        ],
    }  # fmt: skip


def comparison_values() -> dict[str, Any]:
    return {
        "a": {"model": "one", "window": 1024},
        "b": {"model": "two", "window": 1024},
        "bits_per_byte": {
            "a": 1.0, "b": 0.9, "difference": {"value": -0.1, "low": -0.2, "high": 0.0}, "p": 0.03,
        },
        "nats_per_token": None,
        "notes": [],
        "wins": {"a": 10, "b": 50, "ties": 0},
        "by_document": [
            {"document": HOSTILE if i == 1 else f"texts/{i:02}.txt", "bytes": 100, "bits_per_byte_a": 1.0,
             "bits_per_byte_b": 1 + (i - 45) / 100, "difference": (i - 45) / 100,
             "low": (i - (50 if i % 2 else 90)) / 100, "high": (i - (40 if i % 2 else 0)) / 100}
            for i in range(60)
        ],
        "by_class": [
            {"class": name, "bytes": n_bytes, "bits_per_byte_a": 1.0, "bits_per_byte_b": 1 + change,
             "difference": change}
            for name, n_bytes, change in (("letters", 9000, -0.1), ("digits", 900, 0.05), ("other", 2, 4.0))
        ],
    }  # fmt: skip


def training_lines() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return 1,200 steps and 4 validations."""
    steps = [
        {"step": i, "tokens": 1024 * i, "loss": 4 + 3 / i, "smoothed": 4 + 3.1 / i, "bits_per_byte": 1.6 + 1 / i,
         "grad_norm": 50.0 if i == 600 else 1.0, "learning_rate": 1e-3 * (1 - i / 1200),
         "tokens_per_second": 9000.0 + i % 7}
        for i in range(1, 1201)
    ]  # fmt: skip
    validations = [
        {"step": step, "tokens": 1024 * step,
         "nats_per_token": {"value": 4 + 40 / step, "low": 3.9, "high": 4.6},
         "bits_per_byte": {"value": 1.6 + 10 / step, "low": 1.5, "high": 1.8},
         "calibration": {"ece": 10 / step, "brier": 0.9, "best_temperature": 1.0, "recoverable_nats_per_token": 0.01}}
        for step in (300, 600, 900, 1200)
    ]  # fmt: skip
    return steps, validations


INFINITE = (None, math.inf, math.nan)
