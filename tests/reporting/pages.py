"""Read a page as a browser would: its text, its numbers and its scripts."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\x00\u202e\u2066\x1b[2J'\"&\n"
SHOWN = "<img src=x onerror=alert(1)>\\x00\\u202e\\u2066\\x1b[2J'\"&"  # part of it, in a page
INLINE = {"data", "span", "mark", "a"}
VOID = {"meta", "link", "br", "hr", "img", "input", "rect", "path", "line", "circle"}


class Page(HTMLParser):
    """A parsed page. Its elements must be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.stack: list[tuple[str, dict[str, str | None]]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inner: dict[str, list[str]] = {}  # of scripts, styles and `data`, by their names
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.stack, self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in INLINE:
            self.texts.append(" ")
        if tag not in VOID:
            self.stack.append((tag, dict(attrs)))
            self.inner.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.stack, f"</{tag}> closes nothing"
            assert self.stack.pop()[0] == tag, f"</{tag}> out of order"

    def handle_data(self, data: str) -> None:
        if self.stack:
            self.inner[self.stack[-1][0]][-1] += data
        if self.stack and self.stack[-1][0] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def json_of(self, name: str) -> Any:
        """Return the JSON in the script element of this id."""
        found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', self.html, re.DOTALL)
        assert found
        return json.loads(found[1])

    @property
    def numbers(self) -> list[tuple[str, Any]]:
        """The (key, value) of every number that has a key."""
        rows = [attributes for tag, attributes in self.elements if tag == "data"]
        return [(str(row["data-key"]), json.loads(str(row["value"]))) for row in rows]

    def check(self) -> None:
        """Assert that nothing in the page is loaded, and that nothing runs but what its policy names."""
        scripts = [attributes for tag, attributes in self.elements if tag == "script"]
        assert [each for each in scripts if "type" not in each] == [{}]
        policy = next(str(each["content"]) for _, each in self.elements if each.get("http-equiv"))
        assert policy.startswith("default-src 'none'; ")
        for kind, part in (("script", self.inner["script"][-1]), ("style", self.inner["style"][0])):
            hashed = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{hashed}';" in policy
        assert not set("\x00\u202e\u2066\x1b") & set(self.html)
        for tag, attributes in self.elements:
            assert tag not in ("iframe", "object", "embed", "base", "form"), tag
            assert not {name for name in attributes if name.startswith("on")} | {"style", "src"} & set(attributes)
            assert str(attributes.get("href", "#")).startswith(("#", "data:,")), attributes


def read(path: Path) -> Page:
    """Return the page in a file, checked."""
    page = Page(path.read_text(encoding="utf-8"))
    page.check()
    return page


def at(values: Any, key: str) -> Any:
    """Return the value of a key whose parts are joined by points."""
    for part in key.split("."):
        values = values[int(part)] if isinstance(values, list) else values[part]
    return values
