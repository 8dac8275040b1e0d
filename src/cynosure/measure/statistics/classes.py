"""Classify tokens by their text: letters, digits, punctuation, whitespace, CJK, or other."""

import unicodedata
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cynosure.measure.storage.rows import Ints

CLASSES = ("letters", "digits", "punctuation", "whitespace", "CJK", "other")
CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC")


@lru_cache(maxsize=1 << 18)
def byte_class(piece: bytes) -> int:
    """Return the index in `CLASSES` of a token, decided by its first character that is not white space.

    A token of white space only is whitespace. Symbols, emoji and parts of a character are other.

    >>> [CLASSES[byte_class(piece)] for piece in (b" dog", b"1", b",", b"  ", "\u732b".encode(), b"\\xf0\\x9f")]
    ['letters', 'digits', 'punctuation', 'whitespace', 'CJK', 'other']
    """
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return CLASSES.index("other")
    first = text.strip()[:1]
    if not first:
        return CLASSES.index("whitespace" if text else "other")
    kind = unicodedata.category(first)
    if unicodedata.name(first, "").startswith(CJK):
        return CLASSES.index("CJK")
    name = {"L": "letters", "M": "letters", "N": "digits", "P": "punctuation"}.get(kind[0], "other")
    return CLASSES.index(name)


ASCII = np.array([byte_class(bytes([byte])) for byte in range(128)])
SPACE, OTHER = CLASSES.index("whitespace"), CLASSES.index("other")


def describe(pieces: pa.Array) -> tuple[Ints, Ints]:
    """Return the byte class of each of N tokens, and how many characters begin in it, both (N,).

    >>> describe(pa.array([b" dog", b"", "\u732b".encode()]))
    (array([0, 5, 4]), array([4, 0, 1]))
    """
    joined = pc.binary_join(pa.ListArray.from_arrays([0, len(pieces)], pieces), b"")[0].as_py()
    data, ends = np.frombuffer(joined, dtype=np.uint8), np.cumsum(pc.binary_length(pieces).to_numpy())
    chars, wide = (per_piece(mask, ends) for mask in (data & 0xC0 != 0x80, data >= 128))
    of_byte = ASCII[data & 127]
    solid = of_byte != SPACE
    n_solid, size = per_piece(solid, ends), np.diff(ends, prepend=0)
    classes = np.where(size > 0, SPACE, OTHER)
    some = n_solid > 0
    classes[some] = of_byte[np.flatnonzero(solid)[(np.cumsum(n_solid) - n_solid)[some]]]  # of its first solid byte
    others = np.flatnonzero(wide)
    if len(others):
        encoded = pc.dictionary_encode(pieces.take(pa.array(others)))
        classes[others] = np.array([byte_class(piece) for piece in encoded.dictionary.to_pylist()])[encoded.indices]
    return classes, chars


def per_piece(mask: NDArray[np.bool_], ends: Ints) -> Ints:
    """Count the bytes of each piece that are set in a mask over all bytes."""
    return np.diff(np.append(0, np.cumsum(mask))[ends], prepend=0)
