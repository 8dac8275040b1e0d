"""Plot a loss curve in the terminal."""

from itertools import pairwise

from plotille import Canvas

MARK = "o"
SKIPPED = 0.02  # of the x axis at its start: higher points there are cut off

Points = list[tuple[float, float]]  # (x, y), by x


def curve(line: Points, marks: Points, columns: int, rows: int) -> list[str]:
    """Return the plot of a line and of single marks, with the ends of both axes labelled.

    >>> for text in curve([(0, 3.0), (1, 2.5), (2, 1.0)], [(2, 2.0)], 6, 2):
    ...     print(text)
      2.500 ⠉⠉⠉⠱⡀o
      1.000 ⠀⠀⠀⠀⠈⢆
            0    2
    """
    first, last = line[0][0], line[-1][0]
    settled = [y for x, y in line if x >= min(last, first + SKIPPED * (last - first))]
    heights = [*settled, *(y for _, y in marks)]
    low, high = min(heights), max(heights)
    # One dot wider than the values, since the canvas excludes its upper bounds.
    right = last + max((last - first) / (2 * columns - 1), 1e-9)
    top = high + max((high - low) / (4 * rows - 1), 1e-9)
    canvas = Canvas(columns, rows, first, low, right, top)
    clipped = [(x, min(y, high)) for x, y in line]
    for (x0, y0), (x1, y1) in pairwise([clipped[0], *clipped]):
        canvas.line(x0, y0, x1, y1)
    for x, y in marks:
        canvas.text(x, y, MARK)
    labels = [f"{high:6.3f}", *[" " * 6] * (rows - 2), f"{low:6.3f}"]
    ends = f"{first:.3g}", f"{last:.3g}"
    axis = " " * 8 + ends[0] + ends[1].rjust(columns - len(ends[0]))
    return [*(f" {label} {text}" for label, text in zip(labels, canvas.plot().splitlines(), strict=True)), axis]
