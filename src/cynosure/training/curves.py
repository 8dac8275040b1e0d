"""Plot the curves of a run, loss and bits per byte against tokens, as SVG and PNG."""

import io
from typing import Any

from cynosure.system.files import write_whole
from cynosure.training.folder import METRICS, VALIDATION, RunFolder

MOST_POINTS = 1000  # per curve: more would not be visible
SIZE = {"width": 420, "height": 260}
PIXELS = 2.0  # of the PNG per unit of the SVG
SKIPPED = 0.02  # of the run: the first losses would flatten the rest of the curve


def draw_curves(folder: RunFolder) -> None:
    """Write `curves.svg` and `curves.png` of a run that has at least two steps."""
    steps, validations = folder.lines(METRICS), folder.lines(VALIDATION)
    if len(steps) < 2:
        return
    chart = panels(steps, validations)
    svg, png = io.StringIO(), io.BytesIO()
    chart.save(svg, format="svg")
    chart.save(png, format="png", scale_factor=PIXELS)
    write_whole(folder / "curves.svg", svg.getvalue().encode())
    write_whole(folder / "curves.png", png.getvalue())


def panels(steps: list[dict[str, Any]], validations: list[dict[str, Any]]) -> Any:
    """Return a chart of the loss, with bits per byte to its right if they are known."""
    import altair as alt

    thinned = steps[:: -(-len(steps) // MOST_POINTS)]
    late = [line for line in thinned if line["tokens"] >= SKIPPED * steps[-1]["tokens"]]
    left = panel(late, validations, "nats_per_token", "loss", "nats/token")
    if not any(line["bits_per_byte"] for line in steps):
        return left
    return alt.hconcat(left, panel(late, validations, "bits_per_byte", "bits_per_byte", "bits/byte"))


def panel(
    steps: list[dict[str, Any]], validations: list[dict[str, Any]], held_out_name: str, name: str, title: str
) -> Any:
    """Return a chart of one metric: a line for the steps, and a mark with its interval for each validation."""
    import altair

    alt: Any = altair
    trained = [{"tokens": line["tokens"], "value": line[name], "of": "training"} for line in steps if line[name]]
    if name == "loss":
        trained += [{"tokens": line["tokens"], "value": line["smoothed"], "of": "smoothed"} for line in steps]
    validated = [
        {"tokens": line["tokens"], "of": "held out"} | line[held_out_name]
        for line in validations
        if line[held_out_name]["value"] is not None
    ]
    kinds = ["training", "smoothed", "held out"]
    colour = alt.Color("of:N", title=None, scale=alt.Scale(domain=kinds, range=["#c8d3df", "#2467a8", "#b8530f"]))
    x = alt.X("tokens:Q", title="tokens", axis=alt.Axis(format="~s"))
    y = alt.Y("value:Q", title=title, scale=alt.Scale(zero=False))
    layers = [alt.Chart(alt.Data(values=trained)).mark_line(strokeWidth=1.2).encode(x=x, y=y, color=colour)]
    if validated:
        base = alt.Chart(alt.Data(values=validated)).encode(x=x, color=colour)
        layers.append(base.mark_line(point=True).encode(y=y))
        layers.append(base.mark_rule().encode(y=alt.Y("low:Q", title=title), y2="high:Q"))
    return alt.layer(*layers).properties(title=title, **SIZE)
