"""Self-contained HTML pages of scored runs, comparisons and trainings, made from their folders."""

from cynosure.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
