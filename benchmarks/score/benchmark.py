"""Tokens per second, memory and errors of scoring; everyone is checked against the model's own float32 logits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from benchmarks.formats import error, mib, ratio, spread
from benchmarks.harness import Benchmark
from benchmarks.implementation import LIMIT, OURS, Implementation
from benchmarks.results import Case, Result
from benchmarks.score.implementations import COMPILED, IMPLEMENTATIONS, LM_EVAL, Work, build_transformers, windows
from benchmarks.worker import Worker, measured

FLOAT32_ALLOWED = 1e-5  # relative, of the nats of a whole text
HALF_ALLOWED = 2.0**-10  # beside twice the error of transformers in the same dtype
HOW = (
    "Tokens a second: by the median of interleaved runs, a process each, tokenization included. Memory: peak beyond "
    "the loaded model, MiB. Error: of the nats of the check, relative to float64 from the model's own float32 "
    "logits; in bfloat16 it holds the rounding of the whole model. The limit is the matmuls of layers with weights "
    "alone."
)


class ScoreTruth(NamedTuple):
    """The nats of the check in float64, and the relative error that is allowed."""

    nats: float
    allowed: float


class Truths(NamedTuple):
    """A model, and the truth that each dtype is held to."""

    name: str
    title: str
    truths: dict[str, ScoreTruth]


class ScoreWorker(Worker):
    """A way of scoring, with a model of its own in memory."""

    benchmark: "ScoreBenchmark"
    prepared: Truths

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.model: Any = None
        self.checked: dict[str, Any] = {}

    def build(self, n_tokens: int) -> dict[str, Any]:
        from cynosure.models import load

        if self.model is None:
            self.model = load(self.prepared.name, dtype=self.dtype, device="cpu")
        work = Work(self.model, text_of(self.model.tokenizer, n_tokens), self.benchmark.window)
        self.step = self.implementation.build(work)
        return {}

    def run(self, compare: bool) -> dict[str, Any]:
        nats, reply = measured(self.step)
        if compare and self.implementation.checked and not self.checked:  # the truth is that of the first tokens alone
            truth = self.prepared.truths[self.dtype]
            self.checked = {"errors": {"nats": abs(nats / truth.nats - 1)}, "allowed": {"nats": truth.allowed}}
        return reply | self.checked


def text_of(tokenizer: Any, n_tokens: int) -> str:
    """The beginning, of so many tokens, of addresses of US presidents."""
    from benchmarks.texts import addresses

    text = ""
    for address in addresses():
        text += address
        encoding = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        if len(encoding["input_ids"]) >= n_tokens:
            return text[: encoding["offset_mapping"][n_tokens - 1][1]]
    raise ValueError(f"there are no {n_tokens:,} tokens of addresses")


def float64_nats(work: Work) -> float:
    """Of the model's own logits, everything after them in float64."""
    import torch

    total = 0.0
    with torch.no_grad():
        for ids, target in windows(work):
            logits = work.model.model(input_ids=ids, use_cache=False).logits[0]
            for start in range(0, len(logits), 64):
                rows, wanted = logits[start : start + 64].double(), target[0, start : start + 64]
                total += torch.nn.functional.cross_entropy(rows, wanted, reduction="sum").item()
    return total


@dataclass
class ScoreCase(Case):
    """One model, dtype and number of tokens, and everyone in it."""

    model: str
    title: str
    dtype: str
    n_tokens: int
    window: int
    rows: list[Result]

    def to_json(self) -> dict[str, Any]:
        rates = {row.contestant: self.n_tokens / row.seconds_median for row in self.rows if row.seconds_median}
        rows = [row.to_json() | {"tokens_per_second": rates.get(row.contestant)} for row in self.rows]
        return super().to_json() | {"rows": rows}

    @property
    def heading(self) -> str:
        return f"{self.title}: {self.n_tokens:,} tokens, window {self.window:,}, {self.dtype}"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("tokens/s", "", f"/ {LM_EVAL}", "/ limit", "memory", "error")

    def cells(self, row: Result) -> list[str]:
        seconds = row.seconds_median
        return [
            row.status if seconds is None else f"{self.n_tokens / seconds:,.0f}",
            spread([self.n_tokens / x for x in row.seconds] if seconds else [], digits=0),
            ratio(self.seconds_of(LM_EVAL), seconds),
            ratio(self.seconds_of(LIMIT), seconds),
            mib(row.peak_extra_bytes),
            error(row.errors, "nats"),
        ]

    def verdicts(self) -> list[str]:
        """How ours stands against lm-evaluation-harness."""
        lines, peer = [], self.row(LM_EVAL)
        for name in (OURS, COMPILED):
            ours = self.row(name)
            if peer and ours and peer.seconds_median and ours.seconds_median and peer.peak_extra_bytes:
                share = (ours.peak_extra_bytes or 0) / peer.peak_extra_bytes
                speed = peer.seconds_median / ours.seconds_median
                lines.append(f"{name} / {LM_EVAL}: {speed:.2f} of the tokens a second, {share:.2f} of the memory")
        return lines


@dataclass(frozen=True, kw_only=True)
class ScoreBenchmark(Benchmark[ScoreCase]):
    """`models` are names that `load` takes."""

    name: ClassVar[str] = "score"
    implementations: ClassVar[dict[str, Implementation]] = IMPLEMENTATIONS
    worker: ClassVar[type[Worker]] = ScoreWorker
    ours: ClassVar[tuple[str, ...]] = (OURS, COMPILED)
    preparing: ClassVar[str] = "the loss in float64"
    checking: ClassVar[str] = "nats against float64"
    red: ClassVar[str] = "a check of our own nats failed"

    models: tuple[str, ...] = ("smollm2", "gemma3-270m")
    n_tokens: int = 20_000
    window: int = 1024
    runs: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.n_tokens, self.window, self.runs) < 1 or not self.cutoff_seconds > 0:
            raise ValueError("tokens, window, runs and the cut-off must all be positive")

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.models

    @property
    def how(self) -> str:
        return HOW

    def tokens_of(self, subject: str) -> list[int]:
        return [self.n_tokens]

    def check_tokens(self, subject: str) -> int:
        """Two seams."""
        return min(self.n_tokens, 5 * self.window // 2)

    def prepare(self, subject: str, say: Callable[[str], None]) -> Truths:
        """The nats of the check, and what is allowed in each dtype."""
        from cynosure.models import load

        model = load(subject, dtype="float32", device="cpu")
        work = Work(model, text_of(model.tokenizer, self.check_tokens(subject)), self.window)
        nats = float64_nats(work)
        truths = {}
        for dtype in self.dtypes:
            allowed = FLOAT32_ALLOWED
            if dtype != "float32":
                half = work._replace(model=load(subject, dtype=dtype, device="cpu"))
                allowed = HALF_ALLOWED + 2 * abs(build_transformers(half)() / nats - 1)
            truths[dtype] = ScoreTruth(nats, allowed)
        return Truths(subject, model.name, truths)

    def case(self, prepared: Truths, dtype: str, n_tokens: int, rows: list[Result]) -> ScoreCase:
        return ScoreCase(prepared.name, prepared.title, dtype, n_tokens, self.window, rows)
