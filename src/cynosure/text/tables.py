"""Read the rows of tables: JSON, JSON Lines, CSV, TSV and Parquet files, and datasets.

Bytes that are not UTF-8 raise an error, or with `strict=False` become lone surrogates in the rows.
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
OWN = (COLUMN, *PAIR, MESSAGES)  # columns that are read by default
LOOKED_AT = 10  # rows of a file in a folder, to see whether it is a table of documents
BARE_CR = "has a carriage return outside quotes: end rows with a line feed, or quote the cell"


class TableRow(NamedTuple):
    """A row of a table, or a place where a row could not be read."""

    place: str
    value: Any
    columns: Sequence[str] | None = None  # all columns of the table, if `value` lacks some
    fault: str | None = None  # why the row could not be read
    line: int | None = None  # if `place` does not contain it


def read_rows(kind: str, name: str, wanted: Sequence[str], strict: bool, splits: Sequence[str]) -> Iterator[TableRow]:
    """Read the rows of a table, one at a time.

    Args:
        kind: the kind of source: json, jsonl, csv, tsv, parquet or dataset.
        name: the file or dataset.
        wanted: the columns to read from Parquet; the first also names the texts of a JSON array of strings.
        strict: raise an error for bytes that are not UTF-8.
        splits: the splits of a dataset to look for if its name has none.
    """
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
    """Whether one of the first rows of a JSON file has a column to read documents from."""
    wanted = OWN if column is None else (column,)
    try:
        rows = list(islice(read_rows("json", name, wanted, False, ()), LOOKED_AT))
    except NotUTF8:
        return True
    except ValueError:
        return False
    return not rows or any(isinstance(row.value, dict) and not row.value.keys().isdisjoint(wanted) for row in rows)


def read_jsonl(lines: Iterator[str], name: str) -> Iterator[TableRow]:
    """Read one JSON value per line. Blank lines are skipped."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{name}:{number}"
            try:
                yield TableRow(place, parse_json(line, f"{name} line {number}"))
            except ValueError as error:
                yield TableRow(place, None, fault=str(error))


def read_json(chunks: Iterator[str], name: str, column: str) -> Iterator[TableRow]:
    """Read the elements of an array, or else values one after another, as lines.

    A string in an array becomes a row with this `column`. An error inside an array raises ValueError, because the
    beginning of the next element is unknown.
    """
    values = Values(chunks, name)
    if values.next() == "[":
        for number, (element, line) in enumerate(values.elements()):
            row = {column: element} if isinstance(element, str) else element
            yield TableRow(f"{name}:{number}", row, line=line)
        if values.next():
            raise ValueError(
                f"{name} line {values.line()} continues after its array: give one array, or one row per line"
            )
        return
    while values.next():
        place = f"{name}:{values.line()}"
        try:
            yield TableRow(place, values.take())
        except ValueError as error:
            yield TableRow(place, None, fault=str(error))
            values.skip_line()


def read_csv(lines: Iterator[str], name: str, delimiter: str) -> Iterator[TableRow]:
    """Read the rows below a header. Quoted cells may span lines. Every cell is text, unchanged."""
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
    """Read a row with cells of any size. The limit is global, so it is restored for other users of `csv`."""
    limit = csv.field_size_limit((1 << 31) - 1)
    try:
        row: list[str] = next(rows)
        return row
    finally:
        csv.field_size_limit(limit)


def read_parquet(name: str, wanted: Sequence[str]) -> Iterator[TableRow]:
    """Read a Parquet file with one row in memory at a time."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:  # by default pyarrow reads ahead the whole file, or whole row groups, which may be as large
        with ParquetFile(name, pre_buffer=False, buffer_size=1 << 20) as table:
            columns = table.schema_arrow.names
            kept = [x for x in wanted if x in columns] or columns[:1]
            rows = (row for batch in table.iter_batches(1, columns=kept) for row in raw_rows(batch))
            for number, row in enumerate(rows):
                yield TableRow(f"{name}:{number}", row, columns)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{name} is not a valid Parquet file: {error}") from error


def raw_rows(batch: Any) -> list[dict[str, Any]]:
    """Return the rows of an Arrow table with texts as bytes: Arrow does not guarantee that they are UTF-8."""
    import pyarrow

    texts = {pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()}

    def is_text(kind: Any) -> bool:
        return (kind.value_type if pyarrow.types.is_dictionary(kind) else kind) in texts

    columns = [column.cast(pyarrow.large_binary()) if is_text(column.type) else column for column in batch.columns]
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    return [dict(zip(batch.schema.names, row, strict=True)) for row in rows]


def read_dataset(name: str, splits: Sequence[str]) -> Iterator[TableRow]:
    """Stream a dataset by name. Without a split in the name, read the first of `splits` it has, else its first."""
    import datasets

    path, config, split = (*name.split(":"), None, None)[:3]
    try:
        dataset: Any = datasets.load_dataset(path, config, split=split, streaming=True)
    except (OSError, ValueError) as error:  # the errors of `datasets` are subclasses
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"no file, folder or glob {name!r} here, and no such dataset: {reason}") from error
    if split is None:
        split = next((part for part in splits if part in dataset), next(iter(dataset)))
        dataset = dataset[split]
    rows = (row for table in dataset.with_format("arrow").iter(batch_size=1) for row in raw_rows(table))
    for number, row in enumerate(rows):
        yield TableRow(f"{path}:{split}:{number}", row)
