"""The tokens of a chat, the bytes of what is said that each one covers, and which of them are to be predicted."""

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

COUNTED, OTHER_TURN, TEMPLATE = range(3)  # what a token is of

Bools = NDArray[np.bool_]


class Turns(NamedTuple):
    """The tokens of a chat as its template writes it.

    `text` is what the messages say, end to end; the tokens cover its bytes, those of the template none. `kinds` (N,)
    says what each token is of, and `ends` (N,) which ones end a turn that counts.
    """

    text: str
    tokens: Tokens
    kinds: NDArray[np.int8]
    ends: Bools


class TokenRun(NamedTuple):
    """Neighbouring tokens of a chat, between special tokens or one of these, and their characters in it."""

    own: Own
    start: int
    stop: int

    @property
    def lost(self) -> Bools:
        """Which tokens do not carry their text."""
        account = self.own.account
        return np.zeros(len(self.own.ids), np.bool_) if account is None else account.lost

    def extents(self, edges: Ints) -> tuple[Ints, Ints]:
        """Where each token begins and ends, in bytes; `edges` are those of the chat's characters."""
        if (account := self.own.account) is not None:
            stops = edges[self.start] + account.stops
            return np.append(edges[self.start], stops[:-1])[: len(stops)], stops
        if self.own.spans is None and len(self.own.ids):
            raise ValueError(f"the turns of a chat cannot be told apart: {self.own.drift}")
        spans = self.start + (np.zeros((0, 2), np.int64) if self.own.spans is None else self.own.spans)
        return edges[spans[:, 0]], edges[spans[:, 1]]


def turns(
    tokenizer: Any, messages: Sequence[Message], tools: Any = None, *, chat: str = "assistant",
    parse_special: bool = False,
) -> Turns:  # fmt: skip
    """The tokens of a chat; the turns that count are the assistant's, or with `chat="all"` everybody's.

    The template's own special tokens are read as such; strings in a message that are special tokens are the characters
    they are, or with `parse_special` those tokens. Raises ValueError as `written` does, and where it cannot be told
    which token is where.
    """
    whole = written(tokenizer, messages, tools)
    spoken = (whole.text[span.start : span.stop] for span in whole.said)
    strings = tuple(string for part in spoken for string in special_strings(tokenizer, part))
    runs = list(apart(tokenizer, whole) if strings and not parse_special else as_called(tokenizer, whole.text))
    counted = [span for span in whole.said if counts(messages[span.message], chat)]
    counting = {span.message for span in counted}
    return laid_out(whole, runs, counted, [span for span in whole.ends if span.message in counting], strings)


def turns_of(tokenizer: Any, document: Document, chat: str, *, parse_special: bool = False) -> Turns:
    """The same of a document that is a chat, which errors name."""
    try:
        return turns(tokenizer, document.messages or [], document.tools, chat=chat, parse_special=parse_special)
    except ValueError as error:
        raise ValueError(f"{document.name}: {error}") from error


def laid_out(
    whole: Written, runs: Sequence[TokenRun], counted: Sequence[Span], ended: Sequence[Span], strings: tuple[str, ...]
) -> Turns:
    """What is said, what of it counts and what ends it, laid over the tokens."""
    data = np.frombuffer(whole.text.encode(), np.uint8)
    edges = np.append(np.flatnonzero(begins_character(data.tobytes())), len(data))  # of characters, in bytes
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
    """Which bytes of a chat these spans of characters hold."""
    mask = np.zeros(int(edges[-1]), np.bool_)
    for span in spans:
        mask[edges[span.start] : edges[span.stop]] = True
    return mask


def within(mask: Bools, starts: Ints, stops: Ints) -> Ints:
    """How many bytes of the mask are between each start and stop."""
    before: Ints = np.append(0, np.cumsum(mask))
    found: Ints = before[stops] - before[starts]
    return found


def as_called(tokenizer: Any, text: str) -> Iterator[TokenRun]:
    """The tokens of a chat in the tokenizer's own call; without offsets in one run."""
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
    """The tokens that stand between special tokens, of the text from `at` on; `spans` are in the chat."""
    return TokenRun(account(tokenizer, ids, text, lambda: spans - at), at, at + len(text))


def apart(tokenizer: Any, whole: Written) -> Iterator[TokenRun]:
    """The tokens of a chat in which the template's special tokens alone are such.

    What stands between them is read by itself. ValueError where a tokenizer reads chats otherwise.
    """
    bare = "a".join(unsaid(whole))
    ids = np.concatenate([run.own.ids for run in divided(tokenizer, Written(bare, [], []))])
    if ids.tolist() != list(call(tokenizer, bare, add_special_tokens=False, verbose=False).input_ids):
        raise ValueError(
            "a message holds a string that is a special token, and in a chat this tokenizer cannot read it as the "
            "characters it is: `special='parse'` reads it as that token"
        )
    yield from divided(tokenizer, whole)


def unsaid(whole: Written) -> Iterator[str]:
    """What the template adds before, between and behind what is said."""
    at = 0
    for span in whole.said:
        yield whole.text[at : span.start]
        at = span.stop
    yield whole.text[at:]


def divided(tokenizer: Any, whole: Written) -> Iterator[TokenRun]:
    """The special tokens that are not said, and what stands between them."""
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
