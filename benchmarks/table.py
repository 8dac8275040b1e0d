"""The report as tables for a terminal."""

from collections.abc import Callable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.contestants import EAGER, OURS
from benchmarks.results import C, Case, Report, Row

MIB = 2**20
NONE = "–"  # noqa: RUF001
HOW = (
    "Seconds: median (least-most) of interleaved runs, a process each. "
    "Memory: peak beyond inputs and gradients, MiB; in half precision also beyond what ours adds dW up in (- accum). "
    "Errors: relative to float64; gradients in the Frobenius norm, estimated by random projections. "
    "A figure stands only where no error exceeds twice that of F.cross_entropy(F.linear(h, W), t) in the same dtype "
    "(for the loss, plus one rounding of the dtype). Whoever is slow in the first run is run once."
)


def print_report(report: Report[Case], console: Console) -> None:
    """Every case as a table, and how to read them."""
    backward = report.settings["backward"]
    what = "Forward and backward." if backward else "The forward alone, as when a text is scored."
    print_cases(report, console, case_table, f"{what} {HOW}")


def print_cases(report: Report[C], console: Console, table_of: Callable[[C], RenderableType], how: str) -> None:
    """Every case of a race as its table, what was left out and why, who the contestants are, and how to read it."""
    for case in report.cases:
        console.print(table_of(case), "", sep="\n")
    for name, reason in report.skipped.items():
        console.print(Text(f"{name} skipped: {reason}", "yellow"))
    if report.cases:
        titles = {row.contestant: row.title for case in report.cases for row in case.rows}
        width = max(map(len, titles))
        console.print(*[Text(f"{name:{width}}  {title}", style="dim") for name, title in titles.items()], sep="\n")
        console.print(Text(f"\n{how}\n\n{machine(report)}", style="dim"))


def machine(report: Report[Any]) -> str:
    about = report.environment
    named = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    hardware = f"{about['cpu']}, {about['threads']} threads, BLAS {about['blas']}"
    return f"{hardware}; {named}; commit {about['commit']}. {about['class']}"


def case_table(case: Case) -> RenderableType:
    """One case; below it why a figure is missing, and the comparison that matters most."""
    half = case.accumulator_bytes > 0
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("contestant")
    accumulator = ["- accum"] if half else []
    for heading in ("seconds", "", "/ ours", "/ limit", "memory", *accumulator, "loss err", "dh err", "dW err"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sorted(case.rows, key=lambda row: row.seconds_median or float("inf")):
        table.add_row(*cells(case, row, half), style="bold" if row.contestant == OURS else "")
    notes = [Text(f"  {row.contestant}: {row.reason}", "yellow") for row in case.rows if row.reason]
    return Group(Text(title(case), "bold"), table, *notes, *[Text(f"  {line}") for line in verdicts(case)])


def title(case: Case) -> str:
    return (
        f"{case.head} ({case.title}): N = {case.n_tokens:,}, D = {case.hidden_size:,}, V = {case.vocab_size:,}, "
        f"{case.dtype}"
    )


def cells(case: Case, row: Row, half: bool) -> list[str]:
    seconds, memory, errors = row.seconds_median, row.peak_extra_bytes, row.errors or {}
    ours = case.row(OURS)
    spread = f"{min(row.seconds):.2f}-{max(row.seconds):.2f}" if seconds and len(row.seconds) > 1 else ""
    beyond = None if memory is None else max(0, memory - case.accumulator_bytes)
    return [
        row.contestant,
        row.status if seconds is None else f"{seconds:.3f}",
        spread,
        ratio(seconds, ours.seconds_median if ours else None),
        ratio(seconds, case.limit_seconds),
        mib(memory),
        *([mib(beyond)] if half else []),
        *(f"{errors[name]:.1e}" if name in errors else NONE for name in ("loss", "dhidden", "dweight")),
    ]


def ratio(seconds: float | None, other: float | None) -> str:
    return f"{seconds / other:.2f}" if seconds and other else NONE


def mib(n_bytes: int | None) -> str:
    return NONE if n_bytes is None else f"{n_bytes / MIB:,.0f}"


def verdicts(case: Case) -> list[str]:
    """What ours did, and how it stands against the plain two calls, in a sentence each."""
    ours, lines = case.row(OURS), []
    if ours and ours.plan:
        lines.append(
            "ours: rows by {backend}, products by {products} ({reason}), {chunk_tokens:,} tokens x {chunk_vocab:,} "
            "classes at a time".format(**ours.plan)
        )
    for row in case.rows:
        if not row.contestant.startswith(EAGER) or ours is None:
            continue
        if ours.seconds_median is None or row.seconds_median is None or not row.peak_extra_bytes:
            continue
        extra = max(0, (ours.peak_extra_bytes or 0) - case.accumulator_bytes)
        beyond = " (ours beyond the accumulator)" if case.accumulator_bytes else ""
        lines.append(
            f"ours / {row.contestant}: {ours.seconds_median / row.seconds_median:.2f} of the time, "
            f"{extra / row.peak_extra_bytes:.1%} of the memory{beyond}"
        )
    return lines
