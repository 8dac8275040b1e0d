"""Format numbers for JSON and for messages."""

import math

VAST = 1e9  # larger numbers are written in scientific notation


def finite(x: float | None) -> float | None:
    """Return the number, or None if it is not finite: JSON has no infinity and no NaN.

    >>> finite(1.5), finite(math.inf), finite(None)
    (1.5, None, None)
    """
    return x if x is not None and math.isfinite(x) else None


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "document"), counted(2000, "document")
    ('1 document', '2,000 documents')
    """
    return f"{number:,} {plural(number, noun)}"


def plural(number: int, noun: str) -> str:
    """Return a noun in the singular or plural, depending on the number.

    >>> plural(1, "byte"), plural(0, "byte")
    ('byte', 'bytes')
    """
    return noun if number == 1 else f"{noun}s"


def number(value: float | None, digits: int = 2) -> str:
    """Format a number with this many digits after the point, or a vast one in scientific notation.

    >>> number(1234.5), number(None), number(257_914_625_571_280.12)
    ('1,234.50', 'unknown', '2.579e+14')
    """
    if value is None:
        return "unknown"
    return f"{value:.3e}" if VAST <= abs(value) < math.inf else f"{value:,.{digits}f}"
