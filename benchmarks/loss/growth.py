"""How time and memory of our loss grow with the tokens N and the vocabulary V, one axis at a time.

seconds = a * size^b is fitted over the upper half of the sizes, below which a call's overhead counts: b = 1 is linear.
"""

from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.formats import NONE, mib
from benchmarks.harness import Say, run
from benchmarks.implementation import OURS
from benchmarks.loss.benchmark import LossBenchmark, LossCase
from benchmarks.loss.implementations import IMPLEMENTATIONS
from benchmarks.results import BenchmarkReport
from benchmarks.table import machine

HIDDEN = 64
TOKENS = (64, 256, 1024, 4096, 16384, 65536)
VOCABULARIES = (8192, 32768, 131_072, 524_288, 1_048_576)
N_FIXED, V_FIXED = 256, 8192  # the other axis


@dataclass(frozen=True)
class Axis:
    """One axis in one dtype; `exponent` is b, None where a case has no figure."""

    axis: str
    dtype: str
    cases: list[LossCase]

    def sizes(self) -> list[int]:
        return [case.n_tokens if self.axis == "N" else case.vocab_size for case in self.cases]

    def seconds(self) -> list[float | None]:
        return [case.seconds_of(OURS) for case in self.cases]

    def exponent(self) -> float | None:
        half = min(len(self.cases) // 2, len(self.cases) - 2)  # a line has two points
        seconds = self.seconds()[half:]
        known = [x for x in seconds if x]
        return slope(self.sizes()[half:], known) if len(known) == len(seconds) else None


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Of the least-squares line through the logarithms.

    >>> round(slope([10, 100, 1000], [0.2, 2.0, 20.0]), 6)
    1.0
    """
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (sizes, seconds))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def measure_growth(dtypes: tuple[str, ...], runs: int, say: Say) -> tuple[list[Axis], BenchmarkReport[LossCase]]:
    """Both axes in each dtype, and the report that was made last."""
    axes = []
    for dtype in dtypes:
        for axis, heads, tokens in (
            ("N", (f"synthetic:{V_FIXED}x{HIDDEN}",), TOKENS),
            ("V", tuple(f"synthetic:{v}x{HIDDEN}" for v in VOCABULARIES), (N_FIXED,)),
        ):
            report = run(
                LossBenchmark(heads=heads, dtypes=(dtype,), tokens=tokens, runs=runs), [IMPLEMENTATIONS[OURS]], say
            )
            axes.append(Axis(axis, dtype, report.cases))
    return axes, report


def to_json(axes: list[Axis], report: BenchmarkReport[Any]) -> dict[str, Any]:
    """What was measured, each axis with its exponent."""
    made = [
        {"axis": a.axis, "dtype": a.dtype, "exponent": a.exponent(), "cases": [case.to_json() for case in a.cases]}
        for a in axes
    ]
    return {"environment": report.environment, "hidden_size": HIDDEN, "axes": made}


def print_growth(axes: list[Axis], report: BenchmarkReport[LossCase], console: Console) -> None:
    """A table for each axis, the fit below it."""
    for axis in axes:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in (axis.axis, "seconds", "memory, MiB"):
            table.add_column(heading, justify="right")
        for size, seconds, case in zip(axis.sizes(), axis.seconds(), axis.cases, strict=True):
            row = case.row(OURS)
            beyond = mib(case.beyond_accumulator(row.peak_extra_bytes if row else None))
            table.add_row(f"{size:,}", NONE if seconds is None else f"{seconds:.4f}", beyond)
        fixed = f"V = {V_FIXED:,}" if axis.axis == "N" else f"N = {N_FIXED:,}"
        b = axis.exponent()
        console.print(Text(f"{axis.dtype}, D = {HIDDEN}, {fixed}", "bold"), table)
        console.print(f"  time ~ {axis.axis}^{NONE if b is None else format(b, '.2f')}\n")
    console.print(
        "Forward and backward. Memory: peak beyond inputs, gradients and what a half-precision dW is added up in.\n"
        + machine(report),
        style="dim",
    )
