"""Tokens of a text, and exactly the bytes of it that each one covers."""

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
    """A text's tokens: ids (N,) int64, and of each the bytes of the text that it covers, in order.

    Special tokens that the tokenizer puts in cover none. Where the tokens do not carry the whole text, `drift` says
    why; then `pieces` are how those that lose some spell themselves, and `carried` which ones these are, None where
    that is not known. The first `n_prompt` tokens are given, not scored. `special` are the strings in the text that are
    special tokens, however they were read.
    """

    ids: Ints
    pieces: list[bytes]
    n_prompt: int
    drift: str | None
    special: tuple[str, ...] = ()
    carried: Carried | None = None

    @property
    def n_bytes(self) -> Ints | None:
        """The bytes of each token, (N,); None where they are not the text's."""
        return None if self.drift else sizes(self.pieces)

    @property
    def n_chars(self) -> Ints | None:
        """The characters of each token, (N,): a character belongs to the token of its first byte; None under drift."""
        if self.drift:
            return None
        n_before = np.append(0, np.cumsum(begins_character(b"".join(self.pieces))))
        n_chars: Ints = np.diff(n_before[np.append(0, np.cumsum(sizes(self.pieces)))])
        return n_chars


def sizes(pieces: list[bytes]) -> Ints:
    return np.fromiter(map(len, pieces), np.int64, len(pieces))


def begins_character(data: bytes) -> NDArray[np.bool_]:
    """Which bytes of UTF-8 begin a character, (len(data),): all but those that continue one, 0b10xxxxxx."""
    begins: NDArray[np.bool_] = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
    return begins


def tokenize(
    tokenizer: Any, text: str, *, n_prompt_chars: int = 0, special: bool = False, parse_special: bool = False
) -> Tokens:
    """Encode a text with a transformers tokenizer and account for its bytes: those of the tokens are the text's, or
    `drift` says why they are not. Byte-level tokens are exact even where they split a character.

    The first `n_prompt_chars` characters are a prompt. It is encoded together with what follows, as in a document;
    where a token spans the seam, apart. With `special` the tokens are those of the tokenizer's own call, BOS and all,
    else without special ones. The strings in the text that are special tokens are the characters they are, or with
    `parse_special` those tokens; added tokens that are not special are tokens either way.

    A single space that a tokenizer throws away goes with the token after it, at the end with the last. Anything else
    that it throws away, normalizes or reads as an unknown token is drift. Raises ValueError for a prompt longer than
    the text.

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
    """The options of a tokenizer's call by which it reads the special tokens in a text; none where it has none."""
    return {"split_special_tokens": not parse_special} if strings else {}


class Own(NamedTuple):
    """A text's own tokens, without those put in, and where `drift` the characters each stands for, (N, 2), and which
    carry them, if known.
    """

    ids: Ints
    pieces: list[bytes]
    drift: str | None = None
    spans: Ints | None = None
    spells: bool = False  # every token is spelled as the text is, without a look at the offsets
    carried: Carried | None = None

    @property
    def account(self) -> Carried | None:
        """Which tokens carry their bytes, if known."""
        return self.carried if self.drift else Carried.of(self.pieces)


def encode(tokenizer: Any, text: str, special: bool, reading: Mapping[str, bool]) -> tuple[list[int], Own, list[int]]:
    """The ids that a tokenizer puts before a text, the text's own tokens, and the ids put after them.

    A long text is encoded in pieces where that is the same; where the tokens do not spell it, as a whole.
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
    """The same in one piece."""
    encoded = call(tokenizer, text, add_special_tokens=special, verbose=False, **reading)
    encoding = encoded.encodings[0] if tokenizer.is_fast else None
    ids: list[int] = list(encoded.input_ids)
    start, stop = 0, len(ids)
    if special and encoding is not None:
        own = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
        start, stop = (int(own[0]), int(own[-1]) + 1) if len(own) else (stop, stop)
    elif special:  # the masks of tokenizers in Python are not to be relied on
        bare = list(call(tokenizer, text, add_special_tokens=False, verbose=False, **reading).input_ids)
        starts = (i for i in range(len(ids) - len(bare) + 1) if ids[i : i + len(bare)] == bare)
        start, stop = next(((i, i + len(bare)) for i in starts), (start, stop))
    own_spans = None if encoding is None else lambda: np.array(encoding.offsets[start:stop], np.int64)
    if not reading.get("split_special_tokens"):
        return ids[:start], account(tokenizer, ids[start:stop], text, own_spans), ids[stop:]
    found = account(tokenizer, as_unknown(tokenizer, ids[start:stop]), text, own_spans)
    return ids[:start], without_special(tokenizer, found), ids[stop:]


def without_special(tokenizer: Any, own: Own) -> Own:
    """A text's own tokens, special ones among them spelled out where they cover what they are written as."""
    ids, pieces = own.ids.tolist(), list(own.pieces)
    for place, spelling in reversed(spelled_out(tokenizer, ids)):
        parts = spell(tokenizer, spelling)
        if own.spans is None and pieces[place] == b"".join(parts):
            ids[place : place + 1], pieces[place : place + 1] = spelling, parts
    return own._replace(ids=np.array(ids, np.int64), pieces=pieces)


def text_ids(tokenizer: Any, text: str, *, parse_special: bool = False) -> Ints:
    """The ids (N,) of a text alone, without special tokens put in; `parse_special` as of `tokenize`."""
    reading = reading_of(special_strings(tokenizer, text), parse_special)
    pieces = in_pieces(tokenizer, text, reading)
    parts = (call(tokenizer, piece, add_special_tokens=False, verbose=False, **reading) for piece in pieces)
    ids = np.concatenate([np.array(part.input_ids, np.int64) for part in parts])
    if reading.get("split_special_tokens") and spelled_out(tokenizer, ids.tolist()):
        return tokenize(tokenizer, text).ids
    return ids


