"""What the tests of Trainer and of SFTTrainer share: `tests/patching/ranks.py` runs some of it in two processes."""

from typing import Any

import cynosure
from tests.tiny import byte_tokenizer

OPTIONS: dict[str, Any] = {
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
FIGURES = ("loss", "perplexity", "accuracy", "entropy", "tokens")


def padding_tokenizer() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "</s>"
    return tokenizer


def figures(metrics: dict[str, float]) -> dict[str, float]:
    """Those of an evaluation that are counted by tokens."""
    return {name: metrics[f"eval_{name}"] for name in FIGURES}


def trained_and_evaluated(trainer: Any) -> tuple[list[float], dict[str, Any], dict[str, float]]:
    """Losses, weights and evaluation of a trainer that is patched meanwhile."""
    with cynosure.patch(trainer) as patched:
        trainer.train()
        found = figures(trainer.evaluate())
        assert patched.model_patch.made_by == []
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, trainer.model.state_dict(), found
