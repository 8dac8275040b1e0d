"""The data of a run: texts divided, a vocabulary made or taken, and everything as tokens on disk."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, get_type_hints

import numpy as np
from numpy.typing import NDArray

from cynosure.models import load_tokenizer
from cynosure.system.numbers import counted
from cynosure.text import Document, read_as, special_strings, spell, split_hint
from cynosure.text.messages import counts, exchanges, plain_text, without_first_exchange
from cynosure.training.division import Division
from cynosure.training.integrity import Damaged, misfit, parse_lines, reading
from cynosure.training.packing import Ints, Packed, Separators, Tokenised, chat_ids, document_ids
from cynosure.training.presets import Preset
from cynosure.training.settings import TrainSettings
from cynosure.training.vocabulary import train_tokenizer
from cynosure.training.whole import WholePacked

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
        prompted = kept["prompted"]
        chats = kept["chats"] if "chats" in kept else np.zeros_like(prompted)  # an earlier version read none
        return Tokenised(ids, kept["edges"], predicted, prompted, Separators(opening, ending), chats)

    def earlier(self, ids: NDArray[np.int32], kept: Any) -> Tokenised:
        """From a version that kept of each document the first token predicted, and laid all into a stream."""
        edges, first = kept["edges"], kept["first_predicted"]
        within = np.arange(len(ids)) - np.repeat(edges[:-1], np.diff(edges))
        predicted = within >= np.repeat(first, np.diff(edges))
        if kept["shared"]:
            predicted |= within == 0
        return Tokenised(ids, edges, predicted, first > 1, Separators(None, None), np.zeros(len(first), np.bool_))

    def valid(self) -> list[Document]:
        """What is held out. Raises Damaged, with the number of the line, for one that is no document."""
        path = self.folder / VALID
        with reading(path):
            data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            raise Damaged(f"{path} is cut off in its last line")
        kinds = get_type_hints(Document)
        chat = {name: kinds.pop(name) for name in ("messages", "tools")}  # which earlier versions did not write
        lines: list[dict[str, Any]] = [dict.fromkeys(chat) | line for line in parse_lines(path, data, kinds)]
        for number, line in enumerate(lines, 1):
            if wrong := misfit(line, chat):
                raise Damaged(f"{path}, line {number}, is damaged: {wrong}")
        return [Document(**{name: line[name] for name in Document._fields}) for line in lines]

    def tokenizer(self, trust_remote_code: bool = False) -> Any:
        """Raises Damaged where it cannot be read."""
        with reading(self.folder / TOKENIZER):
            return load_tokenizer(self.folder / TOKENIZER, None, trust_remote_code)


def disagreement(texts: Tokenised, facts: Facts) -> str | None:
    """Why these are not the documents that the facts tell of, in words; None where they are."""
    edges, prompted, chats = texts.edges, texts.prompted, texts.chats
    if edges.dtype != np.int64 or prompted.dtype != np.bool_ or edges.ndim != 1 or len(edges) != len(prompted) + 1:
        return "its arrays are not of documents"
    if chats.dtype != np.bool_ or chats.shape != prompted.shape:
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


class Reading(NamedTuple):
    """How what is trained on is read."""

    parse_special: bool = False  # as of `tokenize`
    chat: str = "assistant"  # whose turns of a chat are predicted
    row_tokens: int | None = None  # a chat of more is left its last exchanges; None where it keeps all

    @classmethod
    def of(cls, settings: TrainSettings) -> "Reading":
        return cls(settings.special == "parse", settings.chat)

    def trains(self, document: Document) -> bool:
        """Whether anything in a document is to be predicted."""
        counting = document.messages is None or any(counts(message, self.chat) for message in document.messages)
        return bool(document.text) and counting


def trained_on(division: Division, number: int, how: Reading) -> Document:
    """The document that is so many-th of those trained on, from 0."""
    return next(islice(filter(how.trains, division.train()), number, None))


def write_data(folder: Path, division: Division, tokenizer: Any, how: Reading, notes: Iterable[str] = ()) -> Data:
    """Write the data of a run into a new folder. OSError where there is no room.

    `notes` are kept with those that are found here.
    """
    folder.mkdir(parents=True)
    with (folder / TOKENS).open("wb") as ids, (folder / PREDICTED).open("wb") as predicted:
        writer = Writer(tokenizer, how, ids, predicted)
        for document in division.train():
            writer.add(document)
    np.savez(folder / DOCUMENTS, **writer.arrays())
    n_valid, asked = write_valid(folder / VALID, division.valid())
    tokenizer.save_pretrained(folder / TOKENIZER)
    n_bytes = writer.n_bytes
    found = Facts(
        train_documents=len(writer.lengths), train_tokens=sum(writer.lengths), train_bytes=int(n_bytes.sum()),
        valid_documents=n_valid, valid_bytes=int(asked.sum()), bytes_known=int(n_bytes.sum()) == writer.n_spelled,
        unigram_bits_per_byte=unigram_bits(n_bytes, asked), notes=(*notes, *division.notes, *writer.notes()),
    )  # fmt: skip
    return Data(folder, found)


class Writer:
    """Writes the tokens of documents, one document at a time, and counts what is in them."""

    def __init__(self, tokenizer: Any, how: Reading, ids: BinaryIO, predicted: BinaryIO) -> None:
        self.tokenizer, self.how, self.ids, self.predicted = tokenizer, how, ids, predicted
        self.separators, self.widths = Separators.of(tokenizer), token_widths(tokenizer)
        self.lengths: list[int] = []
        self.prompted: list[bool] = []
        self.chats: list[bool] = []
        self.n_bytes = np.zeros(256, np.int64)  # of each byte
        self.n_spelled = 0  # bytes, by the tokens
        self.strings: Counter[str] = Counter()  # that are special tokens
        self.n_cut = self.n_silent = 0  # chats that lost exchanges, and in which nothing counts

    def add(self, document: Document) -> None:
        """A document without text is passed over, and so is a chat in which no turn counts."""
        if not self.how.trains(document):
            self.n_silent += bool(document.text)
            return
        is_chat = document.messages is not None
        if is_chat:
            document, ids, predicted = self.fitted(document)
        else:
            ids, predicted = document_ids(
                self.tokenizer, self.separators, document.text, document.n_prompt_chars,
                parse_special=self.how.parse_special,
            )  # fmt: skip
            self.n_spelled += int(self.widths[ids].sum())
        self.ids.write(ids.astype(np.int32).tobytes())
        self.predicted.write(predicted.tobytes())
        self.lengths.append(len(ids))
        self.prompted.append(is_chat or document.n_prompt_chars > 0)
        self.chats.append(is_chat)
        self.strings.update(special_strings(self.tokenizer, document.text))
        self.n_bytes += byte_counts(document.text)

    def fitted(self, document: Document) -> tuple[Document, Ints, NDArray[np.bool_]]:
        """A chat and its tokens, as many of its last exchanges as a row has room for, at least one."""
        chat, parse_special = self.how.chat, self.how.parse_special
        whole = document
        ids, predicted = chat_ids(self.tokenizer, document, chat, parse_special=parse_special)
        while self.how.row_tokens is not None and len(ids) > self.how.row_tokens:
            fewer = without_first_exchange(document.messages or [])
            if fewer is None:
                break
            document = document.with_messages(fewer)
            ids, predicted = chat_ids(self.tokenizer, document, chat, parse_special=parse_special)
        self.n_cut += document is not whole
        return document, ids, predicted

    def arrays(self) -> dict[str, Any]:
        """What is known of the documents, by name."""
        edges = np.append(0, np.cumsum(np.array(self.lengths, np.int64)))
        kept: dict[str, Any] = {"edges": edges}
        kept |= {name: np.array(getattr(self, name), np.bool_) for name in ("prompted", "chats")}
        return kept | {name: -1 if token is None else token for name, token in self.separators._asdict().items()}

    def notes(self) -> Iterator[str]:
        """What a user must know of them."""
        yield from read_as(self.strings, "parse" if self.how.parse_special else "text")
        yield from split_hint(self.strings)
        if self.n_silent:
            yield f"{counted(self.n_silent, 'chat')} in which no turn counts: left out"
        if self.n_cut:
            yield (
                f"{counted(self.n_cut, 'chat')} longer than a row of {self.how.row_tokens:,} tokens: the first "
                "exchanges are left out; `row_tokens` makes longer rows"
            )


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
    log.info("training a tokenizer of %s tokens on the text", f"{wanted:,}")
    tokenizer = train_tokenizer(map(plain, division.train()), wanted)
    if len(tokenizer) < wanted:
        found = f"the text to train on supports a vocabulary of {len(tokenizer):,} tokens"
        if vocab_size is not None:
            raise ValueError(f"{found}, not {wanted:,}: give `vocab_size={len(tokenizer)}`, or more text")
        log.info("%s, not the %s of this size", found, f"{wanted:,}")
    return tokenizer


def plain(document: Document) -> str:
    """A document's text. ValueError for a chat, of which a new vocabulary knows nothing."""
    if document.messages is not None:
        raise ValueError(
            f"{document.name} is a chat, and a new vocabulary has no chat template: give `tokenizer` or `init` of a "
            "model of chats"
        )
    return document.text


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
    """The prompt of a document, and at most so many bytes of the rest, to the end of a character.

    Of a chat the exchanges that begin in these, at least one.
    """
    if document.messages is not None:
        begins = exchanges(document.messages)[1:]
        late = (i for i in begins if len(plain_text(document.messages[:i]).encode()) >= n_bytes)
        return document.with_messages(document.messages[: next(late, len(document.messages))])
    prompt, rest = document.text[: document.n_prompt_chars], document.text[document.n_prompt_chars :]
    kept = rest.encode()[:n_bytes].decode(errors="ignore") or rest[:1]
    return document._replace(text=prompt + kept)
