"""The benchmark of scoring, on a tiny model, a process each."""

import json
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.commands import app
from benchmarks.harness import run
from benchmarks.implementation import Implementation
from benchmarks.results import BenchmarkReport, Result
from benchmarks.score.benchmark import ScoreBenchmark, ScoreCase
from benchmarks.score.implementations import IMPLEMENTATIONS, Step, Work, build_cynosure
from benchmarks.table import print_report
from cynosure.cli.app import main
from tests.tiny import byte_tokenizer, tiny_model


def build_wrong(work: Work) -> Step:
    """A tenth too much."""
    right = build_cynosure(work)
    return lambda: right() * 1.1


WRONG = Implementation("wrong", "planted", build_wrong)
pytestmark = [pytest.mark.exhaustive, pytest.mark.benchmark]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def report(folder: Path) -> BenchmarkReport[ScoreCase]:
    names = ("cynosure", "transformers", "limit")
    implementations = [*(IMPLEMENTATIONS[name] for name in names), WRONG]
    models = (str(folder), "no-such-model")
    return run(ScoreBenchmark(models=models, dtypes=("bfloat16",), n_tokens=400, window=32, runs=2), implementations)


def row(report: BenchmarkReport[ScoreCase], name: str) -> Result:
    found = report.cases[0].row(name)
    assert found is not None
    return found


def test_whoever_is_right_gets_a_figure(report: BenchmarkReport[ScoreCase]) -> None:
    for name in ("cynosure", "transformers", "limit"):
        found = row(report, name)
        assert (found.status, found.reason, len(found.seconds)) == ("ok", None, 2)
        if name != "limit":
            assert found.errors is not None
            assert found.allowed is not None
            assert found.errors["nats"] <= found.allowed["nats"]


def test_whoever_is_wrong_gets_none(report: BenchmarkReport[ScoreCase]) -> None:
    found = row(report, "wrong")
    assert (found.status, found.seconds_median) == ("red", None)
    assert "with 80 tokens nats is off by 1.0e-01, allowed" in (found.reason or "")


def test_the_table_and_what_was_skipped(report: BenchmarkReport[ScoreCase]) -> None:
    text = StringIO()
    print_report(report, ScoreBenchmark().how, ScoreBenchmark.ours, Console(file=text, width=130))
    assert "tiny: 400 tokens, window 32, bfloat16" in text.getvalue()
    assert "wrong: with 80 tokens nats is off" in text.getvalue()
    assert "no-such-model skipped: no model 'no-such-model'" in text.getvalue()
    record = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (record["bench"], record["settings"]["n_tokens"]) == ("score", 400)
    ours = record["cases"][0]["rows"][0]
    assert ours["tokens_per_second"] == pytest.approx(400 / ours["seconds_median"])


def invoke(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["benchmarks", *map(str, arguments)])
    with pytest.raises(SystemExit) as done:
        main(app, "python -m benchmarks")
    return int(done.value.code or 0)


def test_the_command(
    report: BenchmarkReport[ScoreCase],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[ScoreBenchmark] = []

    def measured(benchmark: ScoreBenchmark, *_: object) -> BenchmarkReport[ScoreCase]:
        asked.append(benchmark)
        return report

    monkeypatch.setattr("benchmarks.harness.run", measured)
    path = tmp_path / "score.json"
    command = ["score", "--models", "a, b", "--dtypes", "float32", "--tokens", 70, "--window", 32, "--runs", 1]
    assert invoke(monkeypatch, *command, "--format", "json", "--json", path) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text())
    assert asked == [ScoreBenchmark(models=("a", "b"), dtypes=("float32",), n_tokens=70, window=32, runs=1)]
    wrong = replace(report.cases[0], rows=[replace(row(report, "wrong"), contestant="cynosure-compile")])
    report = replace(report, cases=[wrong])
    assert invoke(monkeypatch, *command) == 1
    assert "a check of our own nats failed" in capsys.readouterr().err
    assert invoke(monkeypatch, "score", "--implementations", "nobody") == 2
    assert "unknown implementation 'nobody': expected all, or some of cynosure" in capsys.readouterr().err
    assert invoke(monkeypatch, "score", "--window", 0) == 2
    assert "must all be positive" in capsys.readouterr().err
