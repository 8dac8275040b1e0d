"""Tokens of a text, and exactly the bytes of it that each one covers."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Tokens(NamedTuple):
    """A text's tokens without special ones: ids, and the bytes and characters each covers, all (N,).

    A character belongs to the token that holds its first byte. Where the tokenizer changes the text, the bytes of the
    tokens are not the text's: then `n_bytes` and `n_chars` are None and `drift` says why.
    """

    ids: Ints
    n_bytes: Ints | None
    n_chars: Ints | None
    drift: str | None


def prefix_token(tokenizer: Any) -> int | None:
    """The token that stands before a document so that its first token can be scored: BOS, else EOS, else none."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    found = bos if bos is not None else eos
    return None if found is None else int(found)


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer's own call puts BOS before a text."""
    ids = tokenizer("a").input_ids
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def tokenize(tokenizer: Any, text: str) -> Tokens:
    """Encode a text without special tokens and account for its bytes.

    The bytes are spelled out token by token and compared with the text itself, so that they either add up or are
    disowned. Byte-level tokens are exact even where they split a character.
    """
    encoded = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=tokenizer.is_fast)
    ids = np.asarray(encoded.input_ids, dtype=np.int64)
    pieces = spelled(tokenizer, ids, text)
    if pieces is not None:
        return Tokens(ids, *count(pieces), None)
    if not tokenizer.is_fast:
        return Tokens(ids, None, None, "the tokens do not spell the text, and this tokenizer gives no offsets")
    drift = normaliser_drift(tokenizer, text)
    if drift or len(ids) == 0:
        return Tokens(ids, None, None, drift or "the tokenizer makes no token of this text")
    return Tokens(ids, *count(covered(encoded.offset_mapping, text)), None)


def count(pieces: list[bytes]) -> tuple[Ints, Ints]:
    """Bytes of each piece, and characters that begin in it (bytes that do not continue one)."""
    n_bytes = np.array([len(piece) for piece in pieces], dtype=np.int64)
    n_chars = np.array([sum(byte & 0xC0 != 0x80 for byte in piece) for piece in pieces], dtype=np.int64)
    return n_bytes, n_chars


def spelled(tokenizer: Any, ids: Ints, text: str) -> list[bytes] | None:
    """The bytes of each token by the rules of its vocabulary, or None where they do not make up the text."""
    wanted = text.encode()
    for rule in (byte_level, sentencepiece):
        pieces = spell(tokenizer, ids, rule)
        found = b"".join(pieces)
        if found == wanted:
            return pieces
        if found == b" " + wanted and pieces[0].startswith(b" "):  # the space a tokenizer puts before a text
            return [pieces[0][1:], *pieces[1:]]
    return None


def spell(tokenizer: Any, ids: Ints, rule: Callable[[str], bytes]) -> list[bytes]:
    """The bytes of each token by one rule; tokens added to the vocabulary are spelled as they are."""
    added = tokenizer.added_tokens_decoder
    tokens = tokenizer.convert_ids_to_tokens(ids.tolist())
    pairs = zip(ids.tolist(), tokens, strict=True)
    return [added[id_].content.encode() if id_ in added else rule(token or "") for id_, token in pairs]


def token_texts(tokenizer: Any, ids: Ints) -> list[str]:
    """How each token reads, one by one; bytes that are no characters of their own as `\\xNN`."""
    probe = " a\u00e9"  # which no vocabulary spells in two ways
    encoded = np.asarray(tokenizer(probe, add_special_tokens=False).input_ids, dtype=np.int64)
    for rule in (byte_level, sentencepiece):
        if b"".join(spell(tokenizer, encoded, rule)).strip() == probe.strip().encode():
            return [piece.decode("utf-8", "backslashreplace") for piece in spell(tokenizer, ids, rule)]
    return [str(token) for token in tokenizer.convert_ids_to_tokens(ids.tolist())]


@cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes as printable characters: which byte each character stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def byte_level(token: str) -> bytes:
    """A byte-level token: one character a byte. Empty, which never adds up, for a token of another kind.

    >>> byte_level("Ġdog"), byte_level("ðŁĴ")
    (b' dog', b'\\xf0\\x9f\\x92')
    """
    alphabet = byte_alphabet()
    try:
        return bytes(alphabet[character] for character in token)
    except KeyError:
        return b""


def sentencepiece(token: str) -> bytes:
    """A sentencepiece token: `▁` is a space, `<0xNN>` one byte, anything else its own UTF-8.

    >>> sentencepiece("▁dog"), sentencepiece("<0xF0>")
    (b' dog', b'\\xf0')
    """
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace("▁", " ").encode()


def normaliser_drift(tokenizer: Any, text: str) -> str | None:
    """What the tokenizer's normaliser does to the text, or None when it leaves it as it is."""
    normaliser = tokenizer.backend_tokenizer.normalizer
    changed = normaliser.normalize_str(text) if normaliser else text
    if changed.replace("▁", " ").lstrip(" ") == text.replace("▁", " ").lstrip(" "):
        return None
    at = next((i for i, (a, b) in enumerate(zip(text, changed, strict=False)) if a != b), min(len(text), len(changed)))
    return f"the tokenizer normalises the text before it reads it, first at character {at}: {text[at : at + 12]!r}"


def covered(offsets: list[tuple[int, int]], text: str) -> list[bytes]:
    """The bytes of each token by its span of characters; what lies between two spans goes with the second."""
    stops = list(running_stops(offsets, len(text)))
    return [text[start:stop].encode() for start, stop in zip([0, *stops], stops, strict=False)]


def running_stops(offsets: list[tuple[int, int]], n_chars: int) -> Iterator[int]:
    """Where each token's part of the text ends; never backwards, and the last at the end of the text."""
    reached = 0
    for i, (_, stop) in enumerate(offsets):
        reached = n_chars if i == len(offsets) - 1 else max(reached, stop)
        yield reached
