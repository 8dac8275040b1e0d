"""Time, memory and errors of the loss on real heads and hidden states; gradients are checked against float64."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from benchmarks.formats import NONE, error, mib, ratio, spread
from benchmarks.harness import Benchmark
from benchmarks.implementation import LIMIT, OURS, Implementation
from benchmarks.loss.implementations import EAGER, IMPLEMENTATIONS, SAMPLED, Inputs, Outputs
from benchmarks.loss.prepared import SYNTHETIC, Prepared
from benchmarks.results import Case, Result
from benchmarks.worker import Worker, measured

HEADS = {"gemma3-270m": (1024, 4096), "smollm2": (2048,)}  # name -> tokens
DEFAULT_TOKENS = (1024,)
N_CHECK = 256  # tokens of the check before anything is timed: more than one chunk of ours
MISJUDGED = 1.5  # times its tolerance: most that a sampled error may be by random projections, which spread by a fifth
HOW = (
    "Seconds: median (least-most) of interleaved runs, a process each. "
    "Memory: peak beyond inputs and gradients, MiB; in half precision also beyond what ours adds dW up in (- accum). "
    "Errors: relative to float64; gradients in the Frobenius norm, estimated by random projections. "
    "A figure stands only where no error exceeds twice that of F.cross_entropy(F.linear(h, W), t) in the same dtype "
    "(for the loss, plus one rounding of the dtype; with a grad_tolerance, plus 1.5 times that, in squares). "
    "An implementation that is slow in its first run is run once."
)


class LossWorker(Worker):
    """A loss on a head's hidden states."""

    benchmark: "LossBenchmark"
    prepared: Prepared

    def build(self, n_tokens: int) -> dict[str, Any]:
        from benchmarks.loss.limit import plan_of

        self.step, self.n_tokens = None, n_tokens
        inputs = self.load(n_tokens)._replace(backward=self.benchmark.backward)
        self.build_from(inputs)
        if self.implementation.name != OURS:
            return {}
        plan = plan_of(inputs)
        told = {"backend": plan.backend, "products": plan.gemm.provider, "reason": plan.gemm.reason}
        sizes = ("chunk_tokens", "chunk_vocab", "accumulator_bytes")
        return {"plan": told | {name: getattr(plan, name) for name in sizes}}

    def load(self, n_tokens: int) -> Inputs:
        from benchmarks.loss.inputs import load_inputs

        inputs = load_inputs(self.prepared, self.dtype, n_tokens)
        inputs.weight.sum()  # maps every page, so that inputs do not count as memory of the run
        return inputs

    def build_from(self, inputs: Inputs) -> None:
        self.step = self.implementation.build(inputs)

    def measure(self, compare: bool) -> tuple[Outputs, dict[str, Any]]:
        """One run, `compare` if it is the first."""
        return measured(self.step)

    def run(self, compare: bool) -> dict[str, Any]:
        from cynosure.loss import record_sampling

        with record_sampling() as records:
            outputs, reply = self.measure(compare)
        if records:
            reply["sampling"] = records[-1]._asdict()
        made = sum(x.nbytes for x in (outputs.dhidden, outputs.dweight) if x is not None)
        reply["extra_bytes"] = max(0, reply["extra_bytes"] - made)
        return reply | (self.compare(outputs) if compare and self.implementation.checked else {})

    def compare(self, outputs: Outputs) -> dict[str, Any]:
        import torch

        from benchmarks.loss.inputs import load_truth
        from benchmarks.loss.reference import allowed, errors_of

        truth, eager = load_truth(self.prepared, self.dtype, self.n_tokens)
        errors, bounds = errors_of(outputs, truth), allowed(eager, getattr(torch, self.dtype))._asdict()
        bounds |= self.of_gradients(bounds)
        return {"errors": errors, "allowed": {name: bounds[name] for name in errors}}

    def of_gradients(self, allowed: dict[str, float]) -> dict[str, float]:
        """The errors that gradients may have where they are sampled, given those of exact ones."""
        sampled = MISJUDGED * self.implementation.grad_tolerance
        return {name: math.hypot(allowed[name], sampled) for name in ("dhidden", "dweight")}


