"""Tables: the rows of JSON, JSON Lines, CSV, TSV and Parquet files and of datasets.

Bytes that are not UTF-8 stop a reading, or with `strict=False` are lone surrogates in the rows.
"""

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from cynosure.text.json_values import Values, parse_json
from cynosure.text.unpacking import NotUTF8, decoded, opened

COLUMN = "text"
PAIR = ("prompt", "completion")
MESSAGES, TOOLS = "messages", "tools"
OWN = (COLUMN, *PAIR, MESSAGES)  # columns that are found without being named
LOOKED_AT = 10  # rows of a file in a folder, to see whether it is a table of documents
BARE_CR = "has a carriage return outside quotes: end rows with a line feed, or quote the cell"


class TableRow(NamedTuple):
    """A row and its place, or with `fault` what is wrong in a place where one should be."""

    place: str
    value: Any
    columns: Sequence[str] | None = None  # all that the table has, where `value` lacks some
    fault: str | None = None
    line: int | None = None  # where the place does not tell it


def read_rows(kind: str, name: str, wanted: Sequence[str], strict: bool, splits: Sequence[str]) -> Iterator[TableRow]:
    """The rows of a table, one at a time; of Parquet the `wanted` columns alone. `splits` are a dataset's."""
    if kind == "parquet":
        yield from read_parquet(name, wanted)
    elif kind == "dataset":
        yield from read_dataset(name, splits)
    else:
        with opened(name) as file:
            if kind == "json":
                yield from read_json(decoded(file, name, strict, whole_lines=False), name, wanted[0])
            elif kind == "jsonl":
                yield from read_jsonl(decoded(file, name, strict), name)
            else:
                yield from read_csv(decoded(file, name, strict), name, "," if kind == "csv" else "\t")


def holds_documents(name: str, column: str | None) -> bool:
    """Whether one of the first rows of a JSON file has a column that documents are read from."""
    wanted = OWN if column is None else (column,)
    try:
        rows = list(islice(read_rows("json", name, wanted, False, ()), LOOKED_AT))
    except NotUTF8:
        return True
    except ValueError:
        return False
    return not rows or any(isinstance(row.value, dict) and not row.value.keys().isdisjoint(wanted) for row in rows)


def read_jsonl(lines: Iterator[str], name: str) -> Iterator[TableRow]:
    """One JSON value a line; blank lines are passed over."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{name}:{number}"
            try:
                yield TableRow(place, parse_json(line, f"{name} line {number}"))
            except ValueError as error:
                yield TableRow(place, None, fault=str(error))


def read_json(chunks: Iterator[str], name: str, column: str) -> Iterator[TableRow]:
    """The elements of one array, a text among them as the `column` of a row; else values one after another, as lines.

    A fault inside an array ends the reading: where the next element begins is not known. ValueError.
    """
    values = Values(chunks, name)
    if values.next() == "[":
        for number, (element, line) in enumerate(values.elements()):
            row = {column: element} if isinstance(element, str) else element
            yield TableRow(f"{name}:{number}", row, line=line)
        if values.next():
            raise ValueError(f"{name} line {values.line()} goes on after its array: give one array, or one row a line")
        return
    while values.next():
        place = f"{name}:{values.line()}"
        try:
            yield TableRow(place, values.take())
        except ValueError as error:
            yield TableRow(place, None, fault=str(error))
            values.skip_line()


def read_csv(lines: Iterator[str], name: str, delimiter: str) -> Iterator[TableRow]:
    """One row a line, or several where cells are quoted, under a line of column names; every cell is text as it is."""
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    while True:
        try:
            row = next_row(rows)
        except StopIteration:
            return
        except csv.Error as error:
            why = BARE_CR if "new-line" in str(error) else f"is not CSV: {error}"
            fault = f"{name} line {rows.line_num} {why}"
            if columns is None:
                raise ValueError(fault) from error
            yield TableRow(f"{name}:{rows.line_num}", None, fault=fault)
            continue
        place = f"{name}:{rows.line_num}"
        if columns is None:
            columns = row
        elif len(row) == len(columns):
            yield TableRow(place, dict(zip(columns, row, strict=True)))
        elif row:
            yield TableRow(place, None, fault=f"{place} has {len(row)} cells, but the header has {len(columns)}")


def next_row(rows: Any) -> list[str]:
    """A row with cells of any size: the limit is the process's, and others may rely on theirs."""
    limit = csv.field_size_limit((1 << 31) - 1)
    try:
        row: list[str] = next(rows)
        return row
    finally:
        csv.field_size_limit(limit)


def read_parquet(name: str, wanted: Sequence[str]) -> Iterator[TableRow]:
    """One row in memory at a time."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:  # left to itself pyarrow reads ahead the whole file, or row groups, which may be as large
        with ParquetFile(name, pre_buffer=False, buffer_size=1 << 20) as table:
            columns = table.schema_arrow.names
            kept = [x for x in wanted if x in columns] or columns[:1]
            rows = (row for batch in table.iter_batches(1, columns=kept) for row in raw_rows(batch))
            for number, row in enumerate(rows):
                yield TableRow(f"{name}:{number}", row, columns)
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


def read_dataset(name: str, splits: Sequence[str]) -> Iterator[TableRow]:
    """A dataset by name through `datasets`, streamed; without a split the first of those looked for, else its first."""
    import datasets

    path, config, split = (*name.split(":"), None, None)[:3]
    try:
        found: Any = datasets.load_dataset(path, config, split=split, streaming=True)
    except (OSError, ValueError) as error:  # datasets' own errors are among these
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"no file, folder or glob {name!r} here, and no such dataset: {reason}") from error
    if split is None:
        split = next((part for part in splits if part in found), next(iter(found)))
        found = found[split]
    rows = (row for table in found.with_format("arrow").iter(batch_size=1) for row in raw_rows(table))
    for number, row in enumerate(rows):
        yield TableRow(f"{path}:{split}:{number}", row)
