"""The token view in Chromium: colours, pointer, keys, search, print; what it says is what the shards say."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import cynosure
from cynosure.measure import Scores, open_run
from cynosure.reporting.tokens.view import TokenView, token_view
from cynosure.system.escapes import visible
from cynosure.text import Document
from tests.reporting.browsing import Visitor
from tests.reporting.token_page import CONTRAST, SCROLLED, chosen, follow, opened, sideways, told, unpacked, write_page
from tests.tiny import tiny

HOSTILE = (
    "</script><script>window.hacked = 1; alert(1)</script><img src=x onerror=hacked=1>"
    "\x00\x1b[2J\u202eevil\u2066 e\u0301 👩‍👩‍👧\ufffd&amp;<!--{{ 7*7 }}\r\n"
)
BIDI = "\u202e"
DOCUMENTS = [
    Document("first", "the cat saw the thé.\nthe end\n\n" * 300, n_prompt_chars=4),
    Document("</option><script>hacked=1</script>\u202e", HOSTILE * 3),
    Document("long line", "the " * 600 + "x" * 4_000),
]
TEXT = "".join(document.text for document in DOCUMENTS)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    cynosure.score(tiny(), DOCUMENTS, out=out)
    return open_run(out)


@pytest.fixture(scope="module")
def rows(scores: Scores) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.concat_tables(scores.shards()).to_pylist()
    return rows


@pytest.fixture(scope="module")
def view(scores: Scores) -> TokenView:
    return token_view(scores, cynosure.score(tiny(seed=1), DOCUMENTS, keep=True))


@pytest.fixture(scope="module")
def path(view: TokenView, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(view, tmp_path_factory.mktemp("pages") / "tokens.html")


def worst_first(rows: list[dict[str, Any]]) -> list[int]:
    wrong = [i for i, row in enumerate(rows) if row["rank"] is not None and row["rank"] > 1]
    return sorted(wrong, key=lambda i: (-rows[i]["nll"], i))


def test_the_panel_says_what_the_shards_say(open_page: Visitor, path: Path, rows: list[dict[str, Any]]) -> None:
    visit = opened(open_page, path)
    for i in worst_first(rows)[:5]:
        follow(visit, i)
        row = rows[i]
        for key, name in (("nats", "nll"), ("entropy", "entropy"), ("confidence", "confidence")):
            assert float(told(visit, key)) == row[name]
        assert float(told(visit, "p")) == pytest.approx(math.exp(-row["nll"]), rel=1e-12)
        assert float(told(visit, "bits")) == pytest.approx(row["nll"] / math.log(2), rel=1e-12)
        assert (told(visit, "rank"), told(visit, "context")) == (str(row["rank"]), str(row["context"]))
        assert told(visit, "bytes") == row["token_bytes"].hex(" ")
        assert told(visit, "document") == DOCUMENTS[row["document"]].name
        bars = visit.page.eval_on_selector_all("#token-panel li data", "all => all.map(e => Number(e.value))")
        expected = [math.exp(x) for x in row["top_logprobs"]]
        assert bars[:5] == pytest.approx(expected, rel=1e-6)
        widths = visit.page.eval_on_selector_all(
            "#token-panel li .token-bar",
            """all => all.map((e) =>
            e.firstChild.getBoundingClientRect().width / e.getBoundingClientRect().width)""",
        )
        assert widths[:5] == pytest.approx([max(x, 1 / 150) for x in expected], abs=0.02)
        own = visit.page.eval_on_selector_all(".token-right", "all => all.length")
        assert own == 1


def test_a_token_that_is_not_scored_says_why(open_page: Visitor, path: Path, rows: list[dict[str, Any]]) -> None:
    visit = opened(open_page, path)
    at = next(i for i, row in enumerate(rows) if row["nll"] is None)
    visit.page.locator(".t").nth(at).hover()
    assert chosen(visit) == at
    assert f"Not scored: {rows[at]['excluded']}." in visit.page.inner_text("#token-panel")
    assert visit.page.locator("#token-panel dl div:visible dt").all_inner_texts() == ["Bytes", "Document"]


def test_pointer_focus_and_tap(open_page: Visitor, path: Path) -> None:
    visit = opened(open_page, path, has_touch=True)
    token = visit.page.locator(".t")
    token.nth(5).hover()
    assert chosen(visit) == 5
    visit.page.locator("h1").hover()
    assert chosen(visit) == 0
    token.nth(7).tap()
    assert chosen(visit) == 7
    assert visit.page.evaluate("document.activeElement.className").endswith("now")
    visit.page.locator("h1").hover()
    assert chosen(visit) == 7
    assert visit.page.locator(".t[tabindex='0']").count() == 1
    assert visit.page.inner_text("#token-spoken").startswith("“")


def test_arrow_keys(open_page: Visitor, path: Path, rows: list[dict[str, Any]]) -> None:
    visit = opened(open_page, path)
    visit.page.locator("#token-document").focus()
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.className").startswith("t ")
    for key, expected in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0)):
        visit.page.keyboard.press(key)
        assert chosen(visit) == expected
    visit.page.keyboard.press("ArrowDown")
    below = chosen(visit)
    newline = next(i for i, row in enumerate(rows) if b"\n" in row["token_bytes"])
    assert below == newline + 1  # the first token of the second line
    visit.page.keyboard.press("ArrowUp")
    assert chosen(visit) == 0
    visit.page.keyboard.press("End")
    assert chosen(visit) == len(rows) - 1
    assert visit.page.locator(".t.now").is_visible()


def test_mistakes_by_key_and_button(open_page: Visitor, path: Path, rows: list[dict[str, Any]]) -> None:
    visit, order = opened(open_page, path), worst_first(rows)
    visit.page.locator(".t").nth(1).click()
    for key, place in (("n", 0), ("n", 1), ("n", 2), ("p", 1), ("p", 0), ("p", 0)):
        visit.page.keyboard.press(key)
        assert chosen(visit) == order[place]
        assert visit.page.evaluate("document.activeElement.className").endswith("now")
    visit.page.click("#token-next")
    assert chosen(visit) == order[1]
    assert visit.page.evaluate("document.activeElement.id") == "token-next"
    assert visit.page.inner_text("#token-mistake").startswith("Mistake 2 of")
    visit.page.click("#token-back")
    assert chosen(visit) == order[0]


def test_search(open_page: Visitor, path: Path) -> None:
    visit = opened(open_page, path)
    field = visit.page.locator("#token-search")
    field.press_sequentially("THE END")
    assert visit.page.inner_text("#token-hits") == "300 found"
    texts = []
    for place in ("1 of 300", "2 of 300"):
        field.press("Enter")
        assert visit.page.inner_text("#token-hits") == place
        texts.append((chosen(visit), "".join(visit.page.locator(".the-hit").all_text_contents())))
    assert [text for _, text in texts] == ["the end", "the end"]
    assert texts[0][0] < texts[1][0]
    field.press("Shift+Enter")
    assert chosen(visit) == texts[0][0]
    field.press("n")  # types, and does not leave for a mistake
    assert visit.page.inner_text("#token-hits") == "not found"
    field.fill("<script>window.hacked")
    assert visit.page.inner_text("#token-hits") == "3 found"
    field.fill("")
    assert visit.page.inner_text("#token-hits") == ""
    assert visit.page.locator(".hit").count() == 0


def test_jump_to_a_document(open_page: Visitor, path: Path, rows: list[dict[str, Any]]) -> None:
    visit = opened(open_page, path)
    labels = visit.page.locator("#token-document option").all_text_contents()
    assert labels == [visible(document.name) for document in DOCUMENTS]
    visit.page.select_option("#token-document", index=2)
    assert rows[chosen(visit)]["document"] == 2
    assert rows[chosen(visit)]["index"] == 0
    assert visit.page.locator(".token-head", has_text="long line").is_visible()
    visit.page.locator(".t.now").press("Home")
    assert visit.page.eval_on_selector("#token-document", "e => e.selectedIndex") == 0


def test_modes_tint_by_their_value(open_page: Visitor, path: Path, rows: list[dict[str, Any]]) -> None:
    visit = opened(open_page, path)
    edges = {
        "nll": [0.1, 0.7, 1.4, 2.3, 3, 4.6, 6.9, 9.2],
        "rank": [1, 2, 5, 10, 50, 100, 1000, 10000],
        "entropy": [0.1, 0.5, 1, 1.5, 2, 3, 4, 5],
        "confidence": [0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 0.99],
    }
    legends = set()
    for mode, between in edges.items():
        visit.page.check(f"input[value={mode}]")
        classes = visit.page.eval_on_selector_all(".t", "all => all.map(e => e.classList[1])")
        assert {row["rank"] for row in rows[: len(classes)]} & set(edges["rank"])  # some are at an edge
        for i, name in enumerate(classes):
            value = rows[i][mode]
            expected = "unscored" if value is None else f"s{sum(value > edge for edge in between)}"
            assert name == expected, (mode, i)
        legends.add(visit.page.inner_text("#token-legend"))
        assert visit.page.locator("#token-legend li").count() == 9
    visit.page.check("input[value=change]")
    visit.page.locator(".t").nth(9).hover()
    change = float(told(visit, "change"))
    name = visit.page.locator(".t").nth(9).get_attribute("class")
    assert f"d{sum(change > edge for edge in [-4, -2, -1, -0.25, 0.25, 1, 2, 4])}" in str(name)
    assert len(legends) == 4


def test_two_runs_begin_with_the_change(open_page: Visitor, path: Path, view: TokenView) -> None:
    """Next goes to the token whose loss has grown most."""
    page = open_page(path).page
    page.wait_for_selector(".t")
    assert page.is_checked("input[value=change]")
    page.click("#token-next")
    assert page.inner_text("#token-mistake").startswith("Increase 1 of ")
    _, columns = unpacked(view)
    assert page.get_attribute("#token-panel", "data-token") == str(np.nanargmax(columns["nats_b"] - columns["nats_a"]))


def test_without_another_run_there_is_no_change(open_page: Visitor, scores: Scores, tmp_path: Path) -> None:
    visit = opened(open_page, write_page(token_view(scores), tmp_path / "one.html"))
    assert visit.page.locator("input[name=token-mode]").count() == 4
    visit.page.locator(".t").nth(9).hover()
    assert "Against the other run" not in visit.page.inner_text("#token-panel")


def test_alternatives_without_a_text_are_ids(
    open_page: Visitor, scores: Scores, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in runs of earlier versions. The token itself is known."""
    monkeypatch.setattr("cynosure.reporting.tokens.view.texts", lambda _, ids: ids.tolist())
    visit = opened(open_page, write_page(token_view(scores), tmp_path / "ids.html"))
    at = next(i for i, row in enumerate(rows) if row["rank"] and row["token_id"] in row["top_ids"])
    follow(visit, at)
    names = visit.page.locator(".token-name").all_text_contents()
    expected = [f"#{id_}" for id_ in rows[at]["top_ids"]]
    expected[rows[at]["top_ids"].index(rows[at]["token_id"])] = visit.page.text_content("#token-panel .token-title")
    assert names == expected