@dataclass
class LossCase(Case):
    """One head, number of tokens and dtype, and everyone in it."""

    error_names: ClassVar[dict[str, str]] = {"loss": "loss err", "dhidden": "dh err", "dweight": "dW err"}
    no_limits: ClassVar[tuple[str, ...]] = ()  # named like one, but beside it
    compared: ClassVar[tuple[str, ...]] = (EAGER,)  # what the names of the rows that ours is set against begin with

    head: str
    title: str
    vocab_size: int
    hidden_size: int
    n_tokens: int
    dtype: str
    rows: list[Result]

    @property
    def limit_seconds(self) -> float | None:
        """The matmuls alone, the better of the ways to make them."""
        limits = [row for row in self.rows if row.contestant.startswith(LIMIT) and row.contestant not in self.no_limits]
        return min((seconds for row in limits if (seconds := row.seconds_median)), default=None)

    @property
    def has_forward(self) -> bool:
        """Whether the forward alone has been measured beside forward and backward: so on a device."""
        return any(row.forward_seconds for row in self.rows)

    @property
    def accumulator_bytes(self) -> int:
        """What ours adds a half-precision dW up in beside itself, so that chunks cost no precision."""
        plans = [row.plan for row in self.rows if row.plan]
        return int(plans[0]["accumulator_bytes"]) if plans else 0

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"limit_seconds": self.limit_seconds, "accumulator_bytes": self.accumulator_bytes}

    @property
    def heading(self) -> str:
        sizes = f"N = {self.n_tokens:,}, D = {self.hidden_size:,}, V = {self.vocab_size:,}"
        return f"{self.head} ({self.title}): {sizes}, {self.dtype}"

    @property
    def columns(self) -> tuple[str, ...]:
        accumulator = ("- accum",) if self.accumulator_bytes else ()
        forward = ("forward",) if self.has_forward else ()
        return ("seconds", "", "/ ours", "/ limit", "memory", *accumulator, *forward, *self.error_names.values())

    def cells(self, row: Result) -> list[str]:
        seconds, memory, forward = row.seconds_median, row.peak_extra_bytes, row.forward_seconds_median
        digits = 5 if self.has_forward else 3  # a GPU takes milliseconds
        return [
            row.status if seconds is None else f"{seconds:.{digits}f}",
            spread(row.seconds if seconds else [], digits - 1),
            ratio(seconds, self.seconds_of(OURS)),
            ratio(seconds, self.limit_seconds),
            mib(memory),
            *([mib(self.beyond_accumulator(memory))] if self.accumulator_bytes else []),
            *([NONE if forward is None else f"{forward:.{digits}f}"] if self.has_forward else []),
            *(error(row.errors, name) for name in self.error_names),
        ]

    def beyond_accumulator(self, n_bytes: int | None) -> int | None:
        return None if n_bytes is None else max(0, n_bytes - self.accumulator_bytes)

    def verdicts(self) -> list[str]:
        """What ours did, and how it stands against the plain two calls."""
        ours = self.row(OURS)
        if ours is None:
            return []
        others = [row for row in self.rows if row.contestant.startswith(self.compared)]
        lines = [line for row in others if (line := self.against(ours, row))]
        if ours.plan:
            did = (
                "ours: rows by {backend}, products by {products} ({reason}), {chunk_tokens:,} tokens x {chunk_vocab:,} "
                "classes at a time"
            )
            lines.insert(0, did.format(**ours.plan))
        if (row := self.row(SAMPLED)) and row.sampling and row.status == "ok":
            told = "{columns_kept:.1%} of the columns kept, predicted errors {dhidden_error:.5f}, {dweight_error:.5f}"
            lines.append(f"{SAMPLED}: {told.format(**row.sampling)}")
        return lines

    def against(self, ours: Result, row: Result) -> str | None:
        if ours.seconds_median is None or row.seconds_median is None or not row.peak_extra_bytes:
            return None
        extra = self.beyond_accumulator(ours.peak_extra_bytes) or 0
        beyond = " (ours beyond the accumulator)" if self.accumulator_bytes else ""
        return (
            f"ours / {row.contestant}: {ours.seconds_median / row.seconds_median:.2f} of the time, "
            f"{extra / row.peak_extra_bytes:.1%} of the memory{beyond}"
        )


@dataclass(frozen=True, kw_only=True)
class LossBenchmark(Benchmark[LossCase]):
    """Heads are the packaged models', or `synthetic:VxD`. `tokens` None means each head's own."""

    name: ClassVar[str] = "loss"
    implementations: ClassVar[dict[str, Implementation]] = IMPLEMENTATIONS
    worker: ClassVar[type[Worker]] = LossWorker
    subject: ClassVar[str] = "head"
    preparing: ClassVar[str] = "preparing inputs"
    known_heads: ClassVar[tuple[str, ...]] = tuple(HEADS)
    place: ClassVar[str] = "cpu"  # of implementations that take part
    checking: ClassVar[str] = "gradients against float64"
    red: ClassVar[str] = "a check of our own gradients failed"

    heads: tuple[str, ...] = tuple(HEADS)
    tokens: tuple[int, ...] | None = None
    runs: int = 3
    slow_seconds: float = 10.0
    cutoff_seconds: float = 60.0
    backward: bool = True  # False: the forward alone

    def __post_init__(self) -> None:
        for head in self.heads:
            if head not in self.known_heads and not SYNTHETIC.fullmatch(head):
                known = ", ".join(self.known_heads)
                raise ValueError(f"unknown head {head!r}: expected one of {known}, or synthetic:VxD")
        super().__post_init__()
        if min(self.tokens or (1,)) < 1 or self.runs < 1 or not self.cutoff_seconds > 0:
            raise ValueError("tokens, runs and the cut-off must all be positive")

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.heads

    @property
    def how(self) -> str:
        return f"{'Forward and backward.' if self.backward else 'The forward alone, as when a text is scored.'} {HOW}"

    def tokens_of(self, subject: str) -> list[int]:
        return sorted(self.tokens or HEADS.get(subject, DEFAULT_TOKENS))

    def check_tokens(self, subject: str) -> int:
        return min(N_CHECK, *self.tokens_of(subject))

    def takes(self, implementation: Implementation) -> bool:
        return self.place in implementation.places and (implementation.trains or not self.backward)

    def prepare(self, subject: str, say: Callable[[str], None]) -> Prepared:
        from benchmarks.loss.inputs import prepare

        tokens = sorted({self.check_tokens(subject), *self.tokens_of(subject)})
        return prepare(subject, list(self.dtypes), tokens, say)

    def case(self, prepared: Prepared, dtype: str, n_tokens: int, rows: list[Result]) -> LossCase:
        sizes = prepared.vocab_size, prepared.hidden_size, n_tokens
        return LossCase(prepared.name, prepared.title, *sizes, dtype, rows)
