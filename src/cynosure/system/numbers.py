"""Numbers as JSON has them."""

import math


def finite(x: float | None) -> float | None:
    """The number, or None where it is not finite: JSON has no infinity and no NaN.

    >>> finite(1.5), finite(math.inf), finite(None)
    (1.5, None, None)
    """
    return x if x is not None and math.isfinite(x) else None
