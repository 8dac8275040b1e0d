"""Texts to train on and texts to measure on: documents held out, and no copy of one on the other side."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cynosure.text.documents import Document


class Division:
    """Documents divided by whole documents: every `1 / share`-th of those that differ is held out, with its copies.

    Two documents are copies where they differ in white space and letter case alone. Where there are fewer documents
    than `1 / share`, the end of each is held out instead, from a line's beginning on. `documents` are gone through
    once here and once for each side that is asked for, and must be the same each time.

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
        self.share = share
        self.every = round(1 / share) if share else 0
        self.by_tails = bool(share) and self.n_distinct < self.every

    def held_out(self, group: int) -> bool:
        return bool(self.every) and not self.by_tails and group % self.every == self.every - 1

    def train(self) -> Iterator[Document]:
        """What is trained on."""
        for group, document in zip(self.groups, self.documents, strict=True):
            if group in self.left_out or self.held_out(group):
                continue
            yield cut(document, self.share).before if self.by_tails else document

    def valid(self) -> Iterator[Document]:
        """What is held out, copies and all."""
        yield from self.apart
        for group, document in zip(self.groups, self.documents, strict=True):
            if self.held_out(group):
                yield document
            elif self.by_tails and (tail := cut(document, self.share).after).text:
                yield tail

    @property
    def notes(self) -> list[str]:
        """What a user must know of it."""
        found = []
        if self.by_tails:
            few = f"{self.n_distinct} document{'s' if self.n_distinct > 1 else ''}"
            found.append(
                f"too few to hold whole ones out: the last {self.share:.0%} of each of {few} is, from a line on"
            )
        if n_barred := sum(group in self.left_out for group in self.groups):
            found.append(f"{n_barred} of the texts to train on stand in --valid as well and are not trained on")
        return found


class Cut(NamedTuple):
    before: Document
    after: Document


def cut(document: Document, share: float) -> Cut:
    """A document in two, the second of about this share of its characters and begun at a line or at least a word.

    A prompt stays with the first, unless nothing else is left for it.
    """
    text = document.text
    near = round(len(text) * (1 - share))
    marks = (text.rfind(mark, 0, near) + 1 for mark in ("\n", " "))
    at = max(next((mark for mark in marks if mark > near // 2), near), document.n_prompt_chars)
    name = f"{document.name} (its end)"
    return Cut(document._replace(text=text[:at]), Document(name, text[at:]))


def fingerprint(text: str) -> bytes:
    """The same for copies of a text, whatever their white space and letter case."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).digest()
