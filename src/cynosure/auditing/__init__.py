"""Audits of a model, its loss and its batches, and checks of a model's loss."""

from cynosure.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
