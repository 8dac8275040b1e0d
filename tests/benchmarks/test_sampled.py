"""The benchmark of training with a sampled backward: few and small texts, in this process, start to end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.sampled import command, report, training
from benchmarks.sampled.command import app, power
from cynosure.text import Document

WORDS = (
    "the",
    "house",
    "sees",
    "every",
    "light",
    "and",
    "no",
    "ship",
    "sailed",
    "in",
    "this",
    "north",
    "wind",
    "turns",
)
ASKED = ["--model", "tiny:300", "--tokens", "512", "--batch-tokens", "128", "--row-tokens", "64", "--dtype", "float32"]


class Inline:
    """What stands for a process."""

    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> "Inline":
        return self

    def __exit__(self, *_: Any) -> None: ...

    def submit(self, function: Any, run: Any) -> "Inline":
        self.made = function(run)
        return self

    def result(self) -> Any:
        return self.made


def few(held_out_chars: int) -> tuple[list[Document], list[Document]]:
    generator = np.random.default_rng(0)
    made = [Document(f"{i}", " ".join(generator.choice(WORDS, 300))) for i in range(6)]
    return made[:5], [made[5]._replace(text=f"{made[5].text[:held_out_chars]} zebra")]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(training, "texts", few)


def run(path: Path, *more: str) -> Any:
    done = CliRunner().invoke(app, ["--json", str(path), *ASKED, "--held-out-chars", "400", *more])
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.exhaustive
@pytest.mark.benchmark
@pytest.mark.filterwarnings("ignore")  # Trainer's own
def test_trainings(small: None, tmp_path: Path) -> None:
    path = tmp_path / "sampled.json"
    first = run(path, "--tolerances", "0,2**-2", "--seeds", "3")
    assert "run 2 of 2: tiny:300, tolerance 0.25, seed 3" in first.stderr
    exact, sampled = json.loads(path.read_text())["runs"]
    assert (exact["tolerance"], sampled["tolerance"]) == (0.0, 0.25)
    assert "columns_kept" not in exact
    assert 0 < sampled["columns_kept"] < 0.5
    assert 0 < sampled["dhidden_error"] < 0.3
    assert exact["losses"][0] == sampled["losses"][0]  # the loss itself is exact
    assert exact["losses"][1:] != sampled["losses"][1:]
    for made in (exact, sampled):
        assert made["steps"] == 4
        assert sum(group["rows"] for group in made["head"].values()) <= 300
        assert sum(group["tokens"] for group in made["groups"].values()) == made["held_out_tokens"]
        assert min(group["moved"] for group in made["head"].values() if group["rows"]) > 0
        assert made["bits_per_byte"] > 0
    again = run(path, "--tolerances", "0,2**-2", "--seeds", "3")
    assert again.stderr == ""
    assert "2**-2 less exact, seed by seed: bits_per_byte" in again.stdout
    assert json.loads(path.read_text())["runs"] == [exact, sampled]


def test_groups_of_tokens() -> None:
    counts = np.array([0, 1, 9, 10, 500])
    assert training.group_of(np.array([0, 1, 2, 3, 4, 5, 99]), counts).tolist() == [0, 1, 1, 2, 2, 0, 0]


def test_held_out_addresses_are_not_trained_on() -> None:
    train_on, valid = training.texts(100)
    assert (len(train_on), len(valid)) == (239, 10)
    assert {len(document.text) for document in valid} == {100}
    assert not {document.name for document in train_on} & {document.name for document in valid}


def test_tolerances() -> None:
    assert [power(text) for text in ("0", "2**-8", "dtype", "0.01")] == [0.0, 2.0**-8, "dtype", 0.01]
    assert [report.named(x) for x in (0.0, 2.0**-8, "dtype", 0.01)] == ["exact", "2**-8", "dtype", "0.01"]


def test_an_invalid_run_is_refused_before_any_work(small: None, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["--json", str(tmp_path / "x.json"), *ASKED, "--tolerances", "0,2"])
    assert isinstance(done.exception, ValueError)
    assert "grad_tolerance must be" in str(done.exception)
