"""Tokenize a text, and account for exactly the bytes that each token covers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.text.calling import call
from cynosure.text.carried import Carried, followed, matched
from cynosure.text.seams import announce, in_pieces
from cynosure.text.special import as_unknown, special_strings, spelled_out
from cynosure.text.spelling import Ints as Ints
from cynosure.text.spelling import spell, spelling_of


class Tokens(NamedTuple):
    """The N tokens of a text, and the bytes of the text that each one covers.

    Special tokens that the tokenizer adds cover no bytes.
    """

    ids: Ints  # (N,) int64
    pieces: list[bytes]  # (N,): the bytes each token covers; with drift, a token that loses some has its own spelling
    n_prompt: int  # so many tokens at the start are given, not scored
    drift: str | None  # why the tokens do not carry the whole text; None if they do
    special: tuple[str, ...] = ()  # strings in the text that are special tokens, however they were read
    carried: Carried | None = None  # which tokens carry their bytes; None if unknown

    @property
    def n_bytes(self) -> Ints | None:
        """Number of bytes of each token, (N,); None with drift."""
        return None if self.drift else sizes(self.pieces)

    @property
    def n_chars(self) -> Ints | None:
        """Number of characters of each token, (N,); None with drift. A character counts where its first byte is."""
        if self.drift:
            return None
        n_before = np.append(0, np.cumsum(begins_character(b"".join(self.pieces))))
        n_chars: Ints = np.diff(n_before[np.append(0, np.cumsum(sizes(self.pieces)))])
        return n_chars


def sizes(pieces: list[bytes]) -> Ints:
    return np.fromiter(map(len, pieces), np.int64, len(pieces))


def begins_character(data: bytes) -> NDArray[np.bool_]:
    """Return which bytes of UTF-8 begin a character, (len(data),): all except continuation bytes, 0b10xxxxxx."""
    begins: NDArray[np.bool_] = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
    return begins


def tokenize(
    tokenizer: Any, text: str, *, n_prompt_chars: int = 0, special: bool = False, parse_special: bool = False
) -> Tokens:
    """Tokenize a text and account for its bytes, exactly even if tokens split a character.

    A single space that the tokenizer drops belongs to the next token, or at the end to the last. Anything else that it
    drops, normalizes or reads as an unknown token is drift.

    Args:
        tokenizer: a transformers tokenizer.
        text: the text.
        n_prompt_chars: length of the prompt that the text begins with. The prompt is tokenized together with the rest,
            or separately if a token would span both.
        special: add special tokens, such as BOS, as the tokenizer does by default.
        parse_special: read strings in the text that are special tokens as those tokens, not as text. Other added
            tokens are always read as tokens.

    Returns:
        The tokens; `drift` says why if their bytes are not the text's.

    Raises:
        ValueError: the prompt is longer than the text, or the tokenizer fails.

    Example:
        >>> from transformers import ByT5Tokenizer
        >>> tokens = tokenize(ByT5Tokenizer(), "né", n_prompt_chars=1, special=True)
        >>> tokens.ids.tolist(), tokens.pieces, tokens.n_prompt
        ([113, 198, 172, 1], [b'n', b'\\xc3', b'\\xa9', b''], 1)
        >>> tokens.n_chars.tolist()
        [1, 1, 0, 0]
    """
    if not 0 <= n_prompt_chars <= len(text):
        raise ValueError(f"n_prompt_chars must be from 0 to the text's {len(text)} characters, got {n_prompt_chars}")
    strings = tuple(special_strings(tokenizer, text))
    reading = reading_of(strings, parse_special)
    before, own, after = encode(tokenizer, text, special, reading)
    n_prompt = 0
    if n_prompt_chars:
        own, n_prompt = parted(tokenizer, text, n_prompt_chars, own, reading)
        n_prompt += len(before)
    pieces = [b""] * len(before) + own.pieces + [b""] * len(after)
    if own.drift is None and b"".join(pieces) != text.encode():
        raise RuntimeError(
            f"the tokens of {text[:40]!r}... do not cover its bytes: this is a bug in cynosure: please report it"
        )
    ids, carried = own.ids, own.account
    if before or after:
        ids = np.concatenate([np.array(before, np.int64), ids, np.array(after, np.int64)])
        none = (Carried.of([b""] * len(part)) for part in (before, after))
        carried = carried and next(none).then(carried).then(next(none))
    return Tokens(ids, pieces, n_prompt, own.drift, strings, carried)


def reading_of(strings: Sequence[str], parse_special: bool) -> dict[str, bool]:
    """Return the options for calling a tokenizer on a text that contains these special tokens."""
    return {"split_special_tokens": not parse_special} if strings else {}


class Own(NamedTuple):
    """A text's own tokens, without special tokens that the tokenizer adds."""

    ids: Ints  # (N,)
    pieces: list[bytes]  # (N,): as in `Tokens`
    drift: str | None = None
    spans: Ints | None = None  # (N, 2): with drift, the characters that each token stands for, if known
    spells: bool = False  # the tokens spell the text exactly, so that the offsets were not needed
    carried: Carried | None = None  # with drift, which tokens carry their bytes, if known

    @property
    def account(self) -> Carried | None:
        """Which tokens carry their bytes, if known."""
        return self.carried if self.drift else Carried.of(self.pieces)


