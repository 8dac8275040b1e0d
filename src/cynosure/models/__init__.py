"""Models and tokenizers: found by name, loaded, and split into a body and a head."""

from cynosure.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
