"""A curve in characters of Braille: two dots across and four down in each."""

import numpy as np
from numpy.typing import NDArray

ACROSS, DOWN = 2, 4
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # by column, from the top
BLANK = 0x2800
MARK = "o"
SKIPPED = 0.02  # of the way: whatever begins higher than all that follows is cut off

Points = list[tuple[float, float]]  # (x, y), by x


def curve(line: Points, marks: Points, columns: int, rows: int) -> list[str]:
    """A line through points, and marks beside it, with the ends of both axes written at them.

    >>> for text in curve([(0, 3.0), (1, 2.5), (2, 1.0)], [(2, 2.0)], 6, 2):
    ...     print(text)
      2.500 ⠉⠉⠉⠢⡀o
      1.000 ⠀⠀⠀⠀⠈⢆
            0    2
    """
    x, y = (np.array(values, float) for values in zip(*line, strict=True))
    first, last = float(x[0]), float(x[-1])
    settled = y[x >= min(last, first + SKIPPED * (last - first))]
    heights = np.append(settled, [mark for _, mark in marks])
    low, high = float(heights.min()), float(heights.max())
    high = max(high, low + 1e-9)
    across = np.interp(np.linspace(first, last, columns * ACROSS), x, y)
    cells = drawn(np.clip((high - across) / (high - low), 0, 1) * (rows * DOWN - 1), columns, rows)
    texts = [[chr(BLANK + dots) for dots in row] for row in cells.tolist()]
    for at, mark in marks:
        column = min(columns - 1, int((at - first) / max(last - first, 1e-9) * columns))
        row = min(rows - 1, max(0, int((high - mark) / (high - low) * rows)))
        texts[row][column] = MARK
    labels = [f"{high:6.3f}", *[" " * 6] * (rows - 2), f"{low:6.3f}"]
    ends = f"{first:.3g}", f"{last:.3g}"
    axis = " " * 8 + ends[0] + ends[1].rjust(columns - len(ends[0]))
    return [*(f" {label} {''.join(text)}" for label, text in zip(labels, texts, strict=True)), axis]


def drawn(heights: NDArray[np.float64], columns: int, rows: int) -> NDArray[np.int64]:
    """The dots of each character, (rows, columns), of a line so many dots from the top in each column of dots."""
    cells = np.zeros((rows, columns), np.int64)
    dots = np.round(heights).astype(int)
    for i, height in enumerate(dots.tolist()):
        before = int(dots[i - 1]) if i else height
        near = before + (height > before) - (height < before)  # the line is joined
        for dot in range(min(near, height), max(near, height) + 1):
            cells[dot // DOWN, i // ACROSS] |= DOTS[i % ACROSS][dot % DOWN]
    return cells
