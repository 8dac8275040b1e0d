"""Files opened: unpacked by the ending of their name, and UTF-16 and UTF-32 turned into UTF-8 by their BOM."""

import bz2
import codecs
import gzip
import io
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

log = logging.getLogger("cynosure")


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
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, OSError) as error:
        if not packing or isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise ValueError(f"{name} is not a whole {PACKED[packing]} file: {error}") from error


def utf8_lines(file: Any, name: str) -> Iterator[bytes]:
    """The lines of a file in UTF-8, each with its end; only a line feed ends one.

    ValueError for a file that begins with the BOM of UTF-16 or UTF-32 and breaks its rules.
    """
    start = file.peek(4)[:4]
    encoding = next((encoding for bom, encoding in BOMS if start.startswith(bom)), None)
    if encoding is None:
        yield from file
        return
    log.info("%s is decoded from %s", name, encoding.upper())
    wrapper = io.TextIOWrapper(file, encoding, newline="\n")
    try:
        for line in wrapper:
            yield line.encode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not {encoding.upper()}, which its byte order mark says: {error.reason}") from error
    finally:
        wrapper.detach()  # the file is closed by whoever opened it
