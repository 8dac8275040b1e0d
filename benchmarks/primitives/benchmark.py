"""Time, memory and errors of log-probabilities with entropies, and of the divergence of two heads."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from benchmarks.implementation import Implementation
from benchmarks.loss.benchmark import LossBenchmark, LossCase, LossWorker
from benchmarks.loss.implementations import EAGER
from benchmarks.loss.prepared import Prepared
from benchmarks.primitives.implementations import DIVERGENCE, LIMIT_HELD, LOGPROBS, Outputs
from benchmarks.results import Result
from benchmarks.worker import Worker

N_TOKENS = 2048
VALUE_EPS = 2.0**-23  # every value is a float32
HOW = (
    "Seconds: median (least-most) of interleaved runs, a process each, forward and backward. "
    "Memory: peak beyond inputs and gradients, MiB. "
    "Errors: relative to float64, in the Frobenius norm; of gradients estimated by random projections. "
    "A time stands only where no error exceeds twice that of plain torch in the same dtype, plus for values one "
    "rounding of a float32, and for gradients with a grad_tolerance 1.5 times that, in squares. "
    "An implementation that is slow in its first run is run once."
)


class PrimitiveWorker(LossWorker):
    """A primitive on a head's hidden states. It chooses its own chunks: no plan is reported."""

    benchmark: "PrimitiveBenchmark"

    def build(self, n_tokens: int) -> dict[str, Any]:
        self.step, self.n_tokens = None, n_tokens
        self.build_from(self.load(n_tokens))
        return {}

    def compare(self, outputs: Outputs) -> dict[str, Any]:  # type: ignore[override]
        from benchmarks.primitives.reference import distances_of, load_truth

        names, kind = (*self.benchmark.values, "dhidden", "dweight"), self.benchmark.name
        truth, eager = load_truth(self.prepared, kind, self.dtype, self.n_tokens)
        errors = dict(zip(names, distances_of(outputs, truth), strict=True))
        allowed = {name: 2 * distance for name, distance in zip(names, eager, strict=True)}
        allowed |= {name: allowed[name] + VALUE_EPS for name in self.benchmark.values}
        return {"errors": errors, "allowed": allowed | self.of_gradients(allowed)}


@dataclass
class LogprobsCase(LossCase):
    """Log-probabilities and entropies on one head, in one dtype."""

    error_names: ClassVar[dict[str, str]] = {
        "logprobs": "logp err", "entropy": "H err", "dhidden": "dh err", "dweight": "dW err",
    }  # fmt: skip
    no_limits: ClassVar[tuple[str, ...]] = (LIMIT_HELD,)  # without logits held there is one matmul more
    compared: ClassVar[tuple[str, ...]] = ("trl", EAGER)


@dataclass
class DivergenceCase(LossCase):
    """The divergence on one head, in one dtype."""

    error_names: ClassVar[dict[str, str]] = {"kl": "KL err", "dhidden": "dh err", "dweight": "dW err"}
    compared: ClassVar[tuple[str, ...]] = ("trl", EAGER)


@dataclass(frozen=True, kw_only=True)
class PrimitiveBenchmark(LossBenchmark):
    """Heads as in the benchmark of the loss."""

    worker: ClassVar[type[Worker]] = PrimitiveWorker
    case_kind: ClassVar[type[LossCase]]
    values: ClassVar[tuple[str, ...]]  # what a step computes besides the gradients
    checking: ClassVar[str] = "values and gradients against float64"
    red: ClassVar[str] = "a check of our own values or gradients failed"

    cutoff_seconds: float = 150.0

    @property
    def how(self) -> str:
        return HOW

    def tokens_of(self, subject: str) -> list[int]:
        return sorted(self.tokens or (N_TOKENS,))

    def prepare(self, subject: str, say: Callable[[str], None]) -> Prepared:
        from benchmarks.loss.inputs import prepare_head
        from benchmarks.primitives.reference import keep_truth

        tokens, plain = sorted({self.check_tokens(subject), *self.tokens_of(subject)}), self.implementations[EAGER]
        made = prepare_head(subject, list(self.dtypes), tokens, say)
        for dtype in self.dtypes:
            for n_tokens in tokens:
                if not made.truth_file(dtype, n_tokens, self.name).exists():
                    say(f"{subject}: {self.name} and gradients of {n_tokens:,} tokens in float64, for {dtype} (once)")
                    keep_truth(made, self.name, plain, dtype, n_tokens)
        return made

    def case(self, prepared: Prepared, dtype: str, n_tokens: int, rows: list[Result]) -> LossCase:
        sizes = prepared.vocab_size, prepared.hidden_size, n_tokens
        return self.case_kind(prepared.name, prepared.title, *sizes, dtype, rows)


@dataclass(frozen=True, kw_only=True)
class LogprobsBenchmark(PrimitiveBenchmark):
    """Log-probabilities of the targets and entropies, each with a random upstream gradient."""

    name: ClassVar[str] = "logprobs"
    implementations: ClassVar[dict[str, Implementation]] = LOGPROBS
    case_kind: ClassVar[type[LossCase]] = LogprobsCase
    values: ClassVar[tuple[str, ...]] = ("logprobs", "entropy")


@dataclass(frozen=True, kw_only=True)
class DivergenceBenchmark(PrimitiveBenchmark):
    """The mean KL divergence of a student from a teacher that has no gradient."""

    name: ClassVar[str] = "kl"
    implementations: ClassVar[dict[str, Implementation]] = DIVERGENCE
    case_kind: ClassVar[type[LossCase]] = DivergenceCase
    values: ClassVar[tuple[str, ...]] = ("kl",)
