"""Training: Hugging Face's Trainer on the fused loss, and whole runs from texts to a model."""

from cynosure.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
