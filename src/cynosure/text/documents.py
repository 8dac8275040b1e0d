"""Documents: the texts that are read from sources, whole files or the rows of tables."""

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

MEASURED, TRAINED = ("test", "validation"), ("train",)  # splits of a dataset, the first that it has
BAD_ROWS = ("stop", "skip")

log = logging.getLogger("cynosure")


class Document(NamedTuple):
    """A text and the place it came from.

    Its first `n_prompt_chars` characters are given and the rest is scored; `n_replaced` of its characters are U+FFFD in
    the place of what was not UTF-8. Of a chat there are the `messages`, with the `tools` they may call, which the
    tokenizer's template turns into a text; `text` is what they say.
    """

    name: str
    text: str
    n_prompt_chars: int = 0
    n_replaced: int = 0
    messages: list[Message] | None = None
    tools: list[Any] | None = None

    def with_messages(self, messages: list[Message]) -> "Document":
        """The same chat with other messages."""
        return self._replace(messages=messages, text=plain_text(messages))


class Rules(NamedTuple):
    """How documents are read: which column holds the text, what becomes of bytes that are not UTF-8, which split."""

    column: str
    named: bool  # the column was asked for
    strict: bool
    splits: tuple[str, ...] = MEASURED
    split_at: str | None = None  # between the documents of a text file
    skip: Callable[[str], None] | None = None  # told of each row that is left out; without it such a row stops all


def read_documents(
    sources: Sequence[Source], *, column: str | None = None, errors: str = "strict", limit: int | None = None,
    splits: tuple[str, ...] = MEASURED, split_at: str | None = None, bad_rows: str = "stop",
    skip: Callable[[str], None] | None = None,
) -> Iterator[Document]:  # fmt: skip
    """The documents of some sources, one at a time, at most `limit` of them; line ends and all else as they stand.

    Text is UTF-8. With `errors="strict"` anything else, and a NUL byte in a text file, raises ValueError naming file
    and byte; `"replace"` puts U+FFFD in the place of the former. A JSON, JSON Lines, CSV, TSV or Parquet file and
    a dataset hold one document a row, in the column `text` or the one named, or without such a column in two:
    `completion` is scored given `prompt`; or a chat in the column `messages`, or the one named, and in `tools` what may
    be called. `splits` are those of a dataset that are looked for where its name has none.

    A text file is one document, or with `split_at` what stands between places of that string: `name#1` and so on,
    without those of white space alone. A row that holds no document raises ValueError naming file and line, or with
    `bad_rows="skip"` is left out: `skip` is called with what is wrong. Where no row of a table is a document, the first
    one's fault is raised all the same.
    """
    if errors not in ("strict", "replace"):
        raise ValueError(f"errors must be 'strict' or 'replace', got {errors!r}")
    if bad_rows not in BAD_ROWS:
        raise ValueError(f"bad_rows must be 'stop' or 'skip', got {bad_rows!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 document, got {limit}")
    if split_at == "":
        raise ValueError("split_at must not be empty: give a string that stands between documents")
    told = (skip or ignore) if bad_rows == "skip" else None
    rules = Rules(column or COLUMN, column is not None, errors == "strict", splits, split_at, told)
    return islice((document for source in sources for document in read(source, rules)), limit)


def ignore(what: str) -> None:
    pass


def check_split_at(sources: Sequence[Source], split_at: str | None) -> None:
    """ValueError for a string where there are no texts to split at it."""
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
    """The document that a text file is, or those it is split into."""
    name = source.name
    check_text(file.peek(1), name)
    offset, n_kept = 0, 0
    mark = None if rules.split_at is None else rules.split_at.encode()
    for data in parted(utf8_pieces(file, name), mark):
        if rules.strict and (at := data.find(0)) >= 0:
            raise ValueError(
                f"{name} looks binary: a NUL byte at offset {offset + at}; "
                "`errors='replace'` reads it as text all the same"
            )
        text, n_replaced = decode(data, name, rules.strict, offset)
        if not offset and text.startswith("\ufeff"):
            log.info("%s begins with a byte order mark, which is no part of the text", name)
            text = text[1:]
        offset += len(data) + len(mark or b"")
        if mark is None:
            yield Document(name, text, n_replaced=n_replaced)
        elif text.strip():
            n_kept += 1
            yield Document(f"{name}#{n_kept}", text, n_replaced=n_replaced)


def parted(pieces: Iterator[bytes], mark: bytes | None) -> Iterator[bytes]:
    """What stands between places of `mark`, which may lie across pieces; without one all."""
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
    first_fault, n_found = None, 0
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
            n_found += 1
            yield document
    if first_fault and not n_found:
        raise ValueError(f"no row of {source.name} is a document: {first_fault}") from first_fault


def table_document(row: TableRow, rules: Rules) -> Document:
    """The document in a row of a table. ValueError, with the row's line, where there is none."""
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
    """The document in a row: a text, a prompt and its completion, or a chat."""
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
    """The messages in a row; None where it has no column of them. Those of a prompt do not count."""
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
        found, number = well_formed(name, text, rules)
        n_replaced += number
        return found

    cleaned = [with_texts(message, clean) for message in messages]
    return Document(name, plain_text(cleaned), 0, n_replaced, cleaned, without_null(tools) or None)


def well_formed(name: str, text: str | bytes, rules: Rules) -> tuple[str, int]:
    """A text and the U+FFFD put in it: a lone surrogate, which JSON can smuggle in, is not UTF-8 either."""
    if isinstance(text, bytes):
        return decode(text, name, rules.strict)
    try:
        text.encode()
        return text, 0
    except UnicodeEncodeError as error:
        if rules.strict:
            raise NotUTF8(name, f"a lone surrogate at character {error.start}") from error
    return re.subn("[\ud800-\udfff]", "\ufffd", text)
