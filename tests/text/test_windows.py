"""Windows score every token once or leave it out by rule, with the context they promise and never more."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cynosure.text import PROTOCOLS, Window, check_protocol
from cynosure.text.windows import led_windows, strided_windows


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, int, int]:
    window = draw(st.integers(3, 40))
    return draw(st.integers(0, 200)), window, draw(st.integers(1, window))


def scored(windows: list[Window]) -> list[int]:
    return [i for w in windows for i in range(w.score_start, w.see_stop + 1)]


@given(st.sampled_from(sorted(PROTOCOLS)), cuts())
def test_windows_see_no_more_than_they_may_and_score_nothing_twice(name: str, cut: tuple[int, int, int]) -> None:
    n, window, stride = cut
    windows = list(PROTOCOLS[name].cut(n, window, stride))
    for w in windows:
        assert 0 <= w.see_start < w.score_start <= w.see_stop < n
        assert w.n_seen <= window
        assert w.n_scored == w.see_stop + 1 - w.score_start > 0
    assert scored(windows) == sorted(set(scored(windows)))


@given(cuts(), st.integers(1, 60))
def test_led_windows_score_all_that_is_not_given(cut: tuple[int, int, int], first: int) -> None:
    n, window, stride = cut
    windows = list(led_windows(n, window, stride, first))
    assert scored(windows) == list(range(first, n))
    for i, w in enumerate(windows):
        if i == 0 and first <= window:
            assert w.see_start == 0
        else:
            assert w.n_scored <= stride
            assert w.score_start - w.see_start >= window - stride + 1


@given(cuts())
def test_strided_scores_all_but_first_tokens(cut: tuple[int, int, int]) -> None:
    n, window, stride = cut
    begins = [*range(0, max(1, n - window + stride), stride)] if stride == window else [0]
    left_out = {begin for begin in begins if begin < n}
    assert scored(list(strided_windows(n, window, stride))) == [i for i in range(n) if i not in left_out]


def test_strided_windows_as_the_page_prints_them() -> None:
    n, window, stride = 1000, 128, 50
    expected, previous = [], 0
    for begin in range(0, n, stride):
        end = min(begin + window, n)
        labels = [-100 if i < end - (end - previous) else i for i in range(begin, end)]
        expected.append((begin, end, [label for label in labels[1:] if label != -100]))  # the model shifts them
        previous = end
        if end == n:
            break
    ours = [
        (w.see_start, w.see_stop + 1, [*range(w.score_start, w.see_stop + 1)])
        for w in strided_windows(n, window, stride)
    ]
    assert ours == expected


@given(st.integers(0, 300), st.integers(3, 40))
def test_disjoint_windows_leave_out_what_they_say(n: int, window: int) -> None:
    chunks = n // window
    halves = scored(list(PROTOCOLS["llama-cpp"].cut(n, window, window)))
    assert halves == [c * window + i for c in range(chunks) for i in range(window // 2 + 1, window)]
    assert len(halves) == chunks * (window - window // 2 - 1)
    blocks = scored(list(PROTOCOLS["blocks"].cut(n, window, window)))
    assert blocks == [c * window + i for c in range(chunks) for i in range(1, window)]


def test_llama_cpp_scores_255_tokens_of_512() -> None:
    windows = list(PROTOCOLS["llama-cpp"].cut(1300, PROTOCOLS["llama-cpp"].window, 512))
    assert [w.n_scored for w in windows] == [255, 255]
    assert [w.score_start - w.see_start for w in windows] == [257, 257]


def test_a_short_document_is_one_window() -> None:
    assert list(led_windows(5, 8, 4)) == [Window(0, 4, 1)]
    assert list(led_windows(9, 8, 4)) == [Window(0, 8, 1)]
    assert list(led_windows(10, 8, 4)) == [Window(0, 8, 1), Window(1, 9, 9)]


def test_every_protocol_tells_where_it_comes_from_and_how_it_differs() -> None:
    assert list(PROTOCOLS) == ["sliding", "rolling", "strided", "strided-legacy", "llama-cpp", "blocks"]
    assert {name: rules.window for name, rules in PROTOCOLS.items() if rules.window != 1024} == {
        "llama-cpp": 512,
        "blocks": 2048,
    }
    assert all(rules.peer and rules.differs and math.isfinite(rules.least) for rules in PROTOCOLS.values())


@pytest.mark.parametrize(
    ("protocol", "window", "stride", "expected"),
    [
        ("sliding", 1024, None, 512),
        ("sliding", 1, None, 1),
        ("sliding", 8, 3, 3),
        ("rolling", 1024, None, 1024),
        ("strided", 1024, None, 512),
        ("strided-legacy", 8, 8, 8),
        ("blocks", 2048, None, 2048),
    ],
)
def test_strides(protocol: str, window: int, stride: int | None, expected: int) -> None:
    assert check_protocol(protocol, window, stride) == expected


@pytest.mark.parametrize(
    ("protocol", "window", "stride", "message"),
    [
        (
            "rolled",
            8,
            None,
            "unknown protocol 'rolled': expected one of sliding, rolling, strided, strided-legacy, llama-cpp",
        ),
        ("sliding", 0, None, "window must be at least 1 for sliding, got 0"),
        ("blocks", 1, None, "window must be at least 2 for blocks, got 1"),
        ("llama-cpp", 2, None, "window must be at least 3 for llama-cpp, got 2"),
        ("sliding", 8, 9, "stride must be from 1 to the window, 8, got 9"),
        ("strided", 8, 0, "stride must be from 1 to the window, 8, got 0"),
        ("rolling", 8, 4, "the stride of rolling is always its window, 8"),
    ],
)
def test_what_makes_no_sense(protocol: str, window: int, stride: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_protocol(protocol, window, stride)
