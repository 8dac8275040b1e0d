"""The results of a benchmark: plain records, which become the table and the JSON."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Generic, Literal, TypeVar

from cynosure.system.numbers import finite

Status = Literal["ok", "red", "cut off", "missing", "failed"]


@dataclass
class Result:
    """One implementation in one case. Only status `ok` has measurements; any other status has a reason."""

    contestant: str
    title: str
    status: Status = "ok"
    reason: str | None = None
    seconds: list[float] = field(default_factory=list)
    extra_bytes: list[int] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)  # resident set of the process at the peak
    losses: list[float] | None = None  # of every step; only in training
    rewards: list[float] | None = None  # of every step or generation; only where a trainer has them
    loss_seconds: list[float] | None = None  # of the loss with its backward alone, of every timed step there
    errors: dict[str, float] | None = None
    allowed: dict[str, float] | None = None
    memory_method: str | None = None
    plan: dict[str, Any] | None = None  # what ours did and why; None for others
    sampling: dict[str, float] | None = None  # the record of a sampled backward
    forward_seconds: list[float] | None = None  # forward alone, on a device
    forward_extra_bytes: list[int] | None = None
    device: dict[str, str] | None = None  # clocks, temperature and power of the GPU while it worked

    @property
    def seconds_median(self) -> float | None:
        return median(self.seconds) if self.status == "ok" and self.seconds else None

    @property
    def forward_seconds_median(self) -> float | None:
        return median(self.forward_seconds) if self.status == "ok" and self.forward_seconds else None

    @property
    def loss_seconds_median(self) -> float | None:
        return median(self.loss_seconds) if self.status == "ok" and self.loss_seconds else None

    @property
    def peak_extra_bytes(self) -> int | None:
        return max(self.extra_bytes) if self.status == "ok" and self.extra_bytes else None

    @property
    def peak_process_bytes(self) -> int | None:
        return max(self.peak_bytes) if self.status == "ok" and self.peak_bytes else None

    def add(self, reply: dict[str, Any]) -> None:
        """Add what a worker measured in one run."""
        self.seconds.append(reply["seconds"])
        self.extra_bytes.append(reply["extra_bytes"])
        self.peak_bytes.append(reply["peak_bytes"])
        self.memory_method = reply["memory_method"]
        for name in ("errors", "allowed", "losses", "rewards", "loss_seconds", "device", "sampling"):
            if name in reply:
                setattr(self, name, reply[name])
        for name in ("forward_seconds", "forward_extra_bytes"):
            if name in reply:
                setattr(self, name, [*(getattr(self, name) or []), reply[name]])

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        if self.status != "ok":
            # A failed check or an incomplete benchmark gets no measurements.
            record |= {"seconds": [], "extra_bytes": [], "peak_bytes": []}
            record |= {"forward_seconds": None, "forward_extra_bytes": None, "loss_seconds": None}
        for name in ("errors", "allowed"):
            if record[name]:
                record[name] = {what: finite(x) for what, x in record[name].items()}
        for name in ("losses", "rewards"):
            if record[name]:
                record[name] = [finite(x) for x in record[name]]
        summary = ("seconds_median", "forward_seconds_median", "loss_seconds_median")
        return record | {name: getattr(self, name) for name in (*summary, "peak_extra_bytes", "peak_process_bytes")}


class Case(ABC):
    """A comparison of implementations. Subclasses are dataclasses, whose methods say how to print them."""

    rows: list[Result]

    def row(self, name: str) -> Result | None:
        return next((row for row in self.rows if row.contestant == name), None)

    def seconds_of(self, name: str) -> float | None:
        row = self.row(name)
        return row.seconds_median if row else None

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"rows": [row.to_json() for row in self.rows]}

    @property
    @abstractmethod
    def heading(self) -> str:
        """The title of the case."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Headings of the columns after the implementation's name."""

    @abstractmethod
    def cells(self, row: Result) -> list[str]:
        """Return the text of each column for a row."""

    @abstractmethod
    def verdicts(self) -> list[str]:
        """Return the most important comparisons, one sentence each."""


C = TypeVar("C", bound=Case)


@dataclass
class BenchmarkReport(Generic[C]):
    """The results of a benchmark, with its settings and environment."""

    bench: str
    command: str
    date: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    cases: list[C]
    skipped: dict[str, str]  # head or model -> reason

    def green(self, name: str) -> bool:
        """Whether every check of this implementation has passed."""
        return all(row.status != "red" for case in self.cases if (row := case.row(name)))

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"cases": [case.to_json() for case in self.cases]}
