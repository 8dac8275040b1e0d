"""The shell of every page: one file, no request, its policy, and texts from outside shown as text."""

import json
from pathlib import Path

import pytest
from jinja2 import DictLoader
from markupsafe import Markup

from cynosure.reporting import page
from cynosure.reporting.charts import theme
from cynosure.reporting.charts.chart import Chart
from cynosure.reporting.page import num_of
from tests.reporting.pages import HOSTILE, SHOWN, Page

SVG = '<svg viewBox="0 0 9 9" role="img" aria-label="a line"><path d="M0 0" stroke="var(--accent)"></path></svg>'


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the templates from assets, and one more that only extends the shell."""
    made = page.environment.__wrapped__()
    more = {
        "bare.html.j2": '{% extends "page.html.j2" %}{% from "parts.html.j2" import figure, quote %}'
        "{% block main %}{{ quote(row) }}"
        "{% for name in charts %}{{ figure(charts[name], drawings[name]) }}{% endfor %}"
        "{{ num('tokens') }}{% endblock %}"
    }
    files = {path.name: path.read_text() for path in page.ASSETS.glob("*.j2")}
    made.loader = DictLoader(files | more)
    monkeypatch.setattr(page, "environment", lambda: made)


@pytest.mark.usefixtures("shell")
def test_the_shell_shows_texts_from_outside_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theme, "svg", lambda chart: SVG)
    rows = [{"document": HOSTILE, "bits_per_byte": 0.25}, {"document": "b", "bits_per_byte": None, "also": "here"}]
    chart = Chart("lines", HOSTILE, HOSTILE, None, rows)
    row = dict.fromkeys(("before", "text", "after"), HOSTILE)
    values = {"tokens": 12345, "name": HOSTILE + "\udcff"}
    made = Page(page.Page("bare.html.j2", HOSTILE, HOSTILE, values, [chart], {"row": row}).html())
    made.html.encode()
    made.check()
    assert made.json_of("page-data") == values
    assert made.json_of("chart-data") == {"lines": rows}
    assert [list(row) for row in made.json_of("chart-data")["lines"]] == [list(row) for row in rows]
    assert made.inner["th"] == ["document", "bits per byte", "also"]
    assert made.numbers == [("tokens", 12345)]
    assert made.text.count(SHOWN) == 8
    assert "12,345" in made.text
    assert SVG in made.html


def test_assets_are_inlined_whole() -> None:
    inlined = page.inlined()
    for name in ("page.js", "page.css"):
        part = (page.ASSETS / name).read_text()
        assert part in inlined["script" if name.endswith("js") else "style"]
        assert "</" not in part.replace("</svg", "")
    assert isinstance(inlined["policy"], Markup)


@pytest.mark.parametrize(
    ("value", "form", "shown"),
    [(12345, 4, "12,345"), (None, 4, page.UNKNOWN), (0.125, ".1%", "12.5%"), (1e80, 2, "1.000e+80")],
)
def test_a_number_names_its_key(value: float | None, form: int | str, shown: str) -> None:
    made = num_of({"rows": [{"of": value}]}, "rows.0.of", form)
    assert made == f'<data value="{json.dumps(value)}" data-key="rows.0.of">{shown}</data>'


def test_assets_are_in_the_package() -> None:
    """hatch ships every file of the package that git does not ignore."""
    ignored = (Path(__file__).parents[2] / ".gitignore").read_text().split()
    assert not {"*.css", "*.js", "*.j2", "assets", "assets/"} & set(ignored)
