"""Text: read from files, turned into tokens and the bytes they cover, cut into windows."""

from cynosure.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
