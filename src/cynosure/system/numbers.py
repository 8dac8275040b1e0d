"""Numbers as JSON has them, and in words."""

import math


def finite(x: float | None) -> float | None:
    """The number, or None where it is not finite: JSON has no infinity and no NaN.

    >>> finite(1.5), finite(math.inf), finite(None)
    (1.5, None, None)
    """
    return x if x is not None and math.isfinite(x) else None


def counted(number: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "document"), counted(2000, "document")
    ('1 document', '2,000 documents')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
