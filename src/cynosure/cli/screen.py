"""Tables and lines on stdout and stderr: every string that is printed goes through `visible`, whatever it holds.

Texts, file names, run folders and models come from outside. An escape sequence in one of them would be a command to the
terminal, and a line end could forge a line of ours.
"""

from collections.abc import Iterable
from typing import Any

import rich.console
import rich.table
from rich.segment import Segment

from cynosure.system.escapes import visible

WIDTH = 100  # of what goes to a file or a pipe


class Console(rich.console.Console):
    """Rich's, of plain strings: no markup, no emoji, no highlighting; a string is one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, emoji=False, markup=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(visible(x) if isinstance(x, str) else x for x in objects), **options)

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError that is being handled, of which Rich would make an exit with status 1."""
        raise

    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        """The segments that Rich makes of anything; its own control codes are segments of another kind."""
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else Segment(as_lines(segment.text), segment.style)


class Table(rich.table.Table):
    """Rich's, borderless; a string in a cell is one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(box=None, pad_edge=False, header_style="dim", **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(visible(cell) if isinstance(cell, str) else cell for cell in cells), **options)


def as_lines(text: str) -> str:
    """Visible, except for line ends, which Rich puts there itself."""
    return "\n".join(map(visible, text.split("\n")))


def stdout() -> Console:
    """Where tables go: as wide as the terminal, or wide enough for whole lines in a file."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def stderr() -> Console:
    """Where progress goes."""
    return Console(stderr=True)


def plain_table(*styles: str) -> Table:
    """Columns in these styles, those that begin with > to the right."""
    table = Table(show_header=False)
    for style in styles:
        table.add_column(justify="right" if style.startswith(">") else "left", style=style.lstrip(">"))
    return table


def headed_table(*names: str) -> Table:
    """The first column to the left, the others to the right; a name that begins with < to the left, with > right."""
    table = Table()
    for i, name in enumerate(names):
        left = name.startswith("<") or (i == 0 and not name.startswith(">"))
        table.add_column(name.lstrip("<>"), justify="left" if left else "right")
    return table
