"""The pages of a score run, a comparison, a training and others, as a reader meets them."""

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import cynosure
from tests.reporting.browser.conftest import KINDS, OTHERS, PROTOCOLS, SAMPLE
from tests.reporting.browsing import Visit, Visitor
from tests.reporting.pages import at

PNG = b"\x89PNG\r\n\x1a\n"
BACKGROUND = "() => getComputedStyle(document.body).backgroundColor"
NUMBERS = "all => all.map(e => [e.dataset.key, e.value, e.textContent.trim()])"
WIDTHS = "all => all.map(e => Number(e.getAttribute('width')))"
SHOWN = """async () => {
    const box = document.getElementById("token-text")
    const found = new Map()
    for (let top = 0; top < box.scrollHeight; top += box.clientHeight / 2) {
        box.scrollTop = top
        await new Promise((done) => setTimeout(done, 60))
        document.querySelectorAll(".token-chunk").forEach((chunk, k) => {
            const gaps = [...chunk.querySelectorAll(".token-gap")].map((gap) => gap.textContent)
            if (chunk.childElementCount) found.set(k, [chunk.querySelectorAll(".t").length, gaps])
        })
    }
    const parts = [...found.values()]
    return [parts.reduce((sum, [n]) => sum + n, 0), parts.flatMap(([, gaps]) => gaps)]
}"""
OPEN = "all => all.forEach(e => e.open = true)"

kinds = pytest.mark.parametrize("kind", KINDS)
all_kinds = pytest.mark.parametrize("kind", KINDS + OTHERS)


@pytest.mark.parametrize(
    ("width", "scheme", "kind"),
    [*((390, "dark", kind) for kind in KINDS + OTHERS), *((1600, "light", kind) for kind in KINDS)],
)
def test_a_page_fits_and_is_accessible(
    open_page: Visitor, pages: dict[str, Path], width: int, scheme: str, kind: str
) -> None:
    visit = open_page(pages[kind], width=width, color_scheme=scheme)
    assert is_dark(visit) == (scheme == "dark")
    visit.page.eval_on_selector_all("details", OPEN)
    assert visit.too_wide() == []
    assert visit.violations() == []


def is_dark(visit: Visit) -> bool:
    red, green, blue = map(int, re.findall(r"\d+", visit.page.evaluate(BACKGROUND))[:3])
    return red + green + blue < 3 * 128


@all_kinds
def test_every_number_is_the_one_of_the_json(open_page: Visitor, pages: dict[str, Path], kind: str) -> None:
    visit = open_page(pages[kind])
    values = saved(visit)
    numbers = visit.page.eval_on_selector_all("data[data-key]", NUMBERS)
    assert len(numbers) >= 10
    assert wrong_numbers(numbers, values) == []


def saved(visit: Visit) -> Any:
    """The values that the page lets its reader save."""
    name, content = visit.download(visit.page.get_by_role("button", name="Save JSON"))
    assert name.endswith(".json")
    return json.loads(content)


def wrong_numbers(numbers: list[tuple[str, str, str]], values: Any) -> list[tuple[str, str, str]]:
    """Return the (key, value, shown text) that are not those of the JSON, or are shown as another number."""
    return [
        (key, raw, shown)
        for key, raw, shown in numbers
        if json.loads(raw) != at(values, key) or not is_rounded(shown, at(values, key))
    ]


def is_rounded(shown: str, value: float | None) -> bool:
    """Whether a text like -1,234.50, 12.5% or 1.2e+80 shows a value, rounded to its last digit."""
    if value is None:
        return not re.search(r"\d", shown)
    found = re.fullmatch(r"([+-]?)([\d,]+)(?:\.(\d+))?(e[+-]\d+)?(%?)", shown.replace("\N{MINUS SIGN}", "-"))
    if found is None:
        return False
    sign, whole, digits, exponent, percent = found.groups()
    unit = float("1" + (exponent or "e0")) / (100 if percent else 1)
    number = float(sign + whole.replace(",", "") + "." + (digits or "0")) * unit
    return abs(number - value) <= 0.501 * unit * 10 ** -len(digits or "")


