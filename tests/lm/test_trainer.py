"""A patched model in Hugging Face's Trainer: the same losses step by step, and the same weights at the end."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from cynosure.models import patch
from cynosure.models.pending import PendingLogits
from tests.lm.conftest import byte_tokenizer, tiny_model

OPTIONS: dict[str, Any] = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
    "seed": 3,
}


def rows() -> list[dict[str, list[int]]]:
    """Texts of unequal length, some labels ignored, so that normalisation shows."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for n in (5, 40, 11, 30, 7, 22, 60, 3, 18, 9, 33, 50, 4, 28, 45, 6):
        ids = torch.randint(2, 300, (n,), generator=generator).tolist()
        found.append({"input_ids": ids, "attention_mask": [1] * n, "labels": [-100] * (n // 3) + ids[n // 3 :]})
    return found


def trained(folder: Path, patched: bool, **options: Any) -> tuple[list[float], Any, Trainer]:
    """The losses that Trainer logs, and the model."""
    model, tokenizer = tiny_model(spread=0.1), byte_tokenizer()
    tokenizer.pad_token = "</s>"
    undo = patch(model) if patched else None
    arguments = TrainingArguments(output_dir=str(folder), **(OPTIONS | options))
    collator = DataCollatorForSeq2Seq(tokenizer)
    trainer = Trainer(model, arguments, collator, train_dataset=rows(), eval_dataset=rows()[:7])
    trainer.train()
    if undo is not None:
        assert undo.fused > 0
        assert undo.made_by == []
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model, trainer


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_checkpointing": True}, {"bf16": True}, {"average_tokens_across_devices": False}],
    ids=["plain", "checkpointing", "autocast", "local average"],
)
@pytest.mark.filterwarnings("ignore")  # Trainer's own
def test_training_is_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    own, own_model, _ = trained(tmp_path, False, **options)
    ours, our_model, _ = trained(tmp_path, True, **options)
    close = {"rtol": 2e-2, "atol": 2e-2} if "bf16" in options else {"rtol": 1e-4, "atol": 1e-5}
    assert len(own) == 4
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(own), **close)
    for (name, a), (_, b) in zip(own_model.named_parameters(), our_model.named_parameters(), strict=True):
        torch.testing.assert_close(b, a, msg=lambda m, n=name: f"{n}: {m}", **close)


@pytest.mark.filterwarnings("ignore")
def test_evaluation_is_the_same_and_makes_logits_only_for_metrics(tmp_path: Path) -> None:
    options = {"per_device_eval_batch_size": 1, "prediction_loss_only": True}
    _, _, own = trained(tmp_path, False, **options)
    _, model, ours = trained(tmp_path, True, **options)
    assert ours.evaluate()["eval_loss"] == pytest.approx(own.evaluate()["eval_loss"], rel=1e-4)
    assert model._cynosure_patch.made_by == []
    row = {name: torch.tensor([values]) for name, values in rows()[0].items()}
    assert isinstance(model(**row).logits, PendingLogits)
    assert ours.predict(rows()[:2]).metrics["test_loss"] == pytest.approx(own.predict(rows()[:2]).metrics["test_loss"])
