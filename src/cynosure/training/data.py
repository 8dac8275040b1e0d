"""The data of a run: texts divided, a vocabulary made or taken, and everything as tokens on disk."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
from numpy.typing import NDArray

from cynosure.models.load import load_tokenizer
from cynosure.text import (
    Division,
    Document,
    Packed,
    Separators,
    Tokenised,
    WholePacked,
    document_ids,
    read_as,
    special_strings,
    spell,
    split_hint,
    train_tokenizer,
)
from cynosure.text.tokens import Ints
from cynosure.training.integrity import Damaged, parse_lines, reading
from cynosure.training.presets import Preset
from cynosure.training.settings import TrainSettings

DOCUMENTS, VALID, TOKENIZER = "documents.npz", "valid.jsonl", "tokenizer"
TOKENS = "ids.int32"  # in no folder but a run's
PREDICTED = "predicted.bool"  # of each token
LEAST_BYTES = 512  # of each document validated on: less tells how texts begin, and no more

log = logging.getLogger("cynosure")


class Facts(NamedTuple):
    """Of the texts, in numbers."""

    train_documents: int
    train_tokens: int
    train_bytes: int
    valid_documents: int
    valid_bytes: int
    bytes_known: bool  # whether the bytes that tokens spell are the text's
    unigram_bits_per_byte: float | None  # of what is held out, by how often each byte is in what is trained on
    notes: tuple[str, ...]


class Data(NamedTuple):
    """The folder of a run's data, and what is in it."""

    folder: Path
    facts: Facts

    def tokenised(self) -> Tokenised:
        """What is trained on; the ids stay on disk. Raises Damaged where files are not those of one run's texts."""
        with reading(self.folder / TOKENS):
            ids = np.memmap(self.folder / TOKENS, dtype=np.int32, mode="r")
        with reading(self.folder / DOCUMENTS), np.load(self.folder / DOCUMENTS) as kept:
            found = self.earlier(ids, kept) if "first_predicted" in kept else self.now(ids, kept)
            if wrong := disagreement(found, self.facts):
                raise ValueError(wrong)
        return found

    def now(self, ids: NDArray[np.int32], kept: Any) -> Tokenised:
        with reading(self.folder / PREDICTED):
            predicted = np.memmap(self.folder / PREDICTED, dtype=np.bool_, mode="r")
        opening, ending = (None if int(kept[name]) < 0 else int(kept[name]) for name in Separators._fields)
        return Tokenised(ids, kept["edges"], predicted, kept["prompted"], Separators(opening, ending))

    def earlier(self, ids: NDArray[np.int32], kept: Any) -> Tokenised:
        """From a version that kept of each document the first token predicted, and laid all into a stream."""
        edges, first = kept["edges"], kept["first_predicted"]
        within = np.arange(len(ids)) - np.repeat(edges[:-1], np.diff(edges))
        predicted = within >= np.repeat(first, np.diff(edges))
        if kept["shared"]:
            predicted |= within == 0
        return Tokenised(ids, edges, predicted, first > 1, Separators(None, None))

    def valid(self) -> list[Document]:
        """What is held out. Raises Damaged, with the number of the line, for one that is no document."""
        path = self.folder / VALID
        with reading(path):
            data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            raise Damaged(f"{path} is cut off in its last line")
        lines = parse_lines(path, data, get_type_hints(Document))
        return [Document(**{name: line[name] for name in Document._fields}) for line in lines]

    def tokenizer(self, trust_remote_code: bool = False) -> Any:
        """Raises Damaged where it cannot be read."""
        with reading(self.folder / TOKENIZER):
            return load_tokenizer(self.folder / TOKENIZER, None, trust_remote_code)


