"""Recognize binary files by their first bytes."""

import codecs

from cynosure.text.unpacking import BOMS

HEAD = 8192  # bytes of a file to look at
MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"), (b"\xff\xd8\xff", "a JPEG image"), (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"), (b"II*\0", "a TIFF image"), (b"MM\0*", "a TIFF image"), (b"%PDF-", "a PDF document"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document"), (b"SQLite format 3\0", "an SQLite database"),
    (b"\x7fELF", "an ELF program"), (b"MZ", "a Windows program"), (b"\xcf\xfa\xed\xfe", "a Mach-O program"),
    (b"\xca\xfe\xba\xbe", "a Java class or Mach-O program"), (b"\0asm", "a WebAssembly program"),
    (b"\x93NUMPY", "a NumPy array"), (b"GGUF", "a GGUF model"), (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"PAR1", "a Parquet table"), (b"ARROW1", "an Arrow table"), (b"Obj\x01", "an Avro table"),
    (b"\x1f\x8b", "gzip-compressed data"), (b"BZh91AY&SY", "bzip2-compressed data"),
    (b"\xfd7zXZ\0", "xz-compressed data"),
    (b"\x28\xb5\x2f\xfd", "Zstandard-compressed data"), (b"\x04\x22\x4d\x18", "LZ4-compressed data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"), (b"Rar!\x1a\x07", "a RAR archive"),
    (b"ID3", "an MP3 sound"), (b"OggS", "an Ogg sound"), (b"fLaC", "a FLAC sound"), (b"\x1aE\xdf\xa3", "a video"),
)  # fmt: skip
ENDINGS = {
    "a Parquet table": ".parquet", "gzip-compressed data": ".gz", "bzip2-compressed data": ".bz2",
    "xz-compressed data": ".xz", "Zstandard-compressed data": ".zst",
}  # of the kinds that can be read if the file name has this ending  # fmt: skip
HOLD_TEXT = ("ocument", "Word", "workbook", "presentation", "book")  # in the names of kinds that contain text
IN_ZIP = (
    (b"word/", "a Word document"), (b"xl/", "an Excel workbook"), (b"ppt/", "a PowerPoint presentation"),
    (b"application/epub", "an EPUB book"), (b"application/vnd.oasis", "an OpenDocument file"),
    (b"data.pkl", "a PyTorch checkpoint"), (b".npy", "a NumPy archive"),
)  # fmt: skip


def binary_kind(head: bytes) -> str | None:
    r"""Return what kind of binary file begins with these bytes; None if it may be text.

    >>> binary_kind(b"PK\x03\x04 word/document.xml \xff"), binary_kind(b"GGUF is a format"), binary_kind(b"a\0bcd")
    ('a Word document', None, 'binary data')
    """
    if head.startswith(b"%PDF-"):
        return "a PDF document"
    if head.startswith(tuple(mark for mark, _ in BOMS)) or is_text(head):
        return None
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return next((kind for part, kind in IN_ZIP if part in head), "a ZIP archive")
    marked = (kind for magic, kind in MAGIC if head.startswith(magic) and not (magic.isascii() and is_latin(head)))
    return next(marked, None) or unmarked_kind(head)


def unmarked_kind(head: bytes) -> str | None:
    """Do the same for the kinds that have no magic number at their start."""
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 28:
        return "a safetensors file"
    if head[4:8] == b"ftyp":
        return "a video"
    if head.startswith(b"RIFF") and head[8:12] in (b"WAVE", b"WEBP", b"AVI "):
        return {b"WAVE": "a WAV sound", b"WEBP": "a WebP image", b"AVI ": "a video"}[head[8:12]]
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "a Python pickle"
    if b"\0" not in head:
        return None
    encoding = wide_encoding(head)
    return f"{encoding} without a byte order mark" if encoding else "binary data"


def wide_encoding(head: bytes) -> str | None:
    r"""Return the UTF-16 or UTF-32 encoding in which a file is printable, mostly Latin text; None if there is none.

    >>> wide_encoding(b"a\0b\0"), wide_encoding(b"a\0b"), wide_encoding(b"a\0\0\0")
    ('UTF-16LE', None, 'UTF-32LE')
    """
    for name, unit in (("UTF-32LE", 4), ("UTF-32BE", 4), ("UTF-16LE", 2), ("UTF-16BE", 2)):
        try:
            text = codecs.getincrementaldecoder(name)().decode(head)  # the last character may be cut
        except UnicodeDecodeError:
            continue
        n_latin = sum(character < "\u0100" for character in text)
        printable = all(character.isprintable() or character.isspace() for character in text)
        if len(head) % unit == 0 and printable and n_latin > 0.9 * len(text):
            return name
    return None


def is_latin(head: bytes) -> bool:
    """Whether the bytes may be text in a single-byte encoding. Then ASCII letters at its start are no magic number."""
    return not any(byte < 32 and byte not in b"\t\n\f\r\x1b" for byte in head)


def is_text(head: bytes) -> bool:
    """Whether the beginning of a file is UTF-8 without a NUL. Its last character may be cut."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def check_text(head: bytes, name: str) -> None:
    """Raise ValueError for a binary file, with its kind and what to do."""
    kind = binary_kind(head)
    if kind is None or kind == "binary data":  # the option `errors` covers the latter
        return
    if kind in ENDINGS:
        way_out = f"rename it so that it ends in {ENDINGS[kind]}"
    elif kind.startswith("UTF-"):
        way_out = f"convert it: iconv -f {kind.partition(' ')[0]} -t UTF-8"
    else:
        way_out = (
            "save its text as a text file" if any(part in kind for part in HOLD_TEXT) else "give a text file instead"
        )
    raise ValueError(f"{name} is {kind}, not text: {way_out}")