def encode(tokenizer: Any, text: str, special: bool, reading: Mapping[str, bool]) -> tuple[list[int], Own, list[int]]:
    """Return the ids that a tokenizer puts before a text, the text's own tokens, and the ids put after it.

    A long text is encoded in pieces if that gives the same tokens and they spell it, otherwise as a whole.
    """
    before, after, ids, spelled = [], [], [], []
    for number, part in enumerate(in_pieces(tokenizer, text, reading)):
        before_part, own, after_part = encode_whole(tokenizer, part, special and not number, reading)
        if len(part) == len(text):
            return before_part, own, after_part
        if not number:
            before, after = before_part, after_part
        if not own.spells:
            announce(len(text))
            return encode_whole(tokenizer, text, special, reading)
        ids.append(own.ids)
        spelled += own.pieces
    return before, Own(np.concatenate(ids), spelled, spells=True), after


def encode_whole(
    tokenizer: Any, text: str, special: bool, reading: Mapping[str, bool]
) -> tuple[list[int], Own, list[int]]:
    """Encode a text in one piece, and return the same."""
    encoded = call(tokenizer, text, add_special_tokens=special, verbose=False, **reading)
    encoding = encoded.encodings[0] if tokenizer.is_fast else None
    ids: list[int] = list(encoded.input_ids)
    start, stop = 0, len(ids)
    if special and encoding is not None:
        own = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
        start, stop = (int(own[0]), int(own[-1]) + 1) if len(own) else (stop, stop)
    elif special:  # the masks of slow tokenizers are unreliable
        bare = list(call(tokenizer, text, add_special_tokens=False, verbose=False, **reading).input_ids)
        starts = (i for i in range(len(ids) - len(bare) + 1) if ids[i : i + len(bare)] == bare)
        start, stop = next(((i, i + len(bare)) for i in starts), (start, stop))
    own_spans = None if encoding is None else lambda: np.array(encoding.offsets[start:stop], np.int64)
    if not reading.get("split_special_tokens"):
        return ids[:start], account(tokenizer, ids[start:stop], text, own_spans), ids[stop:]
    accounted = account(tokenizer, as_unknown(tokenizer, ids[start:stop]), text, own_spans)
    return ids[:start], without_special(tokenizer, accounted), ids[stop:]


def without_special(tokenizer: Any, own: Own) -> Own:
    """Replace special tokens by the tokens that spell them, if they cover exactly their own text."""
    ids, pieces = own.ids.tolist(), list(own.pieces)
    for place, spelling in reversed(spelled_out(tokenizer, ids)):
        parts = spell(tokenizer, spelling)
        if own.spans is None and pieces[place] == b"".join(parts):
            ids[place : place + 1], pieces[place : place + 1] = spelling, parts
    return own._replace(ids=np.array(ids, np.int64), pieces=pieces)


