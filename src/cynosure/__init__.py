"""Cynosure: the cross-entropy of language models, computed exactly, measured honestly, trained on directly.

Names are imported on first use, so that the command line can answer before torch is loaded.
"""

from cynosure.system.lazy import attach

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = attach(__name__, __file__)
