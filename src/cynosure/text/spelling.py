"""Spell tokens: the bytes that each token of a vocabulary stands for."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from cynosure.text.calling import added_tokens, call

Ints = NDArray[np.int64]
Rule = Callable[[str], bytes]


class Spelling(NamedTuple):
    """How the tokens of a vocabulary spell bytes. Cached, because reading a large vocabulary takes long."""

    rule: Rule
    known: dict[int, bytes]  # the tokens spelled so far
    apart: dict[int, str]  # added tokens that are found before the text is normalized


PROBE = " a§猫"  # no normalizer changes it, and no vocabulary spells it in two ways
SPELLINGS: WeakKeyDictionary[Any, Spelling] = WeakKeyDictionary()


def spell(tokenizer: Any, ids: list[int]) -> list[bytes]:
    """Return the bytes of each token.

    Args:
        tokenizer: a transformers tokenizer.
        ids: token ids.

    Returns:
        The bytes of each id, in order. A special token has the bytes of its name.
    """
    rule, known, _ = spelling_of(tokenizer)
    new = list(set(ids) - known.keys())
    known.update((id_, rule(token or "")) for id_, token in zip(new, tokenizer.convert_ids_to_tokens(new), strict=True))
    return [known[id_] for id_ in ids]


def spelling_of(tokenizer: Any) -> Spelling:
    """Return the spelling of a tokenizer, cached."""
    spelling = SPELLINGS.get(tokenizer)
    if spelling is None:
        spelling = SPELLINGS[tokenizer] = read_spelling(tokenizer)
    return spelling


def read_spelling(tokenizer: Any) -> Spelling:
    """Read the rule of a vocabulary. Added tokens spell their content."""
    tokens_added = added_tokens(tokenizer).items()
    apart = {id_: token.content for id_, token in tokens_added if not token.normalized}
    rule = rule_of(tokenizer)
    written = sentencepiece if rule is sentencepiece else str.encode
    return Spelling(rule, {id_: written(token.content) for id_, token in tokens_added}, apart)


def rule_of(tokenizer: Any) -> Rule:
    """Return the rule by which the tokens of a vocabulary, except added ones, spell bytes."""
    tokens = tokenizer.convert_ids_to_tokens(call(tokenizer, PROBE, add_special_tokens=False).input_ids)

    def spells(rule: Rule) -> bool:
        return b"".join(map(rule, tokens)) == PROBE.encode()

    if spells(byte_level) or decodes_bytes(tokenizer):
        return byte_level
    return raw_bytes if spells(raw_bytes) else sentencepiece


def decodes_bytes(tokenizer: Any) -> bool:
    """Whether the decoder or pre-tokenizer spells bytes like GPT-2's, even if the vocabulary lacks some."""
    if not tokenizer.is_fast:
        return False
    names = {byte: character for character, byte in byte_alphabet().items()}
    backend, spelled = tokenizer.backend_tokenizer, "".join(names[byte] for byte in PROBE.encode())
    if backend.decoder is not None:
        return bool(backend.decoder.decode([spelled]) == PROBE)
    if backend.pre_tokenizer is None:
        return False
    return "".join(piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(PROBE)) == spelled


def token_texts(tokenizer: Any, ids: Ints) -> list[str]:
    """Return each token as text. Bytes that are not a whole character become `\\xNN`."""
    return [piece.decode("utf-8", "backslashreplace") for piece in spell(tokenizer, ids.tolist())]


@cache
def byte_alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet: the byte that each printable character stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def byte_level(token: str) -> bytes:
    """Spell a token in GPT-2's alphabet, one character per byte. Any other token spells its own text.

    >>> byte_level("Ġdog"), byte_level("ðŁĴ")
    (b' dog', b'\\xf0\\x9f\\x92')
    """
    alphabet = byte_alphabet()
    try:
        return bytes(alphabet[character] for character in token)
    except KeyError:
        return token.encode()


def raw_bytes(token: str) -> bytes:
    """Spell a token as ByT5 does, one Latin-1 character per byte. Any other token spells its own text.

    >>> raw_bytes(" "), raw_bytes("\\xf0")
    (b' ', b'\\xf0')
    """
    try:
        return token.encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def sentencepiece(token: str) -> bytes:
    """Spell a sentencepiece token: `▁` is a space, `<0xNN>` one byte, anything else its own text.

    >>> sentencepiece("▁dog"), sentencepiece("<0xF0>")
    (b' dog', b'\\xf0')
    """
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace("▁", " ").encode()
