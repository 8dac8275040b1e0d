"""The race: everyone is checked, then runs once in turn, round after round. One process works at a time."""

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.contestants import LOSS_CONTESTANTS, Contestant
from benchmarks.prepared import SYNTHETIC, Prepared
from benchmarks.process import CutOff, Died, Process
from benchmarks.results import Case, Report, Row, Status
from benchmarks.worker import LossWorker, Worker, prepare_inputs, serve

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

HEADS = {"gemma3-270m": (1024, 4096), "smollm2": (2048,)}  # name -> tokens
DEFAULT_TOKENS = (1024,)
DTYPES = ("float32", "bfloat16")
N_CHECK = 256  # tokens of the check before anything is timed: more than one chunk of ours
BUILD_FACTOR = 2  # times the cut-off for getting ready, which may be compiling and running once

PATIENCE = 5.0  # seconds for a process to end by itself

Say = Callable[[int, int, str], None]  # (steps done, steps in all, what is going on)


class Rounds(Protocol):
    """How often everyone runs."""

    @property
    def runs(self) -> int: ...

    @property
    def slow_seconds(self) -> float: ...  # whoever takes longer in the first run is run once


@dataclass(frozen=True)
class Settings:
    """What is raced, and for how long. `tokens` None means each head's own."""

    heads: tuple[str, ...] = tuple(HEADS)
    dtypes: tuple[str, ...] = DTYPES
    tokens: tuple[int, ...] | None = None
    runs: int = 3
    slow_seconds: float = 10.0
    cutoff_seconds: float = 60.0
    backward: bool = True  # False: the forward alone

    def __post_init__(self) -> None:
        for head in self.heads:
            if head not in HEADS and not SYNTHETIC.fullmatch(head):
                raise ValueError(f"unknown head {head!r}: there is {', '.join(HEADS)}, and synthetic:VxD")
        check_dtypes(self.dtypes)
        if not self.heads or not self.dtypes:
            raise ValueError("nothing to race: name at least one head and one dtype")
        if min(self.tokens or (1,)) < 1 or self.runs < 1 or not self.cutoff_seconds > 0:
            raise ValueError("tokens, runs and the cut-off must all be positive")

    def tokens_of(self, head: str) -> list[int]:
        return sorted(self.tokens or HEADS.get(head, DEFAULT_TOKENS))


def check_dtypes(dtypes: tuple[str, ...], known: tuple[str, ...] = DTYPES) -> None:
    for dtype in dtypes:
        if dtype not in known:
            raise ValueError(f"unknown dtype {dtype!r}: there is {', '.join(known)}")


def find_contestants(names: tuple[str, ...], field: dict[str, Contestant] = LOSS_CONTESTANTS) -> list[Contestant]:
    """The contestants of these names, or every one for `all`."""
    if names == ("all",):
        return list(field.values())
    for name in names:
        if name not in field:
            raise ValueError(f"unknown contestant {name!r}: there is all, {', '.join(field)}")
    if not names:
        raise ValueError("nothing to race: name at least one contestant, or all")
    return [field[name] for name in names]


class Out(Exception):
    """A contestant leaves the race, with a status and a reason."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.reason = reason


class Racer:
    """A contestant's process, which is `kind(contestant, *given)`; `left` is the row with which it left the race."""

    def __init__(self, kind: type[Worker], contestant: Contestant, *given: Any, cutoff_seconds: float) -> None:
        self.contestant, self.cutoff_seconds = contestant, cutoff_seconds
        self.process = Process(serve, kind, contestant, *given)
        self.left: Row | None = None
        self.plan: dict[str, Any] | None = None

    def new_row(self) -> Row:
        row = Row(self.contestant.name, self.contestant.title)
        if self.left is not None:
            row.status, row.reason = self.left.status, self.left.reason
            row.errors, row.allowed = self.left.errors, self.left.allowed
        return row

    @contextmanager
    def staying(self, row: Row) -> Iterator[None]:
        """Whoever raises Out inside has left: no figure here, and no start in what follows."""
        try:
            yield
        except Out as out:
            row.status, row.reason = out.status, out.reason
            self.left = row
            self.process.end(PATIENCE)

    def build(self, n_tokens: int) -> None:
        seconds = BUILD_FACTOR * self.cutoff_seconds
        asked: dict[str, Any] = {"task": "build", "n_tokens": n_tokens}
        self.plan = self._ask(asked, seconds, f"of getting ready for {n_tokens:,} tokens").get("plan")

    def check(self, n_tokens: int) -> None:
        """Get ready for a few tokens and be checked on them."""
        row = self.new_row()
        with self.staying(row):
            self.build(n_tokens)
            self.run(row, n_tokens, compare=True)

    def run(self, row: Row, n_tokens: int, compare: bool) -> None:
        """One run, its figures put into the row."""
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
    """What is off by more than allowed (NaN is), in words; empty if nothing is."""
    wrong = [name for name, error in errors.items() if not error <= allowed[name]]
    return ", ".join(f"{name} is off by {errors[name]:.1e}, allowed {allowed[name]:.1e}" for name in wrong)


