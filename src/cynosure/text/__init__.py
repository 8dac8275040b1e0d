"""Read text from files, tokenize it, account for its bytes and cut it into windows."""

from cynosure.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
