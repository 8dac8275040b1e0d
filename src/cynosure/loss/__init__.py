"""The loss, its gradients and per-token statistics, without the N x V logits. Read `reference.py` first."""

from cynosure.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
