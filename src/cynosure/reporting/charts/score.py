"""The charts of a score: where the loss is, and whether the model's confidence can be trusted."""

import math
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

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
from cynosure.reporting.charts.theme import ACCENT, FAINT, INK, LINE, PAPER, WARM

HALF = 0.5


def score_charts(values: dict[str, Any]) -> list[Chart]:
    """Return the charts of `Scores.to_json()`, without those whose values are missing."""
    calibration = values.get("calibration") or {}
    drawn = (
        loss_distribution(values.get("by_loss")),
        loss_by_position(values.get("by_position")),
        loss_by_frequency(values.get("by_frequency")),
        loss_by_class(values.get("by_class")),
        loss_by_document(values),
        reliability(calibration.get("bins")),
        confidence(calibration.get("confidence")),
        temperature(calibration),
    )
    return [chart for chart in drawn if chart is not None]


def loss_distribution(by_loss: list[Row] | None) -> Chart | None:
    rows = known(by_loss, "nats_from", "share_of_tokens", "share_of_nats")
    while rows and not rows[-1]["tokens"]:
        rows = rows[:-1]
    if not rows:
        return None
    reached = accumulate(row["share_of_nats"] for row in rows)
    width = rows[0]["nats_to"] - rows[0]["nats_from"] if rows[0]["nats_to"] else 1
    rows = [
        row | {"cumulative_share_of_nats": total, "end": row["nats_to"] or row["nats_from"] + width}
        for row, total in zip(rows, reached, strict=True)
    ]
    domain = [rows[0]["nats_from"], rows[-1]["end"]]
    alt = altair()
    bars = of(rows).mark_bar(color=ACCENT, binSpacing=0.5).encode(
        x=x("nats_from", "loss of a token, nats", domain=domain, nice=False), x2="end:Q",
        y=y("share_of_tokens", "share of tokens", "~%", axis={"titleColor": ACCENT}), y2=alt.YDatum(0),
    )  # fmt: skip
    right = {"orient": "right"}
    line = of([{"end": domain[0], "cumulative_share_of_nats": 0}, *rows]).mark_line(color=WARM, strokeWidth=2).encode(
        x=x("end", domain=domain, nice=False),
        y=y("cumulative_share_of_nats", "", "~%", domain=[0, 1], axis=right),
    )  # fmt: skip
    heading = note("share of nats, added up", x="width", y=-12, align="right", color=WARM)
    return Chart(
        "loss-distribution", "Distribution of the loss",
        "Bars show how many tokens have each loss. The line adds up the nats from left to right: where it is steep, "
        "most of the loss is spent.",
        layers(bars, alt.layer(line, *half(rows, domain), heading), y="independent"), without(rows, "end"),
    )  # fmt: skip


def half(rows: list[Row], domain: list[float]) -> Iterator[Any]:
    """Yield a mark, and its label, where the line reaches half of the nats."""
    before = 0.0
    for row in rows:
        after = row["cumulative_share_of_nats"]
        if after >= HALF:
            part = (HALF - before) / (after - before)
            at = row["nats_from"] + part * (row["end"] - row["nats_from"])
            place = [{"end": at, "cumulative_share_of_nats": HALF, "label": f"half of the nats: below {at:.1f}"}]
            encoding = {
                "x": x("end", domain=domain, nice=False),
                "y": y("cumulative_share_of_nats", domain=[0, 1]),
            }
            yield of(place).mark_point(color=WARM, fill=PAPER, opacity=1, size=50).encode(**encoding)
            yield text(place, "label", dx=9, dy=3, baseline="top", color=INK).encode(**encoding)
            return
        before = after


