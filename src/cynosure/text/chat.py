"""Tokenize chats: the bytes of the messages that each token covers, and which tokens to predict."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.text.calling import call
from cynosure.text.carried import Carried
from cynosure.text.documents import Document
from cynosure.text.messages import Message, counts
from cynosure.text.special import special_strings, strings_of
from cynosure.text.template import Span, Written, written
from cynosure.text.tokens import Ints, Own, Tokens, account, begins_character, encode_whole

COUNTED, OTHER_TURN, TEMPLATE = range(3)  # where a token belongs

Bools = NDArray[np.bool_]


class Turns(NamedTuple):
    """The N tokens of a chat as its template writes it."""

    text: str  # the texts of the messages, end to end
    tokens: Tokens  # they cover the bytes of `text`; tokens of the template cover none
    kinds: NDArray[np.int8]  # (N,): COUNTED, OTHER_TURN or TEMPLATE
    ends: Bools  # (N,): the token ends a turn that counts


class TokenRun(NamedTuple):
    """One special token of a chat, or the tokens between two of them, with their characters `start` to `stop`."""

    own: Own
    start: int
    stop: int

    @property
    def lost(self) -> Bools:
        """Which tokens lose some of their text."""
        account = self.own.account
        return np.zeros(len(self.own.ids), np.bool_) if account is None else account.lost

    def extents(self, edges: Ints) -> tuple[Ints, Ints]:
        """Return where each token begins and ends, in bytes; `edges` are the byte offsets of the chat's characters."""
        if (account := self.own.account) is not None:
            stops = edges[self.start] + account.stops
            return np.append(edges[self.start], stops[:-1])[: len(stops)], stops
        if self.own.spans is None and len(self.own.ids):
            raise ValueError(f"the turns of a chat cannot be separated: {self.own.drift}")
        spans = self.start + (np.zeros((0, 2), np.int64) if self.own.spans is None else self.own.spans)
        return edges[spans[:, 0]], edges[spans[:, 1]]


def turns(
    tokenizer: Any, messages: Sequence[Message], tools: Any = None, *, chat: str = "assistant",
    parse_special: bool = False,
) -> Turns:  # fmt: skip
    """Tokenize a chat as the tokenizer's template writes it.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        messages: the messages of the chat.
        tools: the tools that the assistant may call, as the template takes them.
        chat: which turns count: `"assistant"`, or `"all"`.
        parse_special: read strings in a message that are special tokens as those tokens, not as text. The special
            tokens of the template are always read as tokens.

    Returns:
        The tokens, the bytes they cover, and which of them belong to turns that count.

    Raises:
        ValueError: the template refuses or rewrites the messages, or the tokens cannot be located in the chat.
    """
    whole = written(tokenizer, messages, tools)
    spoken = (whole.text[span.start : span.stop] for span in whole.said)
    strings = tuple(string for part in spoken for string in special_strings(tokenizer, part))
    runs = list(apart(tokenizer, whole) if strings and not parse_special else as_called(tokenizer, whole.text))
    counted = [span for span in whole.said if counts(messages[span.message], chat)]
    counting = {span.message for span in counted}
    return laid_out(whole, runs, counted, [span for span in whole.ends if span.message in counting], strings)


def turns_of(tokenizer: Any, document: Document, chat: str, *, parse_special: bool = False) -> Turns:
    """Tokenize a document that is a chat. Errors name the document."""
    try:
        return turns(tokenizer, document.messages or [], document.tools, chat=chat, parse_special=parse_special)
    except ValueError as error:
        raise ValueError(f"{document.name}: {error}") from error


def laid_out(
    whole: Written, runs: Sequence[TokenRun], counted: Sequence[Span], ended: Sequence[Span], strings: tuple[str, ...]
) -> Turns:
    """Map the spans that are said, that count and that end a turn to the tokens of the chat."""
    data = np.frombuffer(whole.text.encode(), np.uint8)
    edges = np.append(np.flatnonzero(begins_character(data.tobytes())), len(data))  # byte offsets of characters
    said = covered(edges, whole.said)
    extents = [run.extents(edges) for run in runs]
    starts, stops = (np.concatenate([np.zeros(0, np.int64), *parts]) for parts in zip(*extents, strict=True))
    n_said, n_counted, n_ended = (
        within(mask, starts, stops) for mask in (said, covered(edges, counted), covered(edges, ended))
    )
    kinds = np.where(n_counted > 0, COUNTED, np.where(n_said > 0, OTHER_TURN, TEMPLATE)).astype(np.int8)
    lost = np.concatenate([run.lost for run in runs]) & (n_said > 0)
    speaking = [run for run in runs if run.own.drift and said[edges[run.start] : edges[run.stop]].any()]
    unknown = [run for run in speaking if run.own.account is None]
    drift = next((run.own.drift for run in unknown or speaking), None) if unknown or lost.any() else None
    spelled = (piece for run in runs for piece in run.own.pieces)
    places = zip(starts.tolist(), stops.tolist(), lost.tolist(), spelled, strict=True)
    pieces = [
        spelling if gone or unknown else data[start:stop][said[start:stop]].tobytes()
        for start, stop, gone, spelling in places
    ]
    carried = None if unknown else Carried(np.cumsum(n_said), lost)
    tokens = Tokens(np.concatenate([run.own.ids for run in runs]), pieces, 0, drift, strings, carried)
    return Turns(data[said].tobytes().decode(), tokens, kinds, (n_ended > 0) & (kinds == TEMPLATE))


