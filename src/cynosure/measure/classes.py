"""What a token is made of: letters, digits, punctuation, whitespace, CJK, or other."""

import unicodedata
from functools import lru_cache

CLASSES = ("letters", "digits", "punctuation", "whitespace", "CJK", "other")
CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC")


@lru_cache(maxsize=1 << 18)
def byte_class(piece: bytes) -> int:
    """The index in `CLASSES` of a token, decided by its first character that is no space.

    Whitespace is all space; other are symbols, emoji, and tokens that are only part of a character.

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
    found = {"L": "letters", "M": "letters", "N": "digits", "P": "punctuation"}.get(kind[0], "other")
    return CLASSES.index(found)
