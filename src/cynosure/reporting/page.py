"""Write a page as one HTML file that makes no request: templates, inlined style and script, and its policy."""

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cynosure import __version__
from cynosure.reporting.charts.chart import Chart
from cynosure.system.escapes import visible
from cynosure.system.numbers import number

if TYPE_CHECKING:
    from jinja2 import Environment
    from jinja2.runtime import Context
    from markupsafe import Markup

ASSETS = Path(__file__).parent / "assets"
POLICY = (
    "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
UNKNOWN = "\N{EM DASH}"


class Page(NamedTuple):
    """What a page shows."""

    template: str  # its name in `assets`
    title: str
    source: str  # what the page is made from, for its last line
    values: dict[str, Any]  # the JSON of what it is about, which `num` in the template reads; the page offers it
    charts: list[Chart]  # the page offers each for download
    context: dict[str, Any]  # further names for the template

    def html(self) -> str:
        """Return the page as one file."""
        from cynosure.reporting.charts import theme

        context = {
            "title": self.title,
            "values": self.values,
            "source": self.source,
            "charts": {chart.name: chart for chart in self.charts},
            "chart_rows": {chart.name: chart.rows for chart in self.charts},
            "drawings": {chart.name: theme.svg(chart) for chart in self.charts},
            "version": __version__,
        }
        return environment().get_template(self.template).render(**context, **inlined(), **self.context)


@cache
def environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined, finalize=plain, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.globals["num"] = num_function()
    made.filters |= {"short": short, "columns": columns}
    made.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return made


def plain(value: Any) -> Any:
    """Make unprintable characters of a text visible, but not its line ends; markup stays as it is."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "\n".join(map(visible, value.split("\n")))


def columns(rows: list[dict[str, Any]]) -> list[str]:
    """Return the names of all columns of a table, in order."""
    return list({name: None for row in rows for name in row})


def short(value: float) -> str:
    """Format a number of a table.

    >>> short(12345), short(0.123456)
    ('12,345', '0.1235')
    """
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def inlined() -> dict[str, "Markup"]:
    """Return the script and the style of every page, and the policy that allows no others."""
    from markupsafe import Markup

    script, style = joined("js"), joined("css")
    policy = POLICY.format(script=digest(script), style=digest(style))
    return {"script": Markup(script), "style": Markup(style), "policy": Markup(policy)}


@cache
def joined(extension: str) -> str:
    """Return the assets of a kind as one text, those of the page first."""
    files = sorted(ASSETS.glob(f"*.{extension}"), key=lambda file: (file.stem != "page", file.name))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def digest(text: str) -> str:
    """Return the SHA-256 of a text as a policy writes it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def num_function() -> Any:
    """Return `num` for templates, which reads the `values` of the page."""
    from jinja2 import pass_context

    @pass_context
    def num(context: "Context", key: str, form: int | str = 4) -> "Markup":
        return num_of(context["values"], key, form)

    return num


def num_of(values: dict[str, Any], key: str, form: int | str = 4) -> "Markup":
    """Return a number of the JSON as HTML that names its key.

    Args:
        values: the JSON.
        key: names and places, joined by points.
        form: digits after the point, or a format specification of Python.

    >>> print(num_of({"by_class": [{"share": 0.125}]}, "by_class.0.share", ".1%"))
    <data value="0.125" data-key="by_class.0.share">12.5%</data>
    """
    from markupsafe import Markup

    value: Any = values
    for part in key.split("."):
        value = value[int(part) if isinstance(value, list) else part]
    if value is None:
        shown = UNKNOWN
    elif isinstance(form, str):
        shown = format(value, form)
    else:
        shown = number(value, 0 if isinstance(value, int) else form)
    return Markup('<data value="{}" data-key="{}">{}</data>').format(json.dumps(value), key, shown)
