"""The charts of a report: what they draw, and that they are left out where there is nothing to draw."""

import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from xml.etree import ElementTree

import pytest

from cynosure.reporting.charts.chart import Chart
from cynosure.reporting.charts.compare import compare_charts
from cynosure.reporting.charts.score import score_charts
from cynosure.reporting.charts.theme import COLOURS, png_file, svg, svg_file
from cynosure.reporting.charts.train import train_charts
from tests.reporting.values import INFINITE, comparison_values, score_values, training_lines

SCORE = [
    "loss-distribution", "loss-by-position", "loss-by-frequency", "loss-by-class", "loss-by-document", "reliability",
    "confidence", "temperature",
]  # fmt: skip
COMPARE = ["change-by-document", "change-by-class", "documents"]
TRAIN = ["loss", "bits-per-byte", "learning-rate", "gradient-norm", "throughput", "calibration"]


@cache
def every_chart() -> list[Chart]:
    return [*score_charts(score_values()), *compare_charts(comparison_values()), *train_charts(*training_lines())]


def chart(charts: list[Chart], name: str) -> Chart:
    return next(each for each in charts if each.name == name)


def texts(drawn: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]


def drawn_score(name: str, values: dict[str, Any]) -> str:
    return svg(chart(score_charts(values), name))


def test_all_charts_are_there_in_order() -> None:
    assert [each.name for each in every_chart()] == SCORE + COMPARE + TRAIN


@pytest.mark.parametrize("name", SCORE + COMPARE + TRAIN)
def test_the_page_gets_an_image_in_its_own_colours(name: str) -> None:
    each = chart(every_chart(), name)
    each.figure.to_dict()  # altair's own check of it
    drawn = svg(each)
    root = ElementTree.fromstring(drawn)
    assert root.get("role") == "img"
    assert root.get("aria-label") == each.title
    left, top, width, _height = map(float, (root.get("viewBox") or "").split())
    assert (left, top) == (0, 0)
    assert 395 <= width <= 405
    assert not {"width", "height"} & set(root.attrib)
    attributes = {name for element in root.iter() for name in element.attrib}
    assert not attributes & {"style", "id", "font-family", "href", "clip-path"}
    assert not re.search(r"#[0-9a-f]{3}|rgb|NaN|Infinity", drawn)
    used = set(re.findall(r"var\(--(\w+)\)", drawn))
    assert used
    assert used <= set(COLOURS)
    sizes = {
        float(element.attrib["font-size"].removesuffix("px"))
        for element in root.iter()
        if "font-size" in element.attrib
    }
    assert min(sizes) * 350 / width >= 11


@pytest.mark.parametrize("name", SCORE + COMPARE + TRAIN)
def test_a_chart_says_what_it_is_and_has_a_table(name: str) -> None:
    each = chart(every_chart(), name)
    assert each.caption.endswith(".")
    assert len(each.caption) > 40
    assert each.rows
    assert all(isinstance(x, str | int | float | None) for row in each.rows for x in row.values())


def test_files_have_real_colours_on_paper() -> None:
    each = chart(every_chart(), "reliability")
    drawn = svg_file(each)
    assert "var(" not in drawn
    assert COLOURS["accent"] in drawn
    assert re.match(rf'<svg [^>]*width="400"[^>]*><rect [^>]*fill="{COLOURS["paper"]}"', drawn)
    png = png_file(each)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(png[16:20], "big") == 1200


MISSING = {
    "loss-distribution": lambda values: values.pop("by_loss"),
    "loss-by-position": lambda values: values.pop("by_position"),
    "loss-by-frequency": lambda values: values.update(by_frequency=[]),
    "loss-by-class": lambda values: values.pop("by_class"),
    "loss-by-document": lambda values: values.update(by_document=values["by_document"][:1]),
    "reliability": lambda values: values["calibration"].update(bins=[]),
    "confidence": lambda values: values["calibration"].pop("confidence"),
    "temperature": lambda values: values["calibration"].pop("temperatures"),
}


@pytest.mark.parametrize("name", SCORE)
def test_a_chart_without_values_is_left_out(name: str) -> None:
    values = score_values()
    MISSING[name](values)
    assert [each.name for each in score_charts(values)] == [other for other in SCORE if other != name]


def test_nothing_known_draws_nothing() -> None:
    assert score_charts({"calibration": None}) == compare_charts({}) == train_charts([], []) == []


@pytest.mark.parametrize("value", INFINITE)
@pytest.mark.parametrize(
    ("charts", "values"), [(score_charts, score_values), (compare_charts, comparison_values)], ids=["score", "compare"]
)
def test_what_is_unknown_or_infinite_is_not_drawn(
    charts: Callable[[dict[str, Any]], list[Chart]], values: Callable[[], dict[str, Any]], value: float | None
) -> None:
    damaged = every_second(values(), value)
    for each in charts(damaged):
        assert not re.search("NaN|Infinity|null|undefined", svg(each)), each.name


