"""Packing that keeps documents whole: best-fit-decreasing, each row's rest filled with padding.

N tokens in all, T of a row
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
    """What goes into rows without a cut: tokens `start` to `stop` of the N, behind the document's opening token."""

    starts: Ints
    stops: Ints
    openings: Ints  # the place of that token among the N; -1 where the piece begins with it, or has none

    @property
    def lengths(self) -> Ints:
        return self.stops - self.starts + (self.openings >= 0)


class WholePacked:
    """The rows of a training whose documents are cut only where they are longer than a row, of any number of epochs.

    Every epoch has the same number of rows, in another order; documents of one length change places. The order
    depends on the seed alone. A document longer than a row is cut, dropped, or an error: `overlong`. Cutting takes the
    beginning of its prompt, but for the opening token. Where the predicted part alone is longer than a row, as much as
    half a row of prompt stays before it and its end is lost. A document without a prompt is split into rows.
    """

    def __init__(self, texts: Tokenised, row_tokens: int, seed: int, overlong: str = "cut") -> None:
        """TooLong for a document that `error` refuses; ValueError where nothing is left to train on."""
        self.texts, self.row_tokens, self.seed = texts, row_tokens, seed
        self.pieces, counts = pieces_of(texts, row_tokens, overlong)
        lengths = self.pieces.lengths
        if not len(lengths):
            raise ValueError(
                f"every document is longer than a row of {row_tokens:,} tokens and was dropped: "
                "give longer rows with `row_tokens`, or `overlong='cut'`"
            )
        row_of, self.n_rows = best_fit_decreasing(lengths, row_tokens)
        self.slots = np.argsort(row_of, kind="stable")  # of the pieces by falling length, row after row
        self.edges = np.searchsorted(row_of[self.slots], np.arange(self.n_rows + 1))
        self.filled = np.bincount(row_of, -np.sort(-lengths), self.n_rows).astype(np.int64)
        tokens = self.n_rows * row_tokens
        self.packing = Packing("whole", tokens, int(lengths.sum()) / tokens, **counts)
        self.layout = lru_cache(2)(self._layout)

    def first_row(self, epoch: int) -> int:
        return epoch * self.n_rows

    def epoch_of(self, number: int) -> int:
        """The epoch of a row."""
        return number // self.n_rows

    def _layout(self, epoch: int) -> tuple[Ints, Ints]:
        """Of an epoch: which piece takes each place by falling length, and its rows in their order."""
        generator = np.random.default_rng((self.seed, epoch))
        shuffled = generator.permutation(len(self.pieces.starts))
        placed = shuffled[np.argsort(-self.pieces.lengths[shuffled], kind="stable")]
        return placed, generator.permutation(self.n_rows)

    def n_padding(self, first: int, last: int) -> int:
        """Tokens of padding in the rows from the first to before the last."""
        numbers = np.arange(first, last)
        rows = [self.layout(self.epoch_of(number))[1][number % self.n_rows] for number in numbers.tolist()]
        return int((self.row_tokens - self.filled[rows]).sum())

    def __getitem__(self, number: int) -> PackedRow:
        """The row that comes so many-th in training."""
        placed, rows = self.layout(self.epoch_of(number))
        row = int(rows[number % self.n_rows])
        parts = [self.piece(int(i)) for i in placed[self.slots[self.edges[row] : self.edges[row + 1]]]]
        n_padding = self.row_tokens - int(self.filled[row])
        if n_padding:
            any_token = np.full(n_padding, self.texts.ids[0], np.int64)
            parts.append(PackedRow(any_token, np.full(n_padding, IGNORED), np.arange(n_padding)))
        return PackedRow(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def piece(self, number: int) -> PackedRow:
        """A piece as a part of a row."""
        start, stop, opening = (int(values[number]) for values in self.pieces)
        places = np.arange(start, stop)
        if opening >= 0:
            places = np.append(opening, places)
        targets = self.targets(places[1:])
        return PackedRow(self.ids(places), np.append(targets, self.target_after(stop)), np.arange(len(places)))

    def target_after(self, stop: int) -> int:
        """What is predicted from the last token of a piece: the next of its document, or the end of the document."""
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
        """The tokens at these places that are to be predicted; IGNORED for the others."""
        return np.where(self.texts.predicted[places], self.ids(places), IGNORED)


def pieces_of(texts: Tokenised, row_tokens: int, overlong: str) -> tuple[Pieces, dict[str, int]]:
    """Documents as pieces that fit a row, and how many were cut how."""
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
    """Documents as full rows and what is left of each."""
    n_parts = -(-(stops - starts) // row_tokens)
    before = np.repeat(np.cumsum(n_parts) - n_parts, n_parts)
    begins = np.repeat(starts, n_parts) + (np.arange(len(before)) - before) * row_tokens
    return Pieces(begins, np.minimum(begins + row_tokens, np.repeat(stops, n_parts)), np.full(len(begins), -1))


def cut_prompts(texts: Tokenised, documents: Ints, row_tokens: int) -> tuple[Pieces, int]:
    """Documents with a prompt, each cut to one row; and how many lost the end of what is predicted."""
    starts, stops = texts.edges[documents], texts.edges[documents + 1]
    opened = int(texts.separators.opening is not None)
    room = row_tokens - opened
    first = np.array([first_target(texts, *span) for span in zip(starts, stops, strict=True)], np.int64)
    begins = stops - room
    loses_end = begins >= first  # so that not one token of the prompt would be left
    half = np.maximum(starts + opened, first - row_tokens // 2)
    begins = np.where(loses_end, half, begins)
    # What is left may still begin where the document does: then the opening token stands before it anyway.
    openings = np.where(texts.chats[documents], -1, starts) if opened else np.full(len(starts), -1)
    return Pieces(begins, np.minimum(begins + room, stops), openings), int(loses_end.sum())


def first_target(texts: Tokenised, start: int, stop: int) -> int:
    """The place among the N tokens of the first that is predicted within its document."""
    return start + 1 + int(np.argmax(texts.predicted[start + 1 : stop]))


def row_for(lengths: Ints, sizes: Sequence[int]) -> int:
    """Of these sizes of a row the one that cuts the fewest documents, then the fullest, then the shortest.

    Up to 1% that are cut, and up to 5% of padding, are no difference.

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
    """The row of each item, taken by falling length, (n,), and the number of rows; a row has room for so many tokens.

    Each item goes into the row with the least room that holds it, a new one where none does (Johnson 1973). Items of
    one length are placed together: as many as fit go into every row of one room. So the time is that of sorting.

    >>> rows, n_rows = best_fit_decreasing(np.array([3, 9, 5, 2, 1]), 10)
    >>> rows.tolist(), n_rows  # of 9, 5, 3, 2 and 1
    ([0, 1, 1, 1, 0], 2)
    """
    row_of = np.empty(len(lengths), np.int64)
    rows_with: dict[int, list[int]] = {}  # so many tokens of room
    rooms: list[int] = []  # the keys, in order
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
