"""Documents: the texts behind files, folders, globs, standard input, JSONL and Parquet tables, and dataset names."""

import csv
import glob
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from cynosure.system.files import sha256
from cynosure.text.unpacking import endings, opened, utf8_lines

COLUMN = "text"
PAIR = ("prompt", "completion")
MEASURED, TRAINED = ("test", "validation"), ("train",)  # splits of a dataset, the first that it has
KINDS = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
}  # fmt: skip
ONCE = ("pipe", "stdin")  # kinds that can be read only once
DATASET = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:\w[\w.-]*){0,2}")


log = logging.getLogger("cynosure")


class Document(NamedTuple):
    """A text and the place it came from.

    Its first `n_prompt_chars` characters are given and the rest is scored; `n_replaced` of its characters are U+FFFD in
    the place of what was not UTF-8.
    """

    name: str
    text: str
    n_prompt_chars: int = 0
    n_replaced: int = 0


class Source(NamedTuple):
    """Something that holds documents. `n_bytes` is its size, None where that is not known beforehand."""

    kind: str  # text, json, jsonl, csv, tsv, parquet, pipe, stdin, dataset
    name: str
    n_bytes: int | None


def find_sources(names: Sequence[str]) -> list[Source]:
    """What each name stands for, without reading it: a file, the files of a folder or a glob, `-`, or a dataset.

    Folders are walked in sorted order; hidden files are left out. A dataset is written `name`, `name:config` or
    `name:config:split`. A file that is found several times is read once. Raises
    FileNotFoundError for a name that stands for nothing.
    """
    found: dict[Any, Source] = {}
    for number, source in enumerate(source for name in names for source in expand(name)):
        known = found.setdefault(identity(source, number), source)
        if known is not source:
            log.info("%s is read once: %s is the same file", known.name, source.name)
    return list(found.values())


def identity(source: Source, number: int) -> Any:
    """The same for two sources that are one file, by whatever path; a dataset is taken as often as it is named."""
    if source.kind == "dataset":
        return number
    if source.kind == "stdin":
        return source.kind
    facts = os.stat(source.name)
    return facts.st_dev, facts.st_ino


def expand(name: str) -> Iterator[Source]:
    path = Path(name).expanduser()
    if name == "-":
        yield Source("stdin", "<stdin>", None)
    elif path.is_file():
        yield file_source(path)
    elif path.is_fifo():
        yield Source("pipe", str(path), None)
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
    kind = KINDS.get(endings(path.name)[0], "text")
    return Source(kind, str(path), path.stat().st_size)


def source_digest(source: Source) -> str | None:
    """The SHA-256 of a file, in hexadecimal; None for what is no file."""
    if source.kind in (*ONCE, "dataset"):
        return None
    return sha256(Path(source.name))


class Rules(NamedTuple):
    """How documents are read: which column holds the text, what becomes of bytes that are not UTF-8, which split."""

    column: str
    named: bool  # the column was asked for
    strict: bool
    splits: tuple[str, ...] = MEASURED


def read_documents(
    sources: Sequence[Source], *, column: str | None = None, errors: str = "strict", limit: int | None = None,
    splits: tuple[str, ...] = MEASURED,
) -> Iterator[Document]:  # fmt: skip
    """The documents of some sources, one at a time, at most `limit` of them; line ends and all else as they stand.

    Text is UTF-8. With `errors="strict"` anything else, and a NUL byte in a text file, raises ValueError naming file
    and byte; `"replace"` puts U+FFFD in the place of the former. A JSON, JSON Lines, CSV, TSV or Parquet file and
    a dataset hold one document a row, in the column `text` or the one named, or without such a column in two:
    `completion` is scored given `prompt`. `splits` are those of a dataset that are looked for where its name has none.
    """
    if errors not in ("strict", "replace"):
        raise ValueError(f"errors must be 'strict' or 'replace', got {errors!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 document, got {limit}")
    rules = Rules(column or COLUMN, column is not None, errors == "strict", splits)
    return islice((document for source in sources for document in read(source, rules)), limit)


