"""Time, memory and loss curve of training a real model on a real text; curves are held to one with an exact head.

Two curves differ by the rounding of each loss, and by what rounded gradients have made of the weights since. How much
that is depends on the model, so it is measured: the same training is run with the head's matmuls, the loss and their
gradients in a wider dtype, the backbone as it is. Over all steps ours may go twice as far from that curve as the
model's own loss does, and one rounding of a float32 loss farther: the rule for a loss and its gradients, of a whole
curve.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from benchmarks.formats import NONE, error, mib, ratio, spread
from benchmarks.harness import DTYPES, Benchmark, complaints
from benchmarks.implementation import LIMIT, OURS, Implementation
from benchmarks.results import Case, Result
from benchmarks.train.implementations import IMPLEMENTATIONS, TRANSFORMERS, TrainWork, build_exact
from benchmarks.worker import Worker, measured
from cynosure.system.numbers import finite

if TYPE_CHECKING:
    from cynosure.models import LanguageModel

LOSS_EPS = 2.0**-23  # every loss is a float32, whatever the model is
HOW = (
    "Seconds a step of Trainer, from batch to optimizer: median (least-most) of interleaved steps, a process each, "
    "the first not counted. Memory: peak beyond what is held between steps, MiB; process: all that is held then. "
    "Error: how far the curve goes from that of the same training with an exact head, in nats; ours may go twice as "
    "far as the model's own, and a rounding farther. The limit is a step whose head and loss are the head's matmuls "
    "alone."
)


class Curves(NamedTuple):
    """A model, and the losses of its training with an exact head in each dtype."""

    name: str
    title: str
    curves: dict[str, list[float]]


class TrainWorker(Worker):
    """A model in training, of which a run is one step."""

    benchmark: "TrainBenchmark"
    prepared: Curves

    def build(self, n_tokens: int) -> dict[str, Any]:
        self.step = self.implementation.build(new_work(self.prepared.name, self.dtype, self.benchmark))
        self.losses = [self.step()]
        return {}

    def run(self, compare: bool) -> dict[str, Any]:
        # Memory is that of the first run. The others go on with what the process holds free, as training does.
        loss, reply = measured(self.step, give_back=compare)
        self.losses.append(loss)
        return reply | ({"losses": self.losses} if self.implementation.checked else {})


def new_work(name: str, dtype: str, benchmark: "TrainBenchmark") -> TrainWork:
    import torch

    from benchmarks.train.fresh import FRESH, fresh_model
    from cynosure.models import load

    autocast = dtype == "autocast"
    weights = "float32" if autocast else dtype
    new = FRESH.fullmatch(name)
    model = (
        fresh_model(name, getattr(torch, weights), benchmark.n_tokens)
        if new
        else load(name, dtype=weights, device="cpu")
    )
    return TrainWork(model, texts_of(model, benchmark), benchmark.n_rows, benchmark.n_steps, autocast)


def texts_of(model: "LanguageModel", benchmark: "TrainBenchmark") -> list[list[int]]:
    """The addresses of US presidents cut into rows of so many tokens, each opened as the model expects it."""
    from benchmarks.texts import text_ids
    from cynosure.text import prefix_token

    prefix = prefix_token(model.tokenizer)
    opening = [] if prefix is None else [prefix]
    ids = text_ids(model.tokenizer)
    n_rows, n_tokens = benchmark.n_rows * benchmark.n_steps, benchmark.n_tokens
    rows = [[*opening, *islice(ids, n_tokens - len(opening))] for _ in range(n_rows)]
    if len(rows[-1]) < n_tokens:
        raise ValueError(f"there are no {n_rows * n_tokens:,} tokens of addresses")
    return rows


def check_plain(model: "LanguageModel") -> None:
    from cynosure.models import read_head

    head = read_head(model.model)
    if head.bias is not None or head.scale != 1.0 or head.softcap is not None:
        raise ValueError(f"the head of {model.name} is more than a matrix, which the exact loss here does not know")


@dataclass
class TrainCase(Case):
    """One model and dtype, so many steps of so many rows of tokens, and everyone in it."""

    model: str
    title: str
    dtype: str
    n_rows: int
    n_tokens: int  # of a row
    n_steps: int
    exact_losses: list[float]  # of the same training with the head and its loss in a wider dtype
    rows: list[Result]

    @property
    def largest_difference_nats(self) -> float | None:
        """Between our curve and the model's own, if both were run to their end."""
        curves = [row.losses or [] for name in (OURS, TRANSFORMERS) if (row := self.row(name))]
        whole = [curve for curve in curves if len(curve) == self.n_steps]
        return largest_difference(*whole) if len(whole) == 2 else None

    def to_json(self) -> dict[str, Any]:
        difference = self.largest_difference_nats
        return super().to_json() | {"largest_difference_nats": None if difference is None else finite(difference)}

    @property
    def heading(self) -> str:
        return f"{self.title}: {self.n_steps} steps of {self.n_rows} x {self.n_tokens:,} tokens, {self.dtype}"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("seconds", "", "/ ours", "/ limit", "memory", "process", "first loss", "last", "error")

    def cells(self, row: Result) -> list[str]:
        seconds, losses = row.seconds_median, row.losses or []
        return [
            row.status if seconds is None else f"{seconds:.3f}",
            spread(row.seconds if seconds else []),
            ratio(seconds, self.seconds_of(OURS)),
            ratio(seconds, self.seconds_of(LIMIT)),
            mib(row.peak_extra_bytes),
            mib(row.peak_process_bytes),
            *(f"{losses[i]:.4f}" if losses else NONE for i in (0, -1)),
            error(row.errors, "loss"),
        ]

    def verdicts(self) -> list[str]:
        """How ours stands against the model's own loss, and how close their curves are."""
        ours, own, lines = self.row(OURS), self.row(TRANSFORMERS), []
        if ours and own and ours.seconds_median and own.seconds_median and own.peak_extra_bytes:
            lines.append(
                f"{OURS} / {TRANSFORMERS}: {ours.seconds_median / own.seconds_median:.2f} of the time, "
                f"{(ours.peak_extra_bytes or 0) / own.peak_extra_bytes:.2f} of the memory"
            )
        difference = self.largest_difference_nats
        if difference is not None:
            lines.append(f"their losses differ by {difference:.1e} nats at most, over {self.n_steps} steps")
        if ours and ours.errors and not ours.allowed:
            lines.append(f"whether the curve is right is not known: {TRANSFORMERS} has none to judge it by")
        return lines