class Steps:
    """Counts what is done, and says it."""

    def __init__(self, say: Say, total: int) -> None:
        self.say, self.total, self.done = say, total, 0

    def next(self, line: str) -> None:
        self.say(self.done, self.total, line)
        self.done += 1


def bench_loss(settings: Settings, contestants: Iterable[Contestant], say: Say = lambda *_: None) -> Report[Case]:
    """Race the contestants through every head, dtype and number of tokens."""
    field = [contestant for contestant in contestants if contestant.trains or not settings.backward]
    steps = Steps(say, count_steps(settings, field))
    report: Report[Case] = new_report("loss", settings, field)
    for head in settings.heads:
        reply = prepare_head(head, settings, steps)
        if "unavailable" in reply:
            report.skipped[head] = reply["unavailable"]
            continue
        report.environment = reply["environment"]
        for dtype in settings.dtypes:
            entered = [contestant for contestant in field if dtype in contestant.dtypes]
            report.cases += race_dtype(reply["prepared"], dtype, settings, entered, steps)
    return report


def new_report(bench: str, settings: "DataclassInstance", field: list[Contestant]) -> Report[Any]:
    """A report in which nothing stands yet but what was asked for."""
    return Report(
        bench=bench,
        command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings=asdict(settings) | {"contestants": [contestant.name for contestant in field]},
        environment={},
        cases=[],
        skipped={},
    )


def count_steps(settings: Settings, field: list[Contestant]) -> int:
    n_starts = sum(len(set(settings.dtypes) & set(contestant.dtypes)) for contestant in field)
    return sum(1 + n_starts * (1 + len(settings.tokens_of(head)) * (1 + settings.runs)) for head in settings.heads)


def prepare_head(head: str, settings: Settings, steps: Steps) -> dict[str, Any]:
    """The head's files, made in a process of their own, or why there are none."""
    tokens = settings.tokens_of(head)
    process = Process(prepare_inputs, head, list(settings.dtypes), sorted({check_tokens(tokens), *tokens}))
    steps.next(f"{head}: preparing inputs")
    return prepared_by(process, steps)


def prepared_by(process: Process, steps: Steps) -> dict[str, Any]:
    """The last answer of a process that prepares something, what it says meanwhile being said."""
    try:
        while "say" in (reply := process.answer(None)):
            steps.say(steps.done, steps.total, reply["say"])
    except Died as error:
        return {"unavailable": f"its inputs could not be prepared: {error}"}
    process.end(PATIENCE)
    answer: dict[str, Any] = reply
    return answer


def check_tokens(tokens: list[int]) -> int:
    return min(N_CHECK, *tokens)


def race_dtype(
    prepared: Prepared, dtype: str, settings: Settings, contestants: list[Contestant], steps: Steps
) -> list[Case]:
    """Everyone starts and is checked; then every number of tokens, the smallest first."""
    tokens = settings.tokens_of(prepared.name)
    where = f"{prepared.name}, {dtype}"
    racers: list[Racer] = []
    try:
        for contestant in contestants:
            given = (prepared, dtype, settings.backward)
            racers.append(Racer(LossWorker, contestant, *given, cutoff_seconds=settings.cutoff_seconds))
            steps.next(f"{where}: {contestant.name}, gradients against float64")
            racers[-1].check(check_tokens(tokens))
        return [
            Case(
                prepared.name, prepared.title, prepared.vocab_size, prepared.hidden_size, n_tokens, dtype,
                race(racers, n_tokens, settings, steps, f"{where}, {n_tokens:,} tokens"),
            )
            for n_tokens in tokens
        ]  # fmt: skip
    finally:
        for racer in racers:
            racer.process.end(PATIENCE)


def race(racers: list[Racer], n_tokens: int, settings: Rounds, steps: Steps, where: str) -> list[Row]:
    """Each gets ready in turn, then one timed run of each, round after round; the first run's gradients are checked."""
    rows = [racer.new_row() for racer in racers]
    for racer, row in zip(racers, rows, strict=True):
        steps.next(f"{where}: {row.contestant} gets ready")
        if row.status == "ok":
            with racer.staying(row):
                racer.build(n_tokens)
    for number in range(settings.runs):
        for racer, row in zip(racers, rows, strict=True):
            steps.next(f"{where}: {row.contestant}, run {number + 1}")
            slow = number > 0 and row.seconds[:1] > [settings.slow_seconds]
            if row.status == "ok" and not slow:
                with racer.staying(row):
                    racer.run(row, n_tokens, compare=number == 0)
    return rows
