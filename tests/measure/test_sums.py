"""Sums are those of the rounded values, without any other rounding, in whatever order and parts they are made."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cynosure.measure.statistics import sums
from cynosure.measure.statistics.sums import Sums

QUANTUM = Fraction(1, 2**40)
VALUES = st.floats(min_value=-(2.0**22) + 1, max_value=2.0**22 - 1, allow_nan=False)


def exactly(values: np.ndarray) -> Fraction:
    """The sum of the values, each rounded to the quantum, in rational numbers."""
    return sum((round(Fraction(float(v)) / QUANTUM) * QUANTUM for v in values), Fraction(0))


def as_fractions(found: Sums) -> list[Fraction]:
    return [(h * 2**32 + low) * QUANTUM for h, low in zip(found.hi.tolist(), found.lo.tolist(), strict=True)]


@given(st.lists(VALUES))
def test_a_sum_is_the_rational_one(values: list[float]) -> None:
    found = Sums.of(np.array(values, dtype=np.float64))
    assert as_fractions(found) == [exactly(np.array(values))]
    assert found.total == float(exactly(np.array(values)))


def test_a_slice_of_the_largest_values_in_one_group_is_exact() -> None:
    n, largest = sums.SLICE + 5, np.nextafter(2.0**22, 0)
    for value in (largest, -largest, 1 - 2.0**-40):
        found = Sums.of(np.full(n, value), np.ones(n, dtype=np.int64), 3)
        assert as_fractions(found) == [0, n * exactly(np.array([value])), 0]


@given(st.lists(st.tuples(VALUES, st.integers(0, 3)), min_size=1), st.randoms(use_true_random=False))
def test_parts_merge_in_any_order(pairs: list[tuple[float, int]], chance) -> None:
    values, groups = np.array([v for v, _ in pairs]), np.array([g for _, g in pairs])
    parts = [Sums.of(values[i : i + 1], groups[i : i + 1], 4) for i in range(len(pairs))]
    chance.shuffle(parts)
    while len(parts) > 1:  # in a random tree
        parts.append(parts.pop(chance.randrange(len(parts))) + parts.pop(chance.randrange(len(parts))))
    assert parts[0] == Sums.of(values, groups, 4)
    assert as_fractions(parts[0]) == [exactly(values[groups == g]) for g in range(4)]
    assert all(0 <= low < 2**32 for low in parts[0].lo.tolist())


def test_float32_losses_are_summed_without_any_error() -> None:
    values = np.random.default_rng(0).exponential(3, 100_000).astype(np.float32) + np.float32(2**-16)
    assert as_fractions(Sums.of(values)) == [sum(map(Fraction, values.tolist()), Fraction(0))]


def test_columns_are_summed_each_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(0).normal(size=(1000, 3)) * [1, 1e6, 1e-3]
    whole = Sums.columns(matrix)
    assert [whole.hi[i] for i in range(3)] == [Sums.of(matrix[:, i]).hi[0] for i in range(3)]
    assert whole.values.tolist() == [Sums.of(matrix[:, i]).total for i in range(3)]
    monkeypatch.setattr(sums, "SLICE", 64)
    assert Sums.columns(matrix) == whole
    assert Sums.of(matrix.ravel()) == Sums.of(matrix[:, 0]) + Sums.of(matrix[:, 1]) + Sums.of(matrix[:, 2])


def test_the_largest_values_do_not_overflow() -> None:
    largest = math.nextafter(2.0**22, 0)
    found = Sums.of(np.full(1_000_000, largest))
    assert as_fractions(found) == [1_000_000 * exactly(np.array([largest]))]
    assert found + Sums.of(np.full(1_000_000, -largest)) == Sums.zeros()


def test_the_sum_is_rounded_once() -> None:
    few = Sums.of(np.array([2.0**21] * 64 + [2.0**-26, 2.0**-40]))  # just above half of the last place of 2^27
    assert few.total == math.nextafter(2.0**27, math.inf)
    assert Sums.of(np.array([2.0**21] * 64 + [2.0**-26])).total == 2.0**27


def test_sums_of_other_values_are_not_equal() -> None:
    assert Sums.of(np.array([1.0])) != Sums.of(np.array([1.0 + 2.0**-40]))
    assert Sums.of(np.array([1.0])) != Sums.of(np.array([1.0 + 2.0**-8]))
    assert Sums.zeros(1) != Sums.zeros(2)
    assert Sums.zeros() != 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2.0**22, -(2.0**22)])
def test_a_value_that_cannot_be_summed_is_named(bad: float) -> None:
    with pytest.raises(ValueError, match=rf"only finite values below 4194304 .* got {bad}"):
        Sums.of(np.array([1.0, bad]))
    with pytest.raises(ValueError, match="only finite values"):
        Sums.columns(np.array([[1.0, bad]]))


@pytest.mark.parametrize("groups", [[0, 2], [-1, 0]])
def test_a_group_that_is_not_there_is_named(groups: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"groups must be in \[0, 2\), got {min(groups)} to {max(groups)}"):
        Sums.of(np.ones(2), np.array(groups), 2)


def test_sums_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="sums of 1 groups cannot be added to sums of 2"):
        Sums.zeros(1) + Sums.zeros(2)
    with pytest.raises(ValueError, match="2 values and 1 groups"):
        Sums.of(np.ones(2), np.zeros(1, dtype=int))
    with pytest.raises(ValueError, match="a total needs a single group"):
        _ = Sums.zeros(2).total


def test_nothing_adds_up_to_zero() -> None:
    assert Sums.of(np.array([])) == Sums.zeros() == Sums.of(np.array([]), np.array([], dtype=int), 1)
    assert Sums.columns(np.zeros((0, 3))) == Sums.zeros(3)