def disagreement(texts: Tokenised, facts: Facts) -> str | None:
    """Why these are not the documents that the facts tell of, in words; None where they are."""
    edges, prompted = texts.edges, texts.prompted
    if edges.dtype != np.int64 or prompted.dtype != np.bool_ or edges.ndim != 1 or len(edges) != len(prompted) + 1:
        return "its arrays are not of documents"
    if len(texts.ids) != facts.train_tokens or len(prompted) != facts.train_documents:
        return f"there are {len(texts.ids):,} tokens, and {facts.train_tokens:,} were written"
    if edges[0] != 0 or edges[-1] != len(texts.ids) or (np.diff(edges) < 0).any():
        return f"its documents do not make up the {len(texts.ids):,} tokens in {TOKENS}"
    if len(texts.predicted) != len(texts.ids):
        return f"{PREDICTED} is of {len(texts.predicted):,} tokens, not {len(texts.ids):,}"
    return None


def strategy_for(texts: Tokenised, settings: TrainSettings) -> str:
    """How these are packed. ValueError where `overlong` is asked for and would do nothing."""
    if settings.keep_documents_whole or texts.prompted.any():
        return "whole"
    if settings.overlong != "cut":
        raise ValueError(
            f"overlong {settings.overlong!r} is for documents that are kept whole, and none of these has a prompt: "
            "give `keep_documents_whole=True`, or leave `overlong` out"
        )
    return "stream"


def pack(texts: Tokenised, row_tokens: int, settings: TrainSettings, strategy: str) -> Packed | WholePacked:
    """The rows of a run. Raises ValueError where there are none, TooLong for a document that `overlong` refuses."""
    if strategy == "stream":
        return Packed(texts, row_tokens, settings.seed)
    return WholePacked(texts, row_tokens, settings.seed, settings.overlong)


def trained_on(division: Division, number: int) -> Document:
    """The document that is so many-th of those trained on, from 0."""
    return next(islice((document for document in division.train() if document.text), number, None))


def write_data(
    folder: Path, division: Division, tokenizer: Any, *, parse_special: bool = False, notes: Iterable[str] = ()
) -> Data:
    """Write the data of a run into a new folder; `parse_special` as of `tokenize`. OSError where there is no room.

    `notes` are kept with those that are found here.
    """
    folder.mkdir(parents=True)
    told, known, strings = write_train(folder, division.train(), tokenizer, parse_special)
    n_valid, asked = write_valid(folder / VALID, division.valid())
    tokenizer.save_pretrained(folder / TOKENIZER)
    notes = [*notes, *division.notes, *read_as(strings, "parse" if parse_special else "text"), *split_hint(strings)]
    found = Facts(
        **told, train_bytes=int(known.sum()), valid_documents=n_valid, valid_bytes=int(asked.sum()),
        unigram_bits_per_byte=unigram_bits(known, asked), notes=tuple(notes),
    )  # fmt: skip
    return Data(folder, found)


def write_train(
    folder: Path, documents: Iterator[Document], tokenizer: Any, parse_special: bool
) -> tuple[dict[str, Any], Ints, Counter[str]]:
    """The tokens of the documents to train on, one document at a time; their facts, the number of each byte (256,),
    and of each string that is a special token.

    Empty documents are passed over.
    """
    separators, widths = Separators.of(tokenizer), token_widths(tokenizer)
    lengths, prompted, found, spelled = [], [], np.zeros(256, np.int64), 0
    strings: Counter[str] = Counter()
    with (folder / TOKENS).open("wb") as file, (folder / PREDICTED).open("wb") as flags:
        for document in documents:
            if not document.text:
                continue
            text, given = document.text, document.n_prompt_chars
            ids, predicted = document_ids(tokenizer, separators, text, given, parse_special=parse_special)
            strings.update(special_strings(tokenizer, text))
            file.write(ids.astype(np.int32).tobytes())
            flags.write(predicted.tobytes())
            lengths.append(len(ids))
            prompted.append(document.n_prompt_chars > 0)
            found += byte_counts(document.text)
            spelled += int(widths[ids].sum())
    edges = np.append(0, np.cumsum(np.array(lengths, np.int64)))
    kept: dict[str, Any] = {"edges": edges, "prompted": np.array(prompted, np.bool_)}
    kept |= {name: -1 if token is None else token for name, token in separators._asdict().items()}
    np.savez(folder / DOCUMENTS, **kept)
    told = {"train_documents": len(lengths), "train_tokens": int(edges[-1]), "bytes_known": int(found.sum()) == spelled}
    return told, found, strings


