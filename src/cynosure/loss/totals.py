"""Sums over scored tokens, and their averages. The division is done once, at the end."""

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # stored scores are summed without loading torch
    from torch import Tensor

    from cynosure.loss.stats import TokenStats


def perplexity(nats_per_token: float) -> float:
    """Return e to the power of nats per token: infinity on overflow, NaN for NaN.

    >>> round(perplexity(2.0), 4), perplexity(710.0), perplexity(math.nan)
    (7.3891, inf, nan)
    """
    try:
        return math.exp(nats_per_token)
    except OverflowError:
        return math.inf


class TokenSums(NamedTuple):
    """Sums over scored tokens. An average is NaN if its denominator is 0 or a loss is NaN.

    >>> sums = TokenSums(tokens=4, nats=8.0, entropy=4.0, correct=1, n_bytes=16)
    >>> sums.nats_per_token, sums.accuracy, sums.mean_entropy, round(sums.bits_per_byte, 4)
    (2.0, 0.25, 1.0, 0.7213)
    """

    tokens: int
    nats: float  # infinite if a token was impossible
    entropy: float = 0.0  # nats
    correct: float = 0.0  # tokens whose argmax is the target
    n_bytes: int = 0

    @classmethod
    def of(cls, sums: "Tensor") -> "TokenSums":
        """Build the record from the sum (4,) of the rows that `rows` returns."""
        tokens, nats, entropy, correct = sums.tolist()
        return cls(int(tokens), nats, entropy, correct)

    @staticmethod
    def rows(stats: "TokenStats") -> "Tensor":
        """Sum each row of (..., T) tokens: count, nats, entropy and correct tokens, as (..., 4) float64 on the CPU."""
        import torch

        counted = (stats.rank > 0).cpu()
        columns = counted, stats.nll.cpu(), stats.entropy.cpu(), stats.correct.cpu()
        return torch.stack([torch.where(counted, x.double(), 0.0).sum(-1) for x in columns], -1)

    @property
    def nats_per_token(self) -> float:
        """The mean loss."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """The perplexity per token."""
        return perplexity(self.nats_per_token)

    @property
    def accuracy(self) -> float:
        """The share of tokens whose argmax is the target."""
        return self.correct / self.tokens if self.tokens else math.nan

    @property
    def mean_entropy(self) -> float:
        """The mean entropy in nats per token."""
        return self.entropy / self.tokens if self.tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        """The loss in bits per byte of the tokens' text."""
        return self.nats / math.log(2) / self.n_bytes if self.n_bytes else math.nan
