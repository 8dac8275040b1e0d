"""Texts to train on and texts to measure on: documents held out, and no copy of one on the other side."""

import hashlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from math import floor
from typing import NamedTuple

from cynosure.system.numbers import counted
from cynosure.text import Document
from cynosure.text.messages import Message, exchanges, plain_text


class Division:
    """Documents divided by whole documents: of those that differ a share is held out, evenly spread, with all copies.

    Two documents are copies where they differ in white space and letter case alone. Where there are fewer documents
    than `1 / share`, the end of each that differs is held out instead, from a line's beginning on, and copies are on
    neither side. `documents` are gone through once here and once for each side that is asked for, and must be the same
    each time.

    >>> texts = [Document(f"{n}", f"text {n}") for n in range(9)] + [Document("copy", "Text  4")]
    >>> division = Division(texts, share=0.2)
    >>> [document.name for document in division.valid()]
    ['4', 'copy']
    >>> len(list(division.train()))
    8
    """

    def __init__(self, documents: Iterable[Document], share: float, apart: Iterable[Document] = ()) -> None:
        """`apart` are held out besides: whatever is a copy of one of them is not trained on.

        ValueError for a share that is not from 0 to 0.5.
        """
        if not 0 <= share <= 0.5:
            raise ValueError(f"the share held out must be from 0 to 0.5, got {share}")
        self.documents, self.apart = documents, apart
        self.barred = {fingerprint(document.text) for document in apart}
        known: dict[bytes, int] = {}
        self.groups = [known.setdefault(fingerprint(document.text), len(known)) for document in documents]
        self.left_out = {number for key, number in known.items() if key in self.barred}
        self.n_distinct = len(known)
        self.share = Fraction(share).limit_denominator(1000)
        self.by_tails = bool(share) and self.n_distinct * self.share < 1

    def held_out(self, group: int) -> bool:
        """Evenly spread: of every tenth the tenth."""
        return not self.by_tails and floor((group + 1) * self.share) > floor(group * self.share)

    def train(self) -> Iterator[Document]:
        """What is trained on."""
        if self.by_tails:
            yield from (cut(document, self.share).before for document in self.firsts())
            return
        for group, document in zip(self.groups, self.documents, strict=True):
            if group not in self.left_out and not self.held_out(group):
                yield document

    def valid(self) -> Iterator[Document]:
        """What is held out, copies and all."""
        yield from self.apart
        if self.by_tails:
            tails = (cut(document, self.share).after for document in self.firsts())
            yield from (tail for tail in tails if tail.text)
            return
        for group, document in zip(self.groups, self.documents, strict=True):
            if self.held_out(group):
                yield document

    def firsts(self) -> Iterator[Document]:
        """Of documents that are copies of each other the first: cut, another would be cut elsewhere."""
        n_seen = 0
        for group, document in zip(self.groups, self.documents, strict=True):
            if group == n_seen:
                n_seen += 1
                if group not in self.left_out:
                    yield document

    @property
    def notes(self) -> list[str]:
        """What a user must know of it."""
        found = []
        if self.by_tails:
            few = counted(self.n_distinct, "document")
            found.append(
                f"too few to hold whole ones out: the last {float(self.share):.0%} of each of {few} is, from a line on"
            )
        if n_barred := sum(group in self.left_out for group in self.groups):
            found.append(f"{n_barred} of the texts to train on stand in `valid` as well and are not trained on")
        return found


class Cut(NamedTuple):
    before: Document
    after: Document


def cut(document: Document, share: Fraction) -> Cut:
    """A document in two, the second of about this share of its characters and begun at a line or at least a word.

    A prompt stays with the first, unless nothing else is left for it. A chat is cut where an exchange begins.
    """
    if document.messages is not None:
        return cut_chat(document, document.messages, share)
    text = document.text
    near = round(len(text) * (1 - share))
    marks = (text.rfind(mark, 0, near) + 1 for mark in ("\n", " "))
    at = max(next((mark for mark in marks if mark > near // 2), near), document.n_prompt_chars)
    name = f"{document.name} (its end)"
    return Cut(document._replace(text=text[:at]), Document(name, text[at:]))


def cut_chat(document: Document, messages: list[Message], share: Fraction) -> Cut:
    """A chat in two, as near to this share as exchanges allow; of a single one the second is empty."""
    places = [*exchanges(messages)[1:], len(messages)]
    near = len(document.text) * (1 - share)
    at = min(places, key=lambda place: abs(len(plain_text(messages[:place])) - near))
    after = document.with_messages(messages[at:])._replace(name=f"{document.name} (its end)")
    return Cut(document.with_messages(messages[:at]), after)


def fingerprint(text: str) -> bytes:
    """The same for copies of a text, whatever their white space and letter case."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).digest()
