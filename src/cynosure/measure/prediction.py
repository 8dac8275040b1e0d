"""Predict the next token, and measure the loss of a given continuation."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from cynosure.loss import TokenStats, perplexity
from cynosure.models import LanguageModel, split
from cynosure.system.escapes import quoted
from cynosure.system.numbers import finite
from cynosure.text import check_special, prefix_token, token_texts, tokenize

SURE = 0.5


@dataclass(frozen=True)
class Candidate:
    """A token that may come next, with its probability."""

    id: int
    token: str
    probability: float


@dataclass(frozen=True)
class Surprise:
    """A token of the truth, given the tokens before it: its probability, rank and loss."""

    id: int
    token: str
    probability: float
    rank: int
    nll_nats: float
    expected: Candidate  # the likeliest token in its place

    @property
    def nll_bits(self) -> float:
        return self.nll_nats / math.log(2)

    @property
    def is_first_guess(self) -> bool:
        """Whether this token was the likeliest. Among equally likely ones the first counts, as in top-1 accuracy."""
        return self.id == self.expected.id

    def to_json(self) -> dict[str, Any]:
        """Return plain values; None for an infinite loss."""
        return asdict(self) | {"nll_nats": finite(self.nll_nats), "nll_bits": finite(self.nll_bits)}


@dataclass(frozen=True)
class Prediction:
    """The likeliest tokens after a text, and the loss of the truth if one was given."""

    model: str
    text: str
    entropy_nats: float
    top: tuple[Candidate, ...]
    truth: tuple[Surprise, ...]
    vocab_size: int

    @property
    def nll_nats(self) -> float:
        """The loss of the whole truth: the sum over its tokens."""
        return math.fsum(token.nll_nats for token in self.truth)

    @property
    def nll_bits(self) -> float:
        return self.nll_nats / math.log(2)

    @property
    def probability(self) -> float:
        """The probability of the whole truth."""
        return math.exp(-self.nll_nats)

    @property
    def perplexity(self) -> float:
        """The perplexity of the truth: e to the mean loss of its tokens."""
        return perplexity(self.nll_nats / len(self.truth))

    def reading(self) -> str:
        """Explain the loss in plain words for someone new to it."""
        return read_surprise(self.truth, self.nll_nats)

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as plain values; `truth` is None if none was given."""
        truth = None
        if self.truth:
            truth = {
                "tokens": [token.to_json() for token in self.truth],
                "probability": self.probability,
                "nll_nats": finite(self.nll_nats),
                "nll_bits": finite(self.nll_bits),
                "perplexity": finite(self.perplexity),
                "reading": self.reading(),
            }
        top = [asdict(candidate) for candidate in self.top]
        return {"model": self.model, "text": self.text, "entropy_nats": self.entropy_nats, "top": top, "truth": truth}


def read_surprise(truth: tuple[Surprise, ...], nll_nats: float) -> str:
    """Explain the token that cost most: the model was sure and right, unsure, or sure and wrong."""
    worst = max(truth, key=lambda token: token.nll_nats)
    came, likely = quoted(worst.token), quoted(worst.expected.token)
    p, best = percent(worst.probability), percent(worst.expected.probability)
    start = "" if len(truth) == 1 else f"Most of the {nll_nats:.2f} nats come from {came}. "
    if worst.is_first_guess and worst.probability >= SURE:
        return start + f"Sure and right: the model gave {came} {p}, so it is hardly surprised and the loss is low."
    if worst.is_first_guess:
        return (
            start + f"Right but unsure: {came} was its first guess, yet at only {p}, and the doubt is what it pays for."
        )
    if worst.expected.probability >= SURE:
        wrong = f"Sure and wrong: it gave {likely} {best} and {came} only {p}"
        if worst.expected.token.strip() == worst.token.strip():
            return start + f"{wrong}. The two differ in white space alone: was {likely} meant?"
        return start + f"{wrong}, the costliest kind of mistake."
    return (
        start
        + f"Unsure: its first guess was {likely} at {best}; {came} had {p}, and the less it has the more it costs."
    )


