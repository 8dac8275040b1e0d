"""Read documents from sources: whole text files or the rows of tables."""

import io
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from cynosure.text.binary import check_text
from cynosure.text.messages import WEIGHT, Message, is_list, messages_in, plain_text, with_texts, without_null
from cynosure.text.sources import TEXTS, Source
from cynosure.text.tables import COLUMN, MESSAGES, PAIR, TOOLS, TableRow, read_rows
from cynosure.text.unpacking import NotUTF8, decode, opened, utf8_pieces

MEASURED, TRAINED = ("test", "validation"), ("train",)  # splits of a dataset: the first that exists is read
BAD_ROWS = ("stop", "skip")

log = logging.getLogger("cynosure")


class Document(NamedTuple):
    """A text and where it came from.

    A chat has `messages`, and `tools` that they may call. The tokenizer's template turns them into a text; `text`
    holds only the texts of the messages.

    Attributes:
        name: where the document came from, for example `a.jsonl:3`.
        text: the text.
        n_prompt_chars: length of the prompt that the text begins with. It is given; the rest is scored.
        n_replaced: number of U+FFFD characters that replace what was not UTF-8.
        messages: the messages of a chat, or None.
        tools: the tools of a chat, or None.
    """

    name: str
    text: str
    n_prompt_chars: int = 0
    n_replaced: int = 0
    messages: list[Message] | None = None
    tools: list[Any] | None = None

    def with_messages(self, messages: list[Message]) -> "Document":
        """Return the document with other messages, and their text."""
        return self._replace(messages=messages, text=plain_text(messages))


class Rules(NamedTuple):
    """The options of reading documents."""

    column: str  # that holds the text
    named: bool  # the user named the column
    strict: bool  # bytes that are not UTF-8 are an error
    splits: tuple[str, ...] = MEASURED  # of a dataset
    split_at: str | None = None  # the string between the documents of a text file
    skip: Callable[[str], None] | None = None  # called for each bad row; without it a bad row is an error


def read_documents(
    sources: Sequence[Source], *, column: str | None = None, errors: str = "strict", limit: int | None = None,
    splits: tuple[str, ...] = MEASURED, split_at: str | None = None, bad_rows: str = "stop",
    skip: Callable[[str], None] | None = None,
) -> Iterator[Document]:  # fmt: skip
    """Read the documents of some sources, one at a time, without changing their text.

    A text file is one document. Each row of a JSON, JSON Lines, CSV, TSV or Parquet file and of a dataset is one
    document: a text in the column `text`, a prompt and its completion in `prompt` and `completion`, or a chat in
    `messages` with its tools in `tools`.

    Args:
        sources: the sources, as `find_sources` returns them.
        column: the column that holds the text or chat. Default: the columns above.
        errors: `"strict"` raises an error for bytes that are not UTF-8, and for a NUL byte in a text file; `"replace"`
            puts U+FFFD in the place of what is not UTF-8.
        limit: maximum number of documents.
        splits: the splits of a dataset to look for if its name has none.
        split_at: a string that separates the documents of a text file, which are named `name#1` and so on. Documents
            of white space alone are left out.
        bad_rows: `"stop"` raises an error for a row without a document; `"skip"` leaves it out.
        skip: with `bad_rows="skip"`, called with what is wrong with each bad row.

    Raises:
        ValueError: an option is wrong; a text is not UTF-8; a row, or every row of a table, has no document. The
            message names the file and the byte or line.
    """
    if errors not in ("strict", "replace"):
        raise ValueError(f"errors must be 'strict' or 'replace', got {errors!r}")
    if bad_rows not in BAD_ROWS:
        raise ValueError(f"bad_rows must be 'stop' or 'skip', got {bad_rows!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 document, got {limit}")
    if split_at == "":
        raise ValueError("split_at must not be empty: give the string that separates documents")
    on_bad_row = (skip or ignore) if bad_rows == "skip" else None
    rules = Rules(column or COLUMN, column is not None, errors == "strict", splits, split_at, on_bad_row)
    return islice((document for source in sources for document in read(source, rules)), limit)


def ignore(what: str) -> None:
    pass


def check_split_at(sources: Sequence[Source], split_at: str | None) -> None:
    """Raise ValueError if `split_at` is given but no source is a text file."""
    if split_at is not None and sources and not any(source.kind in TEXTS for source in sources):
        raise ValueError(f"`split_at` splits text files, and the rows of {sources[0].name} are documents already")


def read(source: Source, rules: Rules) -> Iterator[Document]:
    if source.kind not in TEXTS:
        yield from read_table(source, rules)
    elif source.kind == "stdin":
        yield from read_text(io.BufferedReader(io.BytesIO(sys.stdin.buffer.read())), source, rules)
    else:
        with opened(source.name) as file:
            yield from read_text(file, source, rules)


