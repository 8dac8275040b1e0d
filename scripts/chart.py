"""Draw docs/images/before-after.svg, the chart in the README, from a published benchmark. Needs the extra `lm`."""

import json
from pathlib import Path

import altair as alt

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "loss-gemma3-270m-4096.json"
PICTURE = ROOT / "docs" / "images" / "before-after.svg"
BEFORE, AFTER = "F.cross_entropy", "cynosure"
NAMES = {"eager": BEFORE, "cynosure": AFTER}
MIB = 2**20


def values() -> list[dict[str, str | float]]:
    """Return seconds and MiB of both implementations, by dtype."""
    cases = json.loads(RESULTS.read_text(encoding="utf-8"))["cases"]
    return [
        {
            "dtype": case["dtype"],
            "with": NAMES[row["contestant"]],
            "seconds": round(row["seconds_median"], 2),
            "MiB": round(row["peak_extra_bytes"] / MIB),
        }
        for case in cases
        for row in case["rows"]
        if row["contestant"] in NAMES
    ]


def panel(measure: str, title: str, shown: str) -> alt.TopLevelMixin:
    """Return horizontal bars of one measure, labelled with their values."""
    base = alt.Chart(alt.Data(values=values())).encode(
        x=alt.X(f"{measure}:Q", title=None, axis=None),
        y=alt.Y("with:N", sort=[BEFORE, AFTER], title=None, axis=alt.Axis(labelFontSize=13, ticks=False, domain=False)),
    )
    color = alt.Color("with:N", scale=alt.Scale(domain=[BEFORE, AFTER], range=["#b8b8b8", "#2563eb"]), legend=None)
    bars = base.mark_bar(size=18).encode(color=color)
    labels = base.mark_text(align="left", dx=4, fontSize=13).encode(text=alt.Text(f"{measure}:Q", format=shown))
    return (bars + labels).properties(width=250, height=50, title=alt.Title(title, fontSize=13, anchor="start"))


def chart() -> alt.TopLevelMixin:
    rows = [
        alt.hconcat(
            panel("seconds", f"{dtype}: seconds per step", ",.1f").transform_filter(f"datum.dtype == '{dtype}'"),
            panel("MiB", f"{dtype}: peak memory, MiB", ",.0f").transform_filter(f"datum.dtype == '{dtype}'"),
            spacing=40,
        )
        for dtype in ("float32", "bfloat16")
    ]
    return alt.vconcat(*rows, background="white", padding=16).configure_view(stroke=None)


if __name__ == "__main__":
    chart().save(PICTURE)
