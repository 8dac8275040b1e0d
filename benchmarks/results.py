"""What a bench found: plain records, which become the table and the JSON."""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Generic, Literal, TypeVar

from benchmarks.contestants import OURS
from cynosure.system.numbers import finite

Status = Literal["ok", "red", "cut off", "missing", "failed"]

LIMIT = "limit"
TRANSFORMERS = "transformers"


@dataclass
class Row:
    """One contestant in one case. Only `ok` has a figure; every other status has a reason."""

    contestant: str
    title: str
    status: Status = "ok"
    reason: str | None = None
    seconds: list[float] = field(default_factory=list)
    extra_bytes: list[int] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)  # all that the process held at the peak
    losses: list[float] | None = None  # training alone: of every step
    errors: dict[str, float] | None = None
    allowed: dict[str, float] | None = None
    memory_method: str | None = None
    plan: dict[str, Any] | None = None  # ours alone: what it did, and why

    @property
    def seconds_median(self) -> float | None:
        return median(self.seconds) if self.status == "ok" and self.seconds else None

    @property
    def peak_extra_bytes(self) -> int | None:
        return max(self.extra_bytes) if self.status == "ok" and self.extra_bytes else None

    @property
    def peak_process_bytes(self) -> int | None:
        return max(self.peak_bytes) if self.status == "ok" and self.peak_bytes else None

    def add(self, reply: dict[str, Any]) -> None:
        """Put in what a worker found in one run."""
        self.seconds.append(reply["seconds"])
        self.extra_bytes.append(reply["extra_bytes"])
        self.peak_bytes.append(reply["peak_bytes"])
        self.memory_method = reply["memory_method"]
        for name in ("errors", "allowed", "losses"):
            if name in reply:
                setattr(self, name, reply[name])

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        if self.status != "ok":
            # No figure on a red check, nor on half a race.
            record |= {"seconds": [], "extra_bytes": [], "peak_bytes": []}
        for name in ("errors", "allowed"):
            if record[name]:
                record[name] = {what: finite(x) for what, x in record[name].items()}
        if self.losses:
            record["losses"] = [finite(x) for x in self.losses]
        found = ("seconds_median", "peak_extra_bytes", "peak_process_bytes")
        return record | {name: getattr(self, name) for name in found}


class AnyCase(ABC):
    """Contestants side by side."""

    rows: list[Row]

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.contestant == name), None)

    @abstractmethod
    def to_json(self) -> dict[str, Any]: ...


@dataclass
class Case(AnyCase):
    """One head, number of tokens and dtype, and everyone in it."""

    head: str
    title: str
    vocab_size: int
    hidden_size: int
    n_tokens: int
    dtype: str
    rows: list[Row]

    @property
    def limit_seconds(self) -> float | None:
        """The matrix products alone, the better of the ways to make them."""
        found = [row.seconds_median for row in self.rows if row.contestant.startswith(LIMIT)]
        return min((seconds for seconds in found if seconds), default=None)

    @property
    def accumulator_bytes(self) -> int:
        """What ours adds a half-precision dW up in beside itself, so that chunks cost no precision."""
        plans = [row.plan for row in self.rows if row.plan]
        return int(plans[0]["accumulator_bytes"]) if plans else 0

    def to_json(self) -> dict[str, Any]:
        record = {key: value for key, value in vars(self).items() if key != "rows"}
        record |= {"limit_seconds": self.limit_seconds, "accumulator_bytes": self.accumulator_bytes}
        return record | {"rows": [row.to_json() for row in self.rows]}


@dataclass
class ScoreCase(AnyCase):
    """One model, dtype and number of tokens, and everyone in it."""

    model: str
    title: str
    dtype: str
    n_tokens: int
    window: int
    rows: list[Row]

    def to_json(self) -> dict[str, Any]:
        rates = {row.contestant: self.n_tokens / row.seconds_median for row in self.rows if row.seconds_median}
        rows = [row.to_json() | {"tokens_per_second": rates.get(row.contestant)} for row in self.rows]
        return vars(self) | {"rows": rows}


@dataclass
class TrainCase(AnyCase):
    """One model and dtype, so many steps of so many rows of tokens, and everyone in it."""

    model: str
    title: str
    dtype: str
    n_rows: int
    n_tokens: int  # of a row
    n_steps: int
    exact_losses: list[float]  # of the same training with the head and its loss in a wider dtype
    rows: list[Row]

    @property
    def largest_difference_nats(self) -> float | None:
        """Between our curve and the model's own, if both were run to their end."""
        curves = [row.losses or [] for name in (OURS, TRANSFORMERS) if (row := self.row(name))]
        whole = [curve for curve in curves if len(curve) == self.n_steps]
        return largest_difference(*whole) if len(whole) == 2 else None

    def to_json(self) -> dict[str, Any]:
        difference = self.largest_difference_nats
        record = vars(self) | {"largest_difference_nats": None if difference is None else finite(difference)}
        return record | {"rows": [row.to_json() for row in self.rows]}


def largest_difference(curve: list[float], other: list[float]) -> float:
    """NaN if there is one in them."""
    differences = [abs(a - b) for a, b in zip(curve, other, strict=True)]
    return max(differences, key=lambda x: float("inf") if math.isnan(x) else x)


C = TypeVar("C", bound=AnyCase)


@dataclass
class Report(Generic[C]):
    """Everything, with what it depends on."""

    bench: str
    command: str
    date: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    cases: list[C]
    skipped: dict[str, str]  # head or model -> why

    def green(self, name: str) -> bool:
        """Whether no check of this contestant is red."""
        return all(row.status != "red" for case in self.cases if (row := case.row(name)))

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"cases": [case.to_json() for case in self.cases]}
