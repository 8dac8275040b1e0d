"""Print tables and lines on stdout and stderr. Every string goes through `visible`, which escapes control characters.

Texts, file names, run folders and models are untrusted: an escape sequence in them could control the terminal, and a
line end could forge a line of our output.
"""

import re
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import rich.console
import rich.table
from rich.cells import cell_len
from rich.segment import Segment

from cynosure.cli import common
from cynosure.system.escapes import visible

LEAST_FOLDED = 8  # minimum width of a column whose words may be broken
BLANKS = re.compile(r" +$", re.MULTILINE)


class Console(rich.console.Console):
    """A console of Rich for plain strings: no markup, emoji or highlighting. A string is one line, wrapped at words.

    Lines written to a file or pipe have no trailing blanks.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, emoji=False, markup=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        if not self.is_terminal and len(objects) == 1 and isinstance(objects[0], str):
            self.file.write(f"{common.wrapped(objects[0], self.width)}\n")
            return
        width = self.width
        self.width = max([width, *map(least_width, objects)])
        try:
            with nullcontext() if self.is_terminal else self.capture() as capture:
                super().print(*(visible(x) if isinstance(x, str) else x for x in objects), **options)
        finally:
            self.width = width
        if capture is not None:
            self.file.write(BLANKS.sub("", capture.get()))

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError that is being handled; Rich would exit with status 1."""
        raise

    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        """Yield Rich's segments with escaped texts; Rich's own control codes stay."""
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else Segment(as_lines(segment.text), segment.style)


class Table(rich.table.Table):
    """A borderless table of Rich. A string in a cell is one line; right-aligned columns are never wrapped or cut."""

    def __init__(self, **options: Any) -> None:
        super().__init__(box=None, pad_edge=False, header_style="dim", **options)

    def add_column(self, *header: Any, **options: Any) -> None:
        super().add_column(*header, overflow="fold", no_wrap=options.get("justify") == "right", **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(visible(cell) if isinstance(cell, str) else cell for cell in cells), **options)


def least_width(shown: Any) -> int:
    """Return the width below which a table would be cut; 0 for anything else."""
    if isinstance(shown, rich.console.Group):
        return max(map(least_width, shown.renderables), default=0)
    if not isinstance(shown, rich.table.Table):
        return 0
    widths = []
    for column in shown.columns:
        texts = [str(cell) for cell in (column.header, *column.cells)]
        parts = [part for text in texts for part in (text.split("\n") if column.no_wrap else text.split())]
        longest = max(map(cell_len, parts), default=0)
        widths.append(min(longest, LEAST_FOLDED) if column.overflow == "fold" and not column.no_wrap else longest)
    _, right, _, left = shown.padding
    gap = max(left, right) if shown.collapse_padding else left + right
    return sum(widths) + gap * (len(widths) - 1)


def as_lines(text: str) -> str:
    """Escape control characters in a text, except for line ends, which Rich inserts itself."""
    return "\n".join(map(visible, text.split("\n")))


def stdout() -> Console:
    """Return the console for tables."""
    return Console(width=common.width(sys.stdout))


def stderr() -> Console:
    """Return the console for progress."""
    return Console(stderr=True)


def plain_table(*styles: str) -> Table:
    """Return a table without a header, one column per style; > in front aligns right. Only the last column wraps."""
    table = Table(show_header=False)
    for style in styles:
        table.add_column(justify="right" if style.startswith(">") else "left", style=style.lstrip(">"))
    for column in table.columns[:-1]:
        column.no_wrap = True
    return table


def headed_table(*names: str) -> Table:
    """Return a table with these columns. The first is left-aligned, others right; < or > in front overrides that."""
    table = Table()
    for i, name in enumerate(names):
        left = name.startswith("<") or (i == 0 and not name.startswith(">"))
        table.add_column(name.lstrip("<>"), justify="left" if left else "right")
    return table