@pytest.mark.parametrize(
    ("shown", "value", "right"),
    [
        ("0.905", 0.9052, True), ("0.905", 0.9062, False), ("\N{MINUS SIGN}1,234.5", -1234.46, True),
        ("12.5%", 0.125, True), ("12.5", 0.125, False), ("1.000e+80", 1e80, True), ("—", None, True),
        ("0.0", None, False), ("n/a", 1.0, False),
    ],
)  # fmt: skip
def test_a_number_that_is_shown_wrong_is_seen(shown: str, value: float | None, right: bool) -> None:
    assert is_rounded(shown, value) == right
    key, raw = "rows.0.x", json.dumps(value)
    assert (wrong_numbers([(key, raw, shown)], {"rows": [{"x": value}]}) == []) == right
    assert wrong_numbers([(key, "7", shown)], {"rows": [{"x": value}]})


def test_the_values_are_those_of_the_runs(open_page: Visitor, pages: dict[str, Path]) -> None:
    a, b = (pages["score"].parent.parent / name for name in "ab")
    assert saved(open_page(pages["score"])) == plain(cynosure.open_run(a).to_json())
    assert saved(open_page(pages["compare"])) == plain(cynosure.compare(a, b).to_json())
    trained = pages["train"].parent
    values = saved(open_page(pages["train"]))
    assert values["scores"] == plain(cynosure.open_run(trained / "scores").to_json())
    assert values["last"] == json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])


def plain(values: Any) -> Any:
    return json.loads(json.dumps(values))


@kinds
def test_charts_are_saved_as_files(open_page: Visitor, pages: dict[str, Path], kind: str) -> None:
    visit = open_page(pages[kind])
    charts = visit.page.locator("figure.chart")
    assert charts.count() >= 2
    for chart in charts.all():
        name = chart.get_attribute("id")
        files = {
            extension: visit.download(chart.get_by_role("button", name=f"{extension.upper()} of"))
            for extension in ("svg", "png", "csv")
        }
        for extension, (file, _) in files.items():
            assert file.endswith(f"{name}.{extension}")
        check_svg(files["svg"][1].decode())
        assert files["png"][1].startswith(PNG)
        assert len(files["png"][1]) > 1000
        check_csv(files["csv"][1].decode(), chart.locator("table tr").count())


def check_svg(text: str) -> None:
    """Assert that the picture stands alone: no colour of the page, and a size of its own."""
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert float(root.attrib["width"]) > 100
    assert "var(" not in text


def check_csv(text: str, n_rows: int) -> None:
    """Assert that the table has a row for each one in the page, its head included, and a value in every column."""
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) == n_rows > 1
    assert {len(row) for row in rows} == {len(rows[0])}


@kinds
def test_a_printed_page_is_light_and_has_no_buttons(open_page: Visitor, pages: dict[str, Path], kind: str) -> None:
    visit = open_page(pages[kind], width=794, color_scheme="dark")
    assert visit.page.get_by_role("button").first.is_visible()
    visit.set_media(media="print")
    assert not is_dark(visit)
    assert [button for button in visit.page.get_by_role("button").all() if button.is_visible()] == []
    assert visit.too_wide() == []
    assert visit.page.pdf().startswith(b"%PDF")


@kinds
def test_the_theme_changes_by_keyboard(open_page: Visitor, pages: dict[str, Path], kind: str) -> None:
    visit = open_page(pages[kind], color_scheme="light")
    button = visit.page.locator("#theme")
    button.press("Enter")
    assert is_dark(visit)
    assert visit.violations() == []
    button.press("Enter")
    assert not is_dark(visit)


