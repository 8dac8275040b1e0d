"""Put a transformers model or a Trainer on the fused loss. Needs only torch and transformers."""

from cynosure.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
