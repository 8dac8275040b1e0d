"""The order of the runs, without a process."""

import pytest

from benchmarks.harness import Benchmark, Participant, Steps, count_steps, take_turns
from benchmarks.implementation import Implementation
from benchmarks.loss.benchmark import LossBenchmark
from benchmarks.results import Result
from benchmarks.score.benchmark import ScoreBenchmark
from benchmarks.train.benchmark import TrainBenchmark


def implementation(name: str) -> Implementation:
    return Implementation(name, name, build=lambda _: lambda: None)


class Fake(Participant):
    """Takes so many seconds, and writes down what it is asked for."""

    def __init__(self, name: str, seconds: float, log: list[str]) -> None:
        self.implementation, self.seconds, self.log = implementation(name), seconds, log
        self.left = self.plan = None

    def build(self, n_tokens: int) -> None:
        self.log.append(f"{self.implementation.name} ready for {n_tokens}")

    def run(self, row: Result, n_tokens: int, compare: bool) -> None:
        self.log.append(f"{self.implementation.name}{' checked' if compare else ''}")
        row.seconds.append(self.seconds)


def test_runs_are_interleaved_and_the_first_is_checked() -> None:
    log: list[str] = []
    participants = [Fake("a", 1.0, log), Fake("slow", 11.0, log)]
    benchmark = LossBenchmark(runs=3, slow_seconds=10.0)
    a, slow = take_turns(participants, 7, benchmark, Steps(lambda *_: None, 0), "")
    assert log == ["a ready for 7", "slow ready for 7", "a checked", "slow checked", "a", "a"]
    assert (a.seconds, slow.seconds) == ([1.0] * 3, [11.0])


@pytest.mark.parametrize(
    ("benchmark", "total"),
    [
        (LossBenchmark(heads=("smollm2",), dtypes=("float32",), tokens=(8, 9), runs=3), 1 + 2 * (1 + 2 * 4)),
        (ScoreBenchmark(models=("a", "b"), runs=3), 2 * (1 + 2 * 2 * (1 + 4))),
        (TrainBenchmark(models=("a",), dtypes=("autocast",), n_steps=4), 1 + 2 * 4),
    ],
    ids=["loss", "score", "train"],
)
def test_every_step_is_counted(benchmark: Benchmark, total: int) -> None:
    assert count_steps(benchmark, [implementation("a"), implementation("b")]) == total
