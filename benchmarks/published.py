"""`python -m benchmarks.published` writes the tables of the published reports into docs/reference/benchmarks.md.

Each table stands between two comments, `<!-- NAME -->` and `<!-- end of NAME -->`, and is made of all reports
`benchmarks/results/NAME-*.json`.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.formats import NONE, mib
from benchmarks.implementation import LIMIT, OURS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "benchmarks.md"
RESULTS = Path(__file__).parent / "results"
SIGNIFICANT = 3  # digits of seconds
CODE = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+(?:\([^()]*\)(?:\.\w+)*)*")  # names with a dot, and calls of them


def blocks(page: str, results: Path = RESULTS) -> str:
    """Return the page with every table made anew."""
    for name, render in TABLES.items():
        reports = {path.name: json.loads(path.read_text()) for path in sorted(results.glob(f"{name}-*.json"))}
        made = f"{render(reports)}\n\n{sources(reports)}" if reports else "No run has been published yet."
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
        page = pattern.sub(lambda _, block=f"{begin}\n\n{made}\n\n{end}": block, page)  # type: ignore[misc]
    return page


def primitives(reports: dict[str, Any]) -> str:
    """A table for each head, dtypes beside each other."""
    cases = [case for report in reports.values() for case in report["cases"]]
    tables = []
    for head, n_tokens in dict.fromkeys((case["head"], case["n_tokens"]) for case in cases):
        of_head = {case["dtype"]: case for case in cases if (case["head"], case["n_tokens"]) == (head, n_tokens)}
        first = next(iter(of_head.values()))
        sizes = f"N = {n_tokens:,}, D = {first['hidden_size']}, V = {first['vocab_size']:,}"
        header = [f"{head}: {sizes}", *(cell for dtype in of_head for cell in (dtype, "memory", "dW error"))]
        longest_first = sorted(of_head.values(), key=lambda case: -len(case["rows"]))
        titles = {row["contestant"]: row["title"] for case in longest_first for row in case["rows"]}
        lines = [[label(name, title), *primitive_cells(name, of_head)] for name, title in titles.items()]
        tables.append(table(header, lines))
    return "\n\n".join(tables)


def primitive_cells(name: str, cases: dict[str, Any]) -> list[str]:
    cells = []
    for case in cases.values():
        row = next((row for row in case["rows"] if row["contestant"] == name), None)
        if row is None or row["status"] != "ok":
            cells += [row["status"] if row else NONE, NONE, NONE]
            continue
        memory = "" if name.startswith(LIMIT) else size(row["peak_extra_bytes"])
        cells += [seconds(row["seconds_median"]), memory, f"{row['errors']['dweight']:.1e}" if row["errors"] else ""]
    return cells


def trainers(reports: dict[str, Any]) -> str:
    """A table of all trainers and dtypes."""
    header = ["", "loss and backward", "step", "memory", "process", "loss, first to last", "last reward"]
    lines, differences = [], []
    for case in (case for report in reports.values() for case in report["cases"]):
        trainer = f"{case['trainer'].upper()}, {case['dtype']}"
        lines += [trainer_cells(trainer, row) for row in case["rows"]]
        if case["largest_difference_losses"] is not None:
            found = [case[f"largest_difference_{what}"] for what in ("losses", "rewards")]
            differences.append(f"{trainer}: losses {found[0]:.1e}, rewards {found[1]:.1e}")
    told = f"\n\nLargest differences between the two, over all steps: {'; '.join(differences)}." if differences else ""
    return table(header, lines) + told


def trainer_cells(trainer: str, row: Any) -> list[str]:
    name = label(row["contestant"], f"{trainer}: {row['title']}")
    if row["status"] != "ok":
        return [name, row["status"], *[NONE] * 5]
    losses, rewards = row["losses"], row["rewards"]
    return [
        name,
        seconds(row["loss_seconds_median"]),
        seconds(sum(row["seconds"]) / len(row["seconds"])),
        *(size(row[f"peak_{what}_bytes"]) for what in ("extra", "process")),
        " to ".join(f"{round(losses[i], 4) + 0.0:.4f}" for i in (0, -1)),  # + 0.0: without -0.0000
        f"{rewards[-1]:.4f}",
    ]


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {"logprobs": primitives, "kl": primitives, "trainers": trainers}


def label(name: str, title: str) -> str:
    text = CODE.sub(r"`\g<0>`", title)
    return f"**{text}**" if name == OURS else f"*{text}*" if name.startswith(LIMIT) else text


def seconds(value: float) -> str:
    digits = max(0, SIGNIFICANT - len(f"{int(value)}")) if value >= 1 else SIGNIFICANT - 1
    return f"{value:.{digits}f} s"


def size(n_bytes: int) -> str:
    return f"{mib(n_bytes)} MiB"


def table(header: list[str], lines: list[list[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def sources(reports: dict[str, Any]) -> str:
    """Return commands, commits, files and machines of reports."""
    runs = []
    for name, report in reports.items():
        about, command = report["environment"], report["command"].partition(" --json ")[0]
        runs.append(f"`{command}`, commit {about['commit'][:7]}; `{name}`.")
    return "\n".join([*runs, *dict.fromkeys(machine(report["environment"]) for report in reports.values())])


def machine(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("torch", "transformers", "trl"))
    return f"{about['cpu']}, {about['threads']} threads, {versions}."


if __name__ == "__main__":
    PAGE.write_text(blocks(PAGE.read_text()))
