"""What the sampled backward kept, told to whoever listens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class SampledBackward(NamedTuple):
    """One sampled backward of the loss: of one call, or of one backward pass for reduction="none".

    The errors are relative, in norm: the standard deviation of the estimate over the norm of the gradient, as
    estimated from the columns that were kept. They are 0.0 for a gradient that was not computed, and
    infinite for one of 0 whose estimate is not.
    """

    n_tokens: int
    columns_kept: float  # the mean over its chunks of the share of columns that were multiplied; a dense chunk has 1
    dhidden_error: float
    dweight_error: float


LISTENERS: list[list[SampledBackward]] = []


@contextmanager
def record_sampling() -> Iterator[list[SampledBackward]]:
    """Collect a record of every sampled backward inside, in order, from all threads.

    Example:
        >>> import torch, cynosure
        >>> hidden, weight = torch.randn(8, 4, requires_grad=True), torch.randn(1000, 4)
        >>> with record_sampling() as records:
        ...     cynosure.linear_cross_entropy(hidden, weight, torch.arange(8), grad_tolerance=0.1).backward()
        >>> 0 < records[0].columns_kept < 0.5 and records[0].dhidden_error < 0.12
        True
    """
    records: list[SampledBackward] = []
    LISTENERS.append(records)
    try:
        yield records
    finally:
        LISTENERS[:] = [other for other in LISTENERS if other is not records]


def tell(record: SampledBackward) -> None:
    """Give a record to all listeners."""
    for records in LISTENERS:
        records.append(record)