def text_ids(tokenizer: Any, text: str, *, parse_special: bool = False) -> Ints:
    """Return the ids (N,) of a text without added special tokens; `parse_special` is that of `tokenize`."""
    reading = reading_of(special_strings(tokenizer, text), parse_special)
    pieces = in_pieces(tokenizer, text, reading)
    parts = (call(tokenizer, piece, add_special_tokens=False, verbose=False, **reading) for piece in pieces)
    ids = np.concatenate([np.array(part.input_ids, np.int64) for part in parts])
    if reading.get("split_special_tokens") and spelled_out(tokenizer, ids.tolist()):
        return tokenize(tokenizer, text).ids
    return ids


def account(tokenizer: Any, numbers: list[int], text: str, find_spans: Callable[[], Ints] | None = None) -> Own:
    """Account for the bytes of a text's own tokens; `find_spans`, if any, returns the characters of each, (N, 2)."""
    data, spelled, ids = text.encode(), spell(tokenizer, numbers), np.array(numbers, np.int64)
    joined = b"".join(spelled)
    if joined == data:
        return Own(ids, spelled, spells=True)
    if joined == b" " + data and spelled[0].startswith(b" "):  # the space a tokenizer puts before a text
        return Own(ids, [spelled[0][1:], *spelled[1:]], spells=True)
    if not numbers:
        return Own(ids, [], "the tokenizer makes no token of this text")
    if find_spans is None:
        return Own(ids, spelled, "the tokens do not spell the text, and this tokenizer gives no offsets")
    spans = find_spans()  # only here, because it is slow
    normalised = normaliser_drift(tokenizer, numbers, spans, text)
    lost = "" if normalised else unknown(tokenizer, ids, spans, text) or passed_over(tokenizer, spelled, spans, text)
    if not (normalised or lost):
        return Own(ids, aligned(spelled, spans, data))
    drift = normalised or f"the tokenizer has no token for some of the text, such as {lost!r}"
    dropped = drops(tokenizer) and not normalised
    covered = followed(spelled, data) if dropped else matched(tokenizer, spelled, aligned(spelled, spans, data))
    if covered is None:
        return Own(ids, spelled, drift, spans)
    pieces = [token if gone else piece for token, piece, gone in zip(spelled, *covered, strict=True)]
    return Own(ids, pieces, drift, spans, carried=Carried.of(*covered))


def parted(tokenizer: Any, text: str, n_prompt_chars: int, own: Own, reading: Mapping[str, bool]) -> tuple[Own, int]:
    """Return a text's tokens and how many belong to its prompt. If a token spans its end, tokenize both separately."""
    prompt, completion = text[:n_prompt_chars], text[n_prompt_chars:]
    n_prompt = tokens_of(own, prompt)
    if n_prompt is not None:
        return own, n_prompt
    (_, a, _), (_, b, _) = (encode(tokenizer, part, False, reading) for part in (prompt, completion))
    drift = a.drift or b.drift
    carried = a.account and b.account and a.account.then(b.account)
    drift = drift and (own.drift or drift)
    return Own(np.append(a.ids, b.ids), a.pieces + b.pieces, drift, carried=carried), len(a.ids)


def tokens_of(own: Own, prompt: str) -> int | None:
    """Count the tokens of the prompt that a text begins with; None if no token ends where the prompt does."""
    if own.drift is None:
        n_bytes = sizes(own.pieces)
        stops, seam = np.cumsum(n_bytes), len(prompt.encode())
        starts = stops - n_bytes
    elif own.spans is None:
        return None
    else:
        starts, stops = np.maximum.accumulate(own.spans).T
        seam = len(prompt)
    n_tokens = int(np.searchsorted(starts, seam))
    return n_tokens if n_tokens and stops[n_tokens - 1] == seam else None


def aligned(spelled: list[bytes], spans: Ints, data: bytes) -> list[bytes]:
    """Return the bytes of each token if the tokenizer dropped or added spaces, so that they do not spell the text.

    A token covers what it spells if the text continues like that, with or without a space that the tokenizer added.
    Otherwise it covers the text up to the end of its span. The last token covers what is left.
    """
    edges = np.append(np.flatnonzero(begins_character(data)), len(data))  # byte offsets of characters
    starts, stops = edges[spans].T.tolist()
    pieces, at = [], 0
    for spelling, start, stop, next_start in zip(spelled, starts, stops, [*starts[1:], len(data)], strict=True):
        begin, goes_on = at, data.startswith(spelling, at)
        bare = spelling.removeprefix(b" ")
        if spelling == b" " and next_start < stop and (start == at or not goes_on):
            pass  # an added space: the next token stands for the same character
        elif goes_on:
            at += len(spelling)
        elif bare and bare != spelling and data.startswith(bare, at):
            at += len(bare)
        else:
            at = max(at, stop)
        pieces.append(data[begin:at])
    pieces[-1] += data[at:]
    return pieces


