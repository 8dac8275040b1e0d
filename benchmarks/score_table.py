"""The race in scoring as tables for a terminal."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.contestants import OURS
from benchmarks.results import LIMIT, Report, Row, ScoreCase
from benchmarks.scorers import COMPILED, LM_EVAL
from benchmarks.table import NONE, mib, print_cases, ratio

HOW = (
    "Tokens a second: by the median of interleaved runs, a process each, tokenization included. Memory: peak beyond "
    "the loaded model, MiB. Error: of the nats of the check, relative to float64 from the model's own float32 logits; "
    "in bfloat16 it holds the rounding of the whole model. The limit makes the products of layers with weights alone."
)


def print_scores(report: Report[ScoreCase], console: Console) -> None:
    """Every case as a table, and how to read them."""
    print_cases(report, console, case_table, HOW)


def case_table(case: ScoreCase) -> RenderableType:
    """One case; below it why a figure is missing, and ours against the best-known peer."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("contestant")
    for heading in ("tokens/s", "", "/ lm-eval", "/ limit", "memory", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in sorted(case.rows, key=lambda row: row.seconds_median or float("inf")):
        table.add_row(*cells(case, row), style="bold" if row.contestant in (OURS, COMPILED) else "")
    notes = [Text(f"  {row.contestant}: {row.reason}", "yellow") for row in case.rows if row.reason]
    title = f"{case.title}: {case.n_tokens:,} tokens, window {case.window:,}, {case.dtype}"
    return Group(Text(title, "bold"), table, *notes, *[Text(f"  {line}") for line in verdicts(case)])


def cells(case: ScoreCase, row: Row) -> list[str]:
    seconds, spread = row.seconds_median, ""
    if seconds and len(row.seconds) > 1:
        spread = f"{case.n_tokens / max(row.seconds):,.0f}-{case.n_tokens / min(row.seconds):,.0f}"
    rate = row.status if seconds is None else f"{case.n_tokens / seconds:,.0f}"
    of_peer, of_limit = (case.row(name) for name in (LM_EVAL, LIMIT))
    error = (row.errors or {}).get("nats")
    return [
        row.contestant,
        rate,
        spread,
        ratio(of_peer.seconds_median if of_peer else None, seconds),
        ratio(of_limit.seconds_median if of_limit else None, seconds),
        mib(row.peak_extra_bytes),
        NONE if error is None else f"{error:.1e}",
    ]


def verdicts(case: ScoreCase) -> list[str]:
    """How ours stands against lm-evaluation-harness, in a sentence each."""
    lines, peer = [], case.row(LM_EVAL)
    for name in (OURS, COMPILED):
        ours = case.row(name)
        if peer and ours and peer.seconds_median and ours.seconds_median and peer.peak_extra_bytes:
            share = (ours.peak_extra_bytes or 0) / peer.peak_extra_bytes
            speed = peer.seconds_median / ours.seconds_median
            lines.append(f"{name} / lm-eval: {speed:.2f} of the tokens a second, {share:.2f} of the memory")
    return lines
