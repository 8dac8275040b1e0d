"""Row kernels, one file each: what turns a block of logits into losses, statistics and gradients.

To add a backend, write one file here: a class with what `registry.Backend` asks for, and a call of `register` with an
instance. Nothing else changes: `backends()`, `explain` and the tests of `tests/loss` find it. It imports what its
device needs only where `unavailable` finds that it is installed. `torch_rows.py` is what every backend must equal.
"""

from importlib import import_module
from pkgutil import iter_modules


def import_all() -> None:
    """Import every file of this folder, each of which registers its backends."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")


import_all()
