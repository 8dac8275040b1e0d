"""The check passes on sound models of every kind of head, and fails when the loss is wrong."""

import sys
from typing import Any

import pytest
import torch

from cynosure.cli.check import FILLER
from cynosure.models import LanguageModel, check
from tests.lm.conftest import tiny_model
from tests.lm.test_head import FAMILIES

IDS = torch.arange(30, 62)
NAMES = ["logits", "loss", "d hidden", "d weight"]


@pytest.mark.parametrize("kind", FAMILIES)
def test_sound_models_pass(kind: str) -> None:
    checks = check(tiny_model(kind, spread=0.3, **FAMILIES[kind]), IDS)
    assert [item.name for item in checks[:4]] == NAMES
    assert len(checks) == 8
    assert all(item.passed for item in checks)
    assert all(item.difference < 1e-4 and item.ours_from_exact < 1e-5 for item in checks)


def test_smollm2_passes(smollm2: LanguageModel) -> None:
    checks = check(smollm2.model, torch.tensor(smollm2.tokenizer(FILLER).input_ids[:48]))
    assert checks[1].difference < 1e-5
    assert all(item.passed for item in checks)


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"shift": 0}, {"loss", "d hidden", "d weight", "loss / num_items_in_batch"}),
        ({"scale": 1.0}, {"loss", "d hidden", "d weight"}),
        ({"ignore_index": -1}, set()),
        ({"normalizer": 7.0}, {"loss", "d hidden", "d weight", "loss / num_items_in_batch"}),
        ({"label_smoothing": 0.01}, {"loss", "d hidden", "d weight"}),
    ],
)
def test_a_wrong_loss_is_caught(change: dict[str, Any], failing: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["cynosure.models.check"]  # the package's attribute of that name is the function
    own = module.linear_cross_entropy
    monkeypatch.setattr(module, "linear_cross_entropy", lambda *args, **options: own(*args, **(options | change)))
    model = tiny_model("Cohere", spread=0.3, logit_scale=0.25)
    if not failing:  # -100 is then out of range
        with pytest.raises((ValueError, IndexError), match="-100"):
            check(model, IDS)
        return
    found = {item.name for item in check(model, IDS) if not item.passed}
    assert failing <= found


def test_what_cannot_be_checked_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the check is made in float32, the model is torch\.float64"):
        check(tiny_model().double(), IDS)
    with pytest.raises(ValueError, match=r"at least 32 tokens in one row, got shape \(2,\)"):
        check(tiny_model(), IDS[:2])
