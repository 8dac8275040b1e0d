"""Texts as Python programs hold them, one document after another."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cynosure.text.documents import Document, Rules, read_documents, row_document
from cynosure.text.sources import find_sources
from cynosure.text.tables import COLUMN

EXPECTED = "expected a str (a text), a Path (of a file or folder), a Document or a row (a dict with a text)"
FROM_PYTHON = Rules(COLUMN, named=False, strict=True)


def as_documents(texts: Iterable[Any]) -> Iterator[Document]:
    """The documents in an iterable of texts, which is read one at a time; in a pandas DataFrame they are the rows.

    A str is a text and never a name, a Path what its file or folder holds, a dict a row: its text is `text`, or
    `prompt` with `completion`, which is scored given the former. Raises TypeError, which names the place, for anything
    else, ValueError for a row without a text.

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
    for number, item in enumerate(rows_of(texts)):
        yield from documents_of(item, number)


def rows_of(texts: Any) -> Iterator[Any]:
    """What is in the texts: the rows of a DataFrame, which itself would give the names of its columns."""
    if hasattr(texts, "iterrows"):
        columns = [str(name) for name in texts.columns]
        yield from (dict(zip(columns, row, strict=True)) for row in texts.itertuples(index=False, name=None))
    else:
        yield from texts


def documents_of(item: Any, number: int) -> Iterable[Document]:
    if isinstance(item, Document):
        return [item]
    if isinstance(item, str):
        return [Document(f"text {number}", item)]
    if isinstance(item, Path):
        return read_documents(find_sources([str(item)], datasets=False))
    if isinstance(item, Mapping):
        return [row_document(f"texts[{number}]", dict(item), FROM_PYTHON)]
    shown = repr(item)
    shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
    raise TypeError(f"texts[{number}] is {type(item).__name__} {shown}: {EXPECTED}")