def largest_difference(curve: list[float], other: list[float]) -> float:
    """NaN if there is one in them."""
    differences = [abs(a - b) for a, b in zip(curve, other, strict=True)]
    return max(differences, key=lambda x: float("inf") if math.isnan(x) else x)


def judge(rows: list[Result], exact: list[float], yardstick: str = TRANSFORMERS, rounding: float = 0.0) -> None:
    """How far each curve goes from the exact one, and red for one that goes too far; `rounding` is allowed besides.

    Where the yardstick, the model's own loss, has no curve there is nothing to judge by, and errors are all that is
    said.
    """
    curves = {row.contestant: row for row in rows if row.status == "ok" and row.losses}
    for row in curves.values():
        row.errors = {"loss": largest_difference(row.losses or [], exact)}
    own = curves.get(yardstick)
    if own is None or not own.errors:
        return
    allowed = 2 * own.errors["loss"] + LOSS_EPS * max(exact) + rounding
    for row in curves.values():
        row.allowed = {"loss": allowed}
        if wrong := complaints(row.errors or {}, row.allowed):
            row.status, row.reason = "red", f"over {len(exact)} steps {wrong}"


@dataclass(frozen=True, kw_only=True)
class TrainBenchmark(Benchmark[TrainCase]):
    """`models` are names that `load` takes, or new ones such as `small:32768`."""

    name: ClassVar[str] = "train"
    implementations: ClassVar[dict[str, Implementation]] = IMPLEMENTATIONS
    worker: ClassVar[type[Worker]] = TrainWorker
    known_dtypes: ClassVar[tuple[str, ...]] = (*DTYPES, "autocast")
    preparing: ClassVar[str] = "training with an exact head"
    red: ClassVar[str] = "our own loss curve disagrees"

    models: tuple[str, ...] = ("smollm2", "gemma3-270m")
    n_rows: int = 2
    n_tokens: int = 512  # of a row
    n_steps: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_rows < 1 or not self.cutoff_seconds > 0:
            raise ValueError("rows and the cut-off must be positive")
        if min(self.n_tokens, self.n_steps) < 2:
            raise ValueError("tokens and steps must be at least 2: a token to predict, and a step after the first")

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.models

    @property
    def runs(self) -> int:
        return self.n_steps - 1  # the first, in which everything is new, belongs to getting ready

    @property
    def how(self) -> str:
        return HOW

    def tokens_of(self, subject: str) -> list[int]:
        return [self.n_rows * self.n_tokens]

    def prepare(self, subject: str, say: Callable[[str], None]) -> Curves:
        """Train with an exact head in each dtype."""
        curves: dict[str, list[float]] = {}
        title = ""
        for dtype in self.dtypes:
            work = new_work(subject, dtype, self)
            title = work.model.name
            check_plain(work.model)
            curves[dtype] = curve_of(build_exact(work), self.n_steps, f"{subject}, {dtype}", say)
        return Curves(subject, title, curves)

    def case(self, prepared: Curves, dtype: str, n_tokens: int, rows: list[Result]) -> TrainCase:
        exact, sizes = prepared.curves[dtype], (self.n_rows, self.n_tokens, self.n_steps)
        judge(rows, exact)
        return TrainCase(prepared.name, prepared.title, dtype, *sizes, exact, rows)


def curve_of(step: Callable[[], float], n_steps: int, case: str, say: Callable[[str], None]) -> list[float]:
    """The losses of so many steps with an exact head."""
    losses = []
    for number in range(n_steps):
        say(f"{case}: training with an exact head, step {number + 1}")
        losses.append(step())
    return losses
