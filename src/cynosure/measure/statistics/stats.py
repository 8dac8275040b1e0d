"""Accumulate statistics of scored tokens, shard by shard. Any order of merging gives the same bits."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cynosure.loss import TokenSums
from cynosure.measure.statistics.bootstrap import BASE_TOKENS, ENOUGH_DOCUMENTS
from cynosure.measure.statistics.calibration import Calibration
from cynosure.measure.statistics.classes import describe
from cynosure.measure.statistics.distribution import Distribution
from cynosure.measure.statistics.groups import Accumulator, Grouped, token_rows
from cynosure.measure.statistics.stretches import Stretches
from cynosure.measure.statistics.sums import Sums
from cynosure.measure.statistics.worst import Costly, costly_spans, costly_tokens, keep
from cynosure.measure.storage.rows import DocumentFacts, Ints, Shard, numbers, told_per_byte

# The columns that statistics need. The others, such as the likeliest tokens, are for inspection.
COLUMNS = [
    *("document", "index", "token_id", "token_bytes", "byte_start", "byte_end", "nll", "entropy", "rank", "confidence"),
    *("argmax", "brier", "nll_at_temperature", "context", "window", "excluded"),
]


class Excluded(NamedTuple):
    """A range of bytes of a document that no scored token covers, and the reason."""

    document: int
    byte_start: int
    byte_end: int
    reason: str


class Context(NamedTuple):
    """How many tokens the model saw before the scored ones."""

    n: int = 0
    total: int = 0
    least: int = 0
    most: int = 0

    def with_(self, context: Ints) -> "Context":
        return self.merged(Context(len(context), int(context.sum()), int(context.min()), int(context.max())))

    def merged(self, other: "Context") -> "Context":
        if not (self.n and other.n):
            return self if self.n else other
        least, most = min(self.least, other.least), max(self.most, other.most)
        return Context(self.n + other.n, self.total + other.total, least, most)

    @property
    def mean(self) -> float:
        return self.total / self.n


class Statistics:
    """The statistics of a run.

    Sums are integers in units of 2^-40 nats, so that the order of updates and merges changes no bit. Memory grows with
    the number of documents and the vocabulary, and with few documents also with their length.
    """

    def __init__(self) -> None:
        self.facts: dict[int, DocumentFacts] = {}
        self.documents, self.positions, self.tokens, self.classes = (Accumulator() for _ in range(4))
        self.windows = Accumulator()  # by document and window
        self.blocks: Accumulator | None = Accumulator()  # by document and 16 tokens; None with many documents
        self.stretches = Stretches()  # of the longest documents
        self.losses = Distribution()
        self.squares = Sums.zeros()  # of the losses
        self.calibration = Calibration()
        self.context = Context()
        self.excluded: list[Excluded] = []
        self.excluded_tokens: Counter[str] = Counter()  # by reason
        self.worst_tokens: list[Costly] = []
        self.worst_spans: list[Costly] = []

    def update(self, shard: Shard) -> None:
        """Add the rows of a shard."""
        self.facts |= {fact.document: fact for fact in shard.facts}
        table = shard.table
        self.excluded += excluded(table)
        scored = numbers(table, "rank") >= 0
        for part in pc.value_counts(table["excluded"].filter(pa.array(~scored)).drop_null()).to_pylist():
            self.excluded_tokens[part["values"]] += part["counts"]
        at = np.flatnonzero(scored)
        if len(at) == 0:
            return
        piece_class, piece_chars = describe(pa.concat_arrays(table["token_bytes"].chunks))
        nll, argmax, token_id = numbers(table, "nll")[at], numbers(table, "argmax")[at], numbers(table, "token_id")[at]
        correct, entropy = argmax == token_id, numbers(table, "entropy")[at]
        n_bytes = (numbers(table, "byte_end") - numbers(table, "byte_start"))[at]
        carried = (numbers(table, "byte_start") >= 0)[at] & table["excluded"].is_null().to_numpy()[at]
        sums = token_rows(nll, entropy, correct, n_bytes, piece_chars[at], carried)
        context = numbers(table, "context")[at].astype(np.int64)
        self.context = self.context.with_(context)
        document = numbers(table, "document")[at].astype(np.int64) << 32
        by = {
            "documents": document >> 32,
            "positions": np.floor(2 * np.log2(np.maximum(1, context))).astype(np.int64),
            "tokens": token_id.astype(np.int64),
            "classes": piece_class[at],
            "windows": document + numbers(table, "window")[at],
            "blocks": document + numbers(table, "index")[at] // BASE_TOKENS,
        }
        for name, keys in by.items():
            if (accumulator := getattr(self, name)) is not None:
                accumulator.add(Grouped.of(keys, sums))
        self.drop_blocks()
        self.stretches.add(shard.facts, document >> 32, numbers(table, "index")[at], sums)
        self.losses.update(nll)
        finite = np.where(np.isfinite(nll), nll, 0).astype(np.float64)
        self.squares += Sums.of(np.minimum(finite**2, 2.0**21))
        confidence, brier, tempered = (
            numbers(table, name)[at] for name in ("confidence", "brier", "nll_at_temperature")
        )
        self.calibration.update(confidence, correct, brier, nll, entropy, tempered)
        self.worst_tokens = costly_tokens(self.worst_tokens, table, nll, at)
        self.worst_spans = costly_spans(self.worst_spans, table, nll, at)

    def merge(self, other: "Statistics") -> None:
        """Add the statistics of other shards. No shard may be in both."""
        self.facts |= other.facts
        for name in ("documents", "positions", "tokens", "classes", "windows"):
            getattr(self, name).merge(getattr(other, name))
        if self.blocks is not None and other.blocks is not None:
            self.blocks.merge(other.blocks)
            self.drop_blocks()
        else:
            self.blocks = None
        self.stretches.merge(other.stretches)
        self.losses += other.losses
        self.squares += other.squares
        self.context = self.context.merged(other.context)
        self.calibration += other.calibration
        self.excluded += other.excluded
        self.excluded_tokens += other.excluded_tokens
        self.worst_tokens = keep(self.worst_tokens + other.worst_tokens)
        self.worst_spans = keep(self.worst_spans + other.worst_spans)

    def drop_blocks(self) -> None:
        if self.blocks is not None and len(self.documents.sums().keys) >= ENOUGH_DOCUMENTS:
            self.blocks = None

    @property
    def told_per_byte(self) -> bool:
        """Whether metrics per byte are known: the tokens that carry their text are enough."""
        return told_per_byte(self.facts.values())

    @property
    def total(self) -> Grouped:
        return self.documents.sums().total

    @property
    def sums(self) -> TokenSums:
        """The sums over all tokens, from which metrics are computed."""
        return self.total.token_sums()[0]

    def words(self) -> int | None:
        """Return the number of words in all documents; None if a token that covers text is not scored."""
        sums = self.documents.sums()
        scored = dict(
            zip(sums.keys.tolist(), zip(sums.counts("tokens"), sums.counts("n_bytes"), strict=True), strict=True)
        )
        total = 0
        for key, fact in self.facts.items():
            if fact.n_tokens == 0:
                continue
            n_tokens, n_bytes = scored.get(key, (0, 0))
            if n_tokens != fact.n_tokens and (fact.drift or n_bytes != fact.n_bytes):
                return None
            total += fact.n_words
        return total

    def unscored(self) -> list[DocumentFacts]:
        """Return the documents without a scored token."""
        scored = set(self.documents.sums().keys.tolist())
        return [self.facts[key] for key in sorted(self.facts) if key not in scored]

    def left_out(self) -> list[Excluded]:
        """Return the byte ranges that were not scored, in the order of the text. Neighbours with one reason merge."""
        ranges: list[Excluded] = []
        for part in sorted(self.excluded):
            last = ranges[-1] if ranges else None
            if last and (last.document, last.byte_end, last.reason) == (part.document, part.byte_start, part.reason):
                ranges[-1] = last._replace(byte_end=part.byte_end)
            else:
                ranges.append(part)
        return ranges

    def check_account(self) -> None:
        """Raise RuntimeError unless the bytes scored and the bytes left out add up to the bytes of each text."""
        sums = self.documents.sums()
        account = dict.fromkeys(self.facts, 0)
        for key, n_bytes in zip(sums.keys.tolist(), sums.counts("n_bytes").tolist(), strict=True):
            account[key] = account.get(key, 0) + n_bytes
        for part in self.excluded:
            account[part.document] += part.byte_end - part.byte_start
        for key, fact in self.facts.items():
            if (fact.drift is None or fact.n_lost is not None) and fact.n_tokens and account[key] != fact.n_bytes:
                raise RuntimeError(f"{fact.name}: {account[key]} bytes are accounted for, and it has {fact.n_bytes}")


def excluded(table: pa.Table) -> list[Excluded]:
    """Return the rows that were not scored or lose text, as ranges of bytes. Rows without known bytes are left out."""
    chosen = pc.and_(pc.is_valid(table["excluded"]), pc.is_valid(table["byte_start"]))
    missed = table.select(["document", "byte_start", "byte_end", "excluded"]).filter(chosen)
    document, start, end = (numbers(missed, name) for name in ("document", "byte_start", "byte_end"))
    reason = np.array(missed["excluded"].cast(pa.string()).to_pylist(), dtype=object)
    if len(document) == 0:
        return []
    new = np.flatnonzero((document[1:] != document[:-1]) | (start[1:] != end[:-1]) | (reason[1:] != reason[:-1])) + 1
    firsts, lasts = np.append(0, new), np.append(new - 1, len(document) - 1)
    ranges = zip(document[firsts].tolist(), start[firsts].tolist(), end[lasts].tolist(), reason[firsts], strict=True)
    return [Excluded(*part) for part in ranges if part[2] > part[1]]
