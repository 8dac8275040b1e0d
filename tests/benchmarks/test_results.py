"""Published reports still read as those that are written now."""

import json
from pathlib import Path

import pytest

from benchmarks import published
from benchmarks.harness import Benchmark
from benchmarks.loss.benchmark import LossBenchmark
from benchmarks.loss.on_device import DeviceLossBenchmark
from benchmarks.primitives.benchmark import DivergenceBenchmark, LogprobsBenchmark
from benchmarks.results import Result
from benchmarks.score.benchmark import ScoreBenchmark
from benchmarks.train.benchmark import TrainBenchmark
from benchmarks.trainers.benchmark import TrainersBenchmark

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
OTHERS = {
    "coverage.json",
    "growth.json",
    "sampled-gemma3-270m.json",
    "sampled-smollm2.json",
    "sampled-tiny.json",
}  # reports of other kinds
KINDS: tuple[type[Benchmark], ...] = (
    *(LossBenchmark, ScoreBenchmark, TrainBenchmark),
    *(LogprobsBenchmark, DivergenceBenchmark, TrainersBenchmark),
)
BENCHMARKS = {kind.name: kind for kind in KINDS}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_published_report(path: Path) -> None:
    report = json.loads(path.read_text())
    if path.name in OTHERS:
        assert report.get("axes") or report.get("cases") or report.get("runs")
        return
    assert {"bench", "command", "date", "settings", "environment", "cases", "skipped"} == set(report) - {"note"}
    benchmark = DeviceLossBenchmark if "device" in report["settings"] else BENCHMARKS[report["bench"]]
    assert set(report["settings"]) <= {*benchmark.__dataclass_fields__, "contestants"}
    assert {"cpu", "threads", "versions", "commit"} <= set(report["environment"])
    for case in report["cases"]:
        for row in case["rows"]:
            assert set(row) <= {*Result("", "").to_json(), "tokens_per_second"}
            assert {"contestant", "status", "seconds_median", "peak_extra_bytes"} <= set(row)


def test_tables_are_those_of_the_reports() -> None:
    page = published.PAGE.read_text()
    assert published.blocks(page) == page, "run python -m benchmarks.published"
    assert all(f"<!-- end of {name} -->" in page for name in published.TABLES)
