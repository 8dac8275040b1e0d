"""Gates: what they read, when they fail, and the files that a CI reads of them."""

import math
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from cynosure.cli.compare_report import markdown
from cynosure.measure.comparison.compare import compare
from cynosure.measure.comparison.comparison import UNKNOWN, Change, Comparison
from cynosure.measure.comparison.gate import Gate, Verdict, junit
from cynosure.measure.results.figures import Figure
from tests.measure.test_compare import made, random_runs, tokens_of


def changed(absolute: Figure, relative: Figure = UNKNOWN, **changes: Change) -> Comparison:
    """A comparison of which bits per byte have these changes."""
    one = Change(1.0, 1.0 + (absolute.value or 0), absolute, relative, 0.5)
    return replace(SOME, changes={"bits_per_byte": one, **changes})


SOME = compare(*random_runs(3))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bits_per_byte > +0.5%", ("bits_per_byte", ">", 0.005, True)),
        ("bits_per_byte>0.01", ("bits_per_byte", ">", 0.01, False)),
        ("  top1_accuracy  <  -1 % ", ("top1_accuracy", "<", -0.01, True)),
        ("nats_per_token < -.5e-2", ("nats_per_token", "<", -0.005, False)),
        ("token_perplexity > 3.%", ("token_perplexity", ">", 0.03, True)),
    ],
)
def test_a_gate_is_read(text: str, expected: tuple[Any, ...]) -> None:
    assert Gate.parse(text)[1:] == expected


@pytest.mark.parametrize(
    "text",
    ["", "bits_per_byte", "bits_per_byte > ", "bits_per_byte >= 1", "bits_per_byte > 1 %%", "bits_per_byte > 1 2",
     "bits_per_byte = 1", "bits_per_word > 1", "> 1", "bits_per_byte > nan", "bits_per_byte > inf", "1 > bits_per_byte",
     "bits_per_byte > 1% or top1_accuracy < 0"],
)  # fmt: skip
def test_what_is_no_gate_is_told_what_one_is(text: str) -> None:
    with pytest.raises(ValueError, match="is not a gate: a gate is METRIC > NUMBER or METRIC < NUMBER") as error:
        Gate.parse(text)
    for name in ("bits_per_byte", "nats_per_token", "token_perplexity", "top1_accuracy", "%"):
        assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_of_a_perplexity_only_the_ratio_is_judged() -> None:
    with pytest.raises(ValueError, match="only the ratio of perplexities has an interval, so give a percentage"):
        Gate.parse("token_perplexity > 0.5")


@pytest.mark.parametrize(
    ("text", "figure", "status"),
    [
        ("bits_per_byte > 0.5", Figure(0.8, 0.6, 1.0), "failed"),
        ("bits_per_byte > 0.5", Figure(0.8, 0.5, 1.0), "not proven"),  # the interval reaches the threshold
        ("bits_per_byte > 0.5", Figure(0.6, 0.2, 1.0), "not proven"),
        ("bits_per_byte > 0.5", Figure(0.5, 0.4, 0.6), "passed"),
        ("bits_per_byte > 0.5", Figure(0.4, 0.2, 0.9), "passed"),
        ("bits_per_byte > 0.5", Figure(-3.0, -4.0, -2.0), "passed"),
        ("bits_per_byte > 0.5", Figure(0.8), "not proven"),
        ("bits_per_byte > 0.5", Figure(0.4), "passed"),
        ("bits_per_byte < -0.5", Figure(-0.8, -1.0, -0.6), "failed"),
        ("bits_per_byte < -0.5", Figure(-0.8, -1.0, -0.5), "not proven"),
        ("bits_per_byte < -0.5", Figure(-0.4, -0.9, 0.1), "passed"),
        ("bits_per_byte < -0.5", Figure(0.8, 0.7, 0.9), "passed"),
    ],
)
def test_a_gate_fails_only_where_the_whole_interval_is_beyond(text: str, figure: Figure, status: str) -> None:
    assert Gate.parse(text).judge(changed(figure)).status == status
    share = text.replace("0.5", "50%")
    assert Gate.parse(share).judge(changed(Figure(9.0, 8.0, 10.0), figure)).status == status


def test_the_message_tells_the_figures() -> None:
    judged = Gate.parse("bits_per_byte > +0.5%").judge(changed(UNKNOWN, Figure(0.0081, 0.0062, 0.0101)))
    assert (
        judged.message == "bits_per_byte changes by +0.81% (95% +0.62% to +1.01%): all of the interval is above +0.5%"
    )
    judged = Gate.parse("bits_per_byte > +0.5%").judge(changed(UNKNOWN, Figure(0.0081, 0.0042, 0.0101)))
    assert judged.message.endswith("(95% +0.42% to +1.01%): above +0.5%, but not all of the interval is")