def write_valid(path: Path, documents: Iterable[Document]) -> tuple[int, Ints]:
    """The documents held out, and the number of each byte in them (256,)."""
    number, found = 0, np.zeros(256, np.int64)
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            if document.text:
                file.write(json.dumps(document._asdict()) + "\n")
                number, found = number + 1, found + byte_counts(document.text)
    return number, found


def byte_counts(text: str) -> Ints:
    """How often each byte is in a text, (256,)."""
    return np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256)


def unigram_bits(known: Ints, asked: Ints) -> float | None:
    """Bits a byte of a text by the frequency of each byte in another, to which one of each is added (Laplace).

    >>> round(unigram_bits(np.array([3] + [0] * 255), np.array([1] * 256)), 4)
    8.009
    """
    probabilities = (known + 1) / (known.sum() + 256)
    n_bytes = int(asked.sum())
    return float(-(asked * np.log2(probabilities)).sum() / n_bytes) if n_bytes else None


def token_widths(tokenizer: Any) -> NDArray[np.int64]:
    """How many bytes each token stands for, (V,); what opens and ends documents for none, nor what is no token."""
    known = sorted(set(tokenizer.get_vocab().values()))
    widths: Ints = np.zeros(known[-1] + 1, np.int64)
    widths[known] = [len(piece) for piece in spell(tokenizer, known)]
    for separator in Separators.of(tokenizer):
        if separator is not None:
            widths[separator] = 0
    return widths


def make_vocabulary(division: Division, preset: Preset, vocab_size: int | None) -> Any:
    """A tokenizer of the text to train on.

    ValueError where a size was asked for that the text does not support; the preset's own is cut down to what it does.
    """
    wanted = vocab_size or preset.vocab_size
    log.info("making a vocabulary of %s tokens of the text", f"{wanted:,}")
    tokenizer = train_tokenizer((document.text for document in division.train()), wanted)
    if len(tokenizer) < wanted:
        found = f"the text to train on supports a vocabulary of {len(tokenizer):,} tokens"
        if vocab_size is not None:
            raise ValueError(f"{found}, not {wanted:,}: give `vocab_size={len(tokenizer)}`, or more text")
        log.info("%s, not the %s of this size", found, f"{wanted:,}")
    return tokenizer


def shortened(documents: list[Document], n_bytes: float) -> list[Document]:
    """The beginnings of documents, about so many bytes beside their prompts: of each as much, or a shorter one's whole.

    Of very many documents every second, fourth and so on, so that it is enough of each to tell something.
    """
    most = share(documents, n_bytes)
    while most is not None and most < LEAST_BYTES and len(documents) > 1:
        documents = documents[::2]
        most = share(documents, n_bytes)
    return documents if most is None else [beginning(document, max(1, int(most))) for document in documents]


def share(documents: list[Document], n_bytes: float) -> float | None:
    """How many bytes of each document make so many in all; None where all of them are no more."""
    sizes = sorted(len(document.text[document.n_prompt_chars :].encode()) for document in documents)
    left = n_bytes
    for n_done, size in enumerate(sizes):
        most = left / (len(sizes) - n_done)
        if size > most:
            return most
        left -= size
    return None


def beginning(document: Document, n_bytes: int) -> Document:
    """The prompt of a document, and at most so many bytes of the rest, to the end of a character."""
    prompt, rest = document.text[: document.n_prompt_chars], document.text[document.n_prompt_chars :]
    kept = rest.encode()[:n_bytes].decode(errors="ignore") or rest[:1]
    return document._replace(text=prompt + kept)