@kinds
def test_everything_is_reached_by_keyboard(open_page: Visitor, pages: dict[str, Path], kind: str) -> None:
    visit = open_page(pages[kind])
    keyboard, focused = visit.page.keyboard, "() => document.activeElement.matches({!r})"
    keyboard.press("Tab")
    assert visit.page.evaluate(focused.format(".skip"))
    keyboard.press("Enter")
    assert visit.page.evaluate(focused.format("#main"))
    keyboard.press("Tab")
    assert visit.page.evaluate("() => document.querySelector('#main').contains(document.activeElement)")
    assert visit.page.evaluate("() => document.activeElement.checkVisibility()")


@kinds
def test_nothing_moves_where_motion_is_unwanted(open_page: Visitor, pages: dict[str, Path], kind: str) -> None:
    visit = open_page(pages[kind], reduced_motion="reduce")
    moving = "() => [...document.querySelectorAll('*')].map(e => getComputedStyle(e)).filter(s => {})"
    assert visit.page.evaluate(moving.format("s.scrollBehavior === 'smooth'")) == []
    assert visit.page.evaluate("() => document.getAnimations().length") == 0


@kinds
def test_the_file_is_one_part(pages: dict[str, Path], kind: str) -> None:
    """A browser connects to where a link of these kinds leads before it loads anything, and no policy forbids that."""
    html = pages[kind].read_text(encoding="utf-8")
    assert re.findall(r"<link\b[^>]*>", html) == ['<link rel="icon" href="data:,">']


def test_the_bars_of_a_prediction_can_be_logarithmic(open_page: Visitor, pages: dict[str, Path]) -> None:
    page = open_page(pages["predict"]).page
    button = page.get_by_role("button", name="Logarithmic bars")
    p = [float(value) for value in page.eval_on_selector_all("#bars data", "all => all.map(e => e.value)")]
    least = min(p) / 10
    linear, logarithmic = [100 * x / p[0] for x in p], [100 * math.log(x / least) / math.log(p[0] / least) for x in p]
    assert len(p) == 20
    for widths, pressed in ((linear, "false"), (logarithmic, "true"), (linear, "false")):
        assert button.get_attribute("aria-pressed") == pressed
        assert page.eval_on_selector_all("#bars rect", WIDTHS) == pytest.approx(widths)
        button.press("Enter")


def test_protocols_stand_side_by_side(open_page: Visitor, pages: dict[str, Path]) -> None:
    page = open_page(pages["protocols"]).page
    page.get_by_role("link", name="Protocols").click()
    table = page.get_by_role("region", name="The same text under other protocols")
    head, *rows = (row.locator("th, td").all_inner_texts() for row in table.locator("tr").all())
    cells = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert tuple(cells) == PROTOCOLS
    for name, row in cells.items():
        values = cynosure.open_run(pages["protocols"].parent / name).to_json()
        for key in ("bits_per_byte", "token_perplexity"):
            assert is_rounded(row[key.replace("_", " ")], values[key]["value"])
        for key in ("tokens", "window", "stride"):
            assert is_rounded(row[key], values[key])


def test_a_sample_says_what_it_leaves_out(open_page: Visitor, pages: dict[str, Path]) -> None:
    page = open_page(pages["sample"], height=4000).page
    run = cynosure.open_run(pages["score"].parent)
    n_tokens = sum(fact.n_tokens for fact in run.statistics.facts.values())
    page.wait_for_selector(".t")
    n_shown, gaps = page.evaluate(SHOWN)
    n_left_out = sum(int(gap.split()[0].replace(",", "")) for gap in gaps)
    assert 0 < n_shown <= SAMPLE["MOST_TOKENS"] < n_shown + n_left_out == n_tokens
    note = page.locator("#token-note")
    assert note.is_visible()
    assert f"{n_shown:,} of {n_tokens:,} tokens" in note.inner_text()
    page.locator("#token-next").click()
    worst = max(token.nll_nats for token in run.statistics.worst_tokens)
    told = page.eval_on_selector("#token-panel data[data-token=nats]", "e => Number(e.value)")
    assert told == pytest.approx(worst, rel=1e-6)
    assert "token-note" not in pages["score"].read_text(encoding="utf-8")
