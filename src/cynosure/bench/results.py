"""What a bench found: plain records, which become the table and the JSON."""

import math
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Generic, Literal, Protocol, TypeVar

Status = Literal["ok", "red", "cut off", "missing", "failed"]

LIMIT = "limit"


@dataclass
class Row:
    """One contestant in one case. Only `ok` has a figure; every other status has a reason."""

    contestant: str
    title: str
    status: Status = "ok"
    reason: str | None = None
    seconds: list[float] = field(default_factory=list)
    extra_bytes: list[int] = field(default_factory=list)
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

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        if self.status != "ok":
            record |= {"seconds": [], "extra_bytes": []}  # no figure on a red check, nor on half a race
        if self.errors:
            record["errors"] = {name: x if math.isfinite(x) else None for name, x in self.errors.items()}
        return record | {"seconds_median": self.seconds_median, "peak_extra_bytes": self.peak_extra_bytes}


@dataclass
class Case:
    """One head, number of tokens and dtype, and everyone in it."""

    head: str
    title: str
    vocab_size: int
    hidden_size: int
    n_tokens: int
    dtype: str
    rows: list[Row]

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.contestant == name), None)

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
class ScoreCase:
    """One model, dtype and number of tokens, and everyone in it."""

    model: str
    title: str
    dtype: str
    n_tokens: int
    window: int
    rows: list[Row]

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.contestant == name), None)

    def to_json(self) -> dict[str, Any]:
        rates = {row.contestant: self.n_tokens / row.seconds_median for row in self.rows if row.seconds_median}
        rows = [row.to_json() | {"tokens_per_second": rates.get(row.contestant)} for row in self.rows]
        return vars(self) | {"rows": rows}


class AnyCase(Protocol):
    """Contestants side by side."""

    def row(self, name: str) -> Row | None: ...

    def to_json(self) -> dict[str, Any]: ...


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
