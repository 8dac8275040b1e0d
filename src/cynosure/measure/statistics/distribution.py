"""Count tokens by their loss, and sum their nats."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cynosure.measure.statistics.sums import Ints, Sums

WIDTH = 0.25  # nats
N_BINS = 80  # below 20 nats; one more holds what is beyond


@dataclass(eq=False)
class Distribution:
    """The tokens and nats of each bin of loss; `a + b` merges two. Negative losses, which are rounding, count as 0.

    >>> losses = Distribution()
    >>> losses.update(np.array([0.1, 0.2, 3.0, 50.0]))
    >>> [(row["nats_from"], row["tokens"], row["share_of_tokens"]) for row in losses.rows() if row["tokens"]]
    [(0.0, 2, 0.5), (3.0, 1, 0.25), (20.0, 1, 0.25)]
    """

    tokens: Ints = field(default_factory=lambda: np.zeros(N_BINS + 1, np.int64))
    nats: Sums = field(default_factory=lambda: Sums.zeros(N_BINS + 1))  # of tokens of finite loss
    impossible: int = 0  # tokens of infinite loss, which are in the last bin

    def update(self, nll: NDArray[Any]) -> None:
        """Add the losses (N,) of some tokens, in nats."""
        at = np.clip(nll / WIDTH, 0, N_BINS).astype(np.int64)
        possible = np.isfinite(nll)
        self.tokens = self.tokens + np.bincount(at, minlength=N_BINS + 1)
        self.nats = self.nats + Sums.of(np.where(possible, nll, 0), at, N_BINS + 1)
        self.impossible += len(nll) - int(possible.sum())

    def __add__(self, other: "Distribution") -> "Distribution":
        return Distribution(self.tokens + other.tokens, self.nats + other.nats, self.impossible + other.impossible)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each bin. A token of infinite loss adds nothing to the shares of nats."""
        nats, edges = self.nats.values, (WIDTH * np.arange(N_BINS + 1)).tolist()
        shown = nats.tolist()
        if self.impossible:
            shown[-1] = None
        share_of_tokens, share_of_nats = ((x / max(x.sum(), 1e-300)).tolist() for x in (self.tokens, nats))
        columns = (edges, [*edges[1:], None], self.tokens.tolist(), shown, share_of_tokens, share_of_nats)
        names = ("nats_from", "nats_to", "tokens", "nats", "share_of_tokens", "share_of_nats")
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