def percent(p: float) -> str:
    """Format a probability.

    >>> percent(0.6184), percent(0.00012), percent(3e-9)
    ('61.8%', '0.012%', '< 0.0001%')
    """
    if p >= 0.01:
        return f"{100 * p:.1f}%"
    return f"{np.format_float_positional(100 * p, 2, fractional=False, trim='-')}%" if p >= 1e-6 else "< 0.0001%"


def predict(
    model: LanguageModel, text: str, *, truth: str | None = None, top: int = 10, special: str = "text"
) -> Prediction:
    """Return the likeliest next tokens after a text, and the loss of a given continuation.

    Args:
        model: a model that `load` returned.
        text: the text so far.
        truth: a continuation, whose loss is returned token by token.
        top: number of likeliest tokens to list.
        special: how to read strings that are special tokens, such as `<|endoftext|>`: as `text`, or `parse`d as those
            tokens.

    Returns:
        The prediction.

    Raises:
        ValueError: there is nothing to predict from, the text is longer than the model's positions, the truth is
            empty, or `top` is below 1.

    Example:
        >>> import cynosure
        >>> prediction = cynosure.predict(cynosure.load("smollm2"), "The quick brown fox jumps over the", truth=" dog")
        >>> round(prediction.nll_nats, 2)
        3.03
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    check_special(special)
    before, after = split_tokens(model, text, truth, special == "parse")
    x = torch.tensor([*before, *after])
    if len(before) == 0:
        raise ValueError(f"nothing to predict from: the text is empty and {model.name} has no token to begin with")
    if model.max_positions is not None and len(x) > model.max_positions:
        raise ValueError(
            f"the text is {len(x)} tokens long, more than the {model.max_positions} positions of {model.name}"
        )
    parted = split(model)
    n_rows = max(1, len(after))
    seen, target = x[: len(before) + n_rows - 1], torch.tensor(after or [0])
    parted.check_ids(seen, target)
    ids = seen[None].to(parted.device)
    with torch.inference_mode():
        hidden = parted.body(ids)[0, -n_rows:]
        stats = parted.head.stats(hidden, target.to(parted.device), topk=min(top, len(parted.head.weight)))
    if stats.nll.isnan().any():
        raise ValueError(parted.why_not_finite(ids))
    rows = [candidates(model, stats, row) for row in range(n_rows)]
    surprises = tuple(surprise(model, stats, row, id_, rows[row][0]) for row, id_ in enumerate(after))
    return Prediction(model.name, text, float(stats.entropy[0]), rows[0], surprises, len(parted.head.weight))


def split_tokens(
    model: LanguageModel, text: str, truth: str | None, parse_special: bool
) -> tuple[list[int], list[int]]:
    """Return the tokens of the text, after the prefix token, and those of the truth.

    Both are tokenized together, as in a document, or separately if a token would span both.
    """

    def read(part: str) -> list[int]:
        return [int(id_) for id_ in tokenize(model.tokenizer, part, parse_special=parse_special).ids]

    prefix, own = prefix_token(model.tokenizer), read(text)
    before = own if prefix is None else [prefix, *own]
    if truth is None:
        return before, []
    together = read(text + truth)
    same = together[: len(own)] == own
    after = together[len(own) :] if same else read(truth)
    if not after:
        raise ValueError(f"the truth {truth!r} has no tokens: give a longer continuation")
    return before, after


def candidates(model: LanguageModel, stats: TokenStats, row: int) -> tuple[Candidate, ...]:
    """Return the likeliest tokens at one position, in order."""
    ids = stats.top_ids[row].cpu().numpy()
    probabilities = stats.top_logprobs[row].exp().tolist()
    return tuple(map(Candidate, ids.tolist(), token_texts(model.tokenizer, ids), probabilities))


def surprise(model: LanguageModel, stats: TokenStats, row: int, id_: int, expected: Candidate) -> Surprise:
    nll, rank = float(stats.nll[row]), int(stats.rank[row])
    (token,) = token_texts(model.tokenizer, torch.tensor([id_]).numpy())
    return Surprise(id_, token, math.exp(-nll), rank, nll, expected)
