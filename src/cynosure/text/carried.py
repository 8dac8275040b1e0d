"""Find which tokens carry their bytes if together they do not spell the text."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.text.spelling import Ints

Pieces = tuple[list[bytes], list[bool]]  # the bytes of the text that each token covers, and whether it loses some


class Carried(NamedTuple):
    """The bytes that each of the N tokens of a text covers, and which tokens lose some of theirs."""

    stops: Ints  # (N,): the end of each token's bytes; they begin where those of the token before end
    lost: NDArray[np.bool_]  # (N,): the token spells something other than its bytes

    @classmethod
    def of(cls, pieces: list[bytes], lost: list[bool] | None = None) -> "Carried":
        """Make the record from the bytes that each token covers. By default no token loses any."""
        n_bytes = np.fromiter(map(len, pieces), np.int64, len(pieces))
        return cls(np.cumsum(n_bytes, out=n_bytes), np.array(lost or [False] * len(pieces), np.bool_))

    def then(self, other: "Carried") -> "Carried":
        """Append the tokens of the text that follows this one."""
        length = self.stops[-1] if len(self.stops) else 0
        return Carried(np.append(self.stops, length + other.stops), np.append(self.lost, other.lost))

    @property
    def n_lost(self) -> int:
        """Number of bytes covered by tokens that do not carry them."""
        return int(np.diff(self.stops, prepend=0)[self.lost].sum())


def followed(spelled: list[bytes], data: bytes) -> Pieces | None:
    """Align tokens with a text in which some characters have no token. A space may have been put before the text.

    Returns None if the text does not contain the bytes of the tokens in this order.

    >>> followed([b"a", b" cat"], b"a! cat"), followed([b" a", b"b"], b"a!b!")
    (([b'a', b'! cat'], [False, True]), ([b'a', b'!b!'], [False, True]))
    """
    pieces = subsequence(spelled, data)
    if pieces is None and spelled[0].startswith(b" "):
        spelled = [spelled[0][1:], *spelled[1:]]
        pieces = subsequence(spelled, data)
    return None if pieces is None else (pieces, [a != b for a, b in zip(pieces, spelled, strict=True)])


def subsequence(parts: list[bytes], data: bytes) -> list[bytes] | None:
    """Cut the data after the last byte of each part; None if it lacks their bytes in this order."""
    pieces, at = [], 0
    for part in parts:
        begin = at
        if data.startswith(part, at):
            at += len(part)
        else:
            for byte in part:
                at = data.find(byte, at) + 1
                if not at:
                    return None
        pieces.append(data[begin:at])
    pieces[-1] += data[at:]
    return pieces


def matched(tokenizer: Any, spelled: list[bytes], pieces: list[bytes]) -> Pieces:
    """Mark the tokens that lose text: those that do not spell their bytes, one space aside."""
    model = tokenizer.backend_tokenizer.model
    prefix = (getattr(model, "continuing_subword_prefix", None) or "").encode()
    suffix = (getattr(model, "end_of_word_suffix", None) or "").encode()

    def lost(token: bytes, piece: bytes) -> bool:
        spellings = [token, token.removeprefix(b" "), token.removeprefix(prefix).removesuffix(suffix)]
        return piece not in spellings and piece.removeprefix(b" ") not in spellings

    bare = [*pieces[:-1], *(piece.removesuffix(b" ") for piece in pieces[-1:])]
    return pieces, [lost(*pair) for pair in zip(spelled, bare, strict=True)]
