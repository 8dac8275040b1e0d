"""Split documents into a training and a validation set that share no copies."""

import hashlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from math import floor
from typing import NamedTuple

from cynosure.system.numbers import counted
from cynosure.text import Document
from cynosure.text.messages import Message, exchanges, plain_text


class Division:
    """Documents split into a training and a validation set, document by document.

    A share of the distinct documents is held out, evenly spread, together with all their copies. Two documents are
    copies if they differ only in white space and letter case. With fewer than `1 / share` distinct documents, the end
    of each is held out instead, from the beginning of a line. Copies are then left out of both sets.

    `documents` is iterated once here and once for each set, and must yield the same documents every time.

    >>> texts = [Document(f"{n}", f"text {n}") for n in range(9)] + [Document("copy", "Text  4")]
    >>> division = Division(texts, share=0.2)
    >>> [document.name for document in division.valid()]
    ['4', 'copy']
    >>> len(list(division.train()))
    8
    """

    def __init__(self, documents: Iterable[Document], share: float, apart: Iterable[Document] = ()) -> None:
        """Split the documents.

        Args:
            documents: the documents to split.
            share: the share of the distinct documents to hold out, from 0 to 0.5.
            apart: more documents to hold out. Their copies in `documents` are not trained on.

        Raises:
            ValueError: `share` is not from 0 to 0.5.
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
        """Whether a group of copies is held out: evenly spread, so that a share of 0.1 holds out every tenth."""
        return not self.by_tails and floor((group + 1) * self.share) > floor(group * self.share)

    def train(self) -> Iterator[Document]:
        """Yield the documents to train on."""
        if self.by_tails:
            yield from (cut(document, self.share).before for document in self.firsts())
            return
        for group, document in zip(self.groups, self.documents, strict=True):
            if group not in self.left_out and not self.held_out(group):
                yield document

    def valid(self) -> Iterator[Document]:
        """Yield the documents that are held out, copies included."""
        yield from self.apart
        if self.by_tails:
            tails = (cut(document, self.share).after for document in self.firsts())
            yield from (tail for tail in tails if tail.text)
            return
        for group, document in zip(self.groups, self.documents, strict=True):
            if self.held_out(group):
                yield document

    def firsts(self) -> Iterator[Document]:
        """Yield the first of each group of copies: the others would be cut at other places."""
        n_seen = 0
        for group, document in zip(self.groups, self.documents, strict=True):
            if group == n_seen:
                n_seen += 1
                if group not in self.left_out:
                    yield document

    @property
    def notes(self) -> list[str]:
        """What a user must know about the split."""
        notes = []
        if self.by_tails:
            few = counted(self.n_distinct, "document")
            notes.append(
                f"too few documents to hold out whole ones: the last {float(self.share):.0%} of each of {few} is held "
                "out, from the beginning of a line"
            )
        if n_barred := sum(group in self.left_out for group in self.groups):
            notes.append(f"{n_barred} of the texts to train on are also in `valid` and are not trained on")
        return notes


class Cut(NamedTuple):
    before: Document
    after: Document


def cut(document: Document, share: Fraction) -> Cut:
    """Cut a document in two, the second part about this share of its characters.

    The second part begins at a line, or else at a word. A prompt stays whole in the first part. A chat is cut where
    an exchange begins.
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
    """Cut a chat in two, as near to this share as exchanges allow. With one exchange the second part is empty."""
    places = [*exchanges(messages)[1:], len(messages)]
    near = len(document.text) * (1 - share)
    at = min(places, key=lambda place: abs(len(plain_text(messages[:place])) - near))
    after = document.with_messages(messages[at:])._replace(name=f"{document.name} (its end)")
    return Cut(document.with_messages(messages[:at]), after)


def fingerprint(text: str) -> bytes:
    """Return a hash that ignores white space and letter case, so that copies of a text share it."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).digest()
