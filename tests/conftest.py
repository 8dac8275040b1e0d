"""What every test shares."""

from collections.abc import Iterator

import pytest
import torch
from jaxtyping import install_import_hook

# Below the public operations annotations are checked at run time; above, a wrong type gets an error of our own.
BELOW = ("reference", "chunked", "rows_torch", "autograd")
install_import_hook([f"cynosure.loss.{module}" for module in BELOW], "beartype.beartype")


@pytest.fixture
def poison_empty() -> Iterator[None]:
    """Memory that torch hands out uninitialised holds NaN (floats) or the largest value (integers), not lucky zeros.

    Torch does it itself in deterministic mode, for `empty` and its kin in Python and inside its own operations.
    """
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(was[0], warn_only=was[1])
