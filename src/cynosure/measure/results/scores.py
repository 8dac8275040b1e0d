"""The scores of a run: metrics with their intervals, statistics, and per-token tables."""

import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from cynosure.measure.results import frames
from cynosure.measure.results.figures import MEANINGS, Figure, Totals, exponential, figure, scaled
from cynosure.measure.results.notes import chat_note, notes
from cynosure.measure.results.wording import aligned, html_table
from cynosure.measure.statistics import breakdown
from cynosure.measure.statistics.bootstrap import Method
from cynosure.measure.statistics.calibration import N_BINS, Binning, CalibrationReport
from cynosure.measure.statistics.intervals import Intervals, intervals
from cynosure.measure.statistics.stats import COLUMNS, Statistics
from cynosure.measure.storage.rows import Shard
from cynosure.measure.storage.store import SUMMARY, Store
from cynosure.system.escapes import visible
from cynosure.system.folders import READ_ONLY
from cynosure.system.numbers import counted, finite, number
from cynosure.text import DoesNotApply, read_as, split_hint

SHOWN = 20  # costliest tokens and spans in the JSON

log = logging.getLogger("cynosure")


class Setting(NamedTuple):
    """The model, protocol and options that produced the scores."""

    model: str
    protocol: str
    window: int
    stride: int
    dtype: str
    device: str
    notes: tuple[str, ...]
    bos: str | None = None  # windows that begin with BOS: `every`, `first`, `none`; None in runs of earlier versions
    special: str | None = None  # how strings that are special tokens are read: `text` or `parse`; None likewise
    chat: str | None = None  # turns of a chat that count: `assistant` or `all`; None likewise

    def to_json(self) -> dict[str, Any]:
        values = self._asdict()
        notes = list(values.pop("notes"))  # last, because they follow from the others
        return values | {"notes": notes}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> "Setting":
        return cls(**(values | {"notes": tuple(values["notes"])}))


