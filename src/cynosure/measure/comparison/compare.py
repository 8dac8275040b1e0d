"""`compare`: two runs, or two models, on the same texts."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cynosure.measure.comparison.align import Side
from cynosure.measure.comparison.comparison import Comparison, compare_sides
from cynosure.measure.results.scores import Scores


def compare(a: Any, b: Any, texts: Iterable[Any] | None = None, **options: Any) -> Comparison:
    """Compare two runs of the same texts, or two models on texts.

    The tokenizers of runs may differ: losses are compared on bytes, between those where a token ends in both. B - A and
    its p-value come from documents resampled where there are 30 or more, else from blocks of text inside them, the same
    ones in both. Where the tokens are the same there are also nats per token, perplexity, top-1 accuracy and agreement.
    Documents of which a tokenizer loses some text are left out.

    Args:
        a: the baseline: scores whose tokens were kept, or the folder of a run. With `texts` a model.
        b: what is compared with it.
        texts: as of `score`. Both models score them in one pass; they must have one tokenizer. The comparison then has
            their divergence too.
        options: of `score`, with `texts` only.

    Returns:
        The comparison, which prints as a table.

    Raises:
        ValueError: too much text is lost, the runs are not of the same texts under the same protocol, or nothing was
            scored in both.
        FileNotFoundError: there is no run.
        TypeError: options without texts.

    Example:
        >>> import cynosure
        >>> texts = ["The cat sat on the mat. " * 20]
        >>> comparison = cynosure.compare("smollm2", "smollm2", texts)
        >>> comparison.n_bytes, comparison.divergence.mean.value
        (480, 0.0)
    """
    if texts is not None:
        from cynosure.measure.comparison.diverge import diverge  # which needs torch

        return diverge(a, b, texts, **options)
    if options:
        raise TypeError(f"{', '.join(options)} is of models and texts: give texts, or leave it out")
    return compare_sides(side_of("A", a), side_of("B", b))


def side_of(name: str, run: Any) -> Side:
    """What is compared of a run. TypeError or FileNotFoundError for what is none, and may be a model."""
    way_out = "models are compared on texts, which are to be given as well"
    if not isinstance(run, Scores | str | Path):
        raise TypeError(f"{name} is a {type(run).__name__} and no run: {way_out}")
    try:
        return Side.of_run(run)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {way_out}") from error
