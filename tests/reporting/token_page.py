"""A page with nothing but a token view, under the policy of every report, and how to ask it what it shows."""

import base64
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import cynosure.reporting
from cynosure.reporting.tokens.view import TokenView
from tests.reporting.browsing import Visit, Visitor

ASSETS = Path(cynosure.reporting.__file__).parent / "assets"
COLOURS = """
:root { color-scheme: light; --paper: #fcfcfa; --ink: #1c1d21; --faint: #5a5f68; --line: #d8dade; --accent: #1f5f99; }
@media (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --paper: #15171b; --ink: #e6e7ea; --faint: #a4a9b2; --line: #383c44; --accent: #7ab6ee; }
}
*, *::before, *::after { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper); color: var(--ink); }
"""
TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'sha256-{{ script_digest }}';
 style-src 'sha256-{{ style_digest }}'; img-src data: blob:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tokens</title>
<link rel="icon" href="data:,">
<style>{{ style | safe }}</style>
</head>
<body>
{% from "tokens.html.j2" import tokens, tokens_data %}
<main><h1>Tokens</h1>{{ tokens(view) }}</main>
{{ tokens_data(view) }}
<script>{{ script | safe }}</script>
</body>
</html>
"""
CONTRAST = """() => {
    const luminance = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map((x) => x / 255)
            .map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    }
    return [...document.querySelectorAll("#token-legend li")].map((swatch) => {
        const style = getComputedStyle(swatch)
        const plain = style.backgroundColor === "rgba(0, 0, 0, 0)"
        const paper = plain ? getComputedStyle(document.body).backgroundColor : style.backgroundColor
        const [low, high] = [luminance(style.color), luminance(paper)].sort((a, b) => a - b)
        return (high + 0.05) / (low + 0.05)
    })
}"""

SCROLLED = """async () => {
    const box = document.getElementById("token-text")
    const seen = new Map()
    let most = 0
    for (let top = 0; top < box.scrollHeight; top += box.clientHeight / 2) {
        box.scrollTop = top
        await new Promise((done) => setTimeout(done, 60))
        document.querySelectorAll(".token-chunk").forEach((chunk, k) => {
            const tokens = [...chunk.querySelectorAll(".t")]
            if (tokens.length) seen.set(k, tokens.map((token) => token.textContent).join(""))
        })
        most = Math.max(most, box.querySelectorAll(".t").length)
    }
    return [[...seen.keys()].sort((a, b) => a - b).map((k) => seen.get(k)).join(""), most]
}"""


def write_page(view: TokenView, path: Path) -> Path:
    """Write a page that shows a token view, and return its path."""
    environment = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined)
    style = COLOURS + (ASSETS / "tokens.css").read_text(encoding="utf-8")
    script = "\n".join(file.read_text(encoding="utf-8") for file in sorted(ASSETS.glob("token*.js")))
    values = {"style": style, "script": script, "style_digest": digest(style), "script_digest": digest(script)}
    path.write_text(environment.from_string(TEMPLATE).render(view=view, **values), encoding="utf-8")
    return path


def digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def unpacked(view: TokenView) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the header and the columns of a view, as tokens.js reads them."""
    data = gzip.decompress(base64.b64decode(view.data))
    start = 4 + int.from_bytes(data[:4], "little")
    header = json.loads(data[4:start])
    columns = {
        name: np.frombuffer(data, "<" + kind, length, start + at)
        for name, (kind, at, length) in header["columns"].items()
    }
    return header, columns


def opened(open_page: Visitor, path: Path, **options: Any) -> Visit:
    visit = open_page(path, **options)
    visit.page.wait_for_selector("#token-view:not([hidden])")
    visit.page.wait_for_selector(".t")
    visit.page.check("input[value=nll]")
    return visit


def follow(visit: Visit, i: int) -> None:
    """Follow a link to a token."""
    visit.page.evaluate(f"location.hash = '#token-{i + 1}'")
    visit.page.wait_for_selector(f"#token-panel[data-token='{i}']")


def chosen(visit: Visit) -> int:
    """Return the token that the panel is about."""
    return int(visit.page.get_attribute("#token-panel", "data-token") or -1)


def told(visit: Visit, key: str) -> str:
    value: str = visit.page.eval_on_selector(f"#token-panel data[data-token={key}]", "e => e.value")
    return value


def sideways(visit: Visit) -> int:
    """Return by how many pixels a token leaves the box."""
    pixels: int = visit.page.eval_on_selector(
        "#token-text",
        """(box) => Math.max(...[...box.querySelectorAll(".t")]
        .map((token) => token.getBoundingClientRect().right)) - box.getBoundingClientRect().right""",
    )
    return pixels
