"""Show the scores of a run as tables: the loss, the loss in other units, then where the loss comes from."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cynosure.cli.bars import bar, marks_of, sparkline
from cynosure.cli.screen import headed_table, plain_table, stdout
from cynosure.system.escapes import quoted, visible
from cynosure.system.numbers import counted, number, plural

if TYPE_CHECKING:
    from rich.text import Text

    from cynosure.cli.screen import Console
    from cynosure.measure import Scores

COSTLIEST = 5
SHOWN_CHARS = 20  # of a token
ALONG, LEAST = 30, 16  # columns of the sparkline; tokens of a column
CONFIDENCES = 5  # rows of the reliability chart
BAR = 40  # columns of its bars
BEFORE, AFTER = 24, 14  # characters shown around it
POSITIONS = 6
BEGINNINGS = {"every": ", BOS in every window", "first": ", BOS in the first", "none": ", no BOS"}


def show(scores: "Scores") -> None:
    """Print the metrics of one run."""
    values, setting = scores.to_json(), scores.setting
    console = stdout()
    console.print(setting.model, style="bold")
    console.print(
        f"{setting.protocol} windows of {setting.window:,} tokens, stride {setting.stride:,}"
        f"{BEGINNINGS.get(setting.bos or '', '')}; "
        f"{setting.dtype} on {setting.device}; {counted(values['documents'], 'document')}"
    )
    console.print()
    table = plain_table("", ">bold", "", "dim")
    for line in scores.lines():
        table.add_row(*line)
    console.print(table)
    console.print()
    table = plain_table("", ">bold", "dim")
    for row in counts(scores, values):
        table.add_row(*row)
    console.print(table)
    show_along(console, scores)
    show_shares(console, values)
    if values["calibration"] is not None:
        show_reliability(console, values["calibration"]["confidence"])
    show_costliest(console, values)


def counts(scores: "Scores", values: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (name, value, explanation) of the counts, the effective sample size and the calibration."""
    covering = [counted(values[f"{what}s"], what) for what in ("byte", "word") if values[f"{what}s"] is not None]
    yield "tokens scored", f"{values['tokens']:,}", ", ".join([*covering, f"{number(values['nats'], 1)} nats"])
    reasons: dict[str, int] = {}
    for part in values["excluded"]:
        reasons[part["reason"]] = reasons.get(part["reason"], 0) + part["byte_end"] - part["byte_start"]
    n_tokens = values["excluded_tokens"]
    for reason in dict.fromkeys([*n_tokens, *reasons]):
        parts = [(n_tokens.get(reason), "token"), (reasons.get(reason), "byte")]
        (number_of, noun), *rest = ((n, what) for n, what in parts if n is not None)
        of = "".join(f", {counted(n, what)}" for n, what in rest)
        yield "left out", f"{number_of:,}", f"{plural(number_of, noun)}{of}: {reason}"
    effective, method = scores.intervals.effective_tokens, scores.method
    if effective is not None:
        what = counted(method.n_clusters, "document" if method.block_tokens is None else "block")
        of = "" if method.block_tokens is None else f" of {method.block_tokens} tokens"
        yield "effective sample size", f"{effective:,.0f}", f"tokens; 95% intervals from {what}{of}"
    calibration = values["calibration"]
    if calibration is not None:
        yield (
            "calibration error",
            f"{calibration['ece']:.1%}",
            f"gap between confidence and accuracy ({calibration['n_bins']} bins of equal {calibration['binning']}); "
            f"{calibration['ece_debiased']:.1%} without the bias of few tokens",
        )
        yield "Brier score", number(calibration["brier"], 4), "0 is perfect, 2 is certain and always wrong"
        yield (
            "best temperature",
            number(calibration["best_temperature"]),
            f"would save {number(calibration['recoverable_nats_per_token'], 4)} nats a token"
            + ("; it is at the edge of the range searched" if calibration["at_edge"] else ""),
        )
    yield "time", f"{scores.seconds:,.1f}", f"seconds: {number(scores.tokens_per_second, 0)} tokens a second"


def show_shares(console: "Console", values: dict[str, Any]) -> None:
    """Print where the nats go: by byte class, token frequency and context length."""
    table = headed_table("where the nats go", "tokens", "nats a token", "top-1", "share of nats")
    for row in values["by_class"]:
        table.add_row(row["class"], *shares(row))
    deciles = values["by_frequency"]
    for row, name in ((deciles[0], "most frequent tenth"), (deciles[-1], "rarest tenth")):
        table.add_row(name, *shares(row))
    for row in values["by_position"][-POSITIONS:]:
        span = (
            f"{row['context_from']:,} to {row['context_to']:,}"
            if row["context_to"] > row["context_from"]
            else (f"{row['context_from']:,}")
        )
        table.add_row(f"after {span} tokens", *shares(row))
    console.print()
    console.print(table)


