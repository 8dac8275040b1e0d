"""Files opened: unpacked by the ending of their name, and UTF-16 and UTF-32 turned into UTF-8 by their BOM."""

import bz2
import codecs
import gzip
import io
import itertools
import logging
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PACKED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard"}
BOMS = (  # UTF-32 first: its little-endian BOM begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip

PIECE = 1 << 16
LONE = "cynosure.lone"  # the name of an error handler

log = logging.getLogger("cynosure")


codecs.register_error(LONE, lambda error: ("\udfff", error.end))  # type: ignore[attr-defined]


def endings(name: str) -> tuple[str, str]:
    """The format and the compression that the ending of a name tells, in lower case.

    >>> endings("a.JSONL.gz"), endings("a.txt"), endings("xz")
    (('.jsonl', '.gz'), ('.txt', ''), ('', ''))
    """
    path = Path(name.lower())
    return (Path(path.stem).suffix, path.suffix) if path.suffix in PACKED else (path.suffix, "")


def unpacked(name: str) -> Any:
    """The bytes of a file, without its compression."""
    packing = endings(name)[1]
    if packing == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(name), "zstd"))
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return openers.get(packing, open)(name, "rb")


@contextmanager
def opened(name: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked. ValueError where the compressed data is damaged or cut short."""
    packing = endings(name)[1]
    try:
        with unpacked(name) as file:
            yield file
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if not packing or getattr(error, "errno", None) is not None:  # the disk's own
            raise
        raise ValueError(f"{name} is not a whole {PACKED[packing]} file: {error}") from error


def utf8_pieces(file: Any, name: str, whole_lines: bool = True) -> Iterator[bytes]:
    """The lines of a file in UTF-8, each with its end, or pieces of some size; only a line feed ends a line.

    ValueError for a file that begins with the BOM of UTF-16 or UTF-32 and breaks its rules.
    """
    start = file.peek(4)[:4]
    encoding = next((encoding for bom, encoding in BOMS if start.startswith(bom)), None)
    if encoding is None:
        yield from file if whole_lines else iter(lambda: file.read(PIECE), b"")
        return
    log.info("%s is decoded from %s", name, encoding.upper())
    wrapper = io.TextIOWrapper(file, encoding, newline="\n")
    try:
        for piece in wrapper if whole_lines else iter(lambda: wrapper.read(PIECE), ""):
            yield piece.encode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not {encoding.upper()}, which its byte order mark says: {error.reason}") from error
    finally:
        wrapper.detach()  # the file is closed by whoever opened it


class NotUTF8(ValueError):
    """Text that is not UTF-8, where that is not to be replaced."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} is not UTF-8: {what}; `errors='replace'` reads it with U+FFFD instead")


def decode(data: bytes, name: str, strict: bool, first_byte: int = 0) -> tuple[str, int]:
    """A text and how many U+FFFD were put in."""
    try:
        return data.decode(), 0
    except UnicodeDecodeError as error:
        if strict:
            raise not_utf8(name, error, first_byte) from error
    text = data.decode(errors="replace")
    return text, text.count("\ufffd") - data.count("\ufffd".encode())


def decoded(file: Any, name: str, strict: bool, whole_lines: bool = True) -> Iterator[str]:
    """The lines of a table, or pieces of some size, without a BOM; what is not UTF-8 as lone surrogates.

    Each of these stands for what would be one U+FFFD. Offsets in errors are those of what was unpacked.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("strict" if strict else LONE)
    offset, first = 0, True
    for piece in itertools.chain(utf8_pieces(file, name, whole_lines), [b""]):
        begun = offset - len(decoder.getstate()[0])
        try:
            text = decoder.decode(piece, final=whole_lines or not piece)
        except UnicodeDecodeError as error:
            raise not_utf8(name, error, begun) from error
        offset += len(piece)
        if text := text.removeprefix("\ufeff") if first else text:
            yield text
        first = False


def not_utf8(name: str, error: UnicodeDecodeError, first_byte: int) -> NotUTF8:
    return NotUTF8(name, f"byte 0x{error.object[error.start]:02x} at offset {first_byte + error.start}")
