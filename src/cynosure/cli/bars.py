"""Draw small charts with block characters, or with ASCII where the output cannot encode those."""

from collections.abc import Sequence
from typing import NamedTuple


class Marks(NamedTuple):
    """The characters of charts."""

    levels: str  # of a sparkline, ascending
    full: str  # of a bar
    line: str  # where a bar ought to end


BLOCKS = Marks("▁▂▃▄▅▆▇█", "█", "│")
ASCII = Marks("_.-=+*%#", "#", "|")


def marks_of(encoding: str | None) -> Marks:
    """Return the marks that an output of this encoding can show.

    >>> marks_of("utf-8").full, marks_of("ascii").full
    ('█', '#')
    """
    try:
        "".join(BLOCKS).encode(encoding or "ascii")
    except UnicodeEncodeError:
        return ASCII
    return BLOCKS


def sparkline(values: Sequence[float], levels: str) -> str:
    """Draw each value as one character: the lowest as the first level, the highest as the last.

    >>> sparkline([1.0, 2.0, 4.0, 1.5], ASCII.levels), sparkline([3.0, 3.0], ASCII.levels)
    ('_-#.', '__')
    """
    low, high = min(values), max(values)
    step = (high - low) / (len(levels) - 1) or 1.0
    return "".join(levels[round((value - low) / step)] for value in values)


def bar(share: float, target: float, width: int, marks: Marks) -> str:
    """Draw a share as a bar, with a line at its target.

    >>> bar(0.5, 0.3, 10, ASCII), bar(0.2, 0.9, 10, ASCII)
    ('###|#', '##       |')
    """
    at = min(int(target * width), width - 1)
    cells = list((marks.full * round(share * width)).ljust(width))
    cells[at] = marks.line
    return "".join(cells).rstrip()