def test_real_runs_are_judged_by_their_intervals() -> None:
    """B needs 50% more than A in each of 40 documents, more or less."""
    text = b"abcdefgh" * 8
    a = made(*[tokens_of(text, 2.0, 1.0 + i / 40) for i in range(40)])
    b = made(*[tokens_of(text, 3.0, 1.5 + i / 40) for i in range(40)])
    found = compare(a, b)
    verdicts = {text: Gate.parse(text).judge(found).status for text in (
        "bits_per_byte > 40%", "bits_per_byte > 60%", "nats_per_token > 0.7", "nats_per_token > 0.8",
        "token_perplexity > 90%", "token_perplexity > 120%", "top1_accuracy < -1%", "bits_per_byte < -1%",
    )}  # fmt: skip
    assert [text for text, status in verdicts.items() if status == "failed"] == [
        "bits_per_byte > 40%", "nats_per_token > 0.7", "token_perplexity > 90%",
    ]  # fmt: skip


def test_figures_of_tokens_need_equal_tokens() -> None:
    with pytest.raises(ValueError, match="the tokens of A and B differ, and only bits_per_byte compares them"):
        Gate.parse("nats_per_token > 1%").judge(SOME)


def test_an_infinite_loss_fails_the_gate_of_its_side() -> None:
    a = tokens_of(b"abcdefgh" * 20, 2.0)
    b = [token._replace(nll=math.inf) if i == 3 else token for i, token in enumerate(a)]
    worse, better, both = (compare(made(x), made(y)) for x, y in ((a, b), (b, a), (b, b)))
    for more in ("bits_per_byte > 0.5%", "nats_per_token > 5", "token_perplexity > 1%"):
        less = more.replace(">", "<")
        assert Gate.parse(more).judge(worse).failed
        assert not Gate.parse(less).judge(worse).failed
        assert Gate.parse(less).judge(better).failed
        assert not Gate.parse(more).judge(better).failed
        assert Gate.parse(more).judge(both).status == "not proven"


def test_a_share_of_nothing_is_not_proven() -> None:
    none, some = (made([token._replace(argmax=argmax) for token in tokens_of(b"a" * 200, 1.0)]) for argmax in (9, 3))
    judged = Gate.parse("top1_accuracy > 1%").judge(compare(none, some))
    assert (judged.status, judged.message) == (
        "not proven",
        "top1_accuracy is 0 in A, so there is no change relative to A",
    )


VERDICTS = [
    Verdict(Gate.parse("bits_per_byte > 1%"), "failed", "it changes by +2% | so"),
    Verdict(Gate.parse("bits_per_byte < -9%"), "not proven", "it may <be> & \"may\" not"),
    Verdict(Gate.parse("bits_per_byte > 3%"), "passed", "it does not"),
]  # fmt: skip


def test_junit_has_a_test_case_for_each_gate() -> None:
    root = ElementTree.fromstring(junit(VERDICTS))
    assert root.tag == "testsuites"
    (suite,) = root
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3", "failures": "1", "errors": "0", "skipped": "0",
    }  # fmt: skip
    assert [case.get("name") for case in suite.iter("testcase")] == [verdict.gate.text for verdict in VERDICTS]
    assert all(case.get("classname") for case in suite)
    assert [[part.tag for part in case] for case in suite] == [["failure"], ["system-out"], ["system-out"]]
    assert suite[0][0].get("message") == "it changes by +2% | so"
    assert suite[1][0].text == "not proven: it may <be> & \"may\" not"  # fmt: skip


def tables_of(text: str) -> list[list[list[str]]]:
    """The rows of every table in a Markdown text, as a parser finds them."""
    found: list[list[list[str]]] = []
    cell = False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open", "th_close", "td_close"):
            cell = token.type.endswith("open")
        elif token.type == "inline" and cell:
            found[-1][-1].append("".join(part.content for part in token.children or []))
    return found


def test_markdown_has_the_figures_and_the_gates() -> None:
    a = [token._replace(argmax=3) for token in tokens_of(b"abcd" * 90, 1.0)]
    found = compare(made(a), made([token._replace(nll=1.5) for token in a], model="strange `|` name"))
    text = markdown(found, VERDICTS)
    figures, gates = tables_of(text)
    assert figures[0][1:4] == ["A", "B", "B - A"]
    assert [row[0] for row in figures[1:]] == ["bits per byte", "nats per token", "token perplexity", "top-1 accuracy"]
    assert figures[2][1:6] == ["1.0000", "1.5000", "+0.5000", "+0.5000 to +0.5000", "+50.00%"]
    assert {len(row) for row in figures} == {8}
    assert [row[:2] for row in gates[1:]] == [[v.gate.text, v.status] for v in VERDICTS]
    assert gates[1][2] == "it changes by +2% | so"
    assert text.startswith("**B needs 50.00% more bits than A. 1 of 3 gates failed.**\n")
    assert all(note in text for note in found.notes)
    assert len(tables_of(markdown(found, []))) == 1


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (Figure(0.1, 0.05, 0.2), "B needs 10.00% more bits than A."),
        (Figure(-0.1, -0.2, -0.05), "B needs 10.00% fewer bits than A."),
        (Figure(0.0, 0.0, 0.0), "A and B are equally good, everywhere."),
        (Figure(0.1, -0.05, 0.2), "No difference is proven."),
        (Figure(0.1), "There is too little text to tell which is better."),
    ],
)
def test_the_conclusion_goes_no_further_than_the_interval(figure: Figure, expected: str) -> None:
    assert expected in markdown(changed(figure, figure), [])
