"""The charts of a training: its curves, and its calibration at the beginning and at the end."""

import math
from statistics import median
from typing import Any

from cynosure.reporting.charts.chart import Chart
from cynosure.reporting.charts.draw import Row, altair, known, layers, named, names, note, of, text, x, y
from cynosure.reporting.charts.theme import ACCENT, FAINT, INK, LINE, WARM

MOST_POINTS = 500  # per curve: more could not be seen
SKIPPED = 0.02  # of the run: the first losses would flatten the rest of the curve
TRAINING, SMOOTHED, HELD_OUT = "training", "training, smoothed", "held out"
VAST = 20  # times the median: such a gradient norm would flatten all others
CALIBRATION = {  # metric: its name and its format
    "ece": ("calibration error (ECE)", ".1%"),
    "brier": ("Brier score", ".3f"),
    "recoverable_nats_per_token": ("nats to recover", ".4f"),
}


def train_charts(steps: list[Row], validations: list[Row]) -> list[Chart]:
    """Return the charts of the lines of `metrics.jsonl` and `validation.jsonl`, without those that have no values."""
    drawn = (
        loss(steps, validations),
        bits_per_byte(steps, validations),
        learning_rate(steps),
        gradient_norm(steps),
        throughput(steps),
        calibration(validations),
    )
    return [chart for chart in drawn if chart is not None]


def loss(steps: list[Row], validations: list[Row]) -> Chart | None:
    lines = {TRAINING: curve(steps, "loss"), SMOOTHED: curve(steps, "smoothed")}
    figure = progress(lines, held_out(validations, "nats_per_token"), "nats per token")
    return figure and Chart(
        "loss", "Loss",
        "The loss of each step and its moving mean, and the loss on held-out text with its 95% interval. If the "
        "held-out loss turns upwards, the model is learning its texts by heart.",
        figure, table(steps, validations, ("loss", "smoothed"), "nats_per_token"),
    )  # fmt: skip


def bits_per_byte(steps: list[Row], validations: list[Row]) -> Chart | None:
    lines = {TRAINING: curve(steps, "bits_per_byte")}
    figure = progress(lines, held_out(validations, "bits_per_byte"), "bits per byte")
    return figure and Chart(
        "bits-per-byte", "Bits per byte",
        "The same loss counted per byte of text, which can be compared across tokenizers.",
        figure, table(steps, validations, ("bits_per_byte",), "bits_per_byte"),
    )  # fmt: skip


def learning_rate(steps: list[Row]) -> Chart | None:
    rows = curve(steps, "learning_rate")
    return Chart(
        "learning-rate", "Learning rate", "The learning rate that the schedule set at each step.",
        layers(line(rows).encode(x=tokens(), y=y("value", "learning rate"))),
        renamed(rows, "learning_rate"),
    ) if len(rows) > 1 else None  # fmt: skip


def gradient_norm(steps: list[Row]) -> Chart | None:
    rows = [row for row in curve(steps, "grad_norm") if row["value"] > 0]
    if len(rows) < 2:
        return None
    values = [row["value"] for row in rows]
    scale: Row = {"type": "log", "nice": False, "axis": decades(values)} if max(values) > VAST * median(values) else {}
    title = "gradient norm (logarithmic)" if scale else "gradient norm"
    return Chart(
        "gradient-norm", "Gradient norm",
        "The norm of the gradient of each step, before clipping. A spike comes from an unusual batch, or from a "
        "learning rate that is too high.",
        layers(line(rows).encode(x=tokens(), y=y("value", title, **scale))), renamed(rows, "grad_norm"),
    )  # fmt: skip


