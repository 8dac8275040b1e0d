"""A training whose backward is sampled: what it tells, and that it goes on as if it had not been interrupted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cynosure import TrainSettings, reporting
from cynosure.training import begin, loop
from cynosure.training.folder import RunFolder
from cynosure.training.loop import seed_of
from tests.training.runs import N_STEPS, run, stopped_at, timeless
from tests.training.test_resume import assert_same

pytestmark = pytest.mark.filterwarnings("ignore")  # Trainer's own

TOLERANCE = 0.5
OPTIONS: dict[str, Any] = {"grad_tolerance": TOLERANCE, "micro_rows": 4}
NAMES = ("columns_kept", "dhidden_error", "dweight_error")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(out, **OPTIONS)
    return out


def test_every_step_tells_what_was_sampled(whole: Path) -> None:
    lines = timeless(whole)
    assert len(lines) == N_STEPS
    assert all(0 < line["columns_kept"] < 1 for line in lines)
    assert all(0 < line["dhidden_error"] < 2 * TOLERANCE for line in lines)
    assert all(0 <= line["dweight_error"] < TOLERANCE for line in lines)  # 0: a step keeps only the targets' columns
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert RunFolder(whole).manifest["settings"]["grad_tolerance"] == TOLERANCE


def test_the_report_tells_it(whole: Path) -> None:
    page = reporting.report(whole).read_text()
    assert "sampled backward" in page
    assert 'data-key="last.columns_kept"' in page


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [{}, {"grad_tolerance": "dtype"}])  # float32 is exact
def test_an_exact_training_tells_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    run(tmp_path / "run", tokens=256, **options)
    assert not any(name in line for line in timeless(tmp_path / "run") for name in NAMES)
    assert "sampled backward" not in reporting.report(tmp_path / "run").read_text()


@pytest.mark.exhaustive
def test_the_rounding_of_bfloat16(tmp_path: Path) -> None:
    run(tmp_path / "run", tokens=128, dtype="bfloat16", grad_tolerance="dtype")
    assert all(name in line for line in timeless(tmp_path / "run") for name in NAMES)
    settings = RunFolder(tmp_path / "run").manifest["settings"]
    assert TrainSettings.of_json(settings).grad_tolerance == "dtype"


def test_interrupted_and_resumed_is_the_same_run(whole: Path, tmp_path: Path) -> None:
    """Whatever torch's own generators have drawn since, and in the middle of the run."""
    stopped_at(7, tmp_path / "run", **OPTIONS)
    torch.manual_seed(123)
    run(tmp_path / "run", resume=True, **OPTIONS)
    assert_same(whole, tmp_path / "run")


def test_every_micro_batch_has_a_seed_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(loop, "seed_of", lambda *numbers: seen.append(numbers) or seed_of(*numbers))
    run(tmp_path / "run", tokens=256, seed=3, **OPTIONS)
    assert seen == [(3, step, 0, micro) for step in range(2) for micro in range(2)]


@pytest.mark.exhaustive
def test_another_seed_draws_other_columns(whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run(other, **OPTIONS, seed=1)
    assert timeless(whole) != timeless(other)
    numbers = [
        (seed, step, rank, micro) for seed in (0, 1) for step in range(3) for rank in range(3) for micro in range(3)
    ]
    assert len({seed_of(*each) for each in numbers}) == len(numbers)


def test_another_tolerance_is_not_its_own(whole: Path) -> None:
    with pytest.raises(ValueError, match=r"was started with grad_tolerance 0.5, not 0.25: leave it out"):
        run(whole, resume=True, grad_tolerance=0.25, micro_rows=4)


def test_a_device_is_refused_before_anything_is_written(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(begin, "find_device", lambda _: torch.device("cuda"))
    says = "the sampled backward runs on a CPU, but the device is cuda: leave `grad_tolerance` out"
    with pytest.raises(ValueError, match=says):
        run(tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())
    with pytest.raises(ValueError, match=says):
        run(whole, resume=True, **OPTIONS)


def test_a_manifest_with_another_tolerance_is_damaged(whole: Path) -> None:
    settings = json.loads((whole / "train.json").read_text())["settings"]
    with pytest.raises(ValueError, match="grad_tolerance must be"):
        TrainSettings.of_json(settings | {"grad_tolerance": "some"})
