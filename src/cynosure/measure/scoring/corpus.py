"""Texts to score, and their origin."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cynosure.system.numbers import counted
from cynosure.text import MEASURED, Document, Source, as_documents, read_documents, source_digest

LISTED = 10  # rows in a note


@dataclass(frozen=True)
class RereadDocuments:
    """Documents that every iteration reads from their sources."""

    sources: tuple[Source, ...]
    column: str | None
    errors: str
    limit: int | None
    splits: tuple[str, ...]
    split_at: str | None
    bad_rows: str
    left_out: list[str]  # in the last iteration: what was wrong with each row that was left out

    def __iter__(self) -> Iterator[Document]:
        self.left_out.clear()
        return read_documents(
            self.sources, column=self.column, errors=self.errors, limit=self.limit, splits=self.splits,
            split_at=self.split_at, bad_rows=self.bad_rows, skip=self.left_out.append,
        )  # fmt: skip


class Corpus(NamedTuple):
    """Documents, and their origin."""

    documents: Iterable[Document]
    origin: dict[str, Any]  # as recorded in the manifest
    left_out: Sequence[str] = ()  # after reading: what was wrong with each row that was left out

    @classmethod
    def of_sources(
        cls, sources: Sequence[Source], *, column: str | None = None, errors: str = "strict", limit: int | None = None,
        splits: tuple[str, ...] = MEASURED, split_at: str | None = None, bad_rows: str = "stop",
    ) -> "Corpus":  # fmt: skip
        """Read documents from sources when they are needed.

        Args:
            sources: the sources.
            column: as in `read_documents`.
            errors: as in `read_documents`.
            limit: as in `read_documents`.
            splits: as in `read_documents`.
            split_at: as in `read_documents`.
            bad_rows: as in `read_documents`.

        Returns:
            The corpus, whose documents can be iterated several times.
        """
        texts = [{"name": source.name, "sha256": source_digest(source)} for source in sources]
        origin = {"texts": texts, "column": column, "errors": errors, "limit": limit}
        newer = {"split_at": (split_at, None), "bad_rows": (bad_rows, "stop")}  # earlier versions do not have these
        origin |= {name: value for name, (value, default) in newer.items() if value != default}
        left_out: list[str] = []
        reading = RereadDocuments(tuple(sources), column, errors, limit, splits, split_at, bad_rows, left_out)
        return cls(reading, origin, left_out)

    @classmethod
    def of_texts(cls, texts: "Corpus | Iterable[Any]", **reading: Any) -> "Corpus":
        """Read documents from Python objects.

        Args:
            texts: the texts, as in `score`, or a corpus, which is returned.
            reading: `column`, `errors`, `split_at` and `bad_rows`, as in `score`.

        Returns:
            The corpus.
        """
        if isinstance(texts, Corpus):
            return texts
        left_out: list[str] = []
        return cls(as_documents(texts, skip=left_out.append, **reading), {}, left_out)

    @property
    def notes(self) -> list[str]:
        """Notes on the documents. They are complete after reading."""
        if not self.left_out:
            return []
        number, listed = len(self.left_out), "; ".join(self.left_out[:LISTED])
        more = f"; and {number - LISTED:,} more" if number > LISTED else ""
        return [f"{counted(number, 'row')} {'is' if number == 1 else 'are'} left out: {listed}{more}"]

    @property
    def known(self) -> bool:
        """Whether the origin has checksums of all texts, so that they need not be read again to see changes."""
        return all(text["sha256"] for text in self.origin.get("texts", [{"sha256": None}]))
