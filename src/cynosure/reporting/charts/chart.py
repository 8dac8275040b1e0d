"""What a chart of a report consists of."""

from typing import Any, NamedTuple


class Chart(NamedTuple):
    """A chart, and the values that it draws."""

    name: str  # its anchor in the page, and the stem of its files
    title: str
    caption: str  # what it shows and how to read it, in one or two plain sentences
    figure: Any  # of altair
    rows: list[dict[str, Any]]  # what is drawn, as a table of plain values
