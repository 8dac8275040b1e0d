"""Find strings in a text that are special tokens, such as `<|endoftext|>`, and read them as text or as tokens."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from cynosure.text.calling import added_tokens
from cynosure.text.choices import SPECIAL

OFTEN = 2  # a string that occurs so many times may separate documents


class Strings(NamedTuple):
    """The special tokens of a tokenizer, as strings."""

    contents: frozenset[str]
    ids: dict[int, str]  # without the unknown token
    lengths: tuple[int, ...]  # the longest first
    begins: re.Pattern[str] | None  # matches the first character of each

    @classmethod
    def of(cls, tokenizer: Any) -> "Strings":
        added = {token.content for token in added_tokens(tokenizer).values() if token.special}
        contents = frozenset(filter(str.strip, added | set(tokenizer.all_special_tokens)))
        begins = "".join(sorted({re.escape(content[0]) for content in contents}))
        lengths = tuple(sorted({len(content) for content in contents}, reverse=True))
        ids = dict(zip(tokenizer.convert_tokens_to_ids(sorted(contents)), sorted(contents), strict=True))
        ids.pop(tokenizer.unk_token_id, None)
        return cls(contents, ids, lengths, re.compile(f"[{begins}]") if begins else None)

    def found(self, text: str) -> Iterator[tuple[int, str]]:
        """Yield the place and content of each in a text, without overlaps. The longest at a place wins."""
        at = 0
        while self.begins and (match := self.begins.search(text, at)):
            at = match.start()
            content = self.at(text, at)
            if content:
                yield at, content
            at += len(content or " ")

    def at(self, text: str, place: int) -> str:
        """Return the longest one at this place of a text; empty if there is none."""
        candidates = (text[place : place + length] for length in self.lengths)
        return next((part for part in candidates if part in self.contents), "")


KNOWN: WeakKeyDictionary[Any, tuple[int, Strings]] = WeakKeyDictionary()


def strings_of(tokenizer: Any) -> Strings:
    """Return the special tokens of a tokenizer, cached."""
    size = len(tokenizer)
    if tokenizer not in KNOWN or KNOWN[tokenizer][0] != size:
        KNOWN[tokenizer] = size, Strings.of(tokenizer)
    return KNOWN[tokenizer][1]


def special_strings(tokenizer: Any, text: str) -> list[str]:
    """Return the strings in a text that are special tokens to a tokenizer.

    >>> from transformers import ByT5Tokenizer
    >>> special_strings(ByT5Tokenizer(), "the end</s> <pad>s")
    ['</s>', '<pad>']
    """
    return [content for _, content in strings_of(tokenizer).found(text)]


def spelled_out(tokenizer: Any, ids: list[int]) -> list[tuple[int, list[int]]]:
    """Return the places of special tokens in `ids`, each with the ids that spell it as text.

    Unigram, WordLevel and WordPiece have special tokens in their vocabularies. They use one for its characters in a
    text even with `split_special_tokens`. Given the characters in two parts, Unigram does not, and the others have only
    the unknown token. Empty for a slow tokenizer.
    """
    known, unknown = strings_of(tokenizer).ids, tokenizer.unk_token_id
    places = [place for place, id_ in enumerate(ids) if id_ in known] if tokenizer.is_fast else []
    spellings = []
    for place in places:
        content = known[ids[place]]
        parts = (tokenizer.backend_tokenizer.model.tokenize(part) for part in (content[:1], content[1:]) if part)
        tokens = [token for part in parts for token in part]
        if "".join(token.value for token in tokens) == content and len(tokens) > 1:
            spellings.append((place, [token.id for token in tokens]))
        elif unknown is not None:
            spellings.append((place, [unknown]))
    return spellings


def as_unknown(tokenizer: Any, ids: list[int]) -> list[int]:
    """Replace special tokens that no other tokens spell by the unknown token."""
    unspelled = {place for place, spelling in spelled_out(tokenizer, ids) if spelling == [tokenizer.unk_token_id]}
    return [tokenizer.unk_token_id if place in unspelled else id_ for place, id_ in enumerate(ids)]


def check_special(special: str) -> None:
    """Raise ValueError if `special` is not one of `SPECIAL`."""
    if special not in SPECIAL:
        raise ValueError(f"unknown special {special!r}: expected one of {', '.join(SPECIAL)}")


def read_as(strings: Mapping[str, int], special: str) -> Iterator[str]:
    """Say in a sentence how strings that are special tokens were read; `strings` counts each of them.

    >>> list(read_as({"</s>": 2}, "text"))[0][:49]
    'the texts hold 2 strings that are special tokens,'
    """
    number = sum(strings.values())
    if number:
        what = "string that is a special token" if number == 1 else "strings that are special tokens"
        how = {
            "text": "read as text (`special='parse'` reads them as tokens)",
            "parse": "read as those tokens (`special='text'` reads them as text)",
        }
        yield f"the texts hold {number:,} {what}, such as {next(iter(strings))!r}: {how[special]}"


def split_hint(strings: Mapping[str, int]) -> Iterator[str]:
    """Say in a sentence how to split texts if a string occurs so often that it may separate documents.

    >>> list(split_hint({"</s>": 1, "<|endoftext|>": 2}))[0]
    "if '<|endoftext|>' separates documents in a text file, read them with `split_at='<|endoftext|>'`"
    """
    most = max(strings, key=strings.__getitem__, default=None)
    if most is not None and strings[most] >= OFTEN:
        yield f"if {most!r} separates documents in a text file, read them with `split_at={most!r}`"
