"""Two runs side by side: the text cut wherever a token ends in both, and the loss of each run between the cuts."""

from collections.abc import Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cynosure.measure.classes import byte_class
from cynosure.measure.rows import Facts, Ints, numbers
from cynosure.measure.scores import Scores, Setting
from cynosure.measure.store import Store

COLUMNS = ["document", "token_id", "token_bytes", "byte_start", "byte_end", "nll", "argmax"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Side(NamedTuple):
    """What a comparison needs of a run: its documents, and of each of its N tokens, in the order of the text, (N,)."""

    setting: Setting
    facts: list[Facts]  # of every document, by its number
    pieces: pa.Array  # bytes
    document: Ints
    byte_start: Ints
    byte_end: Ints
    nll: NDArray[np.floating[Any]]  # nats, NaN where it was not scored
    token_id: Ints
    argmax: Ints

    @classmethod
    def of_run(cls, run: Scores | str | Path) -> "Side":
        """Of scores whose tokens were kept, or of the folder of a run. Errors as of `open_run` and `Scores.shards`."""
        if isinstance(run, Scores):
            if run.store is None:
                return cls.of_tables(run.setting, run.statistics.facts, run.shards())
            store = run.store
        else:
            store = Store.open(Path(run))
        try:
            setting = Setting.of_json(store.manifest["setting"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{store.folder}: the manifest is of no run known here ({error})") from error
        shards = [shard for shard, _ in store.read_all(COLUMNS)]
        facts = {fact.document: fact for shard in shards for fact in shard.facts}
        return cls.of_tables(setting, facts, (shard.table for shard in shards))

    @classmethod
    def of_tables(cls, setting: Setting, facts: Mapping[int, Facts], tables: Iterable[pa.Table]) -> "Side":
        table = pa.concat_tables([table.select(COLUMNS) for table in tables], promote_options="permissive")
        pieces = pa.concat_arrays(table["token_bytes"].chunks or [pa.array([], pa.binary())])
        names = ("document", "byte_start", "byte_end", "nll", "token_id", "argmax")
        return cls(setting, [facts[key] for key in sorted(facts)], pieces, *(numbers(table, name) for name in names))

    @property
    def scored(self) -> Bools:
        found: Bools = ~np.isnan(self.nll)
        return found

    @property
    def right(self) -> Bools:
        """Whether the likeliest token was the one that came; never where it was not scored."""
        found: Bools = self.argmax == self.token_id
        return found

    def text(self) -> bytes:
        """All documents, one behind the other."""
        joined: bytes = pc.binary_join(pa.ListArray.from_arrays([0, len(self.pieces)], self.pieces), b"")[0].as_py()
        return joined


class Choices(NamedTuple):
    """Of two runs of the same tokens, how many of each segment's have the same likeliest one, and who was right."""

    agreed: Ints
    right_a: Ints
    right_b: Ints
    broken: Ints  # right in A, wrong in B
    mended: Ints  # wrong in A, right in B


class Segments(NamedTuple):
    """Stretches of text between neighbouring bytes where a token ends in both runs, (S,), in the order of the text.

    Each is whole tokens of both, all of them scored in both. A token without bytes belongs to the text behind it.
    """

    document: Ints
    byte_start: Ints  # in the document
    byte_end: Ints
    nats_a: Floats  # infinite where a token was impossible
    nats_b: Floats
    tokens_a: Ints
    tokens_b: Ints
    kind: Ints  # byte class of the first token of A
    choices: Choices | None  # None where the tokens differ

    @property
    def n_bytes(self) -> Ints:
        return self.byte_end - self.byte_start


def align(a: Side, b: Side) -> Segments:
    """Pair two runs byte by byte, so that the tokenizers may differ; with equal ones a segment is a token.

    ValueError where the runs are not of the same texts under the same protocol, where a tokenizer changes the text, and
    where no segment is scored in both.
    """
    check_comparable(a, b)
    offsets = np.cumsum([0, *(fact.n_bytes for fact in a.facts)])
    edges = np.flatnonzero(ends(a, offsets) & ends(b, offsets))
    part_a, part_b = Part.of(a, offsets, edges), Part.of(b, offsets, edges)
    counted = part_a.whole & part_b.whole
    if not counted.any():
        raise ValueError("the runs have nothing in common: no stretch of text is scored in both")
    start = edges[:-1][counted]
    document = np.searchsorted(offsets, start, side="right") - 1
    choices = Choices(*(x[counted] for x in choose(a, b, part_a))) if same_tokens(a, b) else None
    return Segments(
        document,
        start - offsets[document],
        edges[1:][counted] - offsets[document],
        part_a.nats[counted],
        part_b.nats[counted],
        part_a.tokens[counted],
        part_b.tokens[counted],
        kinds(a, part_a)[counted],
        choices,
    )


def check_comparable(a: Side, b: Side) -> None:
    """ValueError, in a sentence, where two runs cannot be compared byte by byte."""
    if a.setting.protocol != b.setting.protocol:
        raise ValueError(
            f"A was scored under {a.setting.protocol} and B under {b.setting.protocol}: score both under one protocol"
        )
    for number, (of_a, of_b) in enumerate(zip_longest(a.facts, b.facts), start=1):
        if of_a is None or of_b is None:
            lacking, fact = ("A", of_b) if of_a is None else ("B", of_a)
            raise ValueError(f"{lacking} has no document {number}, {fact.name}: score the same texts in both")
        if of_a.sha256 != of_b.sha256:
            raise ValueError(
                f"document {number} is not the same text in both: it is {of_a.name} in A and {of_b.name} in B"
            )
        for side, fact in (("A", of_a), ("B", of_b)):
            if fact.drift and fact.n_tokens:
                raise ValueError(f"the bytes of {side} cannot be compared: {fact.drift} in {fact.name}")


def ends(side: Side, offsets: Ints) -> Bools:
    """Whether a token or a document ends before each byte of all documents, (bytes + 1,)."""
    found = np.zeros(offsets[-1] + 1, dtype=bool)
    found[offsets] = True
    found[offsets[side.document] + side.byte_end] = True
    return found


class Part(NamedTuple):
    """A run in segments (S,) yet to be counted: nats and number of the tokens scored, and whether these are all."""

    rows: Ints  # tokens that matter
    segment: Ints  # of each of them
    nats: Floats
    tokens: Ints
    whole: Bools

    @classmethod
    def of(cls, side: Side, offsets: Ints, edges: Ints) -> "Part":
        last = np.diff(offsets)[side.document] - 1  # byte of the document
        scored, n_segments = side.scored, len(edges) - 1
        rows = np.flatnonzero((last >= 0) & (scored | (side.byte_end > side.byte_start)))
        start = offsets[side.document[rows]] + np.minimum(side.byte_start, last)[rows]
        segment = np.searchsorted(edges, start, side="right") - 1
        scored = scored[rows]
        nats = np.bincount(segment[scored], side.nll[rows][scored], n_segments).astype(np.float64, copy=False)
        tokens = np.bincount(segment[scored], minlength=n_segments)
        missed = np.bincount(segment[~scored], minlength=n_segments)
        return cls(rows, segment, nats, tokens, (tokens > 0) & (missed == 0))


def same_tokens(a: Side, b: Side) -> bool:
    return np.array_equal(a.token_id, b.token_id) and np.array_equal(a.byte_end, b.byte_end)


def choose(a: Side, b: Side, part: Part) -> Choices:
    """Counts over segments of tokens scored in both; they lie where `part`, of either run, has them."""
    rows, segment, both = part.rows, part.segment, a.scored & b.scored
    facts = a.argmax == b.argmax, a.right, b.right, a.right & ~b.right, ~a.right & b.right
    return Choices(*(np.bincount(segment[(fact & both)[rows]], minlength=len(part.tokens)) for fact in facts))


def kinds(side: Side, part: Part) -> Ints:
    """The byte class of the first token of each segment; -1 where there is none."""
    encoded = pc.dictionary_encode(side.pieces)
    classes = np.array([byte_class(piece) for piece in encoded.dictionary.to_pylist()], dtype=np.int64)
    with_bytes = side.byte_end[part.rows] > side.byte_start[part.rows]
    rows, segment = part.rows[with_bytes], part.segment[with_bytes]
    first = np.flatnonzero(np.append(True, segment[1:] != segment[:-1]))[: len(segment)]
    found = np.full(len(part.tokens), -1)
    found[segment[first]] = classes[encoded.indices.to_numpy(zero_copy_only=False)[rows[first]]]
    return found
