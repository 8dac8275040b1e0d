"""Show a comparison as tables on a terminal or as Markdown: the verdict first, then its causes."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cynosure.cli.screen import headed_table, plain_table, stdout
from cynosure.cli.tables import in_context, shortened
from cynosure.measure.results.wording import HEAD, NAMES, cells, changes, conclusion, described, facts, signed
from cynosure.system.escapes import visible
from cynosure.system.numbers import number

if TYPE_CHECKING:
    from cynosure.cli.screen import Console
    from cynosure.measure import Comparison, Verdict

SHOWN = 5  # documents and segments


def show(comparison: "Comparison", verdicts: "Sequence[Verdict]") -> None:
    """Print the comparison and the verdicts of the gates."""
    console = stdout()
    console.print(f"A  {comparison.a.model}", style="bold")
    console.print(f"B  {comparison.b.model}", style="bold")
    console.print(described(comparison))
    console.print()
    console.print(conclusion(comparison), style="bold")
    console.print()
    head, *rows = changes(comparison)
    table = headed_table(*head)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print()
    table = plain_table("", ">bold", "dim")
    for line in facts(comparison):
        table.add_row(*line)
    console.print(table)
    show_parts(console, "class", "bytes of A's tokens", comparison.by_class)
    if len(comparison.by_document) > 1:
        apart = sorted(comparison.by_document, key=lambda part: -abs(part["nats"] or 0))[:SHOWN]
        show_parts(console, "document", "documents furthest apart", apart)
    for title, segments in (("worst for B", comparison.losses), ("best for B", comparison.gains)):
        show_segments(console, title, segments[:SHOWN])
    for verdict in verdicts:
        style = "bold red" if verdict.failed else None
        console.print()
        console.print(f"{verdict.status.upper()}: fail if {verdict.gate.text}", style=style)
        console.print(verdict.message)


def show_parts(console: "Console", key: str, title: str, parts: list[dict[str, Any]]) -> None:
    """Print the bits per byte of A and B for parts of the text."""
    table = headed_table(title, "bytes", "A", "B", "B - A", "nats")
    for part in parts:
        values = (number(part[name], 4) for name in ("bits_per_byte_a", "bits_per_byte_b"))
        nats = "unknown" if part["nats"] is None else f"{part['nats']:+,.1f}"
        table.add_row(part[key], f"{part['bytes']:,}", *values, signed(part["difference"]), nats)
    console.print()
    console.print(table)


def show_segments(console: "Console", title: str, segments: list[dict[str, Any]]) -> None:
    """Print the segments where A and B differ most, in the surrounding text."""
    table = headed_table(">nats of A", "of B", f"<{title}", "<in its text")
    for part in segments:
        nats = (number(part[name]) for name in ("nats_a", "nats_b"))
        table.add_row(*nats, shortened(part["text"]), in_context(part))
    if segments:
        console.print()
        console.print(table)


def markdown(comparison: "Comparison", verdicts: "Sequence[Verdict]") -> str:
    """Return the verdict, metrics, gates and notes as GitHub Markdown."""
    failed = sum(verdict.failed for verdict in verdicts)
    verdict = f" {failed} of {len(verdicts)} gates failed." if failed else ""
    lines = [
        f"**{conclusion(comparison)}{verdict}**",
        "",
        f"A: {code(comparison.a.model)}, B: {code(comparison.b.model)}. {plain(described(comparison))}.",
        "",
        *grid(HEAD, [(NAMES[name], *cells(change)) for name, change in comparison.changes.items()]),
        "",
        *(f"- {name}: {value} {meaning}" for name, value, meaning in facts(comparison)),
    ]
    if verdicts:
        rows = [(code(verdict.gate.text), verdict.status, plain(verdict.message)) for verdict in verdicts]
        lines += ["", *grid(("gate", "verdict", "why"), rows)]
    if comparison.notes:
        lines += ["", *(f"- {plain(note)}" for note in comparison.notes)]
    return "\n".join(lines) + "\n"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    return [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
        for row in (head, ["---"] * len(head), *rows)
    ]


def code(text: str) -> str:
    return f"`{visible(text).replace('`', chr(39))}`"


def plain(text: str) -> str:
    """Escape everything in a text that Markdown would render: links, images, HTML.

    >>> print(plain("<img src=x> *a* [b](c)"))
    \\<img src=x\\> \\*a\\* \\[b\\](c)
    """
    return re.sub(r"[\\`*_\[\]<>~]", r"\\\g<0>", visible(text))