def loss_by_position(by_position: list[Row] | None) -> Chart | None:
    rows = [row for row in known(by_position, "context_from", "context_to", "nats_per_token") if row["context_from"]]
    if len(rows) < 2:
        return None
    placed = [row | {"context": math.sqrt(row["context_from"] * row["context_to"])} for row in rows]
    alt = altair()
    base = of(placed).encode(
        x=x("context", "tokens of context (logarithmic)", ",d", type="log", base=2, nice=False,
            axis={"tickCount": 6}),
        y=y("nats_per_token", "nats per token", zero=False),
    )  # fmt: skip
    points = base.mark_circle(color=ACCENT, opacity=1).encode(
        size=alt.Size("tokens:Q", scale=alt.Scale(range=[14, 120]), legend=None)
    )
    return Chart(
        "loss-by-position", "Loss by position in the window",
        "The mean loss of tokens that had this much text before them. A larger point stands for more tokens; the line "
        "should fall, and then stay flat.",
        layers(base.mark_line(color=ACCENT, strokeWidth=1.5), points), rows,
    )  # fmt: skip


def loss_by_frequency(by_frequency: list[Row] | None) -> Chart | None:
    rows = known(by_frequency, "decile", "seen_from", "nats_per_token")
    if len(rows) < 2:
        return None
    alt = altair()
    labelled = named(rows, (rounded(row["seen_from"]) for row in rows))
    labelled = [row | {"label": f"{row['nats_per_token']:.2f}"} for row in labelled]
    axis = alt.Axis(labelExpr="slice(datum.value, 6)", labelAngle=0, labelOverlap=False, domain=False)
    column = alt.X("name:N", title="a token of the group occurs at least so often", sort=None, axis=axis)
    height = y("nats_per_token", "", axis={"labels": False, "grid": False})
    bars = of(labelled).mark_bar(color=ACCENT).encode(
        x=alt.X("name:N", sort=None, scale=alt.Scale(paddingInner=0.15, paddingOuter=0.05), axis=axis), y=height
    )  # fmt: skip
    values = text(labelled, "label", align="center", baseline="bottom", dy=-4).encode(x=column, y=height)
    heading = note("nats per token", x=0, y=-12)
    return Chart(
        "loss-by-frequency", "Loss by token frequency",
        "Ten groups with about equally many tokens each, from the most frequent token ids of this text to the rarest. "
        "Rare tokens usually cost most.",
        layers(bars, values, heading), rows,
    )  # fmt: skip


def rounded(count: int) -> str:
    """Return a count in few characters.

    >>> rounded(451), rounded(1234), rounded(45678), rounded(3_000_000)
    ('451', '1.2k', '46k', '3.0M')
    """
    for unit, name in ((1_000_000, "M"), (1000, "k")):
        if count >= unit:
            return f"{count / unit:.{int(count < 10 * unit)}f}{name}"
    return str(count)


def loss_by_class(by_class: list[Row] | None) -> Chart | None:
    rows = sorted(known(by_class, "nats_per_token", "share_of_nats"), key=lambda row: -row["share_of_nats"])
    if not rows:
        return None
    labelled = [
        row | {"label": f"{row['nats_per_token']:.2f} · {percent(row['share_of_nats'])} of the nats"}
        for row in named(rows, (row["class"] for row in rows))
    ]
    most = max(row["nats_per_token"] for row in rows)
    across = x("nats_per_token", "", domain=[0, most * 1.8], nice=False, axis={"labels": False, "domain": False})
    bars = of(labelled).mark_bar(color=ACCENT, height=16).encode(x=across, y=names("name"))
    values = text(labelled, "label", dx=6).encode(x=across, y=names("name"))
    return Chart(
        "loss-by-class", "Loss by kind of token",
        "Bars show the mean loss of tokens of each kind, and the labels their share of the whole loss: a kind can be "
        "hard and still matter little.",
        layers(bars, values, note("nats per token", x=0, y=-8), height=30 + 26 * len(rows)), rows,
    )  # fmt: skip


