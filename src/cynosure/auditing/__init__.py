"""Audit a model, its loss and its batches, and check the fused loss against a model's own."""

from cynosure.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
