"""What a training is asked to be, and the plan that follows."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cynosure.training.folder import RunFolder
from cynosure.training.loop import arguments_of
from cynosure.training.settings import TrainSettings, make_plan, shared_anew


def plan(processes: int = 1, n_parameters: int = 10**7, epoch_tokens: int = 10**6, **options: Any) -> Any:
    return make_plan(TrainSettings(**options), n_parameters, epoch_tokens, 2048, processes, "cpu")


@given(
    row=st.sampled_from([8, 64, 256]), rows=st.integers(1, 48), processes=st.integers(1, 4),
    tokens=st.integers(1, 10**6),
)  # fmt: skip
def test_a_batch_is_its_rows_however_it_is_split(row: int, rows: int, processes: int, tokens: int) -> None:
    options = {"row_tokens": row, "batch_tokens": row * rows, "tokens": tokens}
    if rows % processes:
        with pytest.raises(ValueError, match="cannot be shared evenly"):
            plan(processes, **options)
        return
    found = plan(processes, **options)
    assert found.micro_rows * found.accumulation * found.processes * row == found.batch_tokens
    assert found.micro_rows * row <= max(4096, row)
    assert tokens <= found.tokens < tokens + found.batch_tokens
    assert 1 <= found.validate_steps <= found.steps


@pytest.mark.parametrize(("schedule", "kind"), [("cosine", "cosine"), ("wsd", "warmup_stable_decay")])
def test_trainer_is_told(schedule: str, kind: str, tmp_path: Path) -> None:
    options = {"schedule": schedule, "clip": 0.25, "warmup": 0.1, "weight_decay": 0.3, "learning_rate": 0.004}
    found = plan(**options, row_tokens=64, batch_tokens=64 * 256, micro_rows=32)
    made = arguments_of(
        TrainSettings(**options), found, RunFolder(tmp_path), bfloat16=False, cpu=True, report_to=(), validated=False
    )
    assert (made.max_grad_norm, made.weight_decay, made.learning_rate) == (0.25, 0.3, 0.004)
    assert made.warmup_steps == found.warmup_steps == round(0.1 * found.steps)
    assert made.gradient_accumulation_steps == found.accumulation == 8
    assert made.lr_scheduler_type == kind
    assert made.lr_scheduler_kwargs == ({"num_decay_steps": round(0.2 * found.steps)} if schedule == "wsd" else {})


def test_defaults() -> None:
    new = plan(n_parameters=10**6, epoch_tokens=10**8)
    assert new.tokens >= 20 * 10**6 > new.tokens - new.batch_tokens  # by its parameters
    assert (
        plan(epoch_tokens=10**6).tokens >= 4 * 10**6 > plan(epoch_tokens=10**6).tokens - new.batch_tokens
    )  # by the text
    tuned = plan(init="some-model")
    assert tuned.tokens >= 10**6 > tuned.tokens - tuned.batch_tokens  # once
    assert tuned.learning_rate < new.learning_rate
    assert new.row_tokens * new.batch_rows == new.batch_tokens


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"preset": "huge"}, "expected one of tiny, small, base"),
        ({"preset": "tiny", "init": "x"}, "not both"),
        ({"lora": 4}, "give one as `init`"),
        ({"init": "x", "vocab_size": 300}, "its own tokenizer"),
        ({"tokenizer": "x", "vocab_size": 300}, "not both"),
        ({"schedule": "linear"}, "expected one of cosine, wsd"),
        ({"dtype": "float16"}, "expected one of auto, float32, bfloat16"),
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"row_tokens": 4}, "row_tokens must be at least 8"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("inf")}, "learning_rate must be finite, got inf"),
        ({"weight_decay": float("inf")}, "weight_decay must be finite, got inf"),
        ({"seed": -1}, "seed must be from 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be from 0 to 4294967295"),
        ({"label_smoothing": 1.5}, "at most 1"),
        ({"z_loss": -1.0}, "z_loss must be at least 0"),
        ({"warmup": float("nan")}, "warmup must be"),
        ({"grad_tolerance": -0.1}, "grad_tolerance must be 'dtype', or at least 0 and below 1, got -0.1"),
        ({"grad_tolerance": 1.0}, "grad_tolerance must be 'dtype', or at least 0 and below 1, got 1.0"),
        ({"grad_tolerance": float("nan")}, "grad_tolerance must be 'dtype', or at least 0 and below 1, got nan"),
        ({"grad_tolerance": "0.1"}, "grad_tolerance must be 'dtype', or at least 0 and below 1, got '0.1'"),
        ({"row_tokens": 100, "batch_tokens": 250}, "`batch_tokens=200` or `batch_tokens=300`"),
        ({"row_tokens": 100, "batch_tokens": 400, "micro_rows": 3}, "expected one of 1, 2, 4"),
        ({"init": "x", "row_tokens": 4096, "batch_tokens": 4096}, "longer than the 2,048 positions of x"),
    ],
)
def test_what_makes_no_sense_is_said(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        plan(**options)


def test_other_processes_share_the_same_batches() -> None:
    """Whatever the defaults, which go by what the model can see, and the micro-batches that were asked for."""
    settings = TrainSettings(init="of 256 positions", micro_rows=8)
    kept = make_plan(settings, 10**6, 10**6, 256, 1, "cpu")
    assert (kept.row_tokens, kept.batch_rows, kept.micro_rows) == (256, 16, 8)
    for processes in (2, 4):
        new = shared_anew(kept, settings, processes, "cpu")
        assert new.micro_rows * new.accumulation * processes == kept.batch_rows
        assert new._replace(micro_rows=8, accumulation=2, processes=1) == kept
    with pytest.raises(ValueError, match="cannot be shared evenly by 3"):
        shared_anew(kept, settings, 3, "cpu")


def test_they_come_back_from_json() -> None:
    settings = TrainSettings(preset="tiny", z_loss=1e-4, seed=3)
    assert TrainSettings.of_json(settings.to_json()) == settings
