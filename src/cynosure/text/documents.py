"""Documents: the texts behind files, folders, globs, standard input, JSONL and Parquet tables, and dataset names."""

import glob
import json
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

COLUMN = "text"
DATASET = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:\w[\w.-]*){0,2}")


class Document(NamedTuple):
    """A text and the place it came from."""

    name: str
    text: str


class Source(NamedTuple):
    """Something that holds documents. `n_bytes` is its size, None where that is not known beforehand."""

    kind: str  # text, jsonl, parquet, stdin, dataset
    name: str
    n_bytes: int | None


def find_sources(names: Sequence[str]) -> list[Source]:
    """What each name stands for, without reading it: a file, the files of a folder or a glob, `-`, or a dataset.

    Folders are walked in sorted order; hidden files are left out. A dataset is written `name`, `name:config` or
    `name:config:split`. Raises FileNotFoundError for a name that stands for nothing.
    """
    return [source for name in names for source in expand(name)]


def expand(name: str) -> Iterator[Source]:
    path = Path(name).expanduser()
    if name == "-":
        yield Source("stdin", "<stdin>", None)
    elif path.is_file():
        yield file_source(path)
    elif path.is_dir():
        yield from some(name, (file for file in sorted(path.rglob("*")) if not hidden(file.relative_to(path))))
    elif glob.has_magic(name):
        yield from some(name, (Path(file) for file in sorted(glob.glob(str(path), recursive=True))))
    elif DATASET.fullmatch(name) and (not path.suffix or ":" in name):
        yield Source("dataset", name, None)
    else:
        raise FileNotFoundError(f"no such text: {name!r} is no file, folder, glob, '-' or dataset name")


def hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def some(name: str, paths: Iterator[Path]) -> list[Source]:
    """The files among the paths; FileNotFoundError when there are none."""
    found = [file_source(path) for path in paths if path.is_file()]
    if not found:
        raise FileNotFoundError(f"no files in {name!r}")
    return found


def file_source(path: Path) -> Source:
    kind = {".jsonl": "jsonl", ".parquet": "parquet"}.get(path.suffix, "text")
    return Source(kind, str(path), path.stat().st_size if path.is_file() else None)


def read_documents(
    sources: Sequence[Source], *, errors: str = "strict", limit: int | None = None
) -> Iterator[Document]:
    """The documents of some sources, one at a time, at most `limit` of them; line ends and all else as they stand.

    Text is UTF-8. With `errors="strict"` anything else raises ValueError naming file and byte; `"replace"` puts U+FFFD
    in its place. A `.jsonl` or `.parquet` file and a dataset hold one document a row, in the column `text`.
    """
    if errors not in ("strict", "replace"):
        raise ValueError(f"errors must be 'strict' or 'replace', got {errors!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 document, got {limit}")
    return islice((document for source in sources for document in read(source, errors)), limit)


def read(source: Source, errors: str) -> Iterator[Document]:
    if source.kind == "text":
        yield Document(source.name, decode(Path(source.name).read_bytes(), source.name, errors))
    elif source.kind == "stdin":
        yield Document(source.name, decode(sys.stdin.buffer.read(), source.name, errors))
    elif source.kind == "jsonl":
        yield from read_jsonl(source.name, errors)
    elif source.kind == "parquet":
        yield from read_parquet(source.name, errors)
    else:
        yield from read_dataset(source.name, errors)


def decode(data: bytes, name: str, errors: str, first_byte: int = 0) -> str:
    try:
        return data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        at = error.start
        raise ValueError(
            f"{name} is not UTF-8: byte 0x{data[at]:02x} at offset {first_byte + at}; "
            "--errors replace reads it with U+FFFD instead"
        ) from error


def read_jsonl(name: str, errors: str) -> Iterator[Document]:
    """One JSON object a line; blank lines are passed over."""
    offset = 0
    with open(name, "rb") as file:
        for number, line in enumerate(file, 1):
            text, offset = decode(line, name, errors, offset), offset + len(line)
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{name} line {number} is not JSON: {error.msg} at column {error.colno}") from error
            yield row_document(f"{name}:{number}", row, errors)


def read_parquet(name: str, errors: str) -> Iterator[Document]:
    """One document a row, a batch of rows in memory at a time."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(name) as table:
            columns = table.schema_arrow.names
            if COLUMN not in columns:
                raise ValueError(f"{name} has no column {COLUMN!r}: it has {', '.join(columns)}")
            rows = (row for batch in table.iter_batches(256, columns=[COLUMN]) for row in batch.to_pylist())
            for number, row in enumerate(rows):
                yield row_document(f"{name}:{number}", row, errors)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{name} is not a Parquet file: {error}") from error


def read_dataset(name: str, errors: str) -> Iterator[Document]:
    """A dataset by name through `datasets`, streamed; without a split its test, else validation, else first one."""
    import datasets

    path, config, split = (*name.split(":"), None, None)[:3]
    try:
        found: Any = datasets.load_dataset(path, config, split=split, streaming=True)
    except (OSError, ValueError) as error:  # datasets' own errors are among these
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"no file, folder or glob {name!r} here, and no dataset to be had: {reason}") from error
    if split is None:
        split = next((part for part in ("test", "validation") if part in found), next(iter(found)))
        found = found[split]
    for number, row in enumerate(found):
        yield row_document(f"{path}:{split}:{number}", row, errors)


def row_document(name: str, row: Any, errors: str) -> Document:
    """The document in a row; a lone surrogate, which JSON can smuggle in, is not UTF-8 either."""
    text = row.get(COLUMN) if isinstance(row, dict) else None
    if not isinstance(text, str):
        has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{name} has no text in a column {COLUMN!r}: it has {has}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if errors == "strict":
            raise ValueError(
                f"{name} is not UTF-8: a lone surrogate at character {error.start}; --errors replace reads U+FFFD"
            ) from error
        text = re.sub("[\ud800-\udfff]", "\ufffd", text)
    return Document(name, text)
