"""Texts as Python programs hold them, one document after another."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cynosure.text.documents import Document, Rules, read_documents, row_document
from cynosure.text.sources import find_sources
from cynosure.text.tables import COLUMN
from cynosure.text.unpacking import NotUTF8

EXPECTED = "expected a str (a text), a Path (of a file or folder), a Document or a row (a dict with a text)"


def as_documents(
    texts: Iterable[Any], *, column: str | None = None, errors: str = "strict", split_at: str | None = None,
    bad_rows: str = "stop", skip: Callable[[str], None] | None = None,
) -> Iterator[Document]:  # fmt: skip
    """The documents in an iterable of texts, which is read one at a time; in a pandas DataFrame they are the rows.

    A str is a text and never a name, a Path what its file or folder holds, a dict a row: its text is `text` (or the
    `column` that is named), or `prompt` with `completion`, which is scored given the former. Options as of
    `read_documents`; `split_at` is for the text files of Paths. Raises TypeError, which names the place, for anything
    else, ValueError for a row without a text; with `bad_rows="skip"` both are left out, and `skip` is called with why.

    >>> rows = [{"prompt": "2 + 2 =", "completion": " 4"}, "The end."]
    >>> [document.text for document in as_documents(rows)]
    ['2 + 2 = 4', 'The end.']
    """
    if isinstance(texts, str | bytes | Path | Document):
        raise TypeError(f"texts must be a list of texts, paths or documents, got one {type(texts).__name__}")
    if isinstance(texts, Mapping):
        keys = ", ".join(map(str, texts))
        raise TypeError(f"texts must be a list of texts, got a {type(texts).__name__} of {keys}: give one of these")
    if not isinstance(texts, Iterable):
        raise TypeError(f"texts must be a list of texts, paths or documents, got {texts!r}")
    reading: dict[str, Any] = {"column": column, "errors": errors, "split_at": split_at, "bad_rows": bad_rows}
    read_documents([], **reading)  # raises for options that make no sense
    rules = Rules(column or COLUMN, column is not None, errors == "strict")
    for number, item in enumerate(rows_of(texts)):
        if isinstance(item, Path):
            yield from read_documents(find_sources([item], column=column, datasets=False), skip=skip, **reading)
            continue
        try:
            yield document_of(item, number, rules)
        except NotUTF8:
            raise
        except (TypeError, ValueError) as error:
            if bad_rows == "stop":
                raise type(error)(f"{error}; `bad_rows='skip'` leaves such rows out") from error
            if skip is not None:
                skip(str(error))


def rows_of(texts: Any) -> Iterator[Any]:
    """What is in the texts: the rows of a DataFrame, which itself would give the names of its columns."""
    if hasattr(texts, "iterrows"):
        columns = [str(name) for name in texts.columns]
        yield from (dict(zip(columns, row, strict=True)) for row in texts.itertuples(index=False, name=None))
    else:
        yield from texts


def document_of(item: Any, number: int, rules: Rules) -> Document:
    """The document that an item of texts is."""
    if isinstance(item, Document):
        return item
    if isinstance(item, str):
        return Document(f"text {number}", item)
    if isinstance(item, Mapping):
        return row_document(f"texts[{number}]", dict(item), rules)
    shown = repr(item)
    shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
    raise TypeError(f"texts[{number}] is {type(item).__name__} {shown}: {EXPECTED}")
