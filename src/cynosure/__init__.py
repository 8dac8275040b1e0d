"""Cynosure: the cross-entropy of language models, computed exactly, measured honestly, trained on directly.

Names are resolved on first use (PEP 562), so that the command line can answer before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cynosure.loss import *  # noqa: F403
    from cynosure.measure import *  # noqa: F403
    from cynosure.models import *  # noqa: F403
    from cynosure.patching import *  # noqa: F403
    from cynosure.text import *  # noqa: F403
    from cynosure.training import *  # noqa: F403

__version__ = "0.1.0"
WINGS = {
    "loss": ("CrossEntropyLoss", "LinearCrossEntropyLoss", "Plan", "TokenStats", "cross_entropy", "explain",
             "linear_cross_entropy", "logits_token_logprobs", "logits_token_stats", "token_logprobs", "token_stats"),
    "text": ("Document",),
    "patching": ("Patch", "TrainerPatch", "causal_lm_loss", "patch", "unpatch"),
    "models": ("LanguageModel", "audit", "load"),
    "measure": ("Comparison", "Meter", "Scores", "Statistics", "compare", "open_run", "predict", "score"),
    "training": ("Diverged", "TrainSettings", "Trained", "Watcher", "train"),
}  # fmt: skip
__all__ = [name for names in WINGS.values() for name in names]


def __getattr__(name: str) -> Any:
    for wing, names in WINGS.items():
        if name in names:
            return getattr(import_module(f"cynosure.{wing}"), name)
    raise AttributeError(f"module 'cynosure' has no attribute {name!r}")
