"""How far a ratio of sums, as nats / tokens or bits / bytes, would move on other text like this one.

Tokens are not independent. What is resampled are clusters that nearly are: documents, or long runs of tokens in them.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.system.numbers import counted

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BASE_TOKENS = 16  # a base block: blocks are made of whole ones, so that sums of single tokens need not be kept
N_RESAMPLES = 2000
MAX_CLUSTERS = 2000  # more are first added up at random into that many
N_QUIET = 5  # autocorrelations in a row that are no more than noise
SLICE = 2**15  # weights of resamples at a time: they stay in the cache
ROUNDING = 1e-12  # below this part of what was subtracted, a difference is rounding
ENOUGH_DOCUMENTS = 30
ENOUGH_CLUSTERS = 20
TOO_MUCH_IN_ONE = 0.2  # of the nats, beyond its part of the text: resamples tell then whether that one was drawn
ENOUGH_EFFECTIVE = 10  # fewer equal ones: intervals hold the truth too seldom where loss and length are related


class Interval(NamedTuple):
    """A ratio, its interval and its standard error; None where there is too little to tell them from."""

    value: float
    low: float | None = None
    high: float | None = None
    se: float | None = None


class Method(NamedTuple):
    """What was resampled; `optimistic` is a sentence where the intervals are likely too narrow."""

    kind: Literal["documents", "blocks"]
    n_clusters: int
    block_tokens: int | None  # of a block, None where documents are resampled
    seed: int
    n_resamples: int
    optimistic: str | None


def interval(y: Floats, x: Floats, *, seed: int = 0, n_resamples: int = N_RESAMPLES, level: float = 0.95) -> Interval:
    """sum(y) / sum(x) over clusters (n,) and its bootstrap-t interval (Efron and Tibshirani 1993, section 12.5).

    With r = y - value x and X = sum x, se^2 = (n - 1) / n sum (r / (X - x))^2, the jackknife's. A resample's own is the
    linearised n / (n - 1) sum r^2 / X^2: the same where all x are equal, else mostly less, so that the intervals of
    unequal clusters come out longer and hold the truth more often. Equal seeds and n mean the same resamples.

    An infinite y has an infinite value and no interval; no variance at all is an interval of no width. Where no y is
    negative the interval does not reach below 0. ValueError where x adds up to nothing, or there are too few resamples
    for the level.

    >>> nats, tokens = np.array([30.0, 12.0, 45.0, 20.0, 28.0]), np.array([10.0, 5.0, 14.0, 8.0, 9.0])
    >>> found = interval(nats, tokens)
    >>> round(found.value, 3), round(found.se, 3), found.low < found.value < found.high
    (2.935, 0.154, True)
    """
    found = _resampled(y, x, seed, n_resamples).interval(level)
    return found._replace(low=max(found.low, 0.0)) if found.low is not None and y.min() >= 0 else found


def paired(
    y_a: Floats, y_b: Floats, x: Floats, *, seed: int = 0, n_resamples: int = N_RESAMPLES, level: float = 0.95
) -> tuple[Interval, float | None]:
    """The difference sum(y_a - y_b) / sum(x) of two ratios on the same clusters, and the two-sided p-value of none.

    The test is the interval turned round: p < 1 - level where the interval leaves 0 out. It is never below
    2 / (n_resamples + 1), None where there is no standard error, 1 where the difference is 0. ValueError as of
    `interval`.

    >>> paired(np.array([3.0, 5.0, 8.0]), np.array([3.0, 5.0, 8.0]), np.array([2.0, 4.0, 6.0]))
    (Interval(value=0.0, low=0.0, high=0.0, se=0.0), 1.0)
    """
    found = _resampled(y_a - y_b, x, seed, n_resamples)
    return found.interval(level), found.p_value()


class _Resampled(NamedTuple):
    """A ratio and its studentised resamples: t = (resampled value - value) / resampled se, ascending."""

    value: float
    se: float | None
    t: Floats

    def interval(self, level: float) -> Interval:
        if self.se is None:
            return Interval(self.value)
        beyond = math.floor((len(self.t) + 1) * (1 - level) / 2 + ROUNDING)  # so many t lie outside, at either end
        if beyond < 1:
            raise ValueError(f"an interval of {level:.0%} needs more than {len(self.t)} resamples")
        far, near = float(self.t[-beyond]), float(self.t[beyond - 1])
        if not math.isfinite(far - near):
            return Interval(self.value, se=self.se)
        return Interval(self.value, self.value - far * self.se, self.value - near * self.se, self.se)

    def p_value(self) -> float | None:
        if self.se is None:
            return None
        if self.value == 0:
            return 1.0
        t = self.value / self.se if self.se else math.copysign(math.inf, self.value)
        beyond = min(int((self.t >= t).sum()), int((self.t <= t).sum()))
        return min(1.0, 2 * (beyond + 1) / (len(self.t) + 1))


def _resampled(y: Floats, x: Floats, seed: int, n_resamples: int) -> _Resampled:
    if y.shape != x.shape or y.ndim != 1:
        raise ValueError(f"a ratio needs one y and one x for each cluster, got {y.shape} and {x.shape}")
    if not x.sum() > 0:
        raise ValueError("a ratio needs something to divide by: x adds up to nothing")
    value = float(y.sum() / x.sum())
    if np.count_nonzero(x) < 2 or not math.isfinite(value):
        return _Resampled(value, None, np.zeros(0))
    generator = np.random.default_rng(seed)
    if len(x) > MAX_CLUSTERS:
        group = generator.permutation(len(x)) % MAX_CLUSTERS
        y, x = (np.bincount(group, column).astype(np.float64) for column in (y, x))
    residual = _residual(y, x)
    se = math.sqrt((1 - 1 / len(x)) * float(((residual / (x.sum() - x)) ** 2).sum()))
    t = _studentised(residual, x, generator, n_resamples) if se else np.zeros(n_resamples)
    return _Resampled(value, se, t)


def _studentised(residual: Floats, x: Floats, generator: np.random.Generator, n_resamples: int) -> Floats:
    """t of every resample, ascending; infinite where all that was drawn agrees, and yet not with the value."""
    n = len(x)
    columns = np.stack([residual, x, residual**2, residual * x, x**2], axis=1)
    sums = np.concatenate(
        [
            _weights(n, min(SLICE // n, n_resamples - start), generator) @ columns
            for start in range(0, n_resamples, SLICE // n)
        ]
    )
    moved, base, rr, rx, xx = sums.T
    shift = np.divide(moved, base, out=np.zeros_like(moved), where=base > 0)  # the resampled value - value
    spread = rr - 2 * shift * rx + shift**2 * xx
    varied = spread > ROUNDING * (rr + shift**2 * xx)
    t = np.where(shift == 0, 0.0, np.copysign(np.inf, shift))
    t[varied] = (shift * base)[varied] / np.sqrt(n / (n - 1) * spread[varied])
    return np.sort(t)


def _weights(n: int, n_resamples: int, generator: np.random.Generator) -> Floats:
    """How often each of n clusters was drawn in each resample, (n_resamples, n): multinomial."""
    drawn = generator.integers(n, size=(n_resamples, n)) + n * np.arange(n_resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * n_resamples).reshape(n_resamples, n).astype(np.float64)


def effective_size(variance: float, se: float | None, n_tokens: float) -> float | None:
    """How many independent tokens would tell the mean loss as well: tokens (se_iid / se)^2 = variance / se^2.

    `variance` is that of the tokens' losses, `se` the standard error of nats / token; None where it is unknown or 0.
    At most the `n_tokens` there are: few clusters may by chance vary less than independent tokens do.

    >>> effective_size(4.0, 0.125, 1000), effective_size(4.0, 0.125, 30)  # the se of 256 independent tokens
    (256.0, 30.0)
    """
    return min(variance / se**2, float(n_tokens)) if se else None


def choose(
    documents: Floats,
    base: Floats | None = None,
    document: Ints | None = None,
    *,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> tuple[Method, Floats]:
    """What to resample, and its sums (n_clusters, k): documents where 30 or more hold tokens, else blocks inside them.

    `documents` (n, k) are the sums of each; for fewer than 30, `base` (m, k) are those of their base blocks in order of
    the text and `document` (m,) says whose each one is. The first two columns are y and x of the ratio that the length
    of blocks follows, as nats and tokens; the others may be anything. Clusters without x are left out. ValueError where
    none is left, or base blocks are needed and not given.

    >>> sums = np.stack([np.arange(1.0, 41), np.full(40, 9.0)], axis=1)
    >>> method, clusters = choose(sums)
    >>> method.kind, method.n_clusters, method.optimistic
    ('documents', 40, None)
    >>> interval(clusters[:, 0], clusters[:, 1], seed=method.seed).high > 2.27
    True
    """
    documents = documents[documents[:, 1] > 0]
    if not len(documents):
        raise ValueError("there is nothing to resample: no document has a scored token")
    if len(documents) >= ENOUGH_DOCUMENTS:
        why = _too_few(documents[:, 1], "document") or _lopsided(documents, "document")
        return Method("documents", len(documents), None, seed, n_resamples, why), documents
    if base is None or document is None:
        raise ValueError(
            f"{len(documents)} documents are too few to resample: give the sums of their blocks of {BASE_TOKENS} tokens"
        )
    length = block_length(base[:, 0], base[:, 1], document)
    clusters = blocks(base, document, length)
    clusters = clusters[clusters[:, 1] > 0]
    why = _too_few(clusters[:, 1], "block") or _lopsided(clusters, "block")
    why = why or _too_narrow(len(documents), length, len(base))
    return Method("blocks", len(clusters), length * BASE_TOKENS, seed, n_resamples, why), clusters


def _too_few(x: Floats, kind: str) -> str | None:
    """Why clusters of these sizes are too few to resample."""
    effective = float(x.sum() ** 2 / (x**2).sum()) if len(x) else 0.0
    narrow, what = "The intervals are likely too narrow", counted(len(x), kind)
    if len(x) < ENOUGH_CLUSTERS:
        return f"{narrow}: {what} to resample, and {ENOUGH_CLUSTERS} are enough."
    if effective < ENOUGH_EFFECTIVE:
        return f"{narrow}: {what} of such unequal size count as {effective:.1f}."
    return None


def _lopsided(clusters: Floats, kind: str) -> str | None:
    """Why clusters of which one holds so much of the nats tell little of their spread; None for differences."""
    y, x = clusters[:, 0], clusters[:, 1]
    if y.min() < 0 or not 0 < y.sum() < math.inf:
        return None
    excess = y / y.sum() - x / x.sum()
    most = int(excess.argmax())
    if excess[most] <= TOO_MUCH_IN_ONE:
        return None
    return f"The intervals tell little: one of {counted(len(y), kind)} holds {y[most] / y.sum():.0%} of the nats."


def _too_narrow(n_documents: int, length: int, n_base: int) -> str | None:
    """What blocks inside documents cannot tell."""
    if n_documents > 1:
        return (
            f"The intervals tell how the loss varies inside these {n_documents} documents, not from one document to "
            f"another: that takes {ENOUGH_DOCUMENTS}."
        )
    if length >= n_base // ENOUGH_CLUSTERS:
        return (
            f"The intervals are likely too narrow: the loss may depend on more text than blocks of "
            f"{length * BASE_TOKENS} tokens hold, and of longer ones there would be fewer than {ENOUGH_CLUSTERS}."
        )
    return None


def block_length(y: Floats, x: Floats, document: Ints) -> int:
    """The length, in base blocks, of the blocks to resample: automatic after Politis and White (2004).

    Their rule for the circular block bootstrap, with the correction of Patton, Politis and White (2009), on the series
    r = y - (sum y / sum x) x of base blocks (m,) in order of the text; autocovariances are taken inside documents
    alone. At least 1; at most the longest document, and what leaves 20 blocks. ValueError where documents are not in
    order.

    >>> wave = 3 + np.sin(np.arange(400) / 5)
    >>> one = np.zeros(400, dtype=np.int64)
    >>> block_length(wave, np.ones(400), one), block_length(*np.ones((2, 400)), one)
    (20, 1)
    """
    if np.any(np.diff(document) < 0):
        raise ValueError("base blocks must come document by document, in ascending order")
    if not math.isfinite(y.sum()):
        return 1  # there is no interval either
    n, longest = len(y), int(np.unique(document, return_counts=True)[1].max())
    n_lags = min(math.ceil(math.sqrt(n)) + N_QUIET, longest - 1)
    residual = _residual(y, x)
    if n_lags < 1 or not residual.any():
        return 1
    covariance = _autocovariance(residual, document, n_lags)
    loud = np.abs(covariance[1:]) >= 2 * math.sqrt(math.log10(n) / n) * covariance[0]
    quiet = [m for m in range(n_lags - N_QUIET + 1) if not loud[m : m + N_QUIET].any()]
    bandwidth = min(2 * max(1, quiet[0]), n_lags) if quiet else n_lags
    lag = np.arange(1, bandwidth + 1)
    weighted = np.minimum(1, 2 * (1 - lag / bandwidth)) * covariance[lag]
    g, variance = 2 * float((lag * weighted).sum()), float(covariance[0] + 2 * weighted.sum())
    best = math.inf if variance == 0 else (2 * g**2 / (4 / 3 * variance**2) * n) ** (1 / 3)
    return max(1, min(math.ceil(min(best, 3 * math.sqrt(n))), longest, n // ENOUGH_CLUSTERS))


def _residual(y: Floats, x: Floats) -> Floats:
    """y - (sum y / sum x) x, with 0 for what is rounding alone."""
    residual: Floats = y - y.sum() / x.sum() * x
    residual[np.abs(residual) <= ROUNDING * np.abs(y)] = 0
    return residual


def _autocovariance(series: Floats, document: Ints, n_lags: int) -> Floats:
    """Of a series of mean 0 at lags 0 to n_lags, products taken inside documents alone: zeros stand between them."""
    _, which = np.unique(document, return_inverse=True)
    at = np.arange(len(series)) + n_lags * which
    padded = np.zeros(1 << (int(at[-1]) + n_lags).bit_length())
    padded[at] = series
    power = np.abs(np.fft.rfft(padded)) ** 2
    return np.fft.irfft(power)[: n_lags + 1] / len(series)


def blocks(columns: Floats, document: Ints, length: int) -> Floats:
    """The sums (n_blocks, k) of `columns` (m, k) over runs of `length` base blocks, none across two documents (m,).

    What is left at the end of a document joins its last block where shorter than half of one, else is a block itself.

    >>> blocks(np.ones((9, 1)), np.array([0, 0, 0, 0, 0, 0, 0, 1, 1]), length=3)[:, 0]
    array([3., 4., 2.])
    """
    _, first, n_base = np.unique(document, return_index=True, return_counts=True)
    whole, rest = np.divmod(n_base, length)
    n_blocks = np.maximum(1, whole + (2 * rest >= length))
    which = np.arange(n_blocks.sum()) - np.repeat(np.cumsum(n_blocks) - n_blocks, n_blocks)
    sums: Floats = np.add.reduceat(columns, np.repeat(first, n_blocks) + length * which, axis=0)
    return sums