def read_text(file: Any, source: Source, rules: Rules) -> Iterator[Document]:
    """Read a text file as one document, or as those that `split_at` separates."""
    name = source.name
    check_text(file.peek(1), name)
    offset, n_kept = 0, 0
    mark = None if rules.split_at is None else rules.split_at.encode()
    for data in parted(utf8_pieces(file, name), mark):
        if rules.strict and (at := data.find(0)) >= 0:
            raise ValueError(
                f"{name} looks binary: a NUL byte at offset {offset + at}; `errors='replace'` reads it as text anyway"
            )
        text, n_replaced = decode(data, name, rules.strict, offset)
        if not offset and text.startswith("\ufeff"):
            log.info("%s begins with a byte order mark, which is not part of the text", name)
            text = text[1:]
        offset += len(data) + len(mark or b"")
        if mark is None:
            yield Document(name, text, n_replaced=n_replaced)
        elif text.strip():
            n_kept += 1
            yield Document(f"{name}#{n_kept}", text, n_replaced=n_replaced)


def parted(pieces: Iterator[bytes], mark: bytes | None) -> Iterator[bytes]:
    """Split the data at `mark`, which may lie across pieces; without a mark, join the pieces."""
    if mark is None:
        yield b"".join(pieces)
        return
    held = bytearray()
    for piece in pieces:
        begin = max(0, len(held) - len(mark) + 1)
        held += piece
        while (at := held.find(mark, begin)) >= 0:
            yield bytes(held[:at])
            del held[: at + len(mark)]
            begin = 0
    yield bytes(held)


def read_table(source: Source, rules: Rules) -> Iterator[Document]:
    first_fault, n_documents = None, 0
    for row in read_rows(source.kind, source.name, (rules.column, *PAIR, MESSAGES, TOOLS), rules.strict, rules.splits):
        try:
            document = table_document(row, rules)
        except NotUTF8:
            raise
        except ValueError as error:
            if rules.skip is None:
                raise ValueError(f"{error}; `bad_rows='skip'` leaves such rows out") from error
            first_fault = first_fault or error
            rules.skip(str(error))
        else:
            n_documents += 1
            yield document
    if first_fault and not n_documents:
        raise ValueError(f"no row of {source.name} is a document: {first_fault}") from first_fault


def table_document(row: TableRow, rules: Rules) -> Document:
    """Return the document in a row of a table. Raise ValueError, with the row's line, if it has none."""
    if row.fault is not None:
        raise ValueError(row.fault)
    try:
        return row_document(row.place, row.value, rules, row.columns)
    except NotUTF8:
        raise
    except ValueError as error:
        if row.line is None:
            raise
        raise ValueError(f"line {row.line}: {error}") from error


def row_document(name: str, row: Any, rules: Rules, columns: Sequence[str] | None = None) -> Document:
    """Return the document in a row: a text, a prompt and its completion, or a chat."""
    values = row if isinstance(row, dict) else {}
    if isinstance(values.get(rules.column), str | bytes):
        text, n_replaced = well_formed(name, values[rules.column], rules)
        return Document(name, text, 0, n_replaced)
    if not rules.named and all(isinstance(values.get(key), str | bytes) for key in PAIR):
        (prompt, a), (completion, b) = (well_formed(name, values[key], rules) for key in PAIR)
        return Document(name, prompt + completion, len(prompt), a + b)
    if (messages := chat_in(name, values, rules)) is not None:
        return chat(name, messages, values.get(TOOLS), rules)
    if rules.column in values:
        kind = "null" if values[rules.column] is None else f"a {type(values[rules.column]).__name__}"
        raise ValueError(f"{name}: column {rules.column!r} is {kind}, expected a string")
    has = ", ".join(columns or row) if isinstance(row, dict) else f"a {type(row).__name__}"
    raise ValueError(f"{name}: no column {rules.column!r}, only {has}; name another with `column`")


def chat_in(name: str, values: dict[str, Any], rules: Rules) -> list[Message] | None:
    """Return the messages in a row; None if no column holds messages. Messages of a prompt get weight 0."""
    if rules.named:
        column = rules.column
        return messages_in(name, column, values[column]) if is_list(values.get(column)) else None
    if all(is_list(values.get(key)) for key in PAIR):
        prompt, completion = (messages_in(name, key, values[key]) for key in PAIR)
        return [message | {WEIGHT: 0} for message in prompt] + completion
    there = MESSAGES in values and (values[MESSAGES] is not None or COLUMN not in values)
    return messages_in(name, MESSAGES, values[MESSAGES]) if there else None


def chat(name: str, messages: list[Message], tools: Any, rules: Rules) -> Document:
    n_replaced = 0

    def clean(text: str) -> str:
        nonlocal n_replaced
        cleaned, number = well_formed(name, text, rules)
        n_replaced += number
        return cleaned

    messages = [with_texts(message, clean) for message in messages]
    return Document(name, plain_text(messages), 0, n_replaced, messages, without_null(tools) or None)


def well_formed(name: str, text: str | bytes, rules: Rules) -> tuple[str, int]:
    """Return a text in valid UTF-8, and the number of U+FFFD put in. JSON can contain lone surrogates."""
    if isinstance(text, bytes):
        return decode(text, name, rules.strict)
    try:
        text.encode()
        return text, 0
    except UnicodeEncodeError as error:
        if rules.strict:
            raise NotUTF8(name, f"a lone surrogate at character {error.start}") from error
    return re.subn("[\ud800-\udfff]", "\ufffd", text)
