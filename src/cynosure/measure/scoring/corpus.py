"""Texts to measure, and where they come from."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cynosure.system.numbers import counted
from cynosure.text import MEASURED, Document, Source, as_documents, read_documents, source_digest

LISTED = 10  # rows in a note


@dataclass(frozen=True)
class RereadDocuments:
    """Documents that are read from their sources at every iteration."""

    sources: tuple[Source, ...]
    column: str | None
    errors: str
    limit: int | None
    splits: tuple[str, ...]
    split_at: str | None
    bad_rows: str
    left_out: list[str]  # of the last time, what was wrong with each row that was left out

    def __iter__(self) -> Iterator[Document]:
        self.left_out.clear()
        return read_documents(
            self.sources, column=self.column, errors=self.errors, limit=self.limit, splits=self.splits,
            split_at=self.split_at, bad_rows=self.bad_rows, skip=self.left_out.append,
        )  # fmt: skip


class Corpus(NamedTuple):
    """Documents, and their origin as the manifest records it."""

    documents: Iterable[Document]
    origin: dict[str, Any]
    left_out: Sequence[str] = ()  # once the documents have been read, what was wrong with each row that is none of them

    @classmethod
    def of_sources(
        cls, sources: Sequence[Source], *, column: str | None = None, errors: str = "strict", limit: int | None = None,
        splits: tuple[str, ...] = MEASURED, split_at: str | None = None, bad_rows: str = "stop",
    ) -> "Corpus":  # fmt: skip
        """The documents of sources, read lazily; options as of `read_documents`."""
        texts = [{"name": source.name, "sha256": source_digest(source)} for source in sources]
        origin = {"texts": texts, "column": column, "errors": errors, "limit": limit}
        changed = {"split_at": (split_at, None), "bad_rows": (bad_rows, "stop")}  # which earlier versions did not have
        origin |= {name: value for name, (value, default) in changed.items() if value != default}
        left_out: list[str] = []
        reading = RereadDocuments(tuple(sources), column, errors, limit, splits, split_at, bad_rows, left_out)
        return cls(reading, origin, left_out)

    @classmethod
    def of_texts(cls, texts: "Corpus | Iterable[Any]", **reading: Any) -> "Corpus":
        """Texts given as Python objects; options as of `as_documents`."""
        if isinstance(texts, Corpus):
            return texts
        left_out: list[str] = []
        return cls(as_documents(texts, skip=left_out.append, **reading), {}, left_out)

    @property
    def notes(self) -> list[str]:
        """Notes on the documents, complete once they have been read."""
        if not self.left_out:
            return []
        number, listed = len(self.left_out), "; ".join(self.left_out[:LISTED])
        more = f"; and {number - LISTED:,} more" if number > LISTED else ""
        return [f"{counted(number, 'row')} {'is' if number == 1 else 'are'} left out: {listed}{more}"]

    @property
    def known(self) -> bool:
        """Whether the origin says all of the texts, so that they need not be read again to know them unchanged."""
        return all(text["sha256"] for text in self.origin.get("texts", [{"sha256": None}]))
