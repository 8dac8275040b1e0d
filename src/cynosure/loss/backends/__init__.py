"""Row kernels, one file each. They turn a block of logits into losses, statistics and gradients.

To add a backend, write one file here: a class that implements `registry.Backend`, and a call of `register` with an
instance. Nothing else changes: `backends()`, `explain` and the tests of `tests/loss` find it. Import optional packages
inside its methods, once `unavailable` has checked for them. Every backend must give the results of `torch_rows.py`.
"""

from importlib import import_module
from pkgutil import iter_modules


def import_all() -> None:
    """Import every file of this folder; each registers its backends."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")


import_all()
