"""Open files: decompress them by the ending of their name, and decode UTF-16 and UTF-32 by their BOM."""

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
BOMS = (  # UTF-32 first, because its little-endian BOM begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip

PIECE = 1 << 16
LONE = "cynosure.lone"  # the name of an error handler

log = logging.getLogger("cynosure")


codecs.register_error(LONE, lambda error: ("\udfff", error.end))  # type: ignore[attr-defined]


def endings(name: str) -> tuple[str, str]:
    """Return the extensions of a name that tell its format and its compression, in lower case.

    >>> endings("a.JSONL.gz"), endings("a.txt"), endings("xz")
    (('.jsonl', '.gz'), ('.txt', ''), ('', ''))
    """
    path = Path(name.lower())
    return (Path(path.stem).suffix, path.suffix) if path.suffix in PACKED else (path.suffix, "")


def unpacked(name: str) -> Any:
    """Open a file for reading its decompressed bytes."""
    packing = endings(name)[1]
    if packing == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(name), "zstd"))
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return openers.get(packing, open)(name, "rb")


@contextmanager
def opened(name: str) -> Iterator[IO[bytes]]:
    """Open a file for reading its decompressed bytes. Raise ValueError if compressed data is damaged or truncated."""
    packing = endings(name)[1]
    try:
        with unpacked(name) as file:
            yield file
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if not packing or getattr(error, "errno", None) is not None:  # an error of the file system
            raise
        raise ValueError(f"{name} is not a complete {PACKED[packing]} file: {error}") from error


def utf8_pieces(file: Any, name: str, whole_lines: bool = True) -> Iterator[bytes]:
    """Read a file as UTF-8, in whole lines or in pieces of a fixed size. Only a line feed ends a line.

    Raises ValueError if a file begins with the BOM of UTF-16 or UTF-32 but is not valid.
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
        raise ValueError(
            f"{name} is not {encoding.upper()}, although its byte order mark says so: {error.reason}"
        ) from error
    finally:
        wrapper.detach()  # the caller closes the file


class NotUTF8(ValueError):
    """The text is not UTF-8, and is not to be replaced."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} is not UTF-8: {what}; `errors='replace'` reads it with U+FFFD instead")


def decode(data: bytes, name: str, strict: bool, first_byte: int = 0) -> tuple[str, int]:
    """Decode UTF-8; return the text and the number of U+FFFD put in."""
    try:
        return data.decode(), 0
    except UnicodeDecodeError as error:
        if strict:
            raise not_utf8(name, error, first_byte) from error
    text = data.decode(errors="replace")
    return text, text.count("\ufffd") - data.count("\ufffd".encode())


def decoded(file: Any, name: str, strict: bool, whole_lines: bool = True) -> Iterator[str]:
    """Decode a table line by line, or in pieces, without its BOM.

    If not `strict`, what is not UTF-8 becomes lone surrogates, one for each U+FFFD that would replace it. Offsets in
    errors count decompressed bytes.
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