def percent(share: float) -> str:
    """Format a share of a whole.

    >>> percent(0.94), percent(0.0123), percent(0.0004)
    ('94%', '1.2%', 'under 0.1%')
    """
    if 0 < share < 0.001:
        return "under 0.1%"
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def loss_by_document(values: dict[str, Any]) -> Chart | None:
    by_document = values.get("by_document")
    unit = "bits_per_byte" if known(by_document, "bits_per_byte") else "nats_per_token"
    rows = sorted(known(by_document, unit), key=lambda row: -row[unit])
    if len(rows) < 2:
        return None
    shown = named(rows[:MOST_ROWS], short([row["document"] for row in rows[:MOST_ROWS]]))
    place: Row = {"zero": False, "nice": False, "padding": 8}
    axis: Row = {"orient": "top", "grid": True, "domain": False, "tickCount": 4}
    across = x(unit, unit.replace("_", " "), **place, axis=axis)
    whole = (values.get(unit) or {}).get("value")
    overall = [{unit: whole, "label": f"all: {whole:.3f}"}] if is_known(whole) else []
    marks = [
        of(overall).mark_rule(color=FAINT, strokeDash=[3, 3]).encode(x=across),
        text(overall, "label", align="center", baseline="top", dy=6, color=FAINT, y="height").encode(x=across),
    ] if overall else []  # fmt: skip
    if unit == "bits_per_byte" and (ranges := known(shown, "low", "high")):
        marks.append(of(ranges).mark_rule(color=ACCENT, strokeWidth=1.5, opacity=0.55).encode(
            x=x("low", **place, axis=axis), x2="high:Q", y=names("name")))  # fmt: skip
    marks.append(of(shown).mark_circle(color=ACCENT, opacity=1, size=45).encode(x=across, y=names("name")))
    more = f" The costliest {MOST_ROWS} of {len(rows)} are drawn." if len(rows) > MOST_ROWS else ""
    return Chart(
        "loss-by-document", "Loss by document",
        "The costliest document first, with 95% intervals where there is enough text. Where intervals overlap, the "
        f"order may be chance.{more}",
        layers(*marks, height=70 + ROW_HEIGHT * len(shown)), rows,
    )  # fmt: skip