@pytest.mark.parametrize("value", INFINITE)
def test_a_document_of_unknown_loss_is_neither_drawn_nor_listed(value: float | None) -> None:
    values = every_second(score_values(), value)
    assert {int(row["document"][-6:-4]) % 2 for row in chart(score_charts(values), "loss-by-document").rows} == {0}


def every_second(values: Any, value: float | None) -> Any:
    """Return the values with every fraction of every second row replaced."""
    if isinstance(values, dict):
        return {name: every_second(x, value) for name, x in values.items()}
    if isinstance(values, list) and values and isinstance(values[0], dict):
        return [
            {name: value if i % 2 and isinstance(x, float) else x for name, x in row.items()}
            for i, row in enumerate(values)
        ]
    return values


def test_loss_distribution_marks_half_of_the_nats() -> None:
    each = chart(score_charts(score_values()), "loss-distribution")
    assert len(each.rows) == 40  # up to the last bin with tokens
    assert each.rows[-1]["cumulative_share_of_nats"] == pytest.approx(1)
    # Losses evenly spread from 0 to 10 nats: the share grows as the square.
    assert f"half of the nats: below {10 / math.sqrt(2):.1f}" in texts(svg(each))


def test_the_costliest_documents_come_first() -> None:
    each = chart(score_charts(score_values()), "loss-by-document")
    names = [text for text in texts(svg(each)) if text.endswith(".txt")]
    assert names == [f"texts/{i:02}.txt" for i in range(59, 19, -1)] or names == [
        f"{i:02}.txt" for i in range(59, 19, -1)
    ]
    assert len(each.rows) == 59  # without the infinite one
    assert "The costliest 40 of 59 are drawn." in each.caption
    assert "all: 0.950" in texts(svg(each))


def test_documents_without_known_bytes_are_sorted_by_their_tokens() -> None:
    values = score_values()
    values["by_document"] = [
        row | {"bits_per_byte": None, "nats_per_token": 3 + i} for i, row in enumerate(values["by_document"][:3])
    ]
    each = chart(score_charts(values), "loss-by-document")
    assert [row["nats_per_token"] for row in each.rows] == [5, 4, 3]
    assert "nats per token" in texts(svg(each))


def test_a_hostile_name_is_shown_as_text() -> None:
    values = score_values()
    values["by_document"] = values["by_document"][:3]
    drawn = drawn_score("loss-by-document", values)
    assert "<img" not in drawn
    assert "</script" not in drawn
    assert "\u202e" not in drawn
    assert any(text.startswith("</script") for text in texts(drawn))
    assert any(
        text.startswith("</script") for text in texts(svg(chart(compare_charts(comparison_values()), "documents")))
    )


def test_the_lowest_temperature_is_marked() -> None:
    drawn = drawn_score("temperature", score_values())
    assert "lowest at 1.10" in texts(drawn)
    places = re.findall(r'translate\([\d.]+,([\d.]+)\)" d="[^"]*A[^"]*" fill="var\(--(accent|warm)\)"', drawn)
    assert [colour for _, colour in places].count("accent") == 5
    assert max(places, key=lambda place: float(place[0]))[1] == "warm"
    values = score_values()
    values["calibration"]["best_temperature"] = None
    assert not any("lowest" in text for text in texts(drawn_score("temperature", values)))


def test_old_runs_have_no_band_but_their_bins() -> None:
    values = score_values()
    whole = drawn_score("reliability", values)
    for row in values["calibration"]["bins"]:
        row.pop("accuracy_low")
    without = drawn_score("reliability", values)
    assert whole.count("<path") > without.count("<path")
    assert "accuracy: how often it is right" in texts(without)


def test_a_change_is_better_worse_or_may_be_chance() -> None:
    drawn = texts(svg(chart(compare_charts(comparison_values()), "change-by-document")))
    assert {"B is better", "B is worse", "may be chance"} <= set(drawn)
    assert "all: \N{MINUS SIGN}0.100" in drawn
    names = [text for text in drawn if text.endswith(".txt")]
    assert names == sorted(names, key=lambda name: int(name[-6:-4]))
    assert len(names) == 39  # and the hostile one


def test_a_kind_with_few_bytes_is_only_in_the_table() -> None:
    each = chart(compare_charts(comparison_values()), "change-by-class")
    drawn = texts(svg(each))
    assert "letters" in drawn
    assert "other" not in drawn
    assert "other" in [row["class"] for row in each.rows]


