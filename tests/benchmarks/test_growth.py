"""How our time and memory grow: few and small sizes, the same code."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks.commands import app
from benchmarks.loss import growth


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(growth, "TOKENS", (8, 16, 32))
    monkeypatch.setattr(growth, "VOCABULARIES", (64, 128))
    monkeypatch.setattr(growth, "N_FIXED", 8)
    monkeypatch.setattr(growth, "V_FIXED", 64)


@pytest.mark.exhaustive
@pytest.mark.benchmark
def test_growth(small, tmp_path):
    path = tmp_path / "growth.json"
    done = CliRunner().invoke(app, ["growth", "--dtypes", "float32", "--runs", "2", "--json", str(path)])
    assert done.exit_code == 0, done.output
    assert "time ~ N^" in done.stdout
    assert "time ~ V^" in done.stdout
    assert "[bold]" not in done.stdout
    by_n, by_v = json.loads(path.read_text())["axes"]
    assert [case["n_tokens"] for case in by_n["cases"]] == [8, 16, 32]
    assert [case["vocab_size"] for case in by_v["cases"]] == [64, 128]
    seconds = [row["seconds"] for case in by_n["cases"] + by_v["cases"] for row in case["rows"]]
    assert all(len(times) == 2 and min(times) > 0 for times in seconds)


@pytest.mark.parametrize("b", [0.5, 1.0, 2.0])
def test_the_fit_finds_the_exponent(b):
    sizes = [10, 40, 70, 1000]
    assert growth.slope(sizes, [3 * n**b for n in sizes]) == pytest.approx(b)
