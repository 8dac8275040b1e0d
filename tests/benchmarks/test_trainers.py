"""The benchmark of TRL's trainers: on a tiny model, in this process, and its command."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import published
from benchmarks.implementation import Implementation
from benchmarks.results import BenchmarkReport, Result
from benchmarks.table import print_report
from benchmarks.train.benchmark import Curves
from benchmarks.trainers.benchmark import TrainersBenchmark, TrainersCase, TrainersWorker, new_work, rows_of
from benchmarks.trainers.implementations import IMPLEMENTATIONS, TrainersWork, build_cynosure, build_exact, letters
from tests.benchmarks.conftest import Invoke
from tests.tiny import byte_tokenizer, tiny, tiny_model

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.benchmark,
    pytest.mark.filterwarnings("ignore"),  # TRL's own
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TrainersBenchmark:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model(spread=0.1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return TrainersBenchmark(model=str(folder), n_texts=4, n_tokens=32, n_steps=4)


@pytest.fixture(scope="module")
def head() -> Iterator[None]:
    """TRL's own head comes back in the end."""
    from trl.trainer import utils

    own = utils._ChunkedLogProbFunction
    yield
    utils._ChunkedLogProbFunction = own


def build_off(work: TrainersWork) -> Any:
    """The patched loss is 1% too large."""
    step = build_cynosure(work)
    loss_of = step.trainer.compute_loss
    step.trainer.compute_loss = lambda *args, **kwargs: loss_of(*args, **kwargs) * 1.01
    return step


def row_of(trainer: str, name: str, build: Callable[[TrainersWork], Any], settings: TrainersBenchmark) -> Result:
    """All steps of an implementation, by a worker."""
    worker = TrainersWorker(Implementation(name, name, build), settings, Curves(trainer, "", {}), "float32")
    row = Result(name, name)
    assert worker.answer({"task": "build", "n_tokens": 128}) == {}
    for number in range(settings.runs):
        row.add(worker.answer({"task": "run", "compare": number == 0}))
    return row


def case_of(trainer: str, settings: TrainersBenchmark, head: None) -> TrainersCase:
    rows = [row_of(trainer, name, way.build, settings) for name, way in IMPLEMENTATIONS.items()]
    exact: list[float] = []
    if trainer == "dpo":
        rows.append(row_of(trainer, "off", build_off, settings))
        step = build_exact(new_work(trainer, "float32", settings))
        exact = [step() for _ in range(settings.n_steps)]
    return settings.case(Curves(trainer, "tiny", {"float32": exact}), "float32", 128, rows)


def shown(case: TrainersCase) -> str:
    text, about = StringIO(), {"versions": {}, "cpu": "", "threads": 1, "blas": "", "commit": "", "class": ""}
    report = BenchmarkReport("trainers", "", "", {}, about, [case], {})
    print_report(report, "", ("cynosure",), Console(file=text, width=140))
    return text.getvalue()


@pytest.mark.parametrize("trainer", ["dpo", "grpo"])
def test_curves(trainer: str, settings: TrainersBenchmark, head: None) -> None:
    case = case_of(trainer, settings, head)
    ours, own = case.rows[:2]
    for row in (ours, own):
        assert row.status == "ok"
        assert [len(x or []) for x in (row.seconds, row.loss_seconds, row.losses)] == [3, 3, 4]
        assert len(row.rewards or []) == (4 if trainer == "dpo" else 2)  # a generation serves two steps
        assert all(0 < loss < whole for loss, whole in zip(row.loss_seconds or [], row.seconds, strict=True))
    assert len(set(own.losses or [])) > 1
    assert len(set(own.rewards or [])) > 1
    assert 0 <= (case.difference("losses") or 0) < 1e-5
    assert 0 <= (case.difference("rewards") or 0) < 1e-4
    assert [row.status for row in case.rows[2:]] == (["red"] if trainer == "dpo" else [])
    assert "losses differ by " in shown(case)
    record = json.loads(json.dumps(case.to_json(), allow_nan=False))
    assert f"| **{trainer.upper()}, float32: cynosure** | 0.0" in published.trainers({"x": {"cases": [record]}})
    assert record["largest_difference_losses"] == case.difference("losses")


def test_rows_are_parts_of_the_text(settings: TrainersBenchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(chr(ord("a") + number % 26) for number in range(2000))
    monkeypatch.setattr(
        "benchmarks.texts.text_ids", lambda words: iter(words(text, add_special_tokens=False).input_ids)
    )
    rows = rows_of("dpo", tiny(), settings)
    assert len(rows) == 8
    assert text.startswith("".join(rows[0][part] for part in ("prompt", "chosen", "rejected")))
    assert [len(rows[1][part]) for part in ("prompt", "chosen", "rejected")] == [7, 24, 24]  # after the BOS
    assert list(rows_of("grpo", tiny(), settings)[0]) == ["prompt"]
    assert letters(["ab 1", ""]) == [0.5, 0.0]


def test_the_command(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[TrainersBenchmark] = []
    case = TrainersCase("grpo", "m", "bfloat16", 2, 16, 4, 2, [], [Result("cynosure", "", "red", "wrong")])
    about = {"versions": {}, "cpu": "", "threads": 1, "blas": "", "commit": "", "class": ""}

    def measured(benchmark: TrainersBenchmark, *_: object) -> BenchmarkReport[TrainersCase]:
        asked.append(benchmark)
        return BenchmarkReport("trainers", "", "", {}, about, [case], {})

    monkeypatch.setattr("benchmarks.harness.run", measured)
    options = "--trainers grpo --model m --dtypes bfloat16 --texts 2 --tokens 16 --steps 2"
    code, _, err = invoke(*options.split(), command="trainers")
    assert (code, "our own loss curve disagrees" in err) == (1, True)
    wanted = TrainersBenchmark(trainers=("grpo",), model="m", dtypes=("bfloat16",), n_texts=2, n_tokens=16, n_steps=2)
    assert asked == [wanted]
    for wrong in ({"n_texts": 3}, {"n_tokens": 7}, {"n_steps": 1}, {"trainers": ("sft",)}):
        with pytest.raises(ValueError, match=r"texts must be even|unknown trainer 'sft'"):
            replace(wanted, **wrong)
