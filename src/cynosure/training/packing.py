"""Packing: tokenised documents laid end to end and cut into rows that are all full, each document apart in them.

N tokens in all, T of a row
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.text import COUNTED, Document, prefix_token, text_ids, tokenize, turns_of

Ints = NDArray[np.int64]
IGNORED = -100  # a target that is not to be predicted


class Separators(NamedTuple):
    """The tokens that open and end a document; where they are one, the end of one document opens the next."""

    opening: int | None
    ending: int | None

    @classmethod
    def of(cls, tokenizer: Any) -> "Separators":
        end = tokenizer.eos_token_id
        return cls(prefix_token(tokenizer), None if end is None else int(end))

    @property
    def shared(self) -> bool:
        return self.opening is not None and self.opening == self.ending

    def around(self, ids: Ints) -> Ints:
        """A document's tokens with what opens and ends it; its end where it opens the next is left to that."""
        before = [] if self.opening is None else [self.opening]
        after = [] if self.ending is None or self.shared else [self.ending]
        return np.concatenate([np.array(before, np.int64), ids, np.array(after, np.int64)])


class Tokenised(NamedTuple):
    """Documents end to end: ids (N,), where each begins and the last ends, and which tokens are to be predicted."""

    ids: NDArray[np.int32]
    edges: Ints  # (documents + 1,)
    predicted: NDArray[np.bool_]  # (N,)
    prompted: NDArray[np.bool_]  # (documents,): what is predicted needs what stands before it in the document
    separators: Separators
    chats: NDArray[np.bool_]  # (documents,): which their template opens and ends, and no separator

    @property
    def n_documents(self) -> int:
        return len(self.prompted)


def document_ids(
    tokenizer: Any, separators: Separators, text: str, n_prompt_chars: int = 0, *, parse_special: bool = False
) -> tuple[Ints, NDArray[np.bool_]]:
    """The tokens of a document in a row, (n,), and which of them are to be predicted, (n,); a prompt's are not.

    Where the opening token is the ending one too, it is predicted: as the end of the document before. `parse_special`
    as of `tokenize`.
    """
    n_opening, n_prompt = int(separators.opening is not None), 0
    if n_prompt_chars:
        tokens = tokenize(tokenizer, text, n_prompt_chars=n_prompt_chars, parse_special=parse_special)
        own, n_prompt = tokens.ids, tokens.n_prompt
    else:
        own = text_ids(tokenizer, text, parse_special=parse_special)
    ids = separators.around(own)
    predicted = np.arange(len(ids)) >= max(1, n_prompt + n_opening)
    predicted[:1] = separators.shared
    return ids, predicted


def chat_ids(
    tokenizer: Any, document: Document, chat: str, *, parse_special: bool = False
) -> tuple[Ints, NDArray[np.bool_]]:
    """The same of a chat as its template writes it: what the turns that count say, and what ends them, is predicted.

    `chat` as of `turns`. Raises ValueError as that does, naming the document.
    """
    found = turns_of(tokenizer, document, chat, parse_special=parse_special)
    predicted = (found.kinds == COUNTED) | found.ends
    predicted[:1] = False
    return found.tokens.ids, predicted


class PackedRow(NamedTuple):
    """A row of T tokens: what is seen, what is to be predicted from each, and where each stands in its document."""

    input_ids: Ints
    targets: Ints  # IGNORED where nothing is
    position_ids: Ints  # from 0 where a document, the row or its padding begins: what lies before is never seen


class Packing(NamedTuple):
    """How documents are put into rows, and what that costs: of one epoch."""

    strategy: str  # "stream": cut anywhere; "whole": a document that fits a row stays whole
    epoch_tokens: int  # of its rows, padding included
    fill: float  # share of them that is no padding
    cut_prompts: int = 0  # documents longer than a row that lost the beginning of their prompt
    cut_completions: int = 0  # whose completion alone is longer than a row, and lost its end
    split: int = 0  # without a prompt, that were cut into several rows
    dropped: int = 0  # left out


class Layout(NamedTuple):
    """An epoch: the documents in their order, where each begins in the stream, and its rows in their order."""

    documents: Ints
    edges: Ints
    rows: Ints


class Packed:
    """The rows of a training, of any number of epochs, each a new order of the documents and of the rows.

    The documents of one epoch follow on those of the epoch before, so that every row is full; a row belongs to the
    epoch in which it begins. Over an epoch every token is seen once and every token that is to be predicted is
    predicted once. The order depends on the seed alone.
    """

    def __init__(self, texts: Tokenised, row_tokens: int, seed: int) -> None:
        """ValueError where the texts do not fill a row."""
        self.texts, self.row_tokens, self.seed = texts, row_tokens, seed
        self.n_tokens = int(texts.edges[-1])
        if self.n_tokens < row_tokens:
            raise ValueError(
                f"the text to train on has {self.n_tokens:,} tokens, less than one row of {row_tokens:,}: "
                "give more text, or shorter rows with `row_tokens`"
            )
        self.packing = Packing("stream", self.n_tokens, 1.0)
        self.layout = lru_cache(3)(self._layout)

    def n_padding(self, first: int, last: int) -> int:
        """Tokens of padding in the rows from the first to before the last: every row is full."""
        return 0

    def first_row(self, epoch: int) -> int:
        return -(-epoch * self.n_tokens // self.row_tokens)

    def epoch_of(self, number: int) -> int:
        """The epoch of a row."""
        return number * self.row_tokens // self.n_tokens

    def _layout(self, epoch: int) -> Layout:
        generator = np.random.default_rng((self.seed, epoch))
        documents = generator.permutation(self.texts.n_documents)
        lengths = np.diff(self.texts.edges)[documents]
        rows = np.arange(self.first_row(epoch), self.first_row(epoch + 1))
        return Layout(documents, np.append(0, np.cumsum(lengths)), generator.permutation(rows))

    def __getitem__(self, number: int) -> PackedRow:
        """The row that comes so many-th in training."""
        epoch = self.epoch_of(number)
        place = int(self.layout(epoch).rows[number - self.first_row(epoch)])
        start = place * self.row_tokens - epoch * self.n_tokens
        ids, within, predicted = self.stream(epoch, start, self.row_tokens + 1)
        seen = np.arange(self.row_tokens)
        begins = np.where((within[:-1] == 0) | (seen == 0), seen, 0)
        targets = np.where(predicted[1:], ids[1:], IGNORED)
        return PackedRow(ids[:-1], targets, seen - np.maximum.accumulate(begins))

    def stream(self, epoch: int, start: int, length: int) -> tuple[Ints, Ints, NDArray[np.bool_]]:
        """So many tokens from a place of an epoch on: ids, places in their documents, whether they are predicted."""
        ids, within, predicted = [], [], []
        while length:
            layout = self.layout(epoch)
            at = int(np.searchsorted(layout.edges, start, "right")) - 1
            while at < self.texts.n_documents and length:
                document = int(layout.documents[at])
                begin = start - int(layout.edges[at])
                first = int(self.texts.edges[document]) + begin
                n_taken = min(length, int(self.texts.edges[document + 1]) - first)
                places = np.arange(begin, begin + n_taken)
                ids.append(np.asarray(self.texts.ids[first : first + n_taken], np.int64))
                within.append(places)
                predicted.append(np.asarray(self.texts.predicted[first : first + n_taken]))
                start, length, at = start + n_taken, length - n_taken, at + 1
            epoch, start = epoch + 1, 0
        return np.concatenate(ids), np.concatenate(within), np.concatenate(predicted)
