"""Format scores and comparisons: sentences, numbers, and tables as plain text and HTML."""

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
    """Format a table as lines. `sides` has the alignment of each column, `<` or `>`.

    >>> aligned([("", "A"), ("loss", "3.21"), ("rank", "7")], "<>")
    ['         A', 'loss  3.21', 'rank     7']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)) for row in rows
    )
    return [line.rstrip() for line in lines]


def html_table(caption: str, rows: TableRows) -> str:
    """Format a table for a notebook, with its texts escaped."""
    cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><caption>{escape(caption)}</caption><tbody>{body}</tbody></table>"


def changes(comparison: "Comparison") -> list[tuple[str, ...]]:
    """Return the rows for the metrics of a comparison, each followed by its change as a share of A."""
    rows: list[tuple[str, ...]] = [(*HEAD[:5], HEAD[-1])]
    for name, change in comparison.changes.items():
        *absolute, of_a, between_of_a, p = cells(change)
        rows += [(NAMES[name], *absolute, p), ("  of A", "", "", of_a, between_of_a, "")]
    return rows


def comparison_text(comparison: "Comparison") -> str:
    """Format a comparison as plain text."""
    lines = [
        f"A  {visible(comparison.a.model)}",
        f"B  {visible(comparison.b.model)}",
        described(comparison),
        "",
        conclusion(comparison),
        "",
    ]
    lines += [*aligned(changes(comparison), "<>>>>>"), "", *aligned(list(facts(comparison)), "<><")]
    return "\n".join(lines)


def comparison_html(comparison: "Comparison") -> str:
    """Format a comparison as tables for a notebook."""
    caption = f"A: {comparison.a.model}, B: {comparison.b.model}. {conclusion(comparison)}"
    return html_table(caption, changes(comparison)) + html_table(described(comparison), list(facts(comparison)))


def described(comparison: "Comparison") -> str:
    """Describe the protocol, dtypes and texts of a comparison in one line."""
    a, b = comparison.a, comparison.b
    same = [getattr(a, name) == getattr(b, name) for name in ("window", "stride")]
    windows = f"windows of {a.window:,} tokens, stride {a.stride:,}" if all(same) else "windows"
    documents = counted(comparison.documents, "document")
    dtypes = " and ".join(dict.fromkeys((a.dtype, b.dtype)))
    return f"{a.protocol} {windows}; {dtypes}; {documents}, {counted(comparison.n_bytes, 'byte')} that both have scored"


def conclusion(comparison: "Comparison") -> str:
    """Sum up a comparison in one sentence."""
    change = comparison.changes["bits_per_byte"]
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
    """Format the values of a metric, in the order of `HEAD`."""
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


def between(figure: "Figure", *, share: bool = False) -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f"{signed(figure.low, share=share)} to {signed(figure.high, share=share)}"


def facts(comparison: "Comparison") -> Iterator[tuple[str, str, str]]:
    """Yield (name, value, explanation) of every result that is a single number."""
    agreement, divergence, wins = comparison.agreement, comparison.divergence, comparison.wins
    if divergence is not None:
        interval = between(divergence.mean) and f" ({between(divergence.mean)})"
        yield "KL divergence", number(divergence.mean.value, 5), f"nats a token, of B from A{interval}"
        ends = f"99th percentile {number(divergence.p99, 4)}, most {number(divergence.max, 4)}"
        yield "its median", number(divergence.median, 5), ends
    if agreement is not None:
        yield "top-1 agreement", f"{agreement.top1_agreement:.2%}", "both have the same likeliest token"
        flips = f"right to wrong {agreement.right_to_wrong:.2%}, wrong to right {agreement.wrong_to_right:.2%}"
        yield "flip rate", f"{agreement.flip_rate:.2%}", flips
    if sum(wins.values()) > 1:
        yield "documents won", f"{wins['b']:,}", f"by B, {wins['a']:,} by A, {wins['ties']:,} tied"
    method = comparison.resampling
    what = plural(method.n_clusters, "document" if method.block_bytes is None else "block")
    what += "" if method.block_bytes is None else f" of {method.block_bytes:,} bytes"
    yield "intervals", f"{method.n_clusters:,}", f"{what} resampled {method.n_resamples:,} times, seed {method.seed}"
