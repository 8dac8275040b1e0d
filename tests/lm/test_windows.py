"""Windows cover every token once, with the context they promise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cynosure.text import Window, check_protocol, windows


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, int, int]:
    window = draw(st.integers(1, 40))
    return draw(st.integers(0, 200)), window, draw(st.integers(1, window))


@given(cuts())
def test_every_token_but_the_first_is_scored_once(cut: tuple[int, int, int]) -> None:
    n, window, stride = cut
    scored = [i for w in windows(n, window, stride) for i in range(w.score_start, w.see_stop + 1)]
    assert scored == list(range(1, n))


@given(cuts())
def test_windows_fit_and_give_the_promised_context(cut: tuple[int, int, int]) -> None:
    n, window, stride = cut
    for i, w in enumerate(windows(n, window, stride)):
        assert 0 <= w.see_start < w.score_start <= w.see_stop < n
        assert w.n_seen <= window
        assert w.n_scored == w.see_stop + 1 - w.score_start
        if i == 0:
            assert w.see_start == 0
        else:
            assert w.n_scored <= stride
            assert w.score_start - w.see_start >= window - stride + 1


def test_a_short_document_is_one_window() -> None:
    assert list(windows(5, 8, 4)) == [Window(0, 4, 1)]
    assert list(windows(9, 8, 4)) == [Window(0, 8, 1)]
    assert list(windows(10, 8, 4)) == [Window(0, 8, 1), Window(1, 9, 9)]


@pytest.mark.parametrize(
    ("protocol", "window", "stride", "expected"),
    [("sliding", 1024, None, 512), ("sliding", 1, None, 1), ("sliding", 8, 3, 3), ("rolling", 1024, None, 1024)],
)
def test_strides(protocol: str, window: int, stride: int | None, expected: int) -> None:
    assert check_protocol(protocol, window, stride) == expected


@pytest.mark.parametrize(
    ("protocol", "window", "stride", "message"),
    [
        ("rolled", 8, None, "unknown protocol 'rolled': there is sliding, rolling"),
        ("sliding", 0, None, "window must be at least 1, got 0"),
        ("sliding", 8, 9, "stride must be from 1 to the window, 8, got 9"),
        ("sliding", 8, 0, "stride must be from 1 to the window, 8, got 0"),
        ("rolling", 8, 4, "rolling has no stride but its window, 8"),
    ],
)
def test_what_makes_no_sense(protocol: str, window: int, stride: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_protocol(protocol, window, stride)
