"""Print what the runs of a report found: a table of means and spreads over seeds for each case, and one of all runs."""

import json
from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.formats import NONE
from benchmarks.sampled.training import GROUPS, Run

Record = dict[str, Any]
Value = Callable[[Record], float | None]

COLUMNS: dict[str, tuple[Value, str]] = {
    "bits/byte": (lambda run: run["bits_per_byte"], ".4f"),
    "nats": (lambda run: run["nats_per_token"], ".4f"),
    "frequent": (lambda run: run["deciles"][0], ".3f"),
    "rarest": (lambda run: run["deciles"][-1], ".3f"),
    "ECE": (lambda run: run["ece"], ".4f"),
    "|w| unseen": (lambda run: run["head"]["unseen"]["norm"], ".4f"),
    "|w| rare": (lambda run: run["head"]["rare"]["norm"], ".4f"),
    "|w| common": (lambda run: run["head"]["common"]["norm"], ".4f"),
    "columns": (lambda run: run.get("columns_kept"), ".1%"),
    "dH": (lambda run: run.get("dhidden_error"), ".1e"),
    "dW": (lambda run: run.get("dweight_error"), ".1e"),
    "seconds": (lambda run: run["train_seconds"], ".0f"),
}
PAIRED = ("bits_per_byte", "nats_per_token")  # compared seed by seed


def print_cases(runs: list[Record], console: Console) -> None:
    """Print the tables of each case."""
    for key in dict.fromkeys(case_of(run) for run in runs):
        case = [run for run in runs if case_of(run) == key]
        console.print(Text(title(case[0]), "bold"))
        console.print(table([summary(same) for same in by_tolerance(case).values()], "seeds"), "")
        singles = sorted(case, key=lambda run: (order(run), run["seed"]))
        console.print(table([single(run) for run in singles], "seed"), "")
        for line in (*differences(case), *by_decile(case), *by_group(case)):
            console.print(Text(f"  {line}"), soft_wrap=True)
        console.print()
    note = "Means, and standard deviations over seeds. frequent, rarest: nats of a tenth of the tokens."
    console.print(Text(note, "dim"))


def case_of(run: Record) -> str:
    """Return what the runs that are compared have in common, as a string."""
    return json.dumps({name: run[name] for name in Run("", 0.0, 0, 0).case})


def title(run: Record) -> str:
    plan = run["plan"]
    return (
        f"{run['model']}, {plan['steps']:,} steps of {plan['batch_tokens']:,} tokens, learning rate "
        f"{plan['learning_rate']:g}, weight decay {run['weight_decay']:g}, {run['dtype_of_matmuls']}"
    )


def order(run: Record) -> float:
    """Return a sort key: exact first, then from the smallest tolerance."""
    return 2.0**-8 if run["tolerance"] == "dtype" else float(run["tolerance"])


def by_tolerance(runs: list[Record]) -> dict[Any, list[Record]]:
    """Return the runs of each tolerance, exact first."""
    ordered = sorted(runs, key=order)
    keys = dict.fromkeys(run["tolerance"] for run in ordered)
    return {key: [run for run in ordered if run["tolerance"] == key] for key in keys}


def named(tolerance: Any) -> str:
    """Return a tolerance as a power of two where it is one.

    >>> named(0.0), named(2**-8), named(0.01), named("dtype")
    ('exact', '2**-8', '0.01', 'dtype')
    """
    if tolerance == 0:
        return "exact"
    if isinstance(tolerance, str):
        return tolerance
    mantissa, exponent = tolerance.hex().split("p")
    return f"2**{exponent}" if mantissa == "0x1.0000000000000" else f"{tolerance:g}"


def summary(runs: list[Record]) -> list[str]:
    """Return the row of a tolerance."""
    cells = []
    for value, form in COLUMNS.values():
        values = [x for run in runs if (x := value(run)) is not None]
        cells.append(shown(values, form) if values else NONE)
    return [named(runs[0]["tolerance"]), str(len(runs)), *cells]


def single(run: Record) -> list[str]:
    """Return the row of a run."""
    values = [(value(run), form) for value, form in COLUMNS.values()]
    cells = [NONE if x is None else format(x, form) for x, form in values]
    return [named(run["tolerance"]), str(run["seed"]), *cells]


def table(rows: list[list[str]], second: str) -> Table:
    made = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("tolerance", second, *COLUMNS):
        made.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    return made


def differences(runs: list[Record]) -> list[str]:
    """Return, for each tolerance, the loss less that of the exact run of the same seed."""
    lines = []
    exact = {run["seed"]: run for run in runs if run["tolerance"] == 0}
    for tolerance, same in by_tolerance(runs).items():
        pairs = [(run, exact[run["seed"]]) for run in same if run["seed"] in exact]
        if tolerance != 0 and pairs:
            parts = (f"{name} {' '.join(f'{run[name] - other[name]:+.4f}' for run, other in pairs)}" for name in PAIRED)
            lines.append(f"{named(tolerance)} less exact, seed by seed: {', '.join(parts)}")
    return lines


def by_decile(runs: list[Record]) -> list[str]:
    """Return the mean loss of each tenth of the tokens, the most frequent first, with its spread over seeds."""
    return [
        f"{named(tolerance)}, nats by decile: {'  '.join(shown(values) for values in zip(*each, strict=True))}"
        for tolerance, same in by_tolerance(runs).items()
        if (each := [run["deciles"] for run in same])
    ]


def by_group(runs: list[Record]) -> list[str]:
    """Return the mean loss of the tokens that are unseen, rare and common in the training."""
    lines = []
    for tolerance, same in by_tolerance(runs).items():
        losses = {name: [run["groups"][name]["nats_per_token"] for run in same] for name in GROUPS}
        parts = (f"{name} {shown(values)}" for name, values in losses.items() if None not in values)
        lines.append(f"{named(tolerance)}, nats by group: {', '.join(parts)}")
    return lines


def shown(values: Sequence[float], form: str = ".3f") -> str:
    """Return the mean of values, with their standard deviation if there are several.

    >>> shown([1.0, 2.0]), shown([1.0])
    ('1.500 ±0.707', '1.000')
    """
    return format(mean(values), form) + (f" ±{format(stdev(values), form)}" if len(values) > 1 else "")
