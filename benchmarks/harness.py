"""The harness: check all implementations, then run them in turn, round after round, one process at a time.

Each of `loss/`, `primitives/`, `score/`, `train/` and `trainers/` defines a `Benchmark`, which says what to measure.
"""

import math
import shlex
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, ClassVar, Generic

from benchmarks.implementation import OURS, Implementation
from benchmarks.process import CutOff, Died, Process
from benchmarks.results import BenchmarkReport, C, Result, Status
from benchmarks.worker import Worker, prepare, serve

DTYPES = ("float32", "bfloat16")
BUILD_FACTOR = 2  # times the cut-off for a build, which may compile and run once
PATIENCE = 5.0  # seconds for a process to end by itself

Say = Callable[[int, int, str], None]  # (steps done, total steps, description)


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC, Generic[C]):
    """What to measure, and for how long. The fields are the report's settings.

    Every process gets a copy, and so does the parent, which must not load torch: import it inside methods.
    """

    dtypes: tuple[str, ...] = DTYPES
    cutoff_seconds: float = 600.0  # time limit of a run

    name: ClassVar[str]  # in the report
    implementations: ClassVar[dict[str, Implementation]]
    worker: ClassVar[type[Worker]]
    known_dtypes: ClassVar[tuple[str, ...]] = DTYPES
    subject: ClassVar[str] = "model"  # what the `subjects` are
    ours: ClassVar[tuple[str, ...]] = (OURS,)  # implementations whose check must pass
    preparing: ClassVar[str]  # what `prepare` does, as progress shows it
    checking: ClassVar[str] = ""  # the check before anything is timed, likewise
    red: ClassVar[str]  # the error if our own check fails

    def __post_init__(self) -> None:
        for dtype in self.dtypes:
            if dtype not in self.known_dtypes:
                raise ValueError(f"unknown dtype {dtype!r}: expected one of {', '.join(self.known_dtypes)}")
        if not self.subjects or not self.dtypes:
            raise ValueError(f"nothing to run: name at least one {self.subject} and one dtype")

    @property
    @abstractmethod
    def subjects(self) -> tuple[str, ...]:
        """The names of heads or models."""

    @property
    @abstractmethod
    def runs(self) -> int:
        """Timed runs of each implementation."""

    @property
    def slow_seconds(self) -> float:
        """An implementation whose first run takes longer than this is run once."""
        return math.inf

    @property
    def budget_seconds(self) -> float:
        """Seconds for the whole benchmark, shared equally by the subjects. A subject whose share is spent ends."""
        return math.inf

    @property
    @abstractmethod
    def how(self) -> str:
        """How to read the tables."""

    @abstractmethod
    def tokens_of(self, subject: str) -> list[int]:
        """Return the number of tokens of each case."""

    def check_tokens(self, subject: str) -> int:
        """Return the number of tokens for the check before anything is timed; 0 for no check."""
        return 0

    def takes(self, implementation: Implementation) -> bool:
        return True

    @abstractmethod
    def prepare(self, subject: str, say: Callable[[str], None]) -> Any:
        """Return what every worker gets; runs in a separate process.

        Raises ModuleNotFoundError, FileNotFoundError or ValueError if the subject must be skipped.
        """

    def about(self) -> dict[str, Any]:
        """What the results depend on besides `environment`; asked of the process that prepares a subject."""
        return {}

    @abstractmethod
    def case(self, prepared: Any, dtype: str, n_tokens: int, rows: list[Result]) -> C: ...


def find_implementations(names: tuple[str, ...], known: dict[str, Implementation]) -> list[Implementation]:
    """Return the implementations with these names, or all of them for `all`."""
    if names == ("all",):
        return list(known.values())
    for name in names:
        if name not in known:
            raise ValueError(f"unknown implementation {name!r}: expected all, or some of {', '.join(known)}")
    if not names:
        raise ValueError("nothing to run: name at least one implementation, or all")
    return [known[name] for name in names]


