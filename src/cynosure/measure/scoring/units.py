"""Cut documents into units of work: consecutive windows, the same in every run of the same plan."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.measure.storage.rows import DocumentFacts, Ints
from cynosure.text import (
    COUNTED,
    PROTOCOLS,
    SEPARATOR,
    Document,
    DoesNotApply,
    Protocol,
    Tokens,
    Window,
    prefix_token,
    tokenize,
    turns_of,
)
from cynosure.text.chat import OTHER_TURN, TEMPLATE

NO_WINDOW = Window(0, 0, 1)
PROMPT = 3  # the kind of a prompt's tokens, beside the kinds of a chat's
UNCOUNTED = {PROMPT: "prompt", OTHER_TURN: "other turn", TEMPLATE: "template"}  # why a token is not scored


class Cutting(NamedTuple):
    """How documents are cut into windows, and windows are grouped into units. Metrics and their order depend on it."""

    protocol: str
    window: int
    stride: int
    batch_tokens: int  # positions computed at once
    unit_tokens: int  # positions after which a unit ends
    bos: str  # windows that begin with BOS: `every`, the `first` of each text, or `none`
    special: str  # how to read strings that are special tokens: as `text`, or `parse`d as those tokens
    chat: str  # turns of a chat that count: `assistant`'s or `all`

    @property
    def rules(self) -> Protocol:
        return PROTOCOLS[self.protocol]


class Text(NamedTuple):
    """A document ready to be scored."""

    facts: DocumentFacts
    tokens: Tokens
    kinds: NDArray[np.int8]  # (N,): COUNTED, or why the token is not scored
    x: Ints  # the N tokens after `lead` others
    lead: int  # 0 or 1
    first: int | None  # replaces the first token of each window, if the protocol does that
    byte_stops: Ints | None  # (N,): where the bytes of each token end
    windows: list[Window]

    def scored(self, window: Window) -> Ints:
        """Return the places in x of the tokens that a window scores."""
        kinds = self.kinds[window.score_start - self.lead : window.see_stop + 1 - self.lead]
        return window.score_start + np.flatnonzero(kinds == COUNTED)


class Task(NamedTuple):
    """A window, and the rows it fills: the tokens `start` to `stop` (exclusive) of its document, scored or not."""

    text: Text
    window: Window
    number: int  # of the window in its document
    start: int
    stop: int

    @property
    def targets(self) -> Ints:
        """The n tokens that are scored, (n,)."""
        return self.text.x[self.text.scored(self.window)]

    @property
    def before(self) -> Ints:
        """The places, in what the window sees, of the tokens before the scored ones, (n,)."""
        return self.text.scored(self.window) - 1 - self.window.see_start


def units(
    tokenizer: Any, documents: Iterable[Document], cutting: Cutting
) -> Iterator[tuple[list[Task], list[DocumentFacts]]]:
    """Yield the tasks of each unit, and the facts of its documents, including documents without tokens.

    There is at least one unit. Only the document whose windows are being yielded is in memory.
    """
    tasks: list[Task] = []
    facts: dict[int, DocumentFacts] = {}
    positions = 0
    for number, document in enumerate(texts(documents, cutting.rules)):
        text = prepare(tokenizer, number, *document, cutting)
        for task in tasks_of(text):
            if positions >= cutting.unit_tokens:
                yield tasks, list(facts.values())
                tasks, facts, positions = [], {}, 0
            tasks.append(task)
            facts[number] = text.facts
            positions += task.window.n_seen
        facts[number] = text.facts
    yield tasks, list(facts.values())


def texts(documents: Iterable[Document], protocol: Protocol) -> Iterator[tuple[Document, int]]:
    """Yield each text that a protocol sees, and how many documents it contains."""
    if not protocol.joined:
        yield from ((document, 1) for document in documents)
        return
    all_documents = list(documents)
    for document in all_documents:
        if document.n_prompt_chars or document.messages:
            what = "a chat" if document.messages else "a prompt and its completion"
            raise DoesNotApply(
                f"{protocol.name} reads one running text, and {document.name} is {what}: use sliding or rolling"
            )
    n_documents = len(all_documents)
    if protocol.alone and n_documents > 1:
        raise DoesNotApply(f"{protocol.name} scores one file at a time, and there are {n_documents} documents")
    if all_documents:
        first = all_documents[0].name
        name = first if n_documents == 1 else f"{first} and {n_documents - 1} more"
        joined = SEPARATOR.join(document.text for document in all_documents)
        yield Document(name, joined, n_replaced=sum(document.n_replaced for document in all_documents)), n_documents


def prepare(tokenizer: Any, number: int, document: Document, n_joined: int, cutting: Cutting) -> Text:
    """Tokenize a document, account for its bytes and cut its windows."""
    rules = cutting.rules
    said, tokens, kinds = read(tokenizer, document, cutting)
    prefix = prefix_token(tokenizer) if rules.led and cutting.bos != "none" else None
    opened = document.messages is not None  # a chat is opened by its template, even if the tokenizer adds a BOS
    lead = 0 if prefix is None or opened else 1
    x = np.concatenate([np.array([prefix], dtype=np.int64), tokens.ids]) if lead else tokens.ids
    # To see [p] + t[a:b], cut a window over p and t together, and replace its first token, t[a - 1] or p, by p.
    first = prefix_token(tokenizer) if cutting.bos == "every" else None
    if opened and x[:1] != [first]:
        first = None
    text = Text(facts_of(number, document, n_joined, said, tokens), tokens, kinds, x, lead, first, None, [])
    return text._replace(byte_stops=byte_stops(tokens, text.facts), windows=list(windows_of(text, cutting)))


def read(tokenizer: Any, document: Document, cutting: Cutting) -> tuple[str, Tokens, NDArray[np.int8]]:
    """Return a document's text, its tokens, and their kinds. Raise ValueError for a chat that cannot be read."""
    parsed = cutting.special == "parse"
    if document.messages is not None:
        turns = turns_of(tokenizer, document, cutting.chat, parse_special=parsed)
        return turns.text, turns.tokens, turns.kinds
    given, special = document.n_prompt_chars, not cutting.rules.led
    tokens = tokenize(tokenizer, document.text, n_prompt_chars=given, special=special, parse_special=parsed)
    kinds = np.zeros(len(tokens.ids), np.int8)
    kinds[: tokens.n_prompt] = PROMPT
    return document.text, tokens, kinds


