"""Cynosure: the cross-entropy of language models, computed exactly, measured honestly, trained on directly.

Names are resolved on first use (PEP 562), so that the command line can answer before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cynosure.loss import CrossEntropyLoss as CrossEntropyLoss
    from cynosure.loss import LinearCrossEntropyLoss as LinearCrossEntropyLoss
    from cynosure.loss import Plan as Plan
    from cynosure.loss import TokenStats as TokenStats
    from cynosure.loss import cross_entropy as cross_entropy
    from cynosure.loss import explain as explain
    from cynosure.loss import linear_cross_entropy as linear_cross_entropy
    from cynosure.loss import token_logprobs as token_logprobs
    from cynosure.loss import token_stats as token_stats

__version__ = "0.1.0"
__all__ = ["CrossEntropyLoss", "LinearCrossEntropyLoss", "Plan", "TokenStats", "cross_entropy", "explain",
           "linear_cross_entropy", "token_logprobs", "token_stats"]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("cynosure.loss"), name)
    raise AttributeError(f"module 'cynosure' has no attribute {name!r}")
