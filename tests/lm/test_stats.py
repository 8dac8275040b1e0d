"""Sums are exact, in any order; what is unknown stays unknown."""

import math
import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cynosure.measure.stats import DocumentTokens, Summary, Totals, count_words, exact_sum, excluded

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=64)


@given(st.lists(FINITE))
def test_sums_are_exact(values: list[float]) -> None:
    assert exact_sum(np.array(values, dtype=np.float64)) == sum(map(Fraction, values), Fraction(0))


def document(nll: list[float], name: str = "d", known: bool = True) -> DocumentTokens:
    n = len(nll)
    counts = np.full(n, 2) if known else None
    values = np.array(nll)
    entropy = np.where(np.isnan(values), np.nan, 1.5)
    return DocumentTokens(name, "x " * n, values, entropy, values < 1, counts, counts, None if known else "drift")


def summary(totals: Totals) -> Summary:
    return Summary("m", "sliding", 8, 4, "float32", totals, (), (), 2.0)


def test_totals_are_the_same_in_any_order() -> None:
    chance = random.Random(0)
    parts = [Totals.of(document([chance.expovariate(1 / 3) for _ in range(50)])) for _ in range(40)]
    forward, shuffled = sum(parts, Totals()), sum(chance.sample(parts, len(parts)), Totals())
    assert forward == shuffled
    assert summary(forward).to_json() == summary(shuffled).to_json()
    assert (forward.documents, forward.tokens, forward.bytes) == (40, 2000, 4000)


def test_unscored_tokens_count_for_nothing_but_hide_the_words() -> None:
    totals = Totals.of(document([math.nan, 0.5, 2.0]))
    assert (totals.tokens, totals.nats, totals.correct, totals.bytes, totals.words) == (2, Fraction(5, 2), 1, 4, None)
    assert Totals.of(document([0.5, 2.0])).words == 3
    assert (totals + Totals.of(document([1.0]))).words is None


def test_unknown_bytes_stay_unknown() -> None:
    totals = Totals.of(document([1.0])) + Totals.of(document([1.0], known=False))
    assert totals.bytes is None
    assert summary(totals).to_json()["bits_per_byte"] == {"value": None, "low": None, "high": None}


def test_an_impossible_token_makes_the_loss_infinite_and_json_null() -> None:
    totals = Totals.of(document([1.0, math.inf]))
    assert (totals.tokens, totals.impossible, totals.nats) == (2, 1, 1)
    assert summary(totals).nats == math.inf
    assert summary(totals).figures["token_perplexity"].value == math.inf
    assert summary(totals).to_json()["token_perplexity"]["value"] is None
    assert summary(replace(totals, impossible=0, nats=Fraction(2000))).figures["token_perplexity"].value == math.inf


def test_excluded_ranges_are_bytes() -> None:
    ranges = excluded(document([math.nan, 1.0, math.nan, math.nan, 1.0, math.nan]), "why")
    assert [(part.byte_start, part.byte_end) for part in ranges] == [(0, 2), (4, 8), (10, 12)]
    assert excluded(document([1.0]), "why") == []
    assert excluded(document([math.nan], known=False), "why") == []


@pytest.mark.parametrize(("text", "n_words"), [("", 1), ("a", 1), ("a b\n\nc", 3), (" a ", 3)])
def test_words_are_counted_as_the_harness_does(text: str, n_words: int) -> None:
    assert count_words(text) == n_words
