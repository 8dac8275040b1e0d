"""A few of the random cases that `make sanitize` runs by the thousand, on the ordinary library."""

import pytest

from cynosure.loss.matmul.rivals import why_missing
from cynosure.loss.native.library import library
from tests.loss import fuzz

pytestmark = pytest.mark.cpu_only


@pytest.mark.skipif(not library().functions, reason="there is no C++ kernel here")
def test_some_random_rows():
    assert fuzz.run("rows", seed=3, n_cases=40) == 40


@pytest.mark.skipif(not library().functions, reason="there is no C++ kernel here")
def test_some_random_columns():
    assert fuzz.run("columns", seed=3, n_cases=40) == 40


@pytest.mark.skipif(bool(why_missing("native")), reason=why_missing("native") or "-")
def test_some_random_matmuls():
    assert fuzz.run("gemm", seed=3, n_cases=60) == 60