@dataclass(repr=False)
class Scores:
    """The scores of some texts: metrics, statistics, and the per-token tables if they were kept.

    >>> import cynosure
    >>> scores = cynosure.score("smollm2", ["The cat sat on the mat.", "The end."])
    >>> scores.documents, scores.tokens, scores.n_bytes
    (2, 10, 31)
    >>> round(scores.figures["bits_per_byte"].value, 2), scores.to_pandas()["token_bytes"][1]
    (3.22, b' cat')
    """

    setting: Setting
    statistics: Statistics = field(default_factory=Statistics)
    tables: list[pa.Table] | None = None
    store: Store | None = None
    seconds: float = 0.0
    tokenizer: Any = None  # of the model, if known
    n_bins: int = N_BINS  # of calibration; set it and `binning` before reading `calibration`
    binning: Binning = "mass"

    @classmethod
    def of_store(cls, store: Store) -> "Scores":
        """Read the scores of a finished run on disk. Raise ValueError if it is unfinished or damaged."""
        setting = Setting.of_json(store.manifest["setting"])
        scores = cls(setting._replace(notes=(*setting.notes, *store.found)), store=store)
        try:
            for shard, seconds in store.read_all(COLUMNS):
                scores.add(shard, seconds)
            scores.check()
        except (LookupError, TypeError, ArithmeticError, RuntimeError) as error:
            raise ValueError(
                f"{store.folder} is damaged, its shards do not fit together ({error}): score again into another `out`"
            ) from error
        return scores

    def add(self, shard: Shard, seconds: float) -> None:
        """Add a shard. All shards must be added before any metric is read."""
        self.statistics.update(shard)
        self.seconds += seconds
        if self.tables is not None:
            self.tables.append(shard.table)

    def check(self) -> None:
        """Raise ValueError if no token is scored, RuntimeError if the bytes do not add up."""
        self.statistics.check_account()
        if self.statistics.sums.tokens == 0:
            names = ", ".join(fact.name for fact in self.statistics.unscored()[:3])
            raise DoesNotApply(f"nothing to score: no token to predict in {names or 'the texts given'}")

    def keep(self) -> None:
        """Read the tokens into memory, because the store will be removed."""
        if self.store is not None:
            self.tables, self.store = [shard.table for shard, _ in self.store.read_all()], None

    def shards(self) -> Iterator[pa.Table]:
        """Yield the tables of tokens, in the order of the text. Raise ValueError if they were not kept."""
        if self.store is not None:
            yield from (shard.table for shard, _ in self.store.read_all())
        elif self.tables is not None:
            yield from self.tables
        else:
            raise ValueError("the tokens of these scores were not kept: score with keep=True or with out")

    def to_pandas(self, tokenizer: Any = None) -> Any:
        """Return the tokens as a pandas DataFrame, one row per token.

        `document` is the place in `document_names`. `token_bytes` are the bytes that a token covers; `token` is the
        same as text, with bytes that are not a whole character written as `\\xNN`. `argmax_token` is the likeliest
        token as text.

        Args:
            tokenizer: the tokenizer, needed for `argmax_token` in scores from `open_run`. Scores from `score` have it.

        Returns:
            The DataFrame, without `argmax_token` if there is no tokenizer.

        Raises:
            ValueError: the tokens were not kept.
            ModuleNotFoundError: pandas is not installed.
        """
        return frames.token_frame(self.shards(), tokenizer or self.tokenizer)

    def by_document(self) -> Any:
        """Return the documents as a pandas DataFrame, one row per scored document, with its counts and metrics.

        `bytes` and `bits_per_byte` cover the tokens that carry their text, and are missing if more than a tenth of the
        text is lost.

        >>> import cynosure
        >>> table = cynosure.score("smollm2", ["The cat sat on the mat.", "The end."]).by_document()
        >>> table[["name", "tokens", "bytes"]].values.tolist()
        [['text 0', 7, 23], ['text 1', 3, 8]]
        """
        return frames.document_frame(self.statistics)

    def lines(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield (name, value, interval, meaning in plain words) of every metric."""
        for key, metric in self.figures.items():
            name, digits, meaning = MEANINGS[key]
            yield name, number(metric.value, digits), metric.shown(digits), meaning
        yield "top-1 accuracy", f"{self.top1_accuracy:.1%}", "", "how often the most likely token was right"
        yield "mean entropy", number(self.mean_entropy, 4), "", "nats: the loss that the model expected"

    def __str__(self) -> str:
        rows = [line[:3] for line in self.lines()]
        return "\n".join([visible(self.setting.model), *aligned(rows, "<><")])

    def __repr__(self) -> str:
        value = number(self.figures["nats_per_token"].value, 4)
        return f"<Scores of {self.setting.model}: {value} nats a token over {counted(self.tokens, 'token')}>"

    def _repr_html_(self) -> str:
        """A table for a notebook."""
        return html_table(self.setting.model, list(self.lines()))

    @property
    def document_names(self) -> list[str]:
        facts = self.statistics.facts
        return [facts[key].name for key in sorted(facts)]

    @property
    def documents(self) -> int:
        """Number of documents with a scored token. A joined text counts as all its documents."""
        scored = self.statistics.documents.sums().keys.tolist()
        return sum(self.statistics.facts[key].n_joined for key in scored)

    @cached_property
    def _totals(self) -> "Totals":
        totals = Totals.of(self.statistics)
        return totals.as_printed(self) if self.setting.protocol == "strided-legacy" else totals

    @property
    def tokens(self) -> int:
        return self._totals.tokens

    @property
    def nats(self) -> float:
        return self._totals.nats

    @property
    def n_bytes(self) -> int | None:
        return self._totals.n_bytes

    @property
    def n_chars(self) -> int | None:
        return self._totals.n_chars

    @property
    def n_words(self) -> int | None:
        return self._totals.n_words

    @cached_property
    def intervals(self) -> Intervals:
        return intervals(self.statistics)

    @property
    def method(self) -> Method:
        """How the intervals were made."""
        return self.intervals.method

    @cached_property
    def calibration(self) -> CalibrationReport | None:
        return self.statistics.calibration.compute(self.n_bins, self.binning)

    @property
    def figures(self) -> dict[str, Figure]:
        """The loss in five different units, each with its 95% interval."""
        totals, intervals = self._totals, self.intervals
        if self.setting.protocol == "strided-legacy":  # its mean is not the one that was resampled
            return {
                "nats_per_token": figure(totals.nats, totals.tokens, None),
                "token_perplexity": exponential(figure(totals.nats, totals.tokens, None)),
                **dict.fromkeys(("word_perplexity", "bits_per_byte", "bits_per_char"), Figure(None)),
            }
        per_word = None
        if totals.n_words and intervals.nats_per_token.low is not None:
            per_word = scaled(intervals.nats_per_token, totals.tokens / totals.n_words)
        return {
            "nats_per_token": figure(totals.nats, totals.tokens, intervals.nats_per_token),
            "token_perplexity": exponential(figure(totals.nats, totals.tokens, intervals.nats_per_token)),
            "word_perplexity": exponential(figure(totals.nats, totals.n_words, per_word)),
            "bits_per_byte": figure(totals.carried_nats / math.log(2), totals.n_bytes, intervals.bits_per_byte),
            "bits_per_char": figure(totals.carried_nats / math.log(2), totals.n_chars, intervals.bits_per_char),
        }

    @property
    def top1_accuracy(self) -> float:
        """The share of tokens whose target is the argmax."""
        return self.statistics.sums.accuracy

    @property
    def mean_entropy(self) -> float:
        """The mean entropy of the predicted distributions, in nats."""
        return self.statistics.sums.mean_entropy

    @property
    def tokens_per_second(self) -> float | None:
        return self.statistics.sums.tokens / self.seconds if self.seconds > 0 else None

    def along(self, n: int) -> list[float]:
        """Return the loss along the text.

        Args:
            n: number of parts of the text, each with equally many tokens.

        Returns:
            The nats per token of each part, in the order of the text. They are means of blocks of 16 tokens, or with at
            least 30 documents of documents, so a part that is shorter has the mean of its block or document.
        """
        return breakdown.along(self.statistics, n)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes that a reader of the metrics should know."""
        strings: Counter[str] = Counter()
        for fact in filter(lambda fact: fact.n_special, self.statistics.facts.values()):
            strings[fact.special] += fact.n_special
        read = read_as(strings, self.setting.special) if self.setting.special else ()
        chats = chat_note(self.statistics.facts.values(), self.setting.chat)
        return (*self.setting.notes, *chats, *read, *split_hint(strings), *notes(self.statistics, self.intervals))

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values; None for what is infinite or unknown."""
        statistics, totals, facts = self.statistics, self._totals, self.statistics.facts
        values: dict[str, Any] = {
            **{name: getattr(self.setting, name) for name in ("model", "protocol", "window", "stride", "dtype")},
            "documents": self.documents,
            "tokens": totals.tokens,
            "nats": finite(totals.nats),
            "bytes": totals.n_bytes,
            "chars": totals.n_chars,
            "words": totals.n_words,
            **{name: {key: finite(x) for key, x in metric._asdict().items()} for name, metric in self.figures.items()},
            "top1_accuracy": self.top1_accuracy,
            "mean_entropy": self.mean_entropy,
            "calibration": calibration_values(self.calibration),
            "excluded": [part._asdict() | {"document": facts[part.document].name} for part in statistics.left_out()],
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "interval": self.method._asdict(),
            "effective_tokens": finite(self.intervals.effective_tokens),
            "unscored_documents": [fact.name for fact in statistics.unscored()],
            "bos": self.setting.bos,
            "special": self.setting.special,
            "chat": self.setting.chat,
            "excluded_tokens": dict(statistics.excluded_tokens),
            "chats": sum(fact.n_messages > 0 for fact in facts.values()),
            "special_strings": sum(fact.n_special for fact in facts.values()),
            "replaced": sum(fact.n_replaced for fact in facts.values()),
            "notes": list(self.notes),
            "by_class": breakdown.by_class(statistics),
            "by_position": breakdown.by_position(statistics),
            "by_frequency": breakdown.by_frequency(statistics),
            "by_document": breakdown.by_document(statistics, self.intervals.bits_per_byte),
            "by_loss": statistics.losses.rows(),
            "worst_tokens": breakdown.worst(statistics, statistics.worst_tokens, SHOWN),
            "worst_spans": breakdown.worst(statistics, statistics.worst_spans, SHOWN),
        }
        return values

    def save(self) -> None:
        """Write `summary.json` into the run's folder, if it is writable.

        Scores of `strided-legacy` are not written, because the tokens in the folder are those of `strided`.
        """
        if self.store is None or self.store.manifest["setting"]["protocol"] != self.setting.protocol:
            return
        try:
            self.store.put(SUMMARY, self.to_json())
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            log.info("%s: %s; the run is finished and was not changed", error.filename, error.strerror)


def calibration_values(report: CalibrationReport | None) -> dict[str, Any] | None:
    """Return a report as plain values, the main metrics first."""
    if report is None:
        return None
    first = ("ece", "brier", "best_temperature", "recoverable_nats_per_token")
    values: dict[str, Any] = {name: getattr(report, name) for name in first} | report.to_json()
    return values | {"bins": list(values["bins"]), "curve": [list(point) for point in values["curve"]]}


def open_run(folder: str | Path) -> Scores:
    """Read the scores of a run on disk.

    Args:
        folder: the folder of the run, given to `score` as `out`.

    Returns:
        The scores, without a tokenizer.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: the run is unfinished or damaged.

    Example:
        >>> import tempfile, cynosure
        >>> folder = tempfile.mkdtemp()
        >>> _ = cynosure.score("smollm2", ["The cat sat on the mat."], out=folder)
        >>> cynosure.open_run(folder).tokens
        7
    """
    return Scores.of_store(Store.open(Path(folder)))
