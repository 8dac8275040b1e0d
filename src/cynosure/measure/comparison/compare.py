"""Compare two runs, or two models, on the same texts."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cynosure.measure.comparison.align import Side
from cynosure.measure.comparison.comparison import Comparison, compare_sides
from cynosure.measure.results.scores import Scores


def compare(a: Any, b: Any, texts: Iterable[Any] | None = None, **options: Any) -> Comparison:
    """Compare two runs of the same texts, or two models on texts.

    The tokenizers of two runs may differ: losses are compared on bytes, between places where a token ends in both.
    B - A and its p-value come from resampling: of documents if there are at least 30, else of blocks of text inside
    them, the same ones in both runs. If the tokens are the same, nats per token, perplexity, top-1 accuracy and
    agreement are compared too. Text that a tokenizer loses is left out.

    Args:
        a: the baseline: scores whose tokens were kept, or the folder of a run; with `texts`, a model.
        b: the run or model to compare with it.
        texts: texts as in `score`. Both models score them in one pass, so they must have the same tokenizer. The
            comparison then includes their divergence.
        options: options of `score`, only with `texts`.

    Returns:
        The comparison, which prints as a table.

    Raises:
        ValueError: too much text is lost, the runs differ in texts or protocol, or nothing was scored in both.
        FileNotFoundError: there is no such run.
        TypeError: options are given without texts.

    Example:
        >>> import cynosure
        >>> texts = ["The cat sat on the mat. " * 20]
        >>> comparison = cynosure.compare("smollm2", "smollm2", texts)
        >>> comparison.n_bytes, comparison.divergence.mean.value
        (480, 0.0)
    """
    if texts is not None:
        from cynosure.measure.comparison.diverge import diverge  # needs torch

        return diverge(a, b, texts, **options)
    if options:
        raise TypeError(f"{', '.join(options)}: only for comparing models on texts; give texts, or leave it out")
    return compare_sides(side_of("A", a), side_of("B", b))


def side_of(name: str, run: Any) -> Side:
    """Read a run. Raise TypeError or FileNotFoundError if it is not a run, since it may be a model."""
    way_out = "to compare models, give texts as well"
    if not isinstance(run, Scores | str | Path):
        raise TypeError(f"{name} is a {type(run).__name__}, not a run: {way_out}")
    try:
        return Side.of_run(run)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {way_out}") from error
