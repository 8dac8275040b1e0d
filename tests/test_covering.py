"""The fast suite covers every pair of parameter values, and runs every test at least once."""

from itertools import product

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


@pytest.mark.each_value
@pytest.mark.parametrize("a", range(4))
@pytest.mark.parametrize("b", "xyz")
def test_slow(a, b):
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
    pytester.makeini("[pytest]\nmarkers = exhaustive\n    each_value\n")
    pytester.makeconftest(A_GRID)
    pytester.makepyfile(TESTS)
    fast = pytester.inline_run("-m", "not exhaustive", "-p", "no:randomly")
    ran = [report.nodeid.partition("::")[2] for report in fast.getreports("pytest_runtest_logreport")]
    counts = {name: len({test for test in ran if test.startswith(name)}) for name in ("test_grid", "test_slow")}
    assert counts == {"test_grid": 12, "test_slow": 4}
    assert {test for test in ran if test.startswith(("test_one", "test_plain"))} == {
        "test_one[0]",
        "test_one[1]",
        "test_plain",
    }
    whole = pytester.inline_run("-p", "no:randomly")
    assert whole.countoutcomes() == [4 * 3 * 2 + 4 * 3 + 3 + 1, 0, 0]