def normaliser_drift(tokenizer: Any, ids: list[int], spans: Ints, text: str) -> str | None:
    """Say what the tokenizer's normalizer changes first in the text; None if it changes nothing."""
    normaliser = tokenizer.backend_tokenizer.normalizer
    if normaliser is None:
        return None
    # Added tokens are found before the text is normalized. The unknown token may have the id of one, so compare texts.
    added = spelling_of(tokenizer).apart
    likely = np.isin(ids, list(added))
    places = zip(np.array(ids)[likely].tolist(), spans[likely].tolist(), strict=True)
    kept = [place for id_, place in places if text[slice(*place)].strip() == added[id_]]
    starts, stops = [start for start, _ in kept], [stop for _, stop in kept]
    for start, stop in zip([0, *stops], [*starts, len(text)], strict=True):
        at = first_change(text[start:stop], normaliser.normalize_str(text[start:stop]))
        if at is not None:
            at += start
            shown = repr(text[at : at + 12])
            return f"the tokenizer normalises the text before it reads it, first at character {at}: {shown}"
    return None


def unknown(tokenizer: Any, ids: Ints, spans: Ints, text: str) -> str:
    """Return the start, at most 12 characters, of the first text read as an unknown token; empty if there is none."""
    parts = (text[slice(*span)] for span in spans[ids == tokenizer.unk_token_id].tolist())
    return next((part[:12] for part in parts if part not in ("", tokenizer.unk_token)), "")


def passed_over(tokenizer: Any, spelled: list[bytes], spans: Ints, text: str) -> str:
    """Return the first character that the tokenizer drops; empty if there is none.

    A single space between tokens does not count, because decoding restores it.
    """
    if drops(tokenizer):
        return first_lost(text, b"".join(spelled).decode(errors="surrogateescape"))
    stops, starts = np.append(0, np.maximum.accumulate(spans[:, 1])), np.append(spans[:, 0], len(text))
    gaps = (text[stops[i] : starts[i]] for i in np.flatnonzero(stops < starts))
    return next(filter(None, (gap.replace(" ", "", 1)[:1] for gap in gaps)), "")


def drops(tokenizer: Any) -> bool:
    """Whether a tokenizer drops characters without a token, which shifts the spans of all tokens that follow."""
    from tokenizers.models import BPE

    model = tokenizer.backend_tokenizer.model
    marks = ("unk_token", "end_of_word_suffix", "continuing_subword_prefix")
    return isinstance(model, BPE) and not any(getattr(model, mark) for mark in marks)


def first_lost(text: str, spelled: str) -> str:
    """Return the first character of a text that its spelling lacks, single spaces aside; empty if it lacks none.

    >>> first_lost("a cat", "acat"), first_lost("a\\r\\ncat", "a\\ncat"), first_lost("a  cat", " acat")
    ('', '\\r', ' ')
    """
    text, spelled = text.replace("▁", " "), spelled.replace("▁", " ")
    at, left_out = 0, False
    for character in text:
        if character != " " and spelled[at : at + 1] == " ":
            at += 1  # an added space
        if spelled[at : at + 1] == character:
            at, left_out = at + 1, False
        elif character == " " and not left_out:
            left_out = True
        else:
            return character
    return ""


def first_change(text: str, changed: str) -> int | None:
    """Return where a text was first changed; None if only spaces became `▁` and one was put before it.

    >>> first_change("a b", "▁a▁b"), first_change("a Ⅵ", "▁a▁VI")
    (None, 2)
    """
    text, changed = text.replace("▁", " "), changed.replace("▁", " ")
    if changed in (text, " " + text):
        return None
    return max(n_common(text, version) for version in (changed, changed.removeprefix(" ")))


def n_common(a: str, b: str) -> int:
    """Return the length of the common prefix of two texts."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
