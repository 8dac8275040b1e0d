"""Time, memory, loss curve and rewards of TRL's trainers, patched and as they are.

DPO's loss curves are held to one with an exact head, as those of fine-tuning are. GRPO's are not: where one sampled
token differs, all later ones do. How far they are apart is reported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.formats import NONE, error, mib, ratio, spread
from benchmarks.harness import DTYPES, Benchmark
from benchmarks.implementation import OURS, Implementation
from benchmarks.results import Case, Result
from benchmarks.train.benchmark import (
    Curves,
    TrainBenchmark,
    TrainWorker,
    check_plain,
    curve_of,
    judge,
    largest_difference,
    texts_of,
)
from benchmarks.trainers.implementations import IMPLEMENTATIONS, TRL, TrainersWork, build_exact
from benchmarks.worker import Worker
from cynosure.system.numbers import finite

if TYPE_CHECKING:
    from cynosure.models import LanguageModel

TRAINERS = ("dpo", "grpo")
JUDGED = ("dpo",)
PROMPT = 4  # a prompt is a text's first quarter
SUM_EPS = 0.1 * 4 * 4 * 2.0**-24  # DPO's beta times the rounding of four sums of log-probabilities, of 4 nats a token
HOW = (
    "Loss: seconds of the loss and its backward, median (least-most) of interleaved steps, a process each, the first "
    "not counted. Step: mean seconds from batch to optimizer, with generation. Memory: peak beyond what is held "
    "between steps, MiB; process: all that is held then. Reward: the last; of DPO, the margin. Error: how far DPO's "
    "loss curve goes from that of the same training with an exact head; ours may go twice as far as TRL's own, and "
    "the rounding of the sums of log-probabilities farther."
)


class TrainersWorker(TrainWorker):
    """A trainer, of which a run is one step."""

    benchmark: "TrainersBenchmark"  # type: ignore[assignment]

    def build(self, n_tokens: int) -> dict[str, Any]:
        self.step = self.implementation.build(new_work(self.prepared.name, self.dtype, self.benchmark))
        self.losses = [self.step()]
        return {}

    def run(self, compare: bool) -> dict[str, Any]:
        reply, trainer = super().run(compare), self.step.trainer
        return reply | {"rewards": trainer.rewards, "loss_seconds": trainer.loss_seconds[1:]}


def new_work(trainer: str, dtype: str, benchmark: "TrainersBenchmark") -> TrainersWork:
    from cynosure.models import load

    autocast = dtype == "autocast"
    again = partial(load, benchmark.model, dtype="float32" if autocast else dtype, device="cpu")
    rows, n_new = rows_of(trainer, again(), benchmark), benchmark.n_tokens - benchmark.n_prompt
    return TrainersWork(trainer, again, rows, benchmark.n_texts, n_new, benchmark.n_steps, autocast)


def rows_of(trainer: str, model: "LanguageModel", benchmark: "TrainersBenchmark") -> list[dict[str, str]]:
    """Parts of the addresses of US presidents: prompts, what follows each, and for DPO what follows that."""
    check_plain(model)
    n_prompt, n_tokens = benchmark.n_prompt, benchmark.n_tokens
    parts = {"prompt": (0, n_prompt), "chosen": (n_prompt, n_tokens), "rejected": (n_tokens, 2 * n_tokens - n_prompt)}
    if trainer == "grpo":
        del parts["chosen"], parts["rejected"]
    n_rows = benchmark.n_texts // 2 if trainer == "dpo" else 1
    n_ids = max(end for _, end in parts.values())
    texts = texts_of(model, TrainBenchmark(n_rows=n_rows, n_tokens=n_ids, n_steps=benchmark.n_steps))
    decode = partial(model.tokenizer.decode, skip_special_tokens=True)
    return [{name: decode(ids[begin:end]) for name, (begin, end) in parts.items()} for ids in texts]


@dataclass
class TrainersCase(Case):
    """One trainer and dtype, so many steps of so many texts, and everyone in it."""

    trainer: str
    title: str
    dtype: str
    n_texts: int  # in a step
    n_tokens: int  # of a text, prompt and completion
    n_prompt: int
    n_steps: int
    exact_losses: list[float]  # of the same training with the head in a wider dtype; empty if it was not run
    rows: list[Result]

    def difference(self, what: str) -> float | None:
        """The largest between our `losses` or `rewards` and those of TRL's own, if both were run to their end."""
        curves = [getattr(row, what) or [] for name in (OURS, TRL) if (row := self.row(name))]
        whole = len(curves) == 2 and curves[0] and len(curves[0]) == len(curves[1])
        return largest_difference(*curves) if whole else None

    def to_json(self) -> dict[str, Any]:
        found = {f"largest_difference_{what}": self.difference(what) for what in ("losses", "rewards")}
        return super().to_json() | {name: None if x is None else finite(x) for name, x in found.items()}

    @property
    def heading(self) -> str:
        sizes = f"{self.n_steps} steps of {self.n_texts} texts of {self.n_tokens:,} tokens ({self.n_prompt} of prompt)"
        return f"{self.trainer.upper()}Trainer, {self.title}: {sizes}, {self.dtype}"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("loss", "", "/ ours", "step", "memory", "process", "first loss", "last", "reward", "error")

    def cells(self, row: Result) -> list[str]:
        seconds, losses, ours = row.loss_seconds_median, row.losses or [], self.row(OURS)
        return [
            row.status if seconds is None else f"{seconds:.3f}",
            spread(row.loss_seconds or [] if seconds else []),
            ratio(seconds, ours.loss_seconds_median if ours else None),
            f"{sum(row.seconds) / len(row.seconds):.3f}" if seconds else NONE,
            mib(row.peak_extra_bytes),
            mib(row.peak_process_bytes),
            *(f"{losses[i]:.4f}" if losses else NONE for i in (0, -1)),
            f"{row.rewards[-1]:.4f}" if row.rewards else NONE,
            error(row.errors, "loss"),
        ]

    def verdicts(self) -> list[str]:
        """How ours stands against TRL's own, and how close their curves are."""
        ours, own, lines = self.row(OURS), self.row(TRL), []
        if ours and own and ours.loss_seconds_median and own.loss_seconds_median and own.peak_extra_bytes:
            lines.append(
                f"{OURS} / {TRL}: {ours.loss_seconds_median / own.loss_seconds_median:.2f} of the time of the loss, "
                f"{(ours.peak_extra_bytes or 0) / own.peak_extra_bytes:.2f} of the memory"
            )
        differences = [(what, self.difference(what)) for what in ("losses", "rewards")]
        told = [f"{what} differ by {difference:.1e}" for what, difference in differences if difference is not None]
        return [*lines, *([f"{' and '.join(told)} at most, over {self.n_steps} steps"] if told else [])]