def account(tokenizer: Any, numbers: list[int], text: str, find_spans: Callable[[], Ints] | None = None) -> Own:
    """What each of a text's own tokens covers; `find_spans`, if known, gives the characters of each, (N, 2)."""
    data, spelled, ids = text.encode(), spell(tokenizer, numbers), np.array(numbers, np.int64)
    found = b"".join(spelled)
    if found == data:
        return Own(ids, spelled, spells=True)
    if found == b" " + data and spelled[0].startswith(b" "):  # the space a tokenizer puts before a text
        return Own(ids, [spelled[0][1:], *spelled[1:]], spells=True)
    if not numbers:
        return Own(ids, [], "the tokenizer makes no token of this text")
    if find_spans is None:
        return Own(ids, spelled, "the tokens do not spell the text, and this tokenizer gives no offsets")
    spans = find_spans()  # only here: they take long
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
    """A text's tokens and how many of them are its prompt's: as they are if one ends where it does, else apart."""
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
    """How many tokens make up the prompt that a text begins with; None where none ends where it does."""
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
    """The bytes of each token where together they do not spell the text, for spaces are gone or were put in.

    A token covers what it spells if the text goes on like that, be it without the space put before a text; else what
    there is up to the end of its span. What is left over at the end goes with the last.
    """
    edges = np.append(np.flatnonzero(begins_character(data)), len(data))  # of characters, in bytes
    starts, stops = edges[spans].T.tolist()
    pieces, at = [], 0
    for spelling, start, stop, next_start in zip(spelled, starts, stops, [*starts[1:], len(data)], strict=True):
        begin, goes_on = at, data.startswith(spelling, at)
        bare = spelling.removeprefix(b" ")
        if spelling == b" " and next_start < stop and (start == at or not goes_on):
            pass  # put in: the next token stands for the same character
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
    """What the tokenizer's normaliser does to the text, or None when it leaves it as it is."""
    normaliser = tokenizer.backend_tokenizer.normalizer
    if normaliser is None:
        return None
    # Added tokens are found before anything is normalised. An unknown token has an id of that kind, and is not one.
    added = spelling_of(tokenizer).apart
    likely = np.isin(ids, list(added))
    places = zip(np.array(ids)[likely].tolist(), spans[likely].tolist(), strict=True)
    found = [place for id_, place in places if text[slice(*place)].strip() == added[id_]]
    starts, stops = [start for start, _ in found], [stop for _, stop in found]
    for start, stop in zip([0, *stops], [*starts, len(text)], strict=True):
        at = first_change(text[start:stop], normaliser.normalize_str(text[start:stop]))
        if at is not None:
            at += start
            shown = repr(text[at : at + 12])
            return f"the tokenizer normalises the text before it reads it, first at character {at}: {shown}"
    return None


def unknown(tokenizer: Any, ids: Ints, spans: Ints, text: str) -> str:
    """The first stretch of a text, of at most 12 characters, that an unknown token stands for; empty without one."""
    found = (text[slice(*span)] for span in spans[ids == tokenizer.unk_token_id].tolist())
    return next((part[:12] for part in found if part not in ("", tokenizer.unk_token)), "")


def passed_over(tokenizer: Any, spelled: list[bytes], spans: Ints, text: str) -> str:
    """The first character that the tokenizer throws away, be it for lack of a token; empty where there is none.

    A single space between others is none: what joins the tokens again puts it there.
    """
    if drops(tokenizer):
        return first_lost(text, b"".join(spelled).decode(errors="surrogateescape"))
    stops, starts = np.append(0, np.maximum.accumulate(spans[:, 1])), np.append(spans[:, 0], len(text))
    gaps = (text[stops[i] : starts[i]] for i in np.flatnonzero(stops < starts))
    return next(filter(None, (gap.replace(" ", "", 1)[:1] for gap in gaps)), "")


def drops(tokenizer: Any) -> bool:
    """Whether a tokenizer drops what it lacks, and shifts the spans of all that follows; its tokens are as spelled."""
    from tokenizers.models import BPE

    model = tokenizer.backend_tokenizer.model
    marks = ("unk_token", "end_of_word_suffix", "continuing_subword_prefix")
    return isinstance(model, BPE) and not any(getattr(model, mark) for mark in marks)


def first_lost(text: str, spelled: str) -> str:
    """The first character of a text that is not in its spelling, single spaces left aside; empty where all are.

    >>> first_lost("a cat", "acat"), first_lost("a\\r\\ncat", "a\\ncat"), first_lost("a  cat", " acat")
    ('', '\\r', ' ')
    """
    text, spelled = text.replace("▁", " "), spelled.replace("▁", " ")
    at, left_out = 0, False
    for character in text:
        if character != " " and spelled[at : at + 1] == " ":
            at += 1  # put in
        if spelled[at : at + 1] == character:
            at, left_out = at + 1, False
        elif character == " " and not left_out:
            left_out = True
        else:
            return character
    return ""


def first_change(text: str, changed: str) -> int | None:
    """Where a text was first changed; None if only spaces became `▁` and one was put before it.

    >>> first_change("a b", "▁a▁b"), first_change("a Ⅵ", "▁a▁VI")
    (None, 2)
    """
    text, changed = text.replace("▁", " "), changed.replace("▁", " ")
    if changed in (text, " " + text):
        return None
    return max(n_common(text, version) for version in (changed, changed.removeprefix(" ")))


def n_common(a: str, b: str) -> int:
    """How many characters at their start two texts share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
