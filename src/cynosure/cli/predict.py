"""`cynosure predict`: next-token probabilities, and the loss of a given continuation."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cynosure.cli import common

if TYPE_CHECKING:
    from cynosure.cli.screen import Table
    from cynosure.measure import Prediction

BAR = 24  # columns
EXAMPLES = (
    'cynosure predict smollm2 "The capital of France is"',
    'cynosure predict smollm2 "The capital of France is" --truth " Paris" --top 5',
)


def predict(
    model: common.Model,
    text: Annotated[
        str,
        typer.Argument(metavar="TEXT", help="Text to continue: the words, a file, or - (stdin).", show_default=False),
    ],
    truth: Annotated[
        str | None,
        typer.Option(help="Continuation to score; it usually begins with a space. [default: none]", show_default=False),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of most likely tokens to list.")] = 10,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File for a page that shows the probabilities as bars. [default: none]",
            show_default=False,
        ),
    ] = None,
    special: common.Special = "text",
    dtype: common.Dtype = "auto",
    device: common.Device = "auto",
    tokenizer: common.Tokenizer = None,
    revision: common.Revision = None,
    trust_remote_code: common.TrustRemoteCode = False,
    allow_unused_weights: common.AllowUnusedWeights = False,
    format: common.Format = "table",
    quiet: common.Quiet = False,
    debug: common.Debug = False,
) -> None:
    """Show next-token probabilities and the loss of a continuation.

    Lists the most likely tokens after TEXT. With --truth, shows the probability, rank and loss of each of its tokens.
    """
    from cynosure import measure, models
    from cynosure.system.files import check_writable
    from cynosure.text import one_text, read_as, special_strings

    common.show_notes(quiet)
    if html is not None:
        check_writable(html, "--html")
    text = one_text(text)
    loaded = models.load(
        model, dtype=dtype, device=device, tokenizer=tokenizer, revision=revision,
        trust_remote_code=trust_remote_code, allow_unused_weights=allow_unused_weights,
    )  # fmt: skip
    strings = Counter(special_strings(loaded.tokenizer, text + (truth or "")))
    ends = ["the text ends with a line feed, and what follows that is predicted"] if text.endswith("\n") else []
    common.note((*loaded.notes, *read_as(strings, special), *ends), quiet)
    prediction = measure.predict(loaded, text, truth=truth, top=top, special=special)
    if format == "json":
        common.print_json(prediction.to_json())
    else:
        show(prediction)
    if html is not None:
        from cynosure import reporting

        common.note([f"the page is {reporting.write_page(reporting.prediction_page(prediction), html)}"], quiet)


def show(prediction: "Prediction") -> None:
    from cynosure.cli.screen import stdout
    from cynosure.system.escapes import quoted

    console = stdout()
    console.print(prediction.model, style="bold")
    console.print(f"after {quoted(prediction.text)}")
    console.print()
    console.print(top_table(prediction))
    console.print()
    console.print(
        f"entropy {prediction.entropy_nats:.3f} nats: the loss to expect here if the model's probabilities are right"
    )
    if prediction.truth:
        console.print()
        console.print(truth_table(prediction))
        console.print()
        console.print(prediction.reading())
        console.print(perplexity_line(prediction))


def top_table(prediction: "Prediction") -> "Table":
    """Return the most likely tokens, with their probabilities as numbers and as bars on one scale."""
    from rich.bar import Bar

    from cynosure.cli.screen import headed_table
    from cynosure.measure import percent
    from cynosure.system.escapes import quoted

    table = headed_table(">rank", "<token", "probability", "<")
    largest = prediction.top[0].probability
    for rank, candidate in enumerate(prediction.top, 1):
        bar = Bar(largest, 0, candidate.probability, width=BAR, color="cyan")
        table.add_row(str(rank), quoted(candidate.token), percent(candidate.probability), bar)
    return table


def truth_table(prediction: "Prediction") -> "Table":
    """Return each token of the truth, and their total if there are several."""
    from cynosure.cli.screen import headed_table
    from cynosure.measure import percent
    from cynosure.system.escapes import quoted

    table = headed_table("truth", "probability", "rank", "loss in nats", "in bits")
    for token in prediction.truth:
        row = percent(token.probability), f"{token.rank:,}", f"{token.nll_nats:.4f}", f"{token.nll_bits:.4f}"
        table.add_row(quoted(token.token), *row)
    if len(prediction.truth) > 1:
        row = percent(prediction.probability), "", f"{prediction.nll_nats:.4f}", f"{prediction.nll_bits:.4f}"
        table.add_row("all of it", *row, style="bold")
    return table


def perplexity_line(prediction: "Prediction") -> str:
    mean = prediction.nll_nats / len(prediction.truth)
    size = prediction.vocab_size
    meaning = (
        "as hard to guess as a fair draw among that many tokens"
        if prediction.perplexity <= size
        else f"worse than a fair draw among all {size:,} tokens of the vocabulary"
    )
    return (
        f"A text that cost {mean:.2f} nats a token throughout would have a perplexity of {prediction.perplexity:,.2f}: "
        f"{meaning}."
    )