def show_along(console: "Console", scores: "Scores") -> None:
    """Print the loss along the text as a sparkline, if there is enough text."""
    n_columns = min(ALONG, scores.tokens // LEAST)
    if n_columns < 2:
        return
    losses = scores.along(n_columns)
    line = sparkline(losses, marks_of(sys.stdout.encoding).levels)
    console.print()
    console.print(f"loss along the text  {line}  {min(losses):.2f} to {max(losses):.2f} nats a token")


def show_reliability(console: "Console", confidences: list[dict[str, Any]]) -> None:
    """Print how often the likeliest token is right at each confidence, as bars; a line marks the confidence itself."""
    marks, size = marks_of(sys.stdout.encoding), len(confidences) // CONFIDENCES
    table = headed_table("confidence", "tokens", "top-1", f"<as a bar; {marks.line} is where it should end")
    for start in range(0, len(confidences), size):
        rows = confidences[start : start + size]
        low, high, tokens = rows[0]["low"], rows[-1]["high"], sum(row["tokens"] for row in rows)
        if tokens:
            share = sum(row["correct"] for row in rows) / tokens
            chart = bar(share, (low + high) / 2, BAR, marks)
            table.add_row(f"{low:.0%} to {high:.0%}", f"{tokens:,}", f"{share:.1%}", chart)
    console.print()
    console.print(table)


def shares(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['tokens']:,}",
        number(row["nats_per_token"], 3),
        f"{row['top1_accuracy']:.1%}",
        f"{row['share_of_nats']:.1%}",
    )


def show_costliest(console: "Console", values: dict[str, Any]) -> None:
    """Print the costliest tokens in their context, and the costliest spans."""
    table = headed_table(">nats", "<costliest tokens", "<in their context")
    for part in values["worst_tokens"][:COSTLIEST]:
        table.add_row(number(part["nats"], 1), shortened(part["text"]), in_context(part))
    console.print()
    console.print(table)
    table = headed_table(">nats", "of all", "<costliest spans")
    for part in values["worst_spans"][:COSTLIEST]:
        share = "" if part["share_of_nats"] is None else f"{part['share_of_nats']:.1%}"
        table.add_row(number(part["nats"], 1), share, part["text"])
    console.print()
    console.print(table)


def shortened(text: str) -> str:
    """Return the beginning of a text, in quotes."""
    return quoted(visible(text)[:SHOWN_CHARS])


def in_context(part: dict[str, Any]) -> "Text":
    """Highlight a costly part in its surrounding text; brackets mark it where colours are lost."""
    from rich.text import Text

    text = Text(f"...{visible(part['before'])[-BEFORE:]}[")
    text.append(visible(part["text"]), style="bold reverse")
    text.append(f"]{visible(part['after'])[:AFTER]}")
    return text


def show_protocols(by_protocol: "dict[str, Scores | str]") -> None:
    """Print a comparison of all protocols, and a sentence on each. A str is the reason why one does not apply."""
    from cynosure.text import PROTOCOLS

    console = stdout()
    some = next(scores for scores in by_protocol.values() if not isinstance(scores, str))
    console.print(some.setting.model, style="bold")
    console.print(f"{some.setting.dtype} on {some.setting.device}; {counted(some.documents, 'document')}")
    console.print()
    losses = headed_table("protocol", "tokens", "bytes", "nats/token", "perplexity", "bits/byte")
    windows = headed_table("protocol", "window", "stride", "context", "mean context")
    for name, scores in by_protocol.items():
        if isinstance(scores, str):
            losses.add_row(name)
            continue
        context, setting, metrics = scores.statistics.context, scores.setting, scores.figures
        losses.add_row(
            name,
            f"{scores.tokens:,}",
            "" if scores.n_bytes is None else f"{scores.n_bytes:,}",
            number(metrics["nats_per_token"].value, 4),
            number(metrics["token_perplexity"].value),
            "" if metrics["bits_per_byte"].value is None else number(metrics["bits_per_byte"].value, 4),
        )
        span = f"{context.least:,} to {context.most:,}"
        windows.add_row(name, f"{setting.window:,}", f"{setting.stride:,}", span, f"{context.mean:,.0f}")
    console.print(losses)
    console.print()
    console.print(windows)
    console.print()
    table = plain_table("bold", "")
    for name, scores in by_protocol.items():
        rules = PROTOCOLS[name]
        why = f"does not apply here: {scores}" if isinstance(scores, str) else f"{rules.differs} ({rules.peer})"
        table.add_row(name, why)
    console.print(table)