@dataclass(frozen=True, kw_only=True)
class TrainersBenchmark(Benchmark[TrainersCase]):
    """`trainers` are names in TRAINERS, `model` is a name that `load` takes."""

    name: ClassVar[str] = "trainers"
    implementations: ClassVar[dict[str, Implementation]] = IMPLEMENTATIONS
    worker: ClassVar[type[Worker]] = TrainersWorker
    known_dtypes: ClassVar[tuple[str, ...]] = (*DTYPES, "autocast")
    subject: ClassVar[str] = "trainer"
    preparing: ClassVar[str] = "training with an exact head"
    red: ClassVar[str] = "our own loss curve disagrees"

    dtypes: tuple[str, ...] = ("float32",)
    trainers: tuple[str, ...] = TRAINERS
    model: str = "smollm2"
    n_texts: int = 4  # in a step: DPO's in pairs, GRPO's of one prompt
    n_tokens: int = 128  # of a text, prompt and completion
    n_steps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        for trainer in self.trainers:
            if trainer not in TRAINERS:
                raise ValueError(f"unknown trainer {trainer!r}: expected one of {', '.join(TRAINERS)}")
        if self.n_texts < 2 or self.n_texts % 2 or self.n_tokens < 2 * PROMPT or self.n_steps < 2:
            raise ValueError(f"texts must be even, tokens at least {2 * PROMPT}, steps at least 2")

    @property
    def n_prompt(self) -> int:
        return self.n_tokens // PROMPT

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.trainers

    @property
    def runs(self) -> int:
        return self.n_steps - 1  # the first, in which everything is new, belongs to getting ready

    @property
    def how(self) -> str:
        return HOW

    def tokens_of(self, subject: str) -> list[int]:
        return [self.n_texts * self.n_tokens]

    def prepare(self, subject: str, say: Callable[[str], None]) -> Curves:
        """Train with an exact head in each dtype, if curves are held to it."""
        curves: dict[str, list[float]] = {dtype: [] for dtype in self.dtypes}
        title = ""
        for dtype in self.dtypes:
            work = new_work(subject, dtype, self)
            title = title or work.load().name
            if subject in JUDGED:
                curves[dtype] = curve_of(build_exact(work), self.n_steps, f"{subject}, {dtype}", say)
        return Curves(subject, title, curves)

    def case(self, prepared: Curves, dtype: str, n_tokens: int, rows: list[Result]) -> TrainersCase:
        exact = prepared.curves[dtype]
        if exact:
            judge(rows, exact, TRL, SUM_EPS * (self.n_tokens - self.n_prompt))
        sizes = self.n_texts, self.n_tokens, self.n_prompt, self.n_steps
        return TrainersCase(prepared.name, prepared.title, dtype, *sizes, exact, rows)