def reliability(bins: list[Row] | None) -> Chart | None:
    rows = known(bins, "confidence", "accuracy", "count")
    if len(rows) < 2:
        return None
    alt = altair()
    share: Row = {"domain": [0, 1], "nice": False}
    ticks = {"values": [0, 0.25, 0.5, 0.75, 1], "tickCount": 5}  # Vega thins values to the number of ticks
    across = x("confidence", "confidence: probability of the likeliest token", "~%", **share, axis=ticks)
    up = y("accuracy", "accuracy: how often it is right", "~%", **share, axis=ticks)
    ends = [{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]
    marks = [of(ends).mark_line(color=FAINT, strokeWidth=1, strokeDash=[4, 4]).encode(x=across, y=up)]
    if band := known(rows, "accuracy_low", "accuracy_high"):
        low = y("accuracy_low", **share)
        marks.append(of(band).mark_area(color=ACCENT, opacity=0.16).encode(x=across, y=low, y2="accuracy_high:Q"))
        marks.append(of(band).mark_rule(color=ACCENT, opacity=0.5).encode(x=across, y=low, y2="accuracy_high:Q"))
    base = of(rows).encode(x=across, y=up)
    marks.append(base.mark_line(color=ACCENT, strokeWidth=1.5))
    size = alt.Size("count:Q", scale=alt.Scale(domainMin=0, range=[0, 70]), legend=None)
    marks.append(base.mark_circle(color=ACCENT, opacity=1).encode(size=size))
    marks += corners()
    return Chart(
        "reliability", "Reliability",
        "Each point is a group of tokens with similar confidence; its area shows how many. On the dashed line the "
        "model is right as often as it says; the band is the 95% interval.",
        layers(*marks, height=WIDTH), rows,
    )  # fmt: skip


def corners() -> list[Any]:
    """Return what it means to be above the diagonal, and below it."""
    place: Row = {"domain": [0, 1], "nice": False}
    words = [
        {"confidence": 0.03, "accuracy": 0.95, "label": "above: too cautious", "align": "left"},
        {"confidence": 0.97, "accuracy": 0.05, "label": "below: too sure", "align": "right"},
    ]
    return [
        text([word], "label", align=word["align"], color=FAINT).encode(
            x=x("confidence", **place), y=y("accuracy", **place)
        )
        for word in words
    ]


def confidence(rows: list[Row] | None) -> Chart | None:
    rows = known(rows, "low", "high", "tokens", "correct")
    total = sum(row["tokens"] for row in rows)
    if not total:
        return None
    parts = [
        {"low": row["low"], "high": row["high"], "from": start / total, "to": end / total, "kind": kind}
        for row in rows
        for kind, start, end in (
            ("likeliest token is right", 0, row["correct"]), ("it is wrong", row["correct"], row["tokens"]),
        )
    ]  # fmt: skip
    alt = altair()
    colour = alt.Scale(domain=["likeliest token is right", "it is wrong"], range=[ACCENT, LINE])
    bars = of(parts).mark_bar(binSpacing=1).encode(
        x=x("low", "confidence: probability of the likeliest token", "~%", domain=[0, 1], nice=False), x2="high:Q",
        y=y("from", "share of tokens", "~%"), y2="to:Q", color=alt.Color("kind:N", scale=colour),
    )  # fmt: skip
    return Chart(
        "confidence", "Confidence",
        "How sure the model is of its likeliest token, and how often that token is right. In a calibrated model the "
        "dark share of a bar equals its place on the axis.",
        layers(bars), rows,
    )  # fmt: skip


def temperature(calibration: dict[str, Any]) -> Chart | None:
    rows = known(calibration.get("temperatures"), "temperature", "nats_per_token")
    if len(rows) < 3:
        return None
    losses = [row["nats_per_token"] for row in rows]
    least = lowest(calibration, rows)
    points = sorted([*rows, *([least] if least else [])], key=lambda row: float(row["temperature"]))
    reach = max(losses) - min(losses)
    domain: Row = {"domain": [min(losses) - 0.14 * reach, max(losses)], "nice": False}
    across = x("temperature", "temperature (logarithmic)", "~g", type="log", nice=False,
               axis={"values": [0.5, 0.7, 1, 1.4, 2]})  # fmt: skip
    up = y("nats_per_token", "nats per token", **domain)
    marks = [
        of([{"temperature": 1}]).mark_rule(color=FAINT, strokeDash=[3, 3]).encode(x=across),
        text([{"temperature": 1, "label": "as scored"}], "label", align="center", y=-14, color=FAINT).encode(x=across),
        of(points).mark_line(color=ACCENT, strokeWidth=2, interpolate="monotone").encode(x=across, y=up),
        of(rows).mark_circle(color=ACCENT, opacity=1, size=35).encode(x=across, y=up),
    ]
    if least:
        mark = [least | {"label": f"lowest at {least['temperature']:.2f}"}]
        marks.append(of(mark).mark_circle(color=WARM, opacity=1, size=90).encode(x=across, y=up))
        to_right = (
            1 <= least["temperature"] < 1.4 or least["temperature"] < 0.7
        )  # clear of the other label and the edges
        side: Row = {"align": "left", "dx": 4} if to_right else {"align": "right", "dx": -4}
        marks.append(text(mark, "label", color=WARM, baseline="top", dy=9, **side).encode(x=across, y=up))
    return Chart(
        "temperature", "Loss at each temperature",
        "The loss if all logits were divided by this temperature. A minimum to the right of 1 means that the model is "
        "too sure, to the left that it is too cautious.",
        layers(*marks), rows,
    )  # fmt: skip


def lowest(calibration: dict[str, Any], rows: list[Row]) -> Row | None:
    """Return the minimum of the curve, or None if it is unknown."""
    best, gain = calibration.get("best_temperature"), calibration.get("recoverable_nats_per_token")
    plain = [row["nats_per_token"] for row in rows if row["temperature"] == 1]
    if not (plain and is_known(best) and is_known(gain)):
        return None
    return {"temperature": best, "nats_per_token": plain[0] - gain}


def without(rows: list[Row], name: str) -> list[Row]:
    return [{key: value for key, value in row.items() if key != name} for row in rows]
