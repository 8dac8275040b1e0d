"""Find seams: places where a long text can be cut without changing its tokens.

A tokenizer takes about 150 bytes of memory for each byte of text in a call. A fast tokenizer finds added tokens,
normalizes the text between them, pre-tokenizes it, and gives each pre-token to its model separately. A cut changes
nothing if each of these steps treats both sides as it would without the cut:

- Added tokens: none contains or touches the cut, or is separated from it only by white space, which it may swallow.
- Normalizer: there is none; or it is NFC (UAX #15, 9.1: the text after the cut begins with a character of combining
  class 0 that never composes with one before it); or it replaces single characters (`Pairs`).
- Pre-tokenizer and model: a pre-token ends at the cut (`Splits`), or no token of the vocabulary spans it (`Pairs`).

Every seam is also tested: the text around it must have the same tokens in one piece and in two.
"""

import json
import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from cynosure.text.calling import added_tokens, call

PIECE_CHARS = 1 << 18  # pieces are a little longer
CONTEXT_CHARS = 200  # encoded on either side to test a seam
MAX_TRIES = 10_000  # candidates for a seam; after that the rest of the text is one piece
WHOLE_BYTES = 150  # of memory for each byte of a text in one piece
ANNOUNCED_BYTES = 2e9  # of memory; a piece that needs more is announced

log = logging.getLogger("cynosure")

# Letters that are lower case or caseless (Ll, Lo) in every version of Unicode and that NFC does not change: Latin,
# Greek, Cyrillic, Hebrew, Arabic, Devanagari, Thai, kana, CJK, Hangul.
LETTER = "a-z\u03b1-\u03c9\u0430-\u044f\u05d0-\u05ea\u0621-\u063a\u0641-\u064a\u0915-\u0939\u0e01-\u0e2e"
LETTER += "\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
LINE_END = LETTER + r"A-Z0-9!-/:-@\[-`{-~" + "\u3001\u3002\u300d\u300f\uff01\uff09\uff0c\uff0e\uff1f"  # no white space

WORD = f"(?<=[{LETTER}])(?= [{LETTER}])"
LINE = f"(?<=[{LINE_END}]\n)(?=[{LETTER}])"
NUMBER = f"(?<=[{LINE_END}]\n)(?=[0-9])"

CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
OF_LETTERS = {  # each of these alternatives matches a LETTER wherever it occurs
    r" ?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?+\p{L}+",
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTION}?",
}
OF_DIGITS = {r" ?\p{N}+", r"\p{N}+", r"\p{N}{1,3}", r"\p{N}"}
OTHERS = {
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", CONTRACTION, r"'(?i:[sdmt]|ll|ve|re)"),
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTION}?",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]++[\r\n]*"),
    *(r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", r" ?[\p{P}\p{S}]+[\r\n]*"),
    *(r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+"),
}
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class Splits(NamedTuple):
    """The seams of a pre-tokenizer that splits: before ` b` after a letter, before a letter or digit after `x\\n`.

    None of the pattern's alternatives matches a space after a letter, or a letter or digit after a newline. So no
    match spans the cut. A match to its left does not depend on what follows: only `(?!\\S)` looks ahead, and only from
    white space, while before the cut is a letter, or a single newline, which `\\s+` matches either way. A match to its
    right does not depend on what comes before, since nothing looks behind. The letter or digit beside the cut belongs
    to a match, so a pre-token ends there.
    """

    kinds: frozenset[str]

    def candidates(self, text: str, start: int) -> Iterator[int]:
        return (match.start() for match in re.compile("|".join(sorted(self.kinds))).finditer(text, start))

    def normal(self, text: str) -> str:
        return text


class Pairs(NamedTuple):
    """The seams of a BPE that gets the whole text as one pre-token: between characters that no token joins.

    BPE merges neighbours into tokens of the vocabulary. If no token contains two characters side by side, no token
    ever spans them, and the merges on one side depend on that side only. Both characters must be tokens, because
    unknown ones may be fused.
    """

    replaced: dict[str, str]  # characters that the normalizer replaces
    joined: frozenset[str]  # pairs of characters side by side in a token
    tokens: frozenset[str]  # of one character
    before_space: bool  # cut only before a space: a piece that begins otherwise would get a space put before it

    def candidates(self, text: str, start: int) -> Iterator[int]:
        for at in range(max(start, 1), len(text) - 1):
            left, right = text[at - 1], text[at]
            if left.isspace() or text[at + 1].isspace() or (self.before_space and right != " "):
                continue
            pair = self.normal(left), self.normal(right)
            if self.tokens.issuperset(pair) and "".join(pair) not in self.joined:
                yield at

    def normal(self, text: str) -> str:
        return "".join(self.replaced.get(character, character) for character in text)


class Seams(NamedTuple):
    """Where texts can be cut for a tokenizer."""

    places: Splits | Pairs
    nfc: bool  # the normalizer is NFC
    added: frozenset[str]  # added tokens, as they are and normalized
    lengths: tuple[int, ...]  # of the added tokens

    def clear(self, text: str, at: int) -> bool:
        """Whether no added token contains or touches the cut, in the text or in the normalized text."""
        reach = max(self.lengths, default=0) + 1
        begin = max(0, at - reach)
        near, cut = self.places.normal(text[begin : at + reach]), at - begin
        if self.nfc and not unicodedata.is_normalized("NFC", near):
            return False
        starts = ((length, range(max(0, cut - length - 1), cut + 2)) for length in self.lengths)
        return not any(near[i : i + length] in self.added for length, places in starts for i in places)


KNOWN: WeakKeyDictionary[Any, tuple[int, Seams | None]] = WeakKeyDictionary()


def in_pieces(tokenizer: Any, text: str, reading: Mapping[str, bool] | None = None) -> Iterator[str]:
    """Cut a text into pieces that together have its tokens. A short text, or one without a known seam, is one piece.

    `reading` holds options for calling the tokenizer. Only the first piece may have a space put before it. A piece
    that takes much memory is announced.
    """
    seams = seams_of(tokenizer) if len(text) > PIECE_CHARS else None
    start = 0
    while seams is not None and (at := next_seam(tokenizer, seams, text, start + PIECE_CHARS, reading)) is not None:
        yield text[start:at]
        start = at
    announce(len(text) - start)
    yield text[start:] if start else text


def next_seam(tokenizer: Any, seams: Seams, text: str, start: int, reading: Mapping[str, bool] | None) -> int | None:
    """Return the first place from `start` on where a text can be cut; None if there is none."""
    candidates = islice(seams.places.candidates(text, start), MAX_TRIES)
    return next((at for at in candidates if seams.clear(text, at) and holds(tokenizer, text, at, reading)), None)


def holds(tokenizer: Any, text: str, at: int, reading: Mapping[str, bool] | None) -> bool:
    """Whether the text around a cut has the same tokens in one piece and in two."""
    left, right = text[max(0, at - CONTEXT_CHARS) : at], text[at : at + CONTEXT_CHARS]
    whole, *parts = (
        call(tokenizer, part, add_special_tokens=False, verbose=False, **(reading or {})).input_ids
        for part in (left + right, left, right)
    )
    same: bool = whole == parts[0] + parts[1]
    return same


def announce(n_chars: int) -> None:
    """Warn if tokenizing this many characters in one piece takes much memory."""
    if (n_bytes := WHOLE_BYTES * n_chars) > ANNOUNCED_BYTES:
        log.warning(
            "%s characters of a document must be tokenized in one piece, which takes about %.1f GB of memory: "
            "split the document into several if that is too much",
            f"{n_chars:,}", n_bytes / 1e9,
        )  # fmt: skip


def seams_of(tokenizer: Any) -> Seams | None:
    """Return where a tokenizer's texts can be cut; None if its structure proves nothing. Cached by tokenizer."""
    if not tokenizer.is_fast:
        return None
    size = len(tokenizer)
    if tokenizer not in KNOWN or KNOWN[tokenizer][0] != size:
        KNOWN[tokenizer] = size, read_seams(tokenizer)
    return KNOWN[tokenizer][1]


def read_seams(tokenizer: Any) -> Seams | None:
    backend = tokenizer.backend_tokenizer
    steps, stages = flat(backend.normalizer, "normalizers"), flat(backend.pre_tokenizer, "pretokenizers")
    nfc = bool(steps) and all(step["type"] == "NFC" for step in steps)
    kinds = cut_by(stages) if nfc or not steps else frozenset()
    places = Splits(kinds) if kinds else read_pairs(tokenizer, steps, stages)
    if places is None:
        return None
    contents = {token.content for token in added_tokens(tokenizer).values() if token.content}
    contents |= {unicodedata.normalize("NFC", content) for content in contents if nfc}
    added = frozenset(map(places.normal, contents))
    return Seams(places, nfc, added, tuple(sorted({len(content) for content in added})))


def flat(part: Any, name: str) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer as its file lists them, with nested sequences flattened."""
    if part is None:
        return []
    steps: list[dict[str, Any]] = []
    rest = [json.loads(part.__getstate__())]
    while rest:
        step = rest.pop(0)
        if step["type"] == "Sequence":
            rest = step[name] + rest
        else:
            steps.append(step)
    return steps


def cut_by(stages: list[dict[str, Any]]) -> frozenset[str]:
    """Return the kinds of seam at which one of these pre-tokenizers always splits, if the cut changes none before it.

    After that stage the two sides are separate pre-tokens, whatever the later stages do.
    """
    kinds: set[str] = set()
    possible = {WORD, LINE, NUMBER}
    for stage in stages:
        kind = stage["type"]
        if stage.get("add_prefix_space") or kind == "Metaspace":
            possible &= {WORD}  # no space is put before a piece that begins with one
        if kind == "Split":
            cuts = cut_by_split(stage)
        else:
            cuts = {
                "ByteLevel": cut_by_pattern(GPT2) if stage.get("use_regex", True) else set(),
                "Metaspace": {WORD} if stage.get("split", True) else set(),
                "Digits": {NUMBER},
                "Punctuation": set() if stage.get("behavior") in ("Isolated", "Contiguous") else None,
            }.get(kind)
        if cuts is None:
            break
        kinds |= cuts & possible
        if kind in ("ByteLevel", "Metaspace"):
            break  # these replace white space by other characters
    return frozenset(kinds)


def cut_by_split(stage: dict[str, Any]) -> set[str] | None:
    """Return the kinds of seam at which a Split by a pattern cuts; None if nothing is known about it."""
    pattern, how = stage["pattern"].get("Regex"), (stage["behavior"], stage["invert"])
    if pattern is None or how not in (("Isolated", False), ("Isolated", True), ("Removed", True)):
        return None
    return cut_by_pattern(pattern)


def cut_by_pattern(pattern: str) -> set[str] | None:
    """Return the kinds of seam at which a match of a pattern begins or ends; None for an unknown alternative.

    >>> cut_by_pattern(r"\\p{N}{1,3}") == {NUMBER}, cut_by_pattern(GPT2) == {WORD, LINE, NUMBER}
    (True, True)
    >>> cut_by_pattern(r"\\p{L}+ \\p{L}+")
    """
    parts = set(alternatives(pattern))
    if not parts <= OF_LETTERS | OF_DIGITS | OTHERS or (r"\s+(?!\S)" in parts and r"\s+" not in parts):
        return None
    return ({WORD, LINE} if parts & OF_LETTERS else set()) | ({NUMBER} if parts & OF_DIGITS else set())


def alternatives(pattern: str) -> Iterator[str]:
    """Split a pattern at each `|` outside brackets.

    >>> list(alternatives("(?i:a|b)|[|]c"))
    ['(?i:a|b)', '[|]c']
    """
    depth, inside, start = 0, False, 0
    for token in re.finditer(r"\\.|.", pattern, re.DOTALL):
        sign = token[0]
        if inside:
            inside = sign != "]"
        elif sign == "[":
            inside = True
        elif sign in "()":
            depth += 1 if sign == "(" else -1
        elif sign == "|" and not depth:
            yield pattern[start : token.start()]
            start = token.end()
    yield pattern[start:]


def read_pairs(tokenizer: Any, steps: list[dict[str, Any]], stages: list[dict[str, Any]]) -> Pairs | None:
    """Return the seams of a tokenizer that gives its BPE the whole text; None for any other tokenizer."""
    from tokenizers.models import BPE

    model, before_space = tokenizer.backend_tokenizer.model, False
    replaced: dict[str, str] = {}
    for step in steps:
        old = step.get("pattern", {}).get("String", "")
        if step["type"] != "Replace" or len(old) != 1 or len(step["content"]) != 1 or replaced:
            return None
        replaced[old] = step["content"]
    for stage in stages:
        if stage["type"] == "Metaspace" and not stage.get("split", True) and not replaced:
            replaced, before_space = {" ": stage["replacement"]}, stage["prepend_scheme"] != "never"
        elif stage["type"] != "Split" or stage["pattern"].get("String") not in replaced:
            return None  # a split at a character that was replaced does nothing
    plain = isinstance(model, BPE) and not (model.dropout or model.ignore_merges)
    if not plain or model.end_of_word_suffix or model.continuing_subword_prefix:
        return None
    vocabulary = tokenizer.get_vocab()
    joined = frozenset(token[i : i + 2] for token in vocabulary for i in range(len(token) - 1))
    return Pairs(replaced, joined, frozenset(token for token in vocabulary if len(token) == 1), before_space)
