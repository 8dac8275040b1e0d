"""Pack whole documents into rows by best-fit decreasing, and fill each row with padding.

N: number of tokens of all documents; T: tokens of a row.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.training.packing import IGNORED, Ints, PackedRow, Packing, Tokenised


class TooLong(ValueError):
    """A document is longer than a row; `number` counts from 0."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


class Pieces(NamedTuple):
    """Documents, or parts of them, that go into rows uncut: tokens `start` to `stop` of the N."""

    starts: Ints
    stops: Ints
    openings: Ints  # the place of an opening token to put before the piece; -1 if it begins with one or has none

    @property
    def lengths(self) -> Ints:
        return self.stops - self.starts + (self.openings >= 0)


class WholePacked:
    """The rows of a training, of any number of epochs, that cut a document only if it is longer than a row.

    Every epoch has the same number of rows, in a new order, and documents of equal length swap places. The order
    depends only on the seed.

    `overlong` decides about a document longer than a row: `"cut"`, `"drop"` or `"error"`. Cutting removes the
    beginning of its prompt but keeps the opening token. If the predicted part alone is longer than a row, up to half a
    row of prompt is kept and the end is lost. A document without a prompt is split into several rows.
    """

    def __init__(self, texts: Tokenised, row_tokens: int, seed: int, overlong: str = "cut") -> None:
        """Raise TooLong for a document that `overlong="error"` refuses, ValueError if nothing is left to train on."""
        self.texts, self.row_tokens, self.seed = texts, row_tokens, seed
        self.pieces, counts = pieces_of(texts, row_tokens, overlong)
        lengths = self.pieces.lengths
        if not len(lengths):
            raise ValueError(
                f"every document is longer than a row of {row_tokens:,} tokens and was dropped: "
                "give longer rows with `row_tokens`, or `overlong='cut'`"
            )
        row_of, self.n_rows = best_fit_decreasing(lengths, row_tokens)
        self.slots = np.argsort(row_of, kind="stable")  # row by row, indices into the pieces by descending length
        self.edges = np.searchsorted(row_of[self.slots], np.arange(self.n_rows + 1))
        self.filled = np.bincount(row_of, -np.sort(-lengths), self.n_rows).astype(np.int64)
        tokens = self.n_rows * row_tokens
        self.packing = Packing("whole", tokens, int(lengths.sum()) / tokens, **counts)
        self.layout = lru_cache(2)(self._layout)

    def first_row(self, epoch: int) -> int:
        return epoch * self.n_rows

    def epoch_of(self, number: int) -> int:
        """Return the epoch of a row."""
        return number // self.n_rows

    def _layout(self, epoch: int) -> tuple[Ints, Ints]:
        """Return an epoch's pieces by descending length, shuffled among equals, and the order of its rows."""
        generator = np.random.default_rng((self.seed, epoch))
        shuffled = generator.permutation(len(self.pieces.starts))
        placed = shuffled[np.argsort(-self.pieces.lengths[shuffled], kind="stable")]
        return placed, generator.permutation(self.n_rows)

    def n_padding(self, first: int, last: int) -> int:
        """Return the number of padding tokens in the rows `first` to `last`, exclusive."""
        numbers = np.arange(first, last)
        rows = [self.layout(self.epoch_of(number))[1][number % self.n_rows] for number in numbers.tolist()]
        return int((self.row_tokens - self.filled[rows]).sum())

    def __getitem__(self, number: int) -> PackedRow:
        """Return a row by its number in training."""
        placed, rows = self.layout(self.epoch_of(number))
        row = int(rows[number % self.n_rows])
        parts = [self.piece(int(i)) for i in placed[self.slots[self.edges[row] : self.edges[row + 1]]]]
        n_padding = self.row_tokens - int(self.filled[row])
        if n_padding:
            any_token = np.full(n_padding, self.texts.ids[0], np.int64)
            parts.append(PackedRow(any_token, np.full(n_padding, IGNORED), np.arange(n_padding)))
        return PackedRow(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def piece(self, number: int) -> PackedRow:
        """Return a piece as a part of a row."""
        start, stop, opening = (int(values[number]) for values in self.pieces)
        places = np.arange(start, stop)
        if opening >= 0:
            places = np.append(opening, places)
        targets = self.targets(places[1:])
        return PackedRow(self.ids(places), np.append(targets, self.target_after(stop)), np.arange(len(places)))

    def target_after(self, stop: int) -> int:
        """Return the target of a piece's last token: the next token of its document, or the document's end."""
        edges, separators = self.texts.edges, self.texts.separators
        after = int(np.searchsorted(edges, stop))
        if edges[after] != stop:
            return int(self.targets(np.array([stop]))[0])
        if separators.ending is None or not separators.shared or self.texts.chats[after - 1]:
            return IGNORED
        return separators.ending

    def ids(self, places: Ints) -> Ints:
        return np.asarray(self.texts.ids[places], np.int64)

    def targets(self, places: Ints) -> Ints:
        """Return the tokens at these places, or IGNORED for those that are not predicted."""
        return np.where(self.texts.predicted[places], self.ids(places), IGNORED)


def pieces_of(texts: Tokenised, row_tokens: int, overlong: str) -> tuple[Pieces, dict[str, int]]:
    """Divide documents into pieces that fit a row; also return how many were cut, and how."""
    starts, stops = texts.edges[:-1], texts.edges[1:]
    lengths = stops - starts
    long = np.flatnonzero(lengths > row_tokens)
    fits = (lengths <= row_tokens) & (lengths > 0)
    whole = Pieces(starts[fits], stops[fits], np.full(int(fits.sum()), -1))
    if len(long) and overlong == "error":
        raise TooLong(
            int(long[0]),
            f"it has {int(lengths[long[0]]):,} tokens, more than a row of {row_tokens:,} "
            f"({len(long):,} of {len(lengths):,} documents do)",
        )
    if overlong == "drop" or not len(long):
        return whole, {"dropped": len(long)}
    prompted = texts.prompted[long]
    cut, n_ends = cut_prompts(texts, long[prompted], row_tokens)
    parts = split(starts[long[~prompted]], stops[long[~prompted]], row_tokens)
    counts = {
        "cut_prompts": int(prompted.sum()) - n_ends,
        "cut_completions": n_ends,
        "split": int((~prompted).sum()),
    }
    return Pieces(*(np.concatenate(each) for each in zip(whole, cut, parts, strict=True))), counts


def split(starts: Ints, stops: Ints, row_tokens: int) -> Pieces:
    """Split documents into pieces of a full row each and a last one with the rest."""
    n_parts = -(-(stops - starts) // row_tokens)
    before = np.repeat(np.cumsum(n_parts) - n_parts, n_parts)
    begins = np.repeat(starts, n_parts) + (np.arange(len(before)) - before) * row_tokens
    return Pieces(begins, np.minimum(begins + row_tokens, np.repeat(stops, n_parts)), np.full(len(begins), -1))


def cut_prompts(texts: Tokenised, documents: Ints, row_tokens: int) -> tuple[Pieces, int]:
    """Cut documents with a prompt to one row each; also return how many lost the end of their predicted part."""
    starts, stops = texts.edges[documents], texts.edges[documents + 1]
    opened = int(texts.separators.opening is not None)
    room = row_tokens - opened
    first = np.array([first_target(texts, *span) for span in zip(starts, stops, strict=True)], np.int64)
    begins = stops - room
    loses_end = begins >= first  # no token of the prompt would be left
    half = np.maximum(starts + opened, first - row_tokens // 2)
    begins = np.where(loses_end, half, begins)
    # If the piece still begins where the document does, the opening token comes before it anyway.
    openings = np.where(texts.chats[documents], -1, starts) if opened else np.full(len(starts), -1)
    return Pieces(begins, np.minimum(begins + room, stops), openings), int(loses_end.sum())


def first_target(texts: Tokenised, start: int, stop: int) -> int:
    """Return the place, among the N tokens, of the first predicted token of a document."""
    return start + 1 + int(np.argmax(texts.predicted[start + 1 : stop]))


def row_for(lengths: Ints, sizes: Sequence[int]) -> int:
    """Choose the row size that cuts the fewest documents, then the one with the least padding, then the shortest.

    Sizes that cut at most 1% of the documents count as equal, and so does padding of at most 5%.

    >>> row_for(np.array([100, 300, 600] * 40), [512, 1024, 2048])
    1024
    """
    lengths = lengths[lengths > 0]

    def cost(size: int) -> tuple[float, float, int]:
        held = np.minimum(lengths, size)
        _, n_rows = best_fit_decreasing(held, size)
        return max(0.01, float(np.mean(lengths > size))), max(0.05, 1 - held.sum() / (n_rows * size)), size

    return min(sizes, key=cost) if len(lengths) else sizes[0]


def best_fit_decreasing(lengths: Ints, room: int) -> tuple[NDArray[np.int64], int]:
    """Assign items to rows of `room` tokens by best-fit decreasing (Johnson 1973).

    Each item goes into the row with the least room that fits it, or into a new one. Items of equal length are placed
    together, as many as fit into each row with the same room, so the time is that of sorting.

    Returns:
        The row of each item, the items sorted by descending length, (n,); and the number of rows.

    >>> rows, n_rows = best_fit_decreasing(np.array([3, 9, 5, 2, 1]), 10)
    >>> rows.tolist(), n_rows  # of 9, 5, 3, 2 and 1
    ([0, 1, 1, 1, 0], 2)
    """
    row_of = np.empty(len(lengths), np.int64)
    rows_with: dict[int, list[int]] = {}  # the rows, by how many tokens of room they have left
    rooms: list[int] = []  # its keys, sorted
    n_rows = n_placed = 0
    sizes, counts = np.unique(lengths, return_counts=True)
    for size, n_left in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while n_left:
            at = bisect_left(rooms, size)
            if at == len(rooms):
                each = room // size
                n_new = -(-n_left // each)
                rows_with[room], n_rows = list(range(n_rows, n_rows + n_new)), n_rows + n_new
                rooms.append(room)
            space, rows = rooms[at], rows_with[rooms[at]]
            each = space // size
            first = max(0, len(rows) - (n_left + each - 1) // each)
            taken = rows[first:]
            del rows[first:]
            if not rows:
                del rows_with[space], rooms[at]
            n_items = min(n_left, each * len(taken))
            row_of[n_placed : n_placed + n_items] = np.repeat(taken, each)[:n_items]
            n_last = n_items - each * (len(taken) - 1)  # the last of them may take fewer
            for rest, left_over in ((space - each * size, taken[:-1]), (space - n_last * size, taken[-1:])):
                if rest and left_over:
                    if rest not in rows_with:
                        insort(rooms, rest)
                    rows_with.setdefault(rest, []).extend(left_over)
            n_left, n_placed = n_left - n_items, n_placed + n_items
    return row_of, n_rows
