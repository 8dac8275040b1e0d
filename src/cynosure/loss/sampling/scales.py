"""How large the gradients of a call and their variances are, as far as its chunks have shown.

A tolerance is relative to the norm of a gradient that is not computed. So each chunk's share of it is guessed from sums
over its columns, as if its rows (of dweight) or columns (of dhidden) were uncorrelated, times the ratio of the truth to
that guess in the columns multiplied so far.
"""

import math
from dataclasses import dataclass, field

LEAST_PART = 0.25  # of the variance that a chunk's own norm allows it
DOUBT = 8  # observations of ratio 1 with which a ratio starts


@dataclass
class Ratio:
    """The ratio of what was found to what was guessed."""

    found: float = 0.0
    guessed: float = 0.0
    n_seen: int = 0

    def add(self, found: float, guessed: float, n_seen: int) -> None:
        """Count `n_seen` more observations."""
        if guessed > 0 and n_seen:
            self.found, self.guessed, self.n_seen = self.found + found, self.guessed + guessed, self.n_seen + n_seen

    @property
    def value(self) -> float:
        """The ratio, closer to 1 the less was seen."""
        if not self.n_seen:
            return 1.0
        return (self.n_seen * self.found / self.guessed + DOUBT) / (self.n_seen + DOUBT)


@dataclass
class Scale:
    """One gradient of a call so far."""

    square: float = 0.0  # its squared norm
    variance: float = 0.0  # of the estimate: the expected square of its error
    squares: Ratio = field(default_factory=Ratio)  # of the squared norm of a chunk's part
    variances: Ratio = field(default_factory=Ratio)  # of the variance of a chunk's estimate

    def budget(self, tolerance: float, square: float, own: float) -> float:
        """Return the variance that a chunk may add, if the squared norm is then `square`, and `own` of its part alone.

        Where earlier chunks have spent more than they should, it still gets a part of what its own norm allows.
        """
        return tolerance**2 * max(square - self.variance / tolerance**2, LEAST_PART * own)

    def add(self, square: float, variance: float) -> None:
        """Add a chunk's part; parts are taken to be orthogonal."""
        self.square += square
        self.variance += variance

    @property
    def error(self) -> float:
        """The relative error in norm; infinite for a gradient of 0 whose estimate is another."""
        if self.variance <= 0:
            return 0.0
        return math.sqrt(self.variance / self.square) if self.square > 0 else math.inf