def facts_of(number: int, document: Document, n_joined: int, text: str, tokens: Tokens) -> DocumentFacts:
    data = text.encode()
    return DocumentFacts(
        number,
        document.name,
        n_joined,
        len(data),
        len(text),
        1 + sum(1 for _ in re.finditer(r"\s+", text)),
        len(tokens.ids),
        document.n_replaced,
        hashlib.sha256(data).hexdigest(),
        tokens.drift,
        document.n_prompt_chars,
        len(tokens.special),
        tokens.special[0] if tokens.special else "",
        len(document.messages or ()),
        tokens.carried.n_lost if tokens.carried else None,
    )


def windows_of(text: Text, cutting: Cutting) -> Iterator[Window]:
    """Yield the windows of a text that score a token. Raise DoesNotApply if it is too short for the protocol."""
    rules, n_tokens = cutting.rules, len(text.x)
    if rules.led:
        counted = np.flatnonzero(text.kinds == COUNTED)
        first = max(1, text.lead + int(counted[0])) if len(counted) else n_tokens
        windows = rules.cut(n_tokens, cutting.window, cutting.stride, first)
        yield from (window for window in windows if len(text.scored(window)))
        return
    whole = list(rules.cut(n_tokens, cutting.window, cutting.stride))
    if len(whole) < rules.least:
        raise DoesNotApply(
            f"{rules.name} needs {'a whole window' if rules.least == 1 else f'{rules.least} windows'} of "
            f"{cutting.window} tokens, and {text.facts.name} has {n_tokens} tokens in all"
        )
    yield from whole


def byte_stops(tokens: Tokens, facts: DocumentFacts) -> Ints | None:
    """Return where each token's bytes end. Raise RuntimeError unless they add up to the bytes of the text."""
    if tokens.carried is None:
        return None
    stops = tokens.carried.stops
    total = int(stops[-1]) if len(stops) else 0
    if len(stops) and total != facts.n_bytes:
        raise RuntimeError(f"the tokens of {facts.name} cover {total} bytes, and its text has {facts.n_bytes}")
    return stops


def tasks_of(text: Text) -> Iterator[Task]:
    """Yield the windows of a text with the rows that each fills: all up to its end that no earlier window filled."""
    n_rows, start = text.facts.n_tokens, 0
    for number, window in enumerate(text.windows):
        last = number == len(text.windows) - 1
        stop = n_rows if last else window.see_stop + 1 - text.lead
        yield Task(text, window, number, start, stop)
        start = stop
    if n_rows and not text.windows:
        yield Task(text, NO_WINDOW, 0, 0, n_rows)
