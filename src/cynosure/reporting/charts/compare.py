"""The charts of a comparison: where B, the second run, is better or worse than A, the first."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from cynosure.reporting.charts.chart import Chart
from cynosure.reporting.charts.draw import (
    MOST_ROWS,
    ROW_HEIGHT,
    WIDTH,
    Row,
    altair,
    is_known,
    known,
    layers,
    named,
    names,
    note,
    of,
    short,
    text,
    x,
    y,
)
from cynosure.reporting.charts.theme import ACCENT, BAD, FAINT, GOOD, INK

N_LABELLED = 3  # documents of the scatter
PLOT = 345  # pixels of its sides: what names and ticks leave of the width
CHAR, LINE_HEIGHT = 6.5, 15  # pixels of a label
POINT = 4  # pixels of the radius of a point
MARGIN = 0.12  # of the values on each side: no point is where `sides` are written
LEAST = 0.001  # of the bytes: the change of a kind with fewer is large by chance, and would flatten all others
CHANGE = "change of the bits per byte"
BETTER, WORSE, UNSURE = "B is better", "B is worse", "may be chance"


def compare_charts(values: dict[str, Any]) -> list[Chart]:
    """Return the charts of `Comparison.to_json()`, without those whose values are missing."""
    documents, whole = values.get("by_document"), values.get("bits_per_byte") or {}
    drawn = (
        change_by_document(documents, (whole.get("difference") or {}).get("value")),
        change_by_class(values.get("by_class")),
        scatter(documents),
    )
    return [chart for chart in drawn if chart is not None]


def change_by_document(by_document: list[Row] | None, whole: Any) -> Chart | None:
    rows = known(by_document, "difference")
    if len(rows) < 2:
        return None
    largest = sorted(rows, key=lambda row: -abs(row["difference"]))[:MOST_ROWS]
    largest.sort(key=lambda row: row["difference"])
    shown = [
        row | {"verdict": verdict(row)} for row in named(largest, short([row["document"] for row in largest]))
    ]  # fmt: skip
    place: Row = {"nice": False, "padding": 8, "zero": True}
    axis = {"orient": "top", "grid": True, "domain": False, "tickCount": 4}
    across = x("difference", CHANGE, **place, axis=axis)
    marks = [of([{"difference": 0}]).mark_rule(color=INK, strokeWidth=1).encode(x=across)]
    if is_known(whole):
        overall = [{"difference": whole, "label": f"all: {signed(whole)}"}]
        marks.append(of(overall).mark_rule(color=FAINT, strokeDash=[3, 3]).encode(x=x("difference", **place)))
        label = text(overall, "label", align="center", baseline="top", dy=6, color=FAINT, y="height")
        marks.append(label.encode(x=x("difference", **place)))
    colour = coloured(shown)
    if ranges := known(shown, "low", "high"):
        across_low = x("low", **place)
        lines = of(ranges).mark_rule(strokeWidth=1.5, opacity=0.55)
        marks.append(lines.encode(x=across_low, x2="high:Q", y=names("name"), color=colour))
    points = of(shown).mark_circle(opacity=1, size=45)
    marks.append(points.encode(x=x("difference", **place), y=names("name"), color=colour))
    more = f" The {MOST_ROWS} largest changes of {len(rows)} are drawn." if len(rows) > MOST_ROWS else ""
    return Chart(
        "change-by-document", "Change by document",
        "Documents to the left of 0 are better predicted by B, those to the right by A. Bars are 95% intervals; where "
        f"one holds 0, the change may be chance.{more}",
        layers(*marks, height=96 + ROW_HEIGHT * len(shown)), rows,
    )  # fmt: skip


def verdict(row: Row) -> str:
    """Return what a row's interval, or without one its difference, says."""
    low, high = (row[name] if is_known(row.get(name)) else row["difference"] for name in ("low", "high"))
    return BETTER if high < 0 else WORSE if low > 0 else UNSURE


def coloured(rows: list[Row]) -> Any:
    """Return the channel of colours by verdict, with a legend of the verdicts that occur."""
    alt = altair()
    colours = {BETTER: GOOD, UNSURE: FAINT, WORSE: BAD}
    present = [name for name in colours if any(row["verdict"] == name for row in rows)]
    scale = alt.Scale(domain=present, range=[colours[name] for name in present])
    return alt.Color("verdict:N", scale=scale, legend=alt.Legend(offset=4))


def change_by_class(by_class: list[Row] | None) -> Chart | None:
    rows = known(by_class, "difference", "bytes")
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: -row["bytes"])
    alt = altair()
    total = sum(row["bytes"] for row in rows)
    drawn = [row for row in rows if row["bytes"] >= LEAST * total]
    labels = [f"{signed(row['difference'])} · {share(row['bytes'], total)} of the bytes" for row in drawn]
    labelled = [
        row | {"label": label, "verdict": verdict(row)}
        for row, label in zip(named(drawn, (row["class"] for row in drawn)), labels, strict=True)
    ]
    reach = max(abs(row["difference"]) for row in drawn) or 1
    across = x(
        "difference", "", domain=[-1.1 * reach, 3.2 * reach], nice=False, axis={"labels": False, "domain": False}
    )
    bars = of(labelled).mark_bar(height=14).encode(
        x=across, x2=alt.XDatum(0), y=names("name"),
        color=alt.Color("verdict:N", scale=alt.Scale(domain=[BETTER, WORSE, UNSURE], range=[GOOD, BAD, FAINT]),
                        legend=None),
    )  # fmt: skip
    ends = [row | {"end": max(row["difference"], 0)} for row in labelled]
    values = text(ends, "label", dx=6).encode(x=x("end"), y=names("name"))
    zero = of([{"difference": 0}]).mark_rule(color=INK, strokeWidth=1).encode(x=x("difference"))
    heading = note(CHANGE, x=0, y=-8)
    few = " Kinds with less than a thousandth of the bytes are only in the table." if len(drawn) < len(rows) else ""
    return Chart(
        "change-by-class", "Change by kind of token",
        "How much better (left of the line) or worse (right of it) B predicts each kind of token, and how much of the "
        f"text is of that kind.{few}",
        layers(bars, zero, values, heading, height=30 + 26 * len(drawn)), rows,
    )  # fmt: skip