def test_spaces_and_line_ends_on_demand(open_page: Visitor, path: Path) -> None:
    visit = opened(open_page, path)
    assert visit.page.text_content(".token-chunk").startswith("firstthe cat")
    visit.page.check("#token-spaces")
    shown = visit.page.inner_text(".token-chunk").replace("\u200b", "")
    assert shown.partition("first")[2].lstrip().startswith("the·cat·saw·the·thé.⏎\nthe·end⏎\n⏎\n")
    visit.page.uncheck("#token-spaces")
    assert "⏎" not in visit.page.inner_text(".token-chunk")


def test_a_character_of_several_tokens(open_page: Visitor, path: Path, rows: list[dict[str, Any]]) -> None:
    """It is shown once, on the token with its first byte; the others are empty, and say so."""
    visit = opened(open_page, path)
    first = next(i for i, row in enumerate(rows) if row["token_bytes"] == b"\xf0")
    follow(visit, first)
    token = visit.page.locator(".t.now")
    assert token.text_content() == "👩"
    assert "inside a character" in visit.page.inner_text("#token-panel")
    token.focus()
    visit.page.keyboard.press("ArrowRight")
    assert visit.page.locator(".t.now").text_content() == ""
    assert "the rest of a character" in visit.page.inner_text("#token-panel")
    assert told(visit, "bytes") == "9f"


