"""Print a report as tables on a terminal."""

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.results import BenchmarkReport, Case


def print_report(report: BenchmarkReport[Any], how: str, ours: tuple[str, ...], console: Console) -> None:
    """Print a table per case, what was skipped and why, the implementations, and how to read the tables."""
    for case in report.cases:
        console.print(case_table(case, ours), "", sep="\n")
    for name, reason in report.skipped.items():
        console.print(Text(f"{name} skipped: {reason}", "yellow"))
    if report.cases:
        titles = {row.contestant: row.title for case in report.cases for row in case.rows}
        width = max(map(len, titles))
        console.print(*[Text(f"{name:{width}}  {title}", style="dim") for name, title in titles.items()], sep="\n")
        console.print(Text(f"\n{how}\n\n{machine(report)}", style="dim"))


def machine(report: BenchmarkReport[Any]) -> str:
    about = report.environment
    named = ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version)
    device = f"{about['device']['name']}; " if "device" in about else ""
    hardware = f"{device}{about['cpu']}, {about['threads']} threads, BLAS {about['blas']}"
    advice = "" if device else f" {about['class']}"  # about matmuls of the CPU
    return f"{hardware}; {named}; commit {about['commit']}.{advice}"


def case_table(case: Case, ours: tuple[str, ...]) -> RenderableType:
    """Return the table of a case, fastest first, with reasons for missing values and the main comparisons."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("implementation")
    for heading in case.columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sorted(case.rows, key=lambda row: row.seconds_median or float("inf")):
        table.add_row(row.contestant, *case.cells(row), style="bold" if row.contestant in ours else "")
    notes = [
        Text(f"  {row.contestant}: {row.reason}", "red" if row.status == "red" else "yellow")
        for row in case.rows
        if row.reason
    ]
    return Group(Text(case.heading, "bold"), table, *notes, *[Text(f"  {line}") for line in case.verdicts()])
