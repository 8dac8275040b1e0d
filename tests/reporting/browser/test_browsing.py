"""The checks of pages can fail: each kind of trouble is seen."""

from pathlib import Path

import pytest

from tests.reporting.browsing import Visitor
from tests.reporting.conftest import missing

POLICY = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data: blob:">'
HEAD = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Page</title>'
GOOD = HEAD + "{}<main><h1>Page</h1>{}"
TROUBLE = {
    "<script>console.error('broken')</script>": "error: broken",
    "<script>console.warn('old')</script>": "warning: old",
    "<script>throw new Error('thrown')</script>": "exception: thrown",
    "<script>setTimeout(() => Promise.reject(new Error('late')))</script>": "exception: late",
    "<script>alert('hello')</script>": "dialog: hello",
    "<script>window.open('about:blank')</script>": "window: about:blank",
    "<script>new WebSocket('wss://example.org/socket')</script>": "request: wss://example.org/socket",
    "<script>fetch('https://example.org/fetched').catch(() => 0)</script>": "request: https://example.org/fetched",
    '<img src="https://example.org/a.png" alt="">': "request: https://example.org/a.png",
    '<link rel="stylesheet" href="beside.css">': "beside.css",
    '<iframe src="https://example.org/frame" title="frame"></iframe>': "request: https://example.org/frame",
}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "page.html"


@pytest.mark.parametrize(("body", "expected"), TROUBLE.items())
def test_trouble_is_seen(open_page: Visitor, page: Path, body: str, expected: str) -> None:
    page.write_text(GOOD.format("", body), encoding="utf-8")
    assert expected in "\n".join(open_page(page).take_trouble())


def test_what_the_policy_blocks_is_trouble(open_page: Visitor, page: Path) -> None:
    page.write_text(GOOD.format(POLICY, "<script>var ran = 1</script><p style='color: red'>x</p>"), encoding="utf-8")
    visit = open_page(page)
    script, style = visit.take_trouble()
    assert "Executing inline script violates" in script
    assert "Applying inline style violates" in style
    assert visit.page.evaluate("typeof ran") == "undefined"


OPENS = """
def test_page(open_page, tmp_path):
    path = tmp_path / 'page.html'
    path.write_text({!r})
    open_page(path)
"""


@pytest.mark.exhaustive
def test_trouble_fails_the_test(pytester: pytest.Pytester) -> None:
    root = Path(__file__).parents[3]
    pytester.makeini("[pytest]\nmarkers = browser\n    exhaustive\n")
    pytester.makeconftest(f"import sys\nsys.path.insert(0, {str(root)!r})\nfrom tests.reporting.conftest import *\n")
    bad = OPENS.format("<script>console.error('broken')</script>")
    pytester.makepyfile(test_bad=bad, test_good=OPENS.format("fine"))
    result = pytester.runpytest_subprocess("-p", "no:randomly")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*AssertionError: error: broken*"])


def test_a_good_page_has_no_trouble(open_page: Visitor, page: Path) -> None:
    image = '<img alt="A dot" src="data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7">'
    page.write_text(GOOD.format(POLICY, image), encoding="utf-8")
    visit = open_page(page)
    assert visit.violations() == visit.too_wide() == visit.take_trouble() == []


def test_what_is_too_wide_is_seen(open_page: Visitor, page: Path) -> None:
    page.write_text(GOOD.format("", '<svg id="wide" width="500"></svg>'), encoding="utf-8")
    visit = open_page(page, width=390)
    assert any('id="wide"' in element for element in visit.too_wide())
    visit.set_width(1600)
    assert visit.too_wide() == []


def test_violations_are_seen(open_page: Visitor, page: Path) -> None:
    page.write_text(GOOD.format("", '<button></button><p style="color: #ccc">faint</p>'), encoding="utf-8")
    found = "\n".join(open_page(page).violations())
    assert "(button-name)" in found
    assert "(color-contrast)" in found


def test_a_download_is_read(open_page: Visitor, page: Path) -> None:
    page.write_text(GOOD.format("", '<a download="a.csv" href="data:text/csv,x%0A1">CSV</a>'), encoding="utf-8")
    visit = open_page(page)
    assert visit.download(visit.page.get_by_text("CSV")) == ("a.csv", b"x\n1")


def test_media_are_emulated(open_page: Visitor, page: Path) -> None:
    page.write_text(GOOD.format("", ""), encoding="utf-8")
    visit = open_page(page, color_scheme="dark", reduced_motion="reduce")
    ask = "query => matchMedia(query).matches"
    assert visit.page.evaluate(ask, "screen and (prefers-color-scheme: dark) and (prefers-reduced-motion: reduce)")
    visit.set_media(media="print", color_scheme="light")
    assert visit.page.evaluate(ask, "print and (prefers-color-scheme: light)")


def test_a_missing_browser_is_a_failure_in_ci_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no browser"):
        missing("no browser")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no browser"):
        missing("no browser")