@pytest.mark.parametrize("bypass_csp", [False, True])
def test_hostile_text_is_shown_and_does_not_run(open_page: Visitor, path: Path, bypass_csp: bool) -> None:
    visit = opened(open_page, path, bypass_csp=bypass_csp)
    visit.page.select_option("#token-document", index=1)
    visit.page.wait_for_function("document.querySelectorAll('.token-head').length > 0")
    text = visit.page.text_content("#token-text")
    assert "</script><script>window.hacked = 1; alert(1)</script><img src=x onerror=hacked=1>" in text
    assert "\\x00\\x1b[2J\\u202eevil\\u2066 e\u0301 " in text
    assert "\ufffd&amp;<!--{{ 7*7 }}" in text
    assert not {c for c in text if not c.isprintable()} - {"\n"}
    assert not visit.page.evaluate("'hacked' in window")
    assert visit.page.locator("#tokens script, #tokens img").count() == 0
    isolated = visit.page.eval_on_selector_all(
        ".t", "all => all.every(e => getComputedStyle(e).unicodeBidi === 'isolate')"
    )
    assert isolated


@pytest.mark.parametrize("bypass_csp", [False, True])
def test_a_token_of_markup_does_not_run(
    open_page: Visitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bypass_csp: bool
) -> None:
    """A whole tag in each token and in each alternative."""
    markup = "<img src=x onerror=hacked=1><script>hacked=1</script>" + "x" * 5_000
    scores = cynosure.score(tiny(), [Document(markup, "the cat saw the end")], keep=True)
    assert scores.tables is not None
    (table,) = scores.tables
    pieces = pa.array([f"{markup}{'' if i % 2 else BIDI}".encode() for i in range(len(table))], pa.binary())
    scores.tables = [table.set_column(table.column_names.index("token_bytes"), "token_bytes", pieces)]
    monkeypatch.setattr("cynosure.reporting.tokens.view.texts", lambda _, ids: [markup] * len(ids))
    visit = opened(
        open_page, write_page(token_view(scores), tmp_path / "markup.html"), width=390, bypass_csp=bypass_csp
    )
    for marked in (False, True):
        visit.page.set_checked("#token-spaces", marked)
        for i in range(3):
            visit.page.locator(".t").nth(i).hover()
            assert visit.page.inner_text("#token-panel").count("onerror=hacked=1><script>") >= 3
    assert visit.too_wide() == []
    assert sideways(visit) <= 0
    assert visit.page.locator(".t").first.text_content().replace("·\u200b", " ") == visible(markup + BIDI)
    assert visit.page.locator("#tokens img, #tokens script").count() == 0
    assert not visit.page.evaluate("'hacked' in window")


