"""Read documents from Python objects: strings, paths, rows and data frames."""

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
    """Yield the documents in an iterable of texts, one at a time.

    A str is a text, never a name. A Path stands for its file, or for the files of its folder. A dict is a row of a
    table, read as `read_documents` reads it: its text is in `text`, or in `prompt` and `completion`. A pandas
    DataFrame yields its rows.

    Args:
        texts: the texts.
        column: as in `read_documents`.
        errors: as in `read_documents`.
        split_at: as in `read_documents`, for text files named by a Path.
        bad_rows: as in `read_documents`, also for items of the wrong type.
        skip: as in `read_documents`.

    Raises:
        TypeError: an item is of the wrong type. The message names its place.
        ValueError: a row has no text, or an option is wrong.

    Example:
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
    read_documents([], **reading)  # checks the options
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
    """Iterate the texts. A DataFrame yields its rows: iterating it directly would yield its column names."""
    if hasattr(texts, "iterrows"):
        columns = [str(name) for name in texts.columns]
        yield from (dict(zip(columns, row, strict=True)) for row in texts.itertuples(index=False, name=None))
    else:
        yield from texts


def document_of(item: Any, number: int, rules: Rules) -> Document:
    """Turn one item of the texts into a document."""
    if isinstance(item, Document):
        return item
    if isinstance(item, str):
        return Document(f"text {number}", item)
    if isinstance(item, Mapping):
        return row_document(f"texts[{number}]", dict(item), rules)
    shown = repr(item)
    shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
    raise TypeError(f"texts[{number}] is {type(item).__name__} {shown}: {EXPECTED}")
