"""Cut texts into scoring windows: which tokens the model sees, and which it is scored on, under each protocol."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

SEPARATOR = "\n\n"  # between documents where a protocol joins them


class DoesNotApply(ValueError):
    """The protocol does not apply to these texts or this model, though others may."""


class Window(NamedTuple):
    """The model sees x[see_start:see_stop] and is scored on x[score_start:see_stop + 1], half-open."""

    see_start: int
    see_stop: int
    score_start: int

    @property
    def n_seen(self) -> int:
        return self.see_stop - self.see_start

    @property
    def n_scored(self) -> int:
        return self.see_stop + 1 - self.score_start


Cut = Callable[..., Iterator[Window]]


class Protocol(NamedTuple):
    """How a text x becomes windows."""

    name: str
    peer: str  # the tool that prints the same number
    differs: str  # from the other protocols, in one sentence
    cut: Cut  # cut(n_tokens, window, stride) yields the windows in the order of the tokens they score
    window: int  # default
    led: bool = False  # x is BOS (else EOS) and a document's tokens; if False, x is what the tokenizer itself returns
    joined: bool = False  # the documents are joined into one text
    overwrites: bool = False  # a BOS that the tokenizer adds replaces the first token of each window
    parses: bool = False  # by default, strings that are special tokens are read as those tokens
    unscored: str = "first of window"  # why the tokens before a window's scored ones are left out
    least: int = 1  # minimum number of windows
    alone: bool = False  # takes only one document
    strides: bool = False  # has a stride


def led_windows(n_positions: int, window: int, stride: int, first: int = 1) -> Iterator[Window]:
    """Cut x, which has `n_positions` tokens, into windows of at most `window` tokens.

    The tokens before x[first] are given; every other token is scored exactly once. The first window scores as many as
    it can. Each later one scores the next `stride` tokens, with at least window - stride + 1 tokens before each.

    >>> list(led_windows(8, 4, 2))
    [Window(see_start=0, see_stop=4, score_start=1), Window(see_start=2, see_stop=6, score_start=5), \
Window(see_start=3, see_stop=7, score_start=7)]
    """
    done = first
    if first <= window:
        done = min(window + 1, n_positions)
        if done > first:
            yield Window(0, done - 1, first)
    while done < n_positions:
        n = min(stride, n_positions - done)
        stop = done + n - 1
        yield Window(stop - window, stop, done)
        done += n


def strided_windows(n_tokens: int, window: int, stride: int) -> Iterator[Window]:
    """Begin a window every `stride` tokens; it scores what no earlier window has scored, except its first token.

    >>> list(strided_windows(6, 4, 2))
    [Window(see_start=0, see_stop=3, score_start=1), Window(see_start=2, see_stop=5, score_start=4)]
    """
    done = 0
    for begin in range(0, n_tokens, stride):
        end = min(begin + window, n_tokens)
        cut = Window(begin, end - 1, max(done, begin + 1))
        if cut.n_scored > 0:
            yield cut
        done = end
        if end == n_tokens:
            return


def half_windows(n_tokens: int, window: int, stride: int) -> Iterator[Window]:
    """Cut disjoint windows and score the second half of each, except its first token; drop the tail.

    >>> list(half_windows(9, 4, 4))
    [Window(see_start=0, see_stop=3, score_start=3), Window(see_start=4, see_stop=7, score_start=7)]
    """
    for begin in range(0, n_tokens - window + 1, window):
        yield Window(begin, begin + window - 1, begin + window // 2 + 1)


def block_windows(n_tokens: int, window: int, stride: int) -> Iterator[Window]:
    """Cut disjoint windows and score all of each except its first token; drop the tail.

    >>> list(block_windows(9, 4, 4))
    [Window(see_start=0, see_stop=3, score_start=1), Window(see_start=4, see_stop=7, score_start=5)]
    """
    for begin in range(0, n_tokens - window + 1, window):
        yield Window(begin, begin + window - 1, begin + 1)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "sliding",
            "cynosure's own",
            "every token is scored, all but the first window's with at least window - stride + 1 tokens before them",
            led_windows,
            1024,
            led=True,
            strides=True,
            unscored="first of document: neither BOS nor EOS stands before it",
        ),
        Protocol(
            "rolling",
            "lm-evaluation-harness, loglikelihood_rolling",
            "windows meet without overlap, so the tokens after each seam are guessed from almost nothing",
            led_windows,
            1024,
            led=True,
            parses=True,
        ),
        Protocol(
            "strided",
            "Hugging Face's perplexity page, counted right",
            "documents are one text, of which the first token (with stride = window each window's) is never scored",
            strided_windows,
            1024,
            joined=True,
            parses=True,
            strides=True,
        ),
        Protocol(
            "strided-legacy",
            "Hugging Face's perplexity page, as printed",
            "the page weighs the mean of each window after the first by one token too few, so the first weighs more",
            strided_windows,
            1024,
            joined=True,
            parses=True,
            strides=True,
        ),
        Protocol(
            "llama-cpp",
            "llama.cpp's llama-perplexity",
            "only the second half of each window counts, so every token has half a window of context",
            half_windows,
            512,
            joined=True,
            overwrites=True,
            unscored="unscored half",
            least=2,
            alone=True,
        ),
        Protocol(
            "blocks",
            "GPTQ and most papers on quantisation",
            "one text in disjoint windows: short contexts are as frequent as long ones, and the tail is dropped",
            block_windows,
            2048,
            joined=True,
            parses=True,
        ),
    )
}


def check_protocol(protocol: str, window: int, stride: int | None) -> int:
    """Return the stride of a protocol. Raise ValueError if the window or the stride does not fit it."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    least = 1 if PROTOCOLS[protocol].led else 2
    if protocol == "llama-cpp":
        least = 3  # the second half of two positions has none to score
    if window < least:
        raise ValueError(f"window must be at least {least} for {protocol}, got {window}")
    if not PROTOCOLS[protocol].strides:
        if stride not in (None, window):
            raise ValueError(f"the stride of {protocol} is always its window, {window}: leave it out, or use sliding")
        return window
    if stride is None:
        return max(1, window // 2)
    if not 1 <= stride <= window:
        raise ValueError(f"stride must be from 1 to the window, {window}, got {stride}")
    return stride
