"""The parts that charts are drawn with: data, axes, marks and one layout. Altair is imported by the first of them."""

import math
from collections.abc import Iterable
from functools import cache
from os.path import commonprefix
from typing import Any

from cynosure.reporting.charts.theme import FAINT, INK
from cynosure.system.escapes import visible

WIDTH, HEIGHT = 400, 250
ROW_HEIGHT, MOST_ROWS = 18, 40  # of a chart with a row for each document
NAME_CHARS = 22  # of a document that a chart shows
Row = dict[str, Any]


@cache
def altair() -> Any:
    """Return the module, which takes a quarter of a second to import."""
    import altair

    return altair


def is_known(value: Any) -> bool:
    """Whether it is a number that can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


def known(rows: Iterable[Row] | None, *names: str) -> list[Row]:
    """Return the rows in which all these values can be drawn."""
    return [row for row in rows or () if all(is_known(row.get(name)) for name in names)]


def of(rows: list[Row]) -> Any:
    """Return a chart of the rows, with no mark yet. Text is made printable; what cannot be drawn is missing."""
    values = [
        {name: visible(value) if isinstance(value, str) else value for name, value in row.items() if drawable(value)}
        for row in rows
    ]
    return altair().Chart(altair().Data(values=values))


def drawable(value: Any) -> bool:
    return isinstance(value, str) or is_known(value)


def x(field: str, title: str | None = None, form: str = "~r", **options: Any) -> Any:
    """Return a horizontal channel of numbers; see `channel`."""
    return channel("X", field, title, form, options)


def y(field: str, title: str | None = None, form: str = "~r", **options: Any) -> Any:
    """Return a vertical channel of numbers, whose title stands above the axis; see `channel`."""
    return channel("Y", field, title, form, options)


def channel(kind: str, field: str, title: str | None, form: str, options: Row) -> Any:
    """Return a channel. `options` are those of the scale, and `axis` those of the axis.

    Of the marks in one chart one gives a title, and with it the axis; the others share that one.
    """
    alt, axis = altair(), options.pop("axis", {})
    shown = {} if title is None else {"title": title or None, "axis": alt.Axis(format=form, **axis)}
    return getattr(alt, kind)(f"{field}:Q", scale=alt.Scale(**options), stack=None, **shown)


def names(field: str, **axis: Any) -> Any:
    """Return a vertical channel with a name for each row, in the order of the rows; see `named`."""
    alt = altair()
    options = {"labelExpr": "slice(datum.value, 6)", "labelColor": INK, "labelLimit": WIDTH / 2, "domain": False}
    return alt.Y(f"{field}:N", title=None, sort=None, axis=alt.Axis(**options | axis))


def named(rows: list[Row], labels: Iterable[str]) -> list[Row]:
    """Return the rows with a `name` that begins with six digits: two rows with one label stay two."""
    return [row | {"name": f"{i:06}{label}"} for i, (row, label) in enumerate(zip(rows, labels, strict=True))]


def short(documents: list[str]) -> list[str]:
    """Return names without the folder that all share, printable, with their middle left out if they are long.

    >>> short(["texts/1790.txt", "texts/an-address-to-the-congress-1863.txt"])
    ['1790.txt', 'an-addre…ress-1863.txt']
    """
    n_shared = commonprefix(documents).rfind("/") + 1 if len(documents) > 1 else 0  # noqa: RUF071
    shown = [visible(name[n_shared:]) for name in documents]
    return [name if len(name) <= NAME_CHARS else f"{name[:8]}…{name[9 - NAME_CHARS :]}" for name in shown]


def text(rows: list[Row], field: str, **mark: Any) -> Any:
    """Return labels, the values of a field."""
    return of(rows).mark_text(**{"align": "left", "baseline": "middle", **mark}).encode(text=f"{field}:N")


def note(words: str, **mark: Any) -> Any:
    """Return one label at a place in pixels."""
    return of([{"words": words}]).mark_text(**{"align": "left", "color": FAINT, **mark}).encode(text="words:N")


def layers(*marks: Any, height: float = HEIGHT, **resolved: str) -> Any:
    """Return a chart of marks over each other, the first at the back; the whole of it is `WIDTH` wide."""
    alt = altair()
    drawn = alt.layer(*marks).properties(
        width=WIDTH, height=height, autosize=alt.AutoSizeParams(type="fit", contains="padding")
    )
    return drawn.resolve_scale(**resolved) if resolved else drawn
