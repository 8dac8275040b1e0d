"""The race in fine-tuning as tables for a terminal."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.contestants import OURS
from benchmarks.results import LIMIT, TRANSFORMERS, Report, Row, TrainCase
from benchmarks.table import NONE, mib, print_cases, ratio

HOW = (
    "Seconds a step of Trainer, from batch to optimizer: median (least-most) of interleaved steps, a process each, "
    "the first not counted. Memory: peak beyond what is held between steps, MiB; process: all that is held then. "
    "Error: how far the curve goes from that of the same training with an exact head, in nats; ours may go twice as "
    "far as the model's own, and a rounding farther. The limit is a step whose head and loss are the head's products "
    "alone."
)


def print_training(report: Report[TrainCase], console: Console) -> None:
    """Every case as a table, and how to read them."""
    print_cases(report, console, case_table, HOW)


def case_table(case: TrainCase) -> RenderableType:
    """One case; below it why a figure is missing, ours against the model's own, and whether the curves agree."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("contestant")
    for heading in ("seconds", "", "/ ours", "/ limit", "memory", "process", "first loss", "last", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sorted(case.rows, key=lambda row: row.seconds_median or float("inf")):
        table.add_row(*cells(case, row), style="bold" if row.contestant == OURS else "")
    notes = [
        Text(f"  {row.contestant}: {row.reason}", "red" if row.status == "red" else "yellow")
        for row in case.rows
        if row.reason
    ]
    title = f"{case.title}: {case.n_steps} steps of {case.n_rows} x {case.n_tokens:,} tokens, {case.dtype}"
    return Group(Text(title, "bold"), table, *notes, *[Text(f"  {line}") for line in verdicts(case)])


def cells(case: TrainCase, row: Row) -> list[str]:
    seconds, losses = row.seconds_median, row.losses or []
    ours, limit = case.row(OURS), case.row(LIMIT)
    error = (row.errors or {}).get("loss")
    return [
        row.contestant,
        row.status if seconds is None else f"{seconds:.3f}",
        f"{min(row.seconds):.2f}-{max(row.seconds):.2f}" if seconds else "",
        ratio(seconds, ours.seconds_median if ours else None),
        ratio(seconds, limit.seconds_median if limit else None),
        mib(row.peak_extra_bytes),
        mib(row.peak_process_bytes),
        *(f"{losses[i]:.4f}" if losses else NONE for i in (0, -1)),
        NONE if error is None else f"{error:.1e}",
    ]


def verdicts(case: TrainCase) -> list[str]:
    """How ours stands against the model's own loss, and how close their curves are, in a sentence each."""
    ours, own, lines = case.row(OURS), case.row(TRANSFORMERS), []
    if ours and own and ours.seconds_median and own.seconds_median and own.peak_extra_bytes:
        lines.append(
            f"{OURS} / {TRANSFORMERS}: {ours.seconds_median / own.seconds_median:.2f} of the time, "
            f"{(ours.peak_extra_bytes or 0) / own.peak_extra_bytes:.2f} of the memory"
        )
    difference = case.largest_difference_nats
    if difference is not None:
        lines.append(f"their losses differ by {difference:.1e} nats at most, over {case.n_steps} steps")
    if ours and ours.errors and not ours.allowed:
        lines.append(f"whether the curve is right is not known: {TRANSFORMERS} has none to judge it by")
    return lines
