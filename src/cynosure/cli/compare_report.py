"""A comparison as tables on a terminal, and as Markdown for a comment: the verdict first, then where it comes from."""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cynosure.cli.screen import headed_table, plain_table, stdout
from cynosure.cli.tables import in_context, shortened
from cynosure.system.escapes import visible
from cynosure.system.numbers import counted, number, plural

if TYPE_CHECKING:
    from cynosure.cli.screen import Console
    from cynosure.measure import Comparison, Verdict
    from cynosure.measure.compare import Change
    from cynosure.measure.scores import Figure

SHOWN = 5  # documents and segments
HEAD = ("", "A", "B", "B - A", "95% interval", "of A", "95% interval", "p")
NAMES = {
    "bits_per_byte": "bits per byte",
    "nats_per_token": "nats per token",
    "token_perplexity": "token perplexity",
    "top1_accuracy": "top-1 accuracy",
}


def show(found: "Comparison", verdicts: "Sequence[Verdict]") -> None:
    """All of it, on stdout."""
    console = stdout()
    console.print(f"A  {found.a.model}", style="bold")
    console.print(f"B  {found.b.model}", style="bold")
    console.print(described(found))
    console.print()
    console.print(conclusion(found), style="bold")
    console.print()
    table = headed_table(*HEAD[:5], HEAD[-1])
    for name, change in found.changes.items():
        *absolute, of_a, between_of_a, p = cells(change)
        table.add_row(NAMES[name], *absolute, p)
        table.add_row("  of A", "", "", of_a, between_of_a)
    console.print(table)
    console.print()
    table = plain_table("", ">bold", "dim")
    for line in facts(found):
        table.add_row(*line)
    console.print(table)
    show_parts(console, "class", "bytes of A's tokens", found.by_class)
    if len(found.by_document) > 1:
        apart = sorted(found.by_document, key=lambda part: -abs(part["nats"] or 0))[:SHOWN]
        show_parts(console, "document", "documents furthest apart", apart)
    for title, segments in (("worst for B", found.losses), ("best for B", found.gains)):
        show_segments(console, title, segments[:SHOWN])
    for verdict in verdicts:
        style = "bold red" if verdict.failed else None
        console.print()
        console.print(f"{verdict.status.upper()}: fail if {verdict.gate.text}", style=style)
        console.print(verdict.message)


def described(found: "Comparison") -> str:
    """What was compared on what."""
    a, b = found.a, found.b
    same = [getattr(a, name) == getattr(b, name) for name in ("window", "stride")]
    windows = f"windows of {a.window:,} tokens, stride {a.stride:,}" if all(same) else "windows"
    documents = counted(found.documents, "document")
    dtypes = " and ".join(dict.fromkeys((a.dtype, b.dtype)))
    return f"{a.protocol} {windows}; {dtypes}; {documents}, {counted(found.n_bytes, 'byte')} that both have scored"


def conclusion(found: "Comparison") -> str:
    """The comparison in a sentence."""
    change = found.changes["bits_per_byte"]
    low, high = change.difference.low, change.difference.high
    if change.a is None or change.b is None:
        return "The losses have no difference: one is infinite."
    if low is None or high is None:
        return "There is too little text to tell which is better."
    if low == high == 0:
        return "A and B are equally good, everywhere."
    if low <= 0 <= high:
        return "No difference is proven."
    share = "" if change.relative.value is None else f" {abs(change.relative.value):.2%}"
    return f"B needs{share} {'more' if low > 0 else 'fewer'} bits than A."


def cells(change: "Change") -> tuple[str, ...]:
    """The figures of a metric under their heads."""
    absolute, relative = change.difference, change.relative
    return (
        number(change.a, 4),
        number(change.b, 4),
        signed(absolute.value),
        between(absolute),
        signed(relative.value, share=True),
        between(relative, share=True),
        "" if change.p is None else f"{change.p:.3f}",
    )


def signed(value: float | None, *, share: bool = False) -> str:
    if value is None:
        return ""
    return f"{value:+.2%}" if share else f"{value:+.4f}"