def read(source: Source, rules: Rules) -> Iterator[Document]:
    if source.kind in ("text", *ONCE):
        if source.kind == "stdin":
            file: Any = io.BufferedReader(io.BytesIO(sys.stdin.buffer.read()))
            data = b"".join(utf8_lines(file, source.name))
        else:
            with opened(source.name) as packed:
                data = b"".join(utf8_lines(packed, source.name))
        if rules.strict and (at := data.find(0)) >= 0:
            raise ValueError(
                f"{source.name} looks binary: a NUL byte at offset {at}; --errors replace reads it as text all the same"
            )
        text, n_replaced = decode(data, source.name, rules)
        yield Document(source.name, text, n_replaced=n_replaced)
    elif source.kind == "parquet":
        yield from read_parquet(source.name, rules)
    elif source.kind == "dataset":
        yield from read_dataset(source.name, rules)
    elif source.kind in ("csv", "tsv"):
        yield from read_csv(source.name, rules, "," if source.kind == "csv" else "\t")
    else:
        with opened(source.name) as file:
            if source.kind == "json" and starts_array(file):
                yield from read_array(file, source.name, rules)
            else:
                yield from read_jsonl(file, source.name, rules)


def decode(data: bytes, name: str, rules: Rules, first_byte: int = 0) -> tuple[str, int]:
    """A text and how many U+FFFD were put in."""
    try:
        return data.decode(), 0
    except UnicodeDecodeError as error:
        if rules.strict:
            at = error.start
            raise ValueError(
                f"{name} is not UTF-8: byte 0x{data[at]:02x} at offset {first_byte + at}; "
                "--errors replace reads it with U+FFFD instead"
            ) from error
    text = data.decode(errors="replace")
    return text, text.count("\ufffd") - data.count("\ufffd".encode())


def decoded_lines(file: Any, name: str, rules: Rules) -> Iterator[tuple[str, int]]:
    """The lines of a table and how many U+FFFD were put into each; a byte order mark before the first is left out.

    Offsets are those of what was unpacked.
    """
    offset = 0
    for number, line in enumerate(utf8_lines(file, name)):
        text, n_replaced = decode(line, name, rules, offset)
        offset += len(line)
        yield text if number else text.removeprefix("\ufeff"), n_replaced


def read_jsonl(file: Any, name: str, rules: Rules) -> Iterator[Document]:
    """One JSON object a line; blank lines are passed over."""
    for number, (text, n_replaced) in enumerate(decoded_lines(file, name, rules), 1):
        if text.strip():
            document = row_document(f"{name}:{number}", parse_json(text, f"{name} line {number}"), rules)
            yield document._replace(n_replaced=document.n_replaced + n_replaced)