class Out(Exception):
    """An implementation leaves the benchmark, with a status and a reason."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.reason = reason


class Participant:
    """The process of an implementation; `left` is the row at which it left the benchmark, if it did."""

    def __init__(self, implementation: Implementation, benchmark: Benchmark[Any], prepared: Any, dtype: str) -> None:
        self.implementation, self.cutoff_seconds = implementation, benchmark.cutoff_seconds
        self.process = Process(serve, benchmark.worker, implementation, benchmark, prepared, dtype)
        self.left: Result | None = None
        self.plan: dict[str, Any] | None = None

    def new_row(self) -> Result:
        row = Result(self.implementation.name, self.implementation.title)
        if self.left is not None:
            row.status, row.reason = self.left.status, self.left.reason
            row.errors, row.allowed = self.left.errors, self.left.allowed
        return row

    @contextmanager
    def staying(self, row: Result) -> Iterator[None]:
        """End the process if Out is raised inside: this row and later ones get no measurements."""
        try:
            yield
        except Out as out:
            row.status, row.reason = out.status, out.reason
            self.left = row
            self.process.end(PATIENCE)

    def build(self, n_tokens: int) -> None:
        seconds = BUILD_FACTOR * self.cutoff_seconds
        message: dict[str, Any] = {"task": "build", "n_tokens": n_tokens}
        self.plan = self._ask(message, seconds, f"of building for {n_tokens:,} tokens").get("plan")

    def check(self, n_tokens: int) -> None:
        """Build for a few tokens, and check the results on them."""
        row = self.new_row()
        with self.staying(row):
            self.build(n_tokens)
            self.run(row, n_tokens, compare=True)

    def run(self, row: Result, n_tokens: int, compare: bool) -> None:
        """Run once, and add the measurements to the row."""
        reply = self._ask({"task": "run", "compare": compare}, self.cutoff_seconds, f"with {n_tokens:,} tokens")
        row.add(reply)
        row.plan = self.plan
        if wrong := complaints(row.errors or {}, row.allowed or {}):
            raise Out("red", f"with {n_tokens:,} tokens {wrong}")

    def _ask(self, message: dict[str, Any], seconds: float, doing: str) -> dict[str, Any]:
        try:
            reply: dict[str, Any] = self.process.ask(message, seconds)
        except CutOff:
            raise Out("cut off", f"cut off after {seconds:g} s {doing}") from None
        except Died as error:
            raise Out("failed", f"{doing}: {error}") from None
        if "unavailable" in reply:
            raise Out("missing", reply["unavailable"])
        if "failed" in reply:
            raise Out("failed", f"{doing}: {reply['failed']}")
        return reply


def complaints(errors: dict[str, float], allowed: dict[str, float]) -> str:
    """Describe the errors that exceed their limits, NaN included; an empty string if none does."""
    wrong = [name for name, error in errors.items() if not error <= allowed[name]]
    return ", ".join(f"{name} is off by {errors[name]:.1e}, allowed {allowed[name]:.1e}" for name in wrong)


class Steps:
    """Counts the steps done, and reports each. `deadline` is when the time of the subject is spent."""

    def __init__(self, say: Say, total: int) -> None:
        self.say, self.total, self.done = say, total, 0
        self.deadline = math.inf

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def next(self, line: str) -> None:
        self.say(self.done, self.total, line)
        self.done += 1


def run(
    benchmark: Benchmark[C], implementations: Iterable[Implementation], say: Say = lambda *_: None
) -> BenchmarkReport[C]:
    """Measure the implementations on every subject, dtype and number of tokens."""
    chosen = [implementation for implementation in implementations if benchmark.takes(implementation)]
    steps = Steps(say, count_steps(benchmark, chosen))
    report = new_report(benchmark, chosen)
    start, share = time.monotonic(), benchmark.budget_seconds / len(benchmark.subjects)
    for number, subject in enumerate(benchmark.subjects, 1):
        steps.deadline = start + number * share
        steps.next(f"{subject}: {benchmark.preparing}")
        reply = prepare_subject(benchmark, subject, steps)
        if "unavailable" in reply:
            report.skipped[subject] = reply["unavailable"]
            continue
        report.environment = reply["environment"]
        for dtype in benchmark.dtypes:
            entered = [implementation for implementation in chosen if dtype in implementation.dtypes]
            report.cases += run_dtype(benchmark, subject, reply["prepared"], dtype, entered, steps)
    return report


def new_report(benchmark: Benchmark[C], chosen: list[Implementation]) -> BenchmarkReport[C]:
    """Return a report with the settings but without results."""
    return BenchmarkReport(
        bench=benchmark.name,
        command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings=asdict(benchmark) | {"contestants": [implementation.name for implementation in chosen]},
        environment={},
        cases=[],
        skipped={},
    )


def count_steps(benchmark: Benchmark[Any], chosen: list[Implementation]) -> int:
    n_starts = sum(len(set(benchmark.dtypes) & set(implementation.dtypes)) for implementation in chosen)
    total = 0
    for subject in benchmark.subjects:
        n_checks = 1 if benchmark.check_tokens(subject) else 0
        total += 1 + n_starts * (n_checks + len(benchmark.tokens_of(subject)) * (1 + benchmark.runs))
    return total


def prepare_subject(benchmark: Benchmark[Any], subject: str, steps: Steps) -> dict[str, Any]:
    """Return the last answer of the process that prepares a subject; pass on its progress until then."""
    process = Process(prepare, benchmark, subject)
    try:
        while "say" in (reply := process.answer(None)):
            steps.say(steps.done, steps.total, reply["say"])
    except Died as error:
        return {"unavailable": f"its inputs could not be prepared: {error}"}
    process.end(PATIENCE)
    answer: dict[str, Any] = reply
    return answer


def run_dtype(
    benchmark: Benchmark[C], subject: str, prepared: Any, dtype: str, entered: list[Implementation], steps: Steps
) -> list[C]:
    """Start and check all implementations, then run every number of tokens, smallest first."""
    where, cases = f"{subject}, {dtype}", []
    participants: list[Participant] = []
    try:
        for (
            implementation
        ) in entered:  # all start before the first is asked for anything: they load libraries meanwhile
            participants.append(Participant(implementation, benchmark, prepared, dtype))
        if n_tokens := benchmark.check_tokens(subject):
            for participant in participants:
                steps.next(f"{where}: {participant.implementation.name}, {benchmark.checking}")
                participant.check(n_tokens)
        for n_tokens in benchmark.tokens_of(subject):
            rows = take_turns(participants, n_tokens, benchmark, steps, f"{where}, {n_tokens:,} tokens")
            cases.append(benchmark.case(prepared, dtype, n_tokens, rows))
    finally:
        for participant in participants:
            participant.process.end(PATIENCE)
    return cases


def take_turns(
    participants: list[Participant], n_tokens: int, benchmark: Benchmark[Any], steps: Steps, where: str
) -> list[Result]:
    """Build each implementation, then run each once per round. The results of the first round are checked."""
    rows = [participant.new_row() for participant in participants]
    for participant, row in zip(participants, rows, strict=True):
        steps.next(f"{where}: {row.contestant}, building")
        if row.status == "ok":
            with participant.staying(row):
                if steps.late:
                    raise Out("cut off", "not begun: the benchmark's time for it was spent")
                participant.build(n_tokens)
    for number in range(benchmark.runs):
        for participant, row in zip(participants, rows, strict=True):
            steps.next(f"{where}: {row.contestant}, run {number + 1}")
            slow = number > 0 and (row.seconds[:1] > [benchmark.slow_seconds] or steps.late)
            if row.status == "ok" and not slow:
                with participant.staying(row):
                    participant.run(row, n_tokens, compare=number == 0)
    return rows