def test_the_documents_that_changed_most_are_named() -> None:
    drawn = texts(svg(chart(compare_charts(comparison_values()), "documents")))
    assert {"00.txt", "02.txt"} <= {text.rpartition("/")[2] for text in drawn}
    assert not any(text.endswith("30.txt") for text in drawn)


def test_curves_are_thinned_and_keep_the_last_step() -> None:
    steps, validations = training_lines()
    each = chart(train_charts(steps, validations), "loss")
    assert 400 <= len(each.rows) <= 504
    assert each.rows[-1] == {
        "tokens": 1024 * 1200, "loss": steps[-1]["loss"], "smoothed": steps[-1]["smoothed"],
        "held_out": validations[-1]["nats_per_token"]["value"], "held_out_low": 3.9, "held_out_high": 4.6,
    }  # fmt: skip
    assert {"training", "training, smoothed", "held out"} <= set(texts(svg(each)))


def test_a_training_without_validations_or_bytes_has_the_other_charts() -> None:
    steps = [line | {"bits_per_byte": None} for line in training_lines()[0]]
    charts = train_charts(steps, [])
    assert [each.name for each in charts] == ["loss", "learning-rate", "gradient-norm", "throughput"]
    assert "held out" not in texts(svg(charts[0]))


def test_no_speed_is_zero_without_a_unit() -> None:
    drawn = texts(svg(chart(train_charts(*training_lines()), "throughput")))
    assert "8k" in drawn
    assert "0" in drawn
    assert "0k" not in drawn


def test_one_vast_gradient_norm_makes_the_axis_logarithmic() -> None:
    steps, _ = training_lines()
    assert "gradient norm (logarithmic)" in texts(svg(chart(train_charts(steps, []), "gradient-norm")))
    calm = [line | {"grad_norm": 1.0 + line["step"] / 1200} for line in steps]
    assert "gradient norm" in texts(svg(chart(train_charts(calm, []), "gradient-norm")))


def test_calibration_is_that_of_the_first_and_the_last_validation() -> None:
    each = chart(train_charts(*training_lines()), "calibration")
    assert each.rows[0] == {"metric": "ece", "first": 10 / 300, "last": 10 / 1200}
    assert {"3.3% → 0.8%", "0.900 → 0.900", "0.0100 → 0.0100"} <= set(texts(svg(each)))


def documents(*places: tuple[float, float]) -> list[dict[str, Any]]:
    return [
        {
            "document": f"texts/{i:02}-of-some-length.txt",
            "bits_per_byte_a": a,
            "bits_per_byte_b": b,
            "difference": b - a,
        }
        for i, (a, b) in enumerate(places)
    ]


@pytest.mark.parametrize(
    ("n_names", "places"),
    [
        (3, [(1.0, 0.8), (1.0, 0.8), (1.0, 0.8), (0.7, 0.75)]),  # at one place
        (2, [(1.0, 0.70), (1.0, 0.71), (0.99, 0.7), (0.8, 0.8)]),  # in a corner with a note, where a third has no room
        (3, [(0.7, 1.0), (0.71, 1.0), (0.7, 0.99), (0.8, 0.8)]),
        (2, [(0.97, 0.92), (1.05, 0.95)]),
        (3, [(0.8 + i / 200, 0.75 + i / 200) for i in range(60)]),
    ],
)
def test_names_in_the_scatter_do_not_overlap(n_names: int, places: list[tuple[float, float]]) -> None:
    values = comparison_values() | {"by_document": documents(*places)}
    boxes = [
        box
        for box, text in boxes_of(svg(chart(compare_charts(values), "documents")))
        if "length" in text or ":" in text
    ]
    assert len(boxes) == n_names + 2  # with what the sides mean
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0
        assert right <= 400
        for other in boxes[:i]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def boxes_of(drawn: str) -> Iterator[tuple[tuple[float, float, float, float], str]]:
    """Yield (left, top, right, bottom) and text of each label, in the pixels of the image."""

    def walk(element: ElementTree.Element, x: float, y: float) -> Iterator[Any]:
        moved = re.match(r"translate\(([-\d.]+),([-\d.]+)\)", element.get("transform", ""))
        if moved:
            x, y = x + float(moved[1]), y + float(moved[2])
        if element.tag.endswith("text") and element.text:
            width = 5.9 * len(element.text)  # of an average character at 13 pixels
            left = x - width * {"end": 1, "middle": 0.5}.get(element.get("text-anchor", ""), 0)
            yield (left, y - 9, left + width, y + 2), element.text
        for child in element:
            yield from walk(child, x, y)

    return walk(ElementTree.fromstring(drawn), 0, 0)
