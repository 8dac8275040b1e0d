"""How charts look: their colours, and their SVG and PNG."""

import re
from html import escape
from typing import Any

from cynosure.reporting.charts.chart import Chart
from cynosure.system.escapes import visible

# The page's variables in light mode. Charts are drawn with these; in the page each becomes its variable, so every
# colour occurs once. All can be told apart with any colour vision, and text in them can be read on paper.
COLOURS = {
    "paper": "#ffffff",
    "ink": "#1b2027",
    "faint": "#5b6570",
    "line": "#dce1e6",
    "accent": "#2467a8",
    "warm": "#b8530f",
    "good": "#0b7a6b",
    "bad": "#b3452c",
}
PAPER, INK, FAINT, LINE, ACCENT, WARM, GOOD, BAD = COLOURS.values()
VARIABLES = {colour: f"var(--{name})" for name, colour in COLOURS.items()}

FONT = "Helvetica Neue, Helvetica, Arial, sans-serif"
FONT_SIZE = 13  # of a chart that is 400 wide: 11 pixels when it is shrunk to 350
PIXELS = 3.0  # of the PNG per unit of the SVG
ROOT = re.compile(r'<svg [^>]*?width="([\d.]+)" height="([\d.]+)"[^>]*>')
TAG = re.compile(r"<[^<>]+>")
COLOUR = re.compile(r'="(#[0-9a-f]{6})"')
# The page's font is inherited; what the image consists of is no concern of a screen reader.
LEFT_OUT = re.compile(r' (font-family|class|role|aria-[a-z]+|pointer-events)="[^"]*"')

CONFIG: dict[str, Any] = {
    "aria": False,  # the chart is one image, which has its own label
    "background": None,
    "font": FONT,
    "padding": 4,
    "view": {"stroke": None},
    "text": {"fontSize": FONT_SIZE, "fill": INK},
    "axis": {
        "domainColor": LINE, "gridColor": LINE, "ticks": False, "labelColor": FAINT, "labelFontSize": FONT_SIZE,
        "labelPadding": 6, "titleColor": FAINT, "titleFontSize": FONT_SIZE,
        "titleFontWeight": "normal",
    },
    "axisX": {"grid": False, "labelFlush": True, "titlePadding": 8, "labelOverlap": True},
    "axisY": {
        "domain": False, "tickCount": 4, "titleAngle": 0, "titleAlign": "left", "titleBaseline": "bottom",
        "titleX": 0, "titleY": -8,
    },
    "axisRight": {"grid": False, "titleAlign": "right"},
    "legend": {
        "orient": "top", "title": None, "direction": "horizontal", "labelColor": INK, "labelFontSize": FONT_SIZE,
        "offset": 26, "symbolStrokeWidth": 2.5, "symbolOpacity": 1,
    },
}  # fmt: skip


def svg(chart: Chart) -> str:
    """Return the chart for the page: its colours are the page's variables, and it is as wide as its place."""
    drawn = rendered(chart)
    size = ROOT.match(drawn)
    assert size is not None, drawn[:200]
    inner = TAG.sub(lambda tag: COLOUR.sub(variable, LEFT_OUT.sub("", tag[0])), drawn[size.end() :])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[1]} {size[2]}" role="img" '
        f'aria-label="{escape(visible(chart.title))}">{inner}'
    )


def variable(colour: re.Match[str]) -> str:
    """Return an attribute with the page's variable for its colour."""
    return f'="{VARIABLES.get(colour[1], colour[1])}"'


def svg_file(chart: Chart) -> str:
    """Return the chart as a file of its own, in light colours."""
    return rendered(chart, background=PAPER)


def png_file(chart: Chart) -> bytes:
    """Return the chart as a picture in light colours."""
    import vl_convert

    return vl_convert.vegalite_to_png(specification(chart, PAPER), scale=PIXELS)


def rendered(chart: Chart, background: str | None = None) -> str:
    """Return the SVG of Vega."""
    import vl_convert

    return vl_convert.vegalite_to_svg(specification(chart, background))


def specification(chart: Chart, background: str | None) -> dict[str, Any]:
    """Return what Vega-Lite draws. Altair's check of it takes longer than the drawing; the tests make it."""
    drawn: dict[str, Any] = chart.figure.to_dict(validate=False)
    return drawn | {"config": CONFIG | {"background": background}}
