"""Texts and names that want to run, to hide or to break out are shown as text, with and without the page's policy."""

from pathlib import Path

import pytest

from cynosure.system.escapes import visible
from tests.reporting.browser.conftest import KINDS
from tests.reporting.browser.hostile import MARKUP, RAN
from tests.reporting.browsing import Visit, Visitor

OPEN = "all => all.forEach(e => e.open = true)"
INJECTED = """() => [...document.querySelectorAll("body *")].filter((e) =>
    e.matches("iframe, img, base, meta, object, embed, form, animate")
    || [...e.attributes].some((a) => a.name.startsWith("on") || /^\\s*javascript:/i.test(a.value))
).map((e) => e.outerHTML.slice(0, 120))"""
TEXT = """() => {
    const copy = document.body.cloneNode(true)
    for (const script of copy.querySelectorAll("script")) script.remove()
    return copy.textContent
}"""

policies = pytest.mark.parametrize("bypass_csp", [False, True], ids=["policy", "no policy"])


def harm(visit: Visit) -> list[str]:
    """Return what a text has made of the page: trouble, elements that can run, and whether one has run."""
    ran = ["a text ran"] if visit.page.evaluate("() => 'ran' in window") else []
    return visit.take_trouble() + visit.page.evaluate(INJECTED) + ran


@policies
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_runs(open_page: Visitor, hostile_pages: dict[str, Path], kind: str, bypass_csp: bool) -> None:
    visit = open_page(hostile_pages[kind], width=390, bypass_csp=bypass_csp)
    visit.page.eval_on_selector_all("details", OPEN)
    assert visit.too_wide() == []
    visit.set_width(1600)
    assert visit.too_wide() == []
    assert harm(visit) == []


@policies
@pytest.mark.parametrize("text", [f"<script>{RAN}</script>", f"<img src=x onerror={RAN}>"])
def test_a_text_that_runs_is_seen(
    open_page: Visitor, hostile_pages: dict[str, Path], tmp_path: Path, text: str, bypass_csp: bool
) -> None:
    html = hostile_pages["score"].read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(html.replace("</main>", text + "</main>", 1), encoding="utf-8")
    found = "\n".join(harm(open_page(broken, bypass_csp=bypass_csp)))
    assert ("a text ran" in found) == bypass_csp
    assert ("Content Security Policy" in found) != bypass_csp


@pytest.mark.parametrize("kind", ["score", "compare"])
def test_names_are_shown_as_they_are(open_page: Visitor, hostile_pages: dict[str, Path], kind: str) -> None:
    visit = open_page(hostile_pages[kind])
    shown = text_of(visit)
    for name in MARKUP:
        assert " ".join(visible(name).split()) in shown
    assert "\\x00" in shown
    assert "\\u202e" in shown
    assert "\\udcff" in shown
    assert str(7 * 1234567) not in shown


def text_of(visit: Visit) -> str:
    """The text of the page, of closed parts too but not of scripts, each run of white space as one space."""
    text: str = visit.page.evaluate(TEXT)
    return " ".join(text.split())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_hides_or_reorders_text(open_page: Visitor, hostile_pages: dict[str, Path], kind: str) -> None:
    text: str = open_page(hostile_pages[kind]).page.evaluate("() => document.body.innerText")
    assert {c for c in text if not c.isprintable()} <= {"\n", "\t", "\xa0", "\u202f"}
