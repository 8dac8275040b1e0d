"""Measure a model's loss on texts, token by token, and compute metrics from it."""

from cynosure.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
