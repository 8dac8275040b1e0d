"""Pack tokenized documents end to end into full rows, in which documents do not see each other.

N: number of tokens of all documents; T: tokens of a row.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.text import COUNTED, Document, prefix_token, text_ids, tokenize, turns_of

Ints = NDArray[np.int64]
IGNORED = -100  # the target of a token that is not predicted


class Separators(NamedTuple):
    """The tokens that open and end a document. If they are the same, the end of one document opens the next."""

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
        """Put the opening and ending tokens around a document. A shared token is put only before it."""
        before = [] if self.opening is None else [self.opening]
        after = [] if self.ending is None or self.shared else [self.ending]
        return np.concatenate([np.array(before, np.int64), ids, np.array(after, np.int64)])


class Tokenised(NamedTuple):
    """Documents end to end."""

    ids: NDArray[np.int32]  # (N,)
    edges: Ints  # (documents + 1,): where each document begins, and the last one ends
    predicted: NDArray[np.bool_]  # (N,): whether to predict the token
    prompted: NDArray[np.bool_]  # (documents,): the predicted tokens depend on a prompt
    separators: Separators
    chats: NDArray[np.bool_]  # (documents,): opened and ended by a chat template instead of the separators

    @property
    def n_documents(self) -> int:
        return len(self.prompted)


def document_ids(
    tokenizer: Any, separators: Separators, text: str, n_prompt_chars: int = 0, *, parse_special: bool = False
) -> tuple[Ints, NDArray[np.bool_]]:
    """Tokenize a document for packing.

    Args:
        tokenizer: a transformers tokenizer.
        separators: the tokens that open and end a document.
        text: the document.
        n_prompt_chars: length of its prompt, whose tokens are not predicted.
        parse_special: as in `tokenize`.

    Returns:
        The n token ids with separators, (n,), and whether to predict each, (n,). An opening token that is also the
        ending one is predicted, as the end of the document before.
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
    """Tokenize a chat for packing: predicted are the turns that count, and the tokens that end them.

    Arguments and errors are those of `turns`; errors name the document. The return value is as in `document_ids`.
    """
    turns = turns_of(tokenizer, document, chat, parse_special=parse_special)
    predicted = (turns.kinds == COUNTED) | turns.ends
    predicted[:1] = False
    return turns.tokens.ids, predicted


class PackedRow(NamedTuple):
    """A row of T tokens; each field is (T,)."""

    input_ids: Ints
    targets: Ints  # the token to predict from each; IGNORED for none
    position_ids: Ints  # restart at 0 with each document, row and padding: a token sees nothing before its 0


class Packing(NamedTuple):
    """How one epoch of documents is put into rows, and what that costs."""

    strategy: str  # "stream": cut anywhere; "whole": a document that fits a row stays whole
    epoch_tokens: int  # in the rows, padding included
    fill: float  # share of these tokens that is not padding
    cut_prompts: int = 0  # documents longer than a row that lost the beginning of their prompt
    cut_completions: int = 0  # documents whose completion alone is longer than a row, and lost its end
    split: int = 0  # documents without a prompt that were cut into several rows
    dropped: int = 0  # documents left out


class Layout(NamedTuple):
    """The order of documents and rows in an epoch."""

    documents: Ints
    edges: Ints  # where each document begins in the stream of tokens, and the last one ends
    rows: Ints


class Packed:
    """The rows of a training of any number of epochs. Each epoch has a new order of documents and of rows.

    The documents of one epoch follow those of the epoch before, so that every row is full. A row belongs to the epoch
    in which it begins. In an epoch every token is seen once, and every token to predict is predicted once. The order
    depends only on the seed.
    """

    def __init__(self, texts: Tokenised, row_tokens: int, seed: int) -> None:
        """Raise ValueError if the texts do not fill a row."""
        self.texts, self.row_tokens, self.seed = texts, row_tokens, seed
        self.n_tokens = int(texts.edges[-1])
        if self.n_tokens < row_tokens:
            raise ValueError(
                f"the text to train on has {self.n_tokens:,} tokens, fewer than one row of {row_tokens:,}: "
                "give more text, or shorter rows with `row_tokens`"
            )
        self.packing = Packing("stream", self.n_tokens, 1.0)
        self.layout = lru_cache(3)(self._layout)

    def n_padding(self, first: int, last: int) -> int:
        """Return the padding in the rows `first` to `last`, exclusive: none, since every row is full."""
        return 0

    def first_row(self, epoch: int) -> int:
        return -(-epoch * self.n_tokens // self.row_tokens)

    def epoch_of(self, number: int) -> int:
        """Return the epoch of a row."""
        return number * self.row_tokens // self.n_tokens

    def _layout(self, epoch: int) -> Layout:
        generator = np.random.default_rng((self.seed, epoch))
        documents = generator.permutation(self.texts.n_documents)
        lengths = np.diff(self.texts.edges)[documents]
        rows = np.arange(self.first_row(epoch), self.first_row(epoch + 1))
        return Layout(documents, np.append(0, np.cumsum(lengths)), generator.permutation(rows))

    def __getitem__(self, number: int) -> PackedRow:
        """Return a row by its number in training."""
        epoch = self.epoch_of(number)
        place = int(self.layout(epoch).rows[number - self.first_row(epoch)])
        start = place * self.row_tokens - epoch * self.n_tokens
        ids, within, predicted = self.stream(epoch, start, self.row_tokens + 1)
        seen = np.arange(self.row_tokens)
        begins = np.where((within[:-1] == 0) | (seen == 0), seen, 0)
        targets = np.where(predicted[1:], ids[1:], IGNORED)
        return PackedRow(ids[:-1], targets, seen - np.maximum.accumulate(begins))

    def stream(self, epoch: int, start: int, length: int) -> tuple[Ints, Ints, NDArray[np.bool_]]:
        """Read `length` tokens from a place of an epoch: ids, places in their documents, whether to predict them."""
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