@pytest.mark.parametrize(("text", "direction"), [("שלום עולם " * 9, -1), ("the cat saw " * 9, 1)])
def test_text_runs_in_the_direction_of_its_script(
    open_page: Visitor, tmp_path: Path, text: str, direction: int
) -> None:
    scores = cynosure.score(tiny(), [text], keep=True)
    visit = opened(open_page, write_page(token_view(scores), tmp_path / "tokens.html"))
    left = visit.page.eval_on_selector_all(
        "#token-text .t", "all => all.filter(e => e.textContent.trim()).map(e => e.getBoundingClientRect().left)"
    )
    assert direction * (left[2] - left[0]) > 0


def test_all_of_the_text_is_there(open_page: Visitor, path: Path, rows: list[dict[str, Any]]) -> None:
    """Scrolled from end to end the view shows each token, with a part of them in the document at a time."""
    text, most = opened(open_page, path).page.evaluate(SCROLLED)
    assert text == "".join(c if c == "\n" else visible(c) for c in TEXT.replace("\r\n", "\n"))
    assert 0 < most < len(rows) / 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_every_tint(open_page: Visitor, path: Path, scheme: str) -> None:
    visit = opened(open_page, path, color_scheme=scheme)
    for mode in ("nll", "change"):
        visit.page.check(f"input[value={mode}]")
        contrasts = visit.page.evaluate(CONTRAST)
        assert len(contrasts) == 9
        assert min(contrasts) >= 4.5


@pytest.mark.parametrize("width", [390, 1600])
def test_nothing_is_too_wide(open_page: Visitor, path: Path, width: int) -> None:
    visit = opened(open_page, path, width=width)
    for document in range(3):
        visit.page.select_option("#token-document", index=document)
        visit.page.check("#token-spaces")
        visit.page.check("input[value=change]")
        assert visit.too_wide() == []
    assert visit.page.evaluate(
        "document.getElementById('token-text').scrollWidth <= document.getElementById('token-text').clientWidth"
    )


def test_print(open_page: Visitor, path: Path) -> None:
    visit = opened(open_page, path)
    visit.set_media(media="print")
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert visit.page.inner_text("#token-printed").startswith("Printed: tokens 1 to ")
    assert not visit.page.locator("#token-panel").is_visible()
    style = visit.page.eval_on_selector(".t", "e => getComputedStyle(e).printColorAdjust")
    height, content = visit.page.eval_on_selector("#token-text", "e => [e.clientHeight, e.scrollHeight]")
    assert (style, height) == ("exact", content)
    visit.page.evaluate("dispatchEvent(new Event('afterprint'))")
    visit.set_media(media="screen")
    assert visit.page.locator(".token-unprinted").count() == 0


def test_axe_finds_nothing_serious(open_page: Visitor, path: Path) -> None:
    visit = opened(open_page, path, bypass_csp=True)
    visit.page.locator(".t").nth(9).click()
    assert visit.violations() == []