def between(found: "Figure", *, share: bool = False) -> str:
    if found.low is None or found.high is None:
        return ""
    return f"{signed(found.low, share=share)} to {signed(found.high, share=share)}"


def facts(found: "Comparison") -> Iterator[tuple[str, str, str]]:
    """(name, value, what it means) of everything that is one number."""
    agreement, divergence, wins = found.agreement, found.divergence, found.wins
    if divergence is not None:
        interval = between(divergence.mean) and f" ({between(divergence.mean)})"
        yield "KL divergence", number(divergence.mean.value, 5), f"nats a token, of B from A{interval}"
        ends = f"99th percentile {number(divergence.p99, 4)}, most {number(divergence.max, 4)}"
        yield "its median", number(divergence.median, 5), ends
    if agreement is not None:
        yield "top-1 agreement", f"{agreement.top1_agreement:.2%}", "the same token is likeliest to both"
        flips = f"right to wrong {agreement.right_to_wrong:.2%}, wrong to right {agreement.wrong_to_right:.2%}"
        yield "flip rate", f"{agreement.flip_rate:.2%}", flips
    if sum(wins.values()) > 1:
        yield "documents won", f"{wins['b']:,}", f"by B, {wins['a']:,} by A, {wins['ties']:,} tied"
    method = found.resampling
    what = plural(method.n_clusters, "document" if method.block_bytes is None else "block")
    what += "" if method.block_bytes is None else f" of {method.block_bytes:,} bytes"
    yield "intervals", f"{method.n_clusters:,}", f"{what} resampled {method.n_resamples:,} times, seed {method.seed}"


def show_parts(console: "Console", key: str, title: str, parts: list[dict[str, Any]]) -> None:
    """Bits per byte of both by part of the text."""
    table = headed_table(title, "bytes", "A", "B", "B - A", "nats")
    for part in parts:
        values = (number(part[name], 4) for name in ("bits_per_byte_a", "bits_per_byte_b"))
        nats = "unknown" if part["nats"] is None else f"{part['nats']:+,.1f}"
        table.add_row(part[key], f"{part['bytes']:,}", *values, signed(part["difference"]), nats)
    console.print()
    console.print(table)


def show_segments(console: "Console", title: str, segments: list[dict[str, Any]]) -> None:
    """Where the runs are furthest apart, in the text around."""
    table = headed_table(">nats of A", "of B", f"<{title}", "<in its text")
    for part in segments:
        nats = (number(part[name]) for name in ("nats_a", "nats_b"))
        table.add_row(*nats, shortened(part["text"]), in_context(part))
    if segments:
        console.print()
        console.print(table)


def markdown(found: "Comparison", verdicts: "Sequence[Verdict]") -> str:
    """The verdict, the figures, the gates and the notes, as GitHub reads them."""
    failed = sum(verdict.failed for verdict in verdicts)
    verdict = f" {failed} of {len(verdicts)} gates failed." if failed else ""
    lines = [
        f"**{conclusion(found)}{verdict}**",
        "",
        f"A: {code(found.a.model)}, B: {code(found.b.model)}. {plain(described(found))}.",
        "",
        *grid(HEAD, [(NAMES[name], *cells(change)) for name, change in found.changes.items()]),
        "",
        *(f"- {name}: {value} {meaning}" for name, value, meaning in facts(found)),
    ]
    if verdicts:
        rows = [(code(verdict.gate.text), verdict.status, plain(verdict.message)) for verdict in verdicts]
        lines += ["", *grid(("gate", "verdict", "why"), rows)]
    if found.notes:
        lines += ["", *(f"- {plain(note)}" for note in found.notes)]
    return "\n".join(lines) + "\n"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
        for row in (head, ["---"] * len(head), *rows)
    ]


def code(text: str) -> str:
    return f"`{visible(text).replace('`', chr(39))}`"


def plain(text: str) -> str:
    """Text that Markdown leaves as it is, whatever it holds: no link, no image, no HTML.

    >>> print(plain("<img src=x> *a* [b](c)"))
    \\<img src=x\\> \\*a\\* \\[b\\](c)
    """
    return re.sub(r"[\\`*_\[\]<>~]", r"\\\g<0>", visible(text))
