"""Find models and tokenizers by name, load them, and split models into backbone and head."""

from cynosure.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