def starts_array(file: Any) -> bool:
    """Whether the first character of a file that is no white space, in any encoding, opens a JSON array."""
    return bool(file.peek(4096).lstrip(b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n").startswith(b"["))


def read_array(file: Any, name: str, rules: Rules) -> Iterator[Document]:
    """One array of rows or of texts, which is held in memory."""
    lines = list(decoded_lines(file, name, rules))
    n_replaced = sum(n for _, n in lines)
    for number, row in enumerate(parse_json("".join(text for text, _ in lines), name)):
        place = f"{name}:{number}"
        document = row_document(place, {rules.column: row} if isinstance(row, str) else row, rules)
        yield document._replace(n_replaced=document.n_replaced + (0 if number else n_replaced))


def parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text, parse_int=float)  # int() refuses more than 4,300 digits
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError(f"{place} is JSON nested too deeply to be read") from error


def read_csv(name: str, rules: Rules, delimiter: str) -> Iterator[Document]:
    """One document a row under a line of column names; every cell is text as it stands."""
    csv.field_size_limit((1 << 31) - 1)
    n_replaced = 0

    def texts(file: Any) -> Iterator[str]:
        nonlocal n_replaced
        for text, n in decoded_lines(file, name, rules):
            n_replaced += n
            yield text

    with opened(name) as file:
        rows = csv.reader(texts(file), delimiter=delimiter, strict=True)
        try:
            columns = next(rows, [])
            for row in rows:
                place = f"{name}:{rows.line_num}"
                if not row:
                    continue
                if len(row) != len(columns):
                    raise ValueError(f"{place} has {len(row)} cells, but the header has {len(columns)}")
                document = row_document(place, dict(zip(columns, row, strict=True)), rules)
                yield document._replace(n_replaced=n_replaced)
                n_replaced = 0
        except csv.Error as error:
            raise ValueError(f"{name} line {rows.line_num} is not CSV: {error}") from error


def read_parquet(name: str, rules: Rules) -> Iterator[Document]:
    """One document a row, one row in memory at a time."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:  # left to itself pyarrow reads ahead the whole file, or row groups, which may be as large
        with ParquetFile(name, pre_buffer=False, buffer_size=1 << 20) as table:
            columns = table.schema_arrow.names
            wanted = [x for x in (rules.column, *PAIR) if x in columns] or columns[:1]
            rows = (row for batch in table.iter_batches(1, columns=wanted) for row in raw_rows(batch))
            for number, row in enumerate(rows):
                yield row_document(f"{name}:{number}", row, rules, columns)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{name} is not a sound Parquet file: {error}") from error


def raw_rows(batch: Any) -> list[dict[str, Any]]:
    """The rows of an Arrow table, texts as the bytes they are: Arrow does not promise that they are UTF-8."""
    import pyarrow

    texts = {pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()}

    def is_text(kind: Any) -> bool:
        return (kind.value_type if pyarrow.types.is_dictionary(kind) else kind) in texts

    columns = [column.cast(pyarrow.large_binary()) if is_text(column.type) else column for column in batch.columns]
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    return [dict(zip(batch.schema.names, row, strict=True)) for row in rows]


def read_dataset(name: str, rules: Rules) -> Iterator[Document]:
    """A dataset by name through `datasets`, streamed; without a split the first of those looked for, else its first."""
    import datasets

    path, config, split = (*name.split(":"), None, None)[:3]
    try:
        found: Any = datasets.load_dataset(path, config, split=split, streaming=True)
    except (OSError, ValueError) as error:  # datasets' own errors are among these
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"no file, folder or glob {name!r} here, and no dataset to be had: {reason}") from error
    if split is None:
        split = next((part for part in rules.splits if part in found), next(iter(found)))
        found = found[split]
    rows = (row for table in found.with_format("arrow").iter(batch_size=1) for row in raw_rows(table))
    for number, row in enumerate(rows):
        yield row_document(f"{path}:{split}:{number}", row, rules)


def row_document(name: str, row: Any, rules: Rules, columns: Sequence[str] | None = None) -> Document:
    """The document in a row: a text, or a prompt and its completion."""
    values = row if isinstance(row, dict) else {}
    if isinstance(values.get(rules.column), str | bytes):
        text, n_replaced = well_formed(name, values[rules.column], rules)
        return Document(name, text, 0, n_replaced)
    if not rules.named and all(isinstance(values.get(key), str | bytes) for key in PAIR):
        (prompt, a), (completion, b) = (well_formed(name, values[key], rules) for key in PAIR)
        return Document(name, prompt + completion, len(prompt), a + b)
    if rules.column in values:
        found = "null" if values[rules.column] is None else type(values[rules.column]).__name__
        raise ValueError(f"{name} has no text in its column {rules.column!r} but {found}")
    has = ", ".join(columns or row) if isinstance(row, dict) else type(row).__name__
    raise ValueError(f"{name} has no text in a column {rules.column!r}: it has {has}; --column names another")


def well_formed(name: str, text: str | bytes, rules: Rules) -> tuple[str, int]:
    """A text and the U+FFFD put in it: a lone surrogate, which JSON can smuggle in, is not UTF-8 either."""
    if isinstance(text, bytes):
        return decode(text, name, rules)
    try:
        text.encode()
        return text, 0
    except UnicodeEncodeError as error:
        if rules.strict:
            raise ValueError(
                f"{name} is not UTF-8: a lone surrogate at character {error.start}; --errors replace reads U+FFFD"
            ) from error
    return re.subn("[\ud800-\udfff]", "\ufffd", text)