def covered(edges: Ints, spans: Sequence[Span]) -> Bools:
    """Return which bytes of a chat lie within these spans of characters."""
    mask = np.zeros(int(edges[-1]), np.bool_)
    for span in spans:
        mask[edges[span.start] : edges[span.stop]] = True
    return mask


def within(mask: Bools, starts: Ints, stops: Ints) -> Ints:
    """Count the bytes of the mask between each start and stop."""
    before: Ints = np.append(0, np.cumsum(mask))
    n_bytes: Ints = before[stops] - before[starts]
    return n_bytes


def as_called(tokenizer: Any, text: str) -> Iterator[TokenRun]:
    """Tokenize a chat in one call, special tokens included. A tokenizer without offsets yields a single run."""
    encoded = call(tokenizer, text, add_special_tokens=False, verbose=False)
    ids: list[int] = list(encoded.input_ids)
    if not tokenizer.is_fast:
        yield TokenRun(account(tokenizer, ids, text), 0, len(text))
        return
    spans = np.array(encoded.encodings[0].offsets, np.int64).reshape(-1, 2)
    known = strings_of(tokenizer).ids
    first = at = 0
    for place in (place for place, id_ in enumerate(ids) if id_ in known):
        start, stop = spans[place].tolist()
        if start > at or place > first:
            yield run(tokenizer, ids[first:place], text[at:start], spans[first:place], at)
        yield TokenRun(Own(np.array([ids[place]]), [text[start:stop].encode()], spells=True), start, stop)
        first, at = place + 1, stop
    if len(text) > at or len(ids) > first:
        yield run(tokenizer, ids[first:], text[at:], spans[first:], at)


def run(tokenizer: Any, ids: list[int], text: str, spans: Ints, at: int) -> TokenRun:
    """Account for the tokens of a text that begins at `at` in the chat; `spans` are offsets in the chat."""
    return TokenRun(account(tokenizer, ids, text, lambda: spans - at), at, at + len(text))


def apart(tokenizer: Any, whole: Written) -> Iterator[TokenRun]:
    """Tokenize a chat so that only the template's special tokens are read as special tokens.

    The text between two of them is tokenized by itself. Raises ValueError if the tokenizer itself reads chats
    differently.
    """
    bare = "a".join(unsaid(whole))
    ids = np.concatenate([run.own.ids for run in divided(tokenizer, Written(bare, [], []))])
    if ids.tolist() != list(call(tokenizer, bare, add_special_tokens=False, verbose=False).input_ids):
        raise ValueError(
            "a message contains a string that is a special token, and in a chat this tokenizer cannot read it as text: "
            "`special='parse'` reads it as that token"
        )
    yield from divided(tokenizer, whole)


def unsaid(whole: Written) -> Iterator[str]:
    """Yield what the template adds before, between and after the messages."""
    at = 0
    for span in whole.said:
        yield whole.text[at : span.start]
        at = span.stop
    yield whole.text[at:]


def divided(tokenizer: Any, whole: Written) -> Iterator[TokenRun]:
    """Yield the template's special tokens, and the tokens of the text between them."""
    at, text = 0, whole.text
    for start, string in strings_of(tokenizer).found(text):
        stop = start + len(string)
        if any(span.start < stop and start < span.stop for span in whole.said):
            continue
        if start > at:
            yield TokenRun(between(tokenizer, text[at:start]), at, start)
        id_ = tokenizer.convert_tokens_to_ids(string)
        yield TokenRun(Own(np.array([id_]), [string.encode()], spells=True), start, stop)
        at = stop
    if len(text) > at:
        yield TokenRun(between(tokenizer, text[at:]), at, len(text))


def between(tokenizer: Any, text: str) -> Own:
    return encode_whole(tokenizer, text, False, {"split_special_tokens": True})[1]