def decades(values: list[float]) -> Row:
    """Return an axis of powers of ten, which alone has few enough lines."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return {"values": [10.0**power for power in range(first, last + 1)]}


def throughput(steps: list[Row]) -> Chart | None:
    rows = curve(steps, "tokens_per_second")
    if len(rows) < 2:
        return None
    middle = median(row["value"] for row in rows)
    zero = {"labelExpr": "datum.value ? datum.label : '0'"}  # not 0k
    up = y("value", "tokens per second", "~s", zero=True, axis=zero)
    rule = of([{"value": middle}]).mark_rule(color=INK, strokeDash=[3, 3]).encode(y=y("value"))
    label = note(f"dashed: median, {middle:,.0f}", x="width", y=-14, align="right")
    return Chart(
        "throughput", "Throughput", "Tokens trained on per second, step by step. Dips show where something else ran.",
        layers(line(rows).encode(x=tokens(), y=up), rule, label), renamed(rows, "tokens_per_second"),
    )  # fmt: skip


def calibration(validations: list[Row]) -> Chart | None:
    known_lines = [line for line in validations if line.get("calibration")]
    if len(known_lines) < 2:
        return None
    first, last = known_lines[0]["calibration"], known_lines[-1]["calibration"]
    rows = [
        {"metric": name, "first": first.get(name), "last": last.get(name)}
        for name in (*CALIBRATION, "best_temperature")
    ]
    shown = [scaled(row) for row in known(rows, "first", "last") if row["metric"] in CALIBRATION]
    if not shown:
        return None
    shown = named(shown, (CALIBRATION[row["metric"]][0] for row in shown))
    place: Row = {"domain": [-0.06, 2.3], "nice": False}
    across, row = x("from", "", **place, axis={"labels": False, "domain": False}), names("name")
    marks = [
        of(shown).mark_rule(color=LINE, strokeWidth=4).encode(x=across, x2="to:Q", y=row),
        of(shown).mark_point(color=FAINT, opacity=1, size=55, strokeWidth=1.5).encode(x=across, y=row),
        of(shown).mark_circle(color=ACCENT, opacity=1, size=70).encode(x=x("to", **place), y=row),
        text(shown, "label", dx=10).encode(x=x("end", **place), y=row),
        note("ring: first validation, dot: last", x=0, y=-8),
    ]
    return Chart(
        "calibration", "Calibration at the first and the last validation",
        "Lower is better in every row. Each row has a scale of its own, which begins at 0 on the left. Nats to recover "
        "are those per token that the best temperature would save.",
        layers(*marks, height=34 + 34 * len(shown)), rows,
    )  # fmt: skip


def scaled(row: Row) -> Row:
    """Return a row with its two places, as shares of the larger value, and a label."""
    most = max(row["first"], row["last"]) or 1
    places = {"from": row["first"] / most, "to": row["last"] / most, "end": max(row["first"], row["last"]) / most}
    _, form = CALIBRATION[row["metric"]]
    return row | places | {"label": f"{row['first']:{form}} → {row['last']:{form}}"}


def curve(steps: list[Row], name: str) -> list[Row]:
    """Return the known values of a metric, thinned evenly to what can be seen; the last step stays."""
    rows = [{"tokens": line["tokens"], "value": line[name]} for line in known(steps, "tokens", name)]
    stride = max(1, -(-len(rows) // MOST_POINTS))
    return rows[::-1][::stride][::-1]


def held_out(validations: list[Row], name: str) -> list[Row]:
    """Return the known values of a metric of the validations, with their intervals."""
    return known(({"tokens": line["tokens"], "kind": HELD_OUT} | line[name] for line in validations), "value")


def progress(lines: dict[str, list[Row]], validated: list[Row], title: str) -> Any:
    """Return a chart of curves over the tokens and of the validations; None if no curve has two points."""
    lines = {kind: rows for kind, rows in lines.items() if len(rows) > 1}
    if not lines:
        return None
    alt = altair()
    colours = {TRAINING: FAINT, SMOOTHED: ACCENT, HELD_OUT: WARM}
    kinds = [*lines, *([HELD_OUT] if validated else [])]
    colour = alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[colours[kind] for kind in kinds]))
    up = y("value", title, zero=False)
    marks = [
        of([row | {"kind": kind} for row in late(rows)])
        .mark_line(**({"strokeWidth": 0.8, "opacity": 0.5} if kind == TRAINING else {"strokeWidth": 1.5}))
        .encode(x=tokens(), y=up, color=colour)
        for kind, rows in lines.items()
    ]
    if validated:
        base = of(validated).encode(x=x("tokens"), y=y("value", zero=False), color=colour)
        marks += [base.mark_line(strokeWidth=1.5), base.mark_circle(size=40, opacity=1)]
        if ranges := known(validated, "low", "high"):
            rules = of(ranges).mark_rule(strokeWidth=1.5)
            marks.append(rules.encode(x=x("tokens"), y=y("low", zero=False), y2="high:Q", color=colour))
    return layers(*marks)


def late(rows: list[Row]) -> list[Row]:
    """Return the rows without those of the first steps, unless little else is left."""
    kept = [row for row in rows if row["tokens"] >= SKIPPED * rows[-1]["tokens"]]
    return kept if len(kept) > 1 else rows


def line(rows: list[Row]) -> Any:
    return of(rows).mark_line(color=ACCENT, strokeWidth=1.2)


def tokens() -> Any:
    return x("tokens", "tokens", "~s", nice=False, axis={"tickCount": 5})


def table(steps: list[Row], validations: list[Row], names: tuple[str, ...], held_out_name: str) -> list[Row]:
    """Return what a chart of curves draws, with a row for each number of tokens."""
    rows: dict[int, Row] = {}
    for name in names:
        for row in curve(steps, name):
            rows.setdefault(row["tokens"], {"tokens": row["tokens"]})[name] = row["value"]
    for row in held_out(validations, held_out_name):
        values = {"held_out": row.get("value"), "held_out_low": row.get("low"), "held_out_high": row.get("high")}
        rows.setdefault(row["tokens"], {"tokens": row["tokens"]}).update(values)
    columns = ("tokens", *names, "held_out", "held_out_low", "held_out_high")
    return [{name: rows[key].get(name) for name in columns} for key in sorted(rows)]


def renamed(rows: list[Row], name: str) -> list[Row]:
    return [{"tokens": row["tokens"], name: row["value"]} for row in rows]
