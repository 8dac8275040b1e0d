"""Scoring windows: which tokens the model sees together, and which of them it is scored on."""

from collections.abc import Iterator
from typing import NamedTuple

PROTOCOLS = ("sliding", "rolling")


class Window(NamedTuple):
    """The model sees x[see_start:see_stop] and is scored on x[score_start:see_stop + 1], half-open.

    x is the document's tokens, led by a prefix token where the tokenizer has one.
    """

    see_start: int
    see_stop: int
    score_start: int

    @property
    def n_seen(self) -> int:
        return self.see_stop - self.see_start

    @property
    def n_scored(self) -> int:
        return self.see_stop + 1 - self.score_start


def check_protocol(protocol: str, window: int, stride: int | None) -> int:
    """The stride of a protocol for windows of `window` positions; ValueError for what makes no sense."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: there is {', '.join(PROTOCOLS)}")
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if protocol == "rolling":
        if stride not in (None, window):
            raise ValueError(f"rolling has no stride but its window, {window}: leave it out, or use sliding")
        return window
    if stride is None:
        return max(1, window // 2)
    if not 1 <= stride <= window:
        raise ValueError(f"stride must be from 1 to the window, {window}, got {stride}")
    return stride


def windows(n_positions: int, window: int, stride: int) -> Iterator[Window]:
    """Cut x, of `n_positions` tokens with its first never scored, into windows of at most `window` positions.

    The first window scores all it can; each later one scores the next `stride` tokens, with at least
    window - stride + 1 tokens before each of them. Every token but x[0] is scored exactly once.

    >>> list(windows(8, 4, 2))
    [Window(see_start=0, see_stop=4, score_start=1), Window(see_start=2, see_stop=6, score_start=5), \
Window(see_start=3, see_stop=7, score_start=7)]
    """
    done = min(window + 1, n_positions)
    if done > 1:
        yield Window(0, done - 1, 1)
    while done < n_positions:
        n = min(stride, n_positions - done)
        stop = done + n - 1
        yield Window(stop - window, stop, done)
        done += n