def signed(difference: float) -> str:
    """Format a difference with its sign.

    >>> signed(-0.0712), signed(0.0712)
    ('\u22120.071', '+0.071')
    """
    return f"{difference:+.3f}".replace("-", "\N{MINUS SIGN}")


def share(part: float, whole: float) -> str:
    """Format a share in whole percent.

    >>> share(1, 3), share(1, 300)
    ('33%', 'under 1%')
    """
    return "under 1%" if part < 0.01 * whole else f"{part / whole:.0%}"


def scatter(by_document: list[Row] | None) -> Chart | None:
    rows = known(by_document, "bits_per_byte_a", "bits_per_byte_b", "difference")
    if len(rows) < 2:
        return None
    ends = [row[name] for row in rows for name in ("bits_per_byte_a", "bits_per_byte_b")]
    margin = MARGIN * (max(ends) - min(ends)) or 0.1
    domain = [min(ends) - margin, max(ends) + margin]
    place: Row = {"domain": domain, "nice": False}
    across = x("bits_per_byte_a", "A, bits per byte", **place, axis={"tickCount": 4, "grid": True})
    up = y("bits_per_byte_b", "B, bits per byte", **place, axis={"tickCount": 4})
    diagonal = of([{"bits_per_byte_a": end, "bits_per_byte_b": end} for end in domain])
    points = of(rows).mark_circle(color=ACCENT, opacity=0.75, size=50).encode(x=across, y=up)
    labels = [
        text([row | {"label": label}], "label", **place_of).encode(
            x=x("bits_per_byte_a", **place), y=y("bits_per_byte_b", **place)
        )
        for row, label, place_of in labelled(rows, domain)
    ]
    return Chart(
        "documents", "Each document in A and B",
        "A point is a document. Below the dashed line B predicts it better, above the line A does. The documents that "
        "changed most are named where there is room.",
        layers(
            diagonal.mark_line(color=FAINT, strokeWidth=1, strokeDash=[4, 4]).encode(x=across, y=up),
            points, *labels, *sides(), height=WIDTH,
        ), rows,
    )  # fmt: skip


class Box(NamedTuple):
    """Where a label is in the scatter, in pixels from the top left."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def labelled(rows: list[Row], domain: list[float]) -> Iterator[tuple[Row, str, Row]]:
    """Yield the documents that changed most, their names, and where each name has room.

    A name covers no other name, few points, and is near its own. One that has no room is left out.
    """
    scale = PLOT / (domain[1] - domain[0])
    places = [
        ((row["bits_per_byte_a"] - domain[0]) * scale, (domain[1] - row["bits_per_byte_b"]) * scale) for row in rows
    ]
    points = [Box(across - POINT, down - POINT, across + POINT, down + POINT) for across, down in places]
    farthest = sorted(range(len(rows)), key=lambda i: -abs(rows[i]["difference"]))[:N_LABELLED]
    taken = [Box(0, 0, PLOT / 2, 1.5 * LINE_HEIGHT), Box(PLOT / 2, PLOT - 1.5 * LINE_HEIGHT, PLOT, PLOT)]  # `sides`
    for i, label in zip(farthest, short([rows[i]["document"] for i in farthest]), strict=True):
        free = [
            (box, mark)
            for box, mark in around(places[i], CHAR * len(label))
            if box.left >= 0 and box.right <= PLOT and not any(map(box.meets, taken))
        ]
        if free:
            box, mark = min(
                free, key=lambda found: sum(map(found[0].meets, points)) + abs(found[1]["dy"]) / LINE_HEIGHT
            )
            taken.append(box)
            yield rows[i], label, mark


def around(place: tuple[float, float], width: float) -> Iterator[tuple[Box, Row]]:
    """Yield the places for a label around a point, the best first: beside it, below it and above it."""
    across, down = place
    half, gap = LINE_HEIGHT / 2, 2 * POINT
    for dy in (0, LINE_HEIGHT, -LINE_HEIGHT, 2 * LINE_HEIGHT, -2 * LINE_HEIGHT):
        for align, dx, start in (("left", gap, gap), ("right", -gap, -gap - width), ("center", 0, -width / 2)):
            if dy or dx:  # not on the point
                left, middle = across + start, down + dy
                yield Box(left, middle - half, left + width, middle + half), {"align": align, "dx": dx, "dy": dy}


def sides() -> list[Any]:
    """Return what it means to be above the diagonal, and below it."""
    return [
        note("above: B is worse", x=8, y=14),
        note("below: B is better", x="width", y="height", dx=-8, dy=-12, align="right"),
    ]
