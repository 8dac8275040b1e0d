"""The wording of scores and comparisons: sentences, numbers, and tables as plain text and HTML."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from cynosure.system.escapes import visible
from cynosure.system.numbers import counted, number, plural

if TYPE_CHECKING:
    from cynosure.measure.comparison.comparison import Change, Comparison
    from cynosure.measure.results.figures import Figure

TableRows = Sequence[Sequence[str]]

HEAD = ("", "A", "B", "B - A", "95% interval", "of A", "95% interval", "p")
NAMES = {
    "bits_per_byte": "bits per byte",
    "nats_per_token": "nats per token",
    "token_perplexity": "token perplexity",
    "top1_accuracy": "top-1 accuracy",
}


def aligned(rows: TableRows, sides: str) -> list[str]:
    """A table as lines, each column to the side that its character of `sides` says.

    >>> aligned([("", "A"), ("loss", "3.21"), ("rank", "7")], "<>")
    ['         A', 'loss  3.21', 'rank     7']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)) for row in rows
    )
    return [line.rstrip() for line in lines]


def html_table(caption: str, rows: TableRows) -> str:
    """A table for a notebook, with its texts escaped."""
    cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><caption>{escape(caption)}</caption><tbody>{body}</tbody></table>"


def changes(found: "Comparison") -> list[tuple[str, ...]]:
    """The metrics of a comparison under their heads, the change as a share of A below each."""
    rows: list[tuple[str, ...]] = [(*HEAD[:5], HEAD[-1])]
    for name, change in found.changes.items():
        *absolute, of_a, between_of_a, p = cells(change)
        rows += [(NAMES[name], *absolute, p), ("  of A", "", "", of_a, between_of_a, "")]
    return rows


def comparison_text(found: "Comparison") -> str:
    """A comparison as its tables in plain text."""
    lines = [
        f"A  {visible(found.a.model)}",
        f"B  {visible(found.b.model)}",
        described(found),
        "",
        conclusion(found),
        "",
    ]
    lines += [*aligned(changes(found), "<>>>>>"), "", *aligned(list(facts(found)), "<><")]
    return "\n".join(lines)


def comparison_html(found: "Comparison") -> str:
    """A comparison as tables for a notebook."""
    caption = f"A: {found.a.model}, B: {found.b.model}. {conclusion(found)}"
    return html_table(caption, changes(found)) + html_table(described(found), list(facts(found)))


def described(found: "Comparison") -> str:
    """The protocol, dtypes and texts of a comparison, in one line."""
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
    """The values of a metric, in the order of `HEAD`."""
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
    """(name, value, explanation) of every result that is a single number."""
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
