"""The fast suite covers every pair of parameter values, `make test-all` every three; both run every test."""

from collections import Counter
from itertools import combinations, product

import pytest

from tests.covering import asked, covering, other_backends

A_GRID = """
import pytest
from tests.covering import mark_the_rest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    mark_the_rest(items)
"""
TESTS = """
import pytest


@pytest.mark.parametrize("a", range(4))
@pytest.mark.parametrize("b", "xyz")
@pytest.mark.parametrize("c", [None, True])
def test_grid(a, b, c):
    pass


@pytest.mark.parametrize("a", range(4))
@pytest.mark.parametrize("b", "xyz")
@pytest.mark.parametrize("c", [None, True])
@pytest.mark.parametrize("d", range(3))
def test_wide(a, b, c, d):
    pass


@pytest.mark.each_value
@pytest.mark.parametrize("a", range(4))
@pytest.mark.parametrize("b", "xyz")
@pytest.mark.parametrize("c", [None, True])
def test_slow(a, b, c):
    pass


@pytest.mark.parametrize("a", [0, 1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_one(a):
    pass


def test_plain():
    pass
"""


def test_every_pair_stays() -> None:
    cases = [dict(zip("abc", values, strict=True)) for values in product((1, 2, 3), "wxyz", (None, True))]
    wanted = [asked(case) for case in cases]
    kept = covering(wanted)
    assert set().union(*(wanted[place] for place in kept)) == set().union(*wanted)
    assert 12 <= len(kept) < len(cases)
    assert kept == covering(wanted)


def test_other_instruction_sets_run_each_grid_once() -> None:
    others = sorted(other_backends())
    cases = [{"backend": name, "n": n} for name in (*others, "torch") for n in (1, 2, 3)]
    kept = [cases[place]["backend"] for place in covering([asked(case) for case in cases])]
    assert sorted(kept) == sorted([*others, "torch", "torch", "torch"])
    assert covering([asked({"backend": name}) for name in others]) == set()


def test_the_rest_is_left_out(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nmarkers = exhaustive\n    each_value\n    each_variant\n")
    pytester.makeconftest(A_GRID)
    pytester.makepyfile(TESTS)

    def run(*marks: str) -> list[str]:
        done = pytester.inline_run(*marks, "-p", "no:randomly").getreports("pytest_runtest_logreport")
        return [report.nodeid.partition("::")[2] for report in done if report.when == "call"]

    fast, most, whole = run("-m", "not exhaustive"), run("-m", "not each_variant"), run()
    assert set(fast) < set(most) < set(whole)
    assert counts(fast) == {"test_grid": 12, "test_wide": 12, "test_slow": 4, "test_one": 2, "test_plain": 1}
    assert counts(most) == {"test_grid": 24, "test_wide": 38, "test_slow": 12, "test_one": 3, "test_plain": 1}
    assert counts(whole) == {"test_grid": 24, "test_wide": 72, "test_slow": 24, "test_one": 3, "test_plain": 1}
    for three in combinations(range(4), 3):
        held, there = (
            {tuple(name.split("-")[i] for i in three) for name in names if name.startswith("test_wide")}
            for names in (most, whole)
        )
        assert held == there


def counts(names: list[str]) -> Counter[str]:
    return Counter(name.partition("[")[0] for name in names)
