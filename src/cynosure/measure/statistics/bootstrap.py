"""Bootstrap intervals of ratios of sums, such as nats / tokens or bits / bytes.

They tell how far the ratio would move on other text like this one. Tokens are not independent, so clusters that nearly
are get resampled: documents, or long runs of tokens inside them.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cynosure.system.numbers import counted

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BASE_TOKENS = 16  # tokens of a base block; blocks consist of base blocks, so no sums of single tokens are kept
N_RESAMPLES = 2000
MAX_CLUSTERS = 2000  # more clusters are first merged at random into this many
N_QUIET = 5  # consecutive autocorrelations that must not exceed noise
SLICE = 2**15  # weights of resamples at a time, so that they stay in the cache
ROUNDING = 1e-12  # a difference below this share of the values subtracted is rounding
ENOUGH_DOCUMENTS = 30
ENOUGH_CLUSTERS = 20
TOO_MUCH_IN_ONE = 0.2  # share of the nats beyond the share of the text: resamples then tell only if it was drawn
ENOUGH_EFFECTIVE = 10  # equal clusters: with fewer, intervals cover too seldom if loss and length are related


class Interval(NamedTuple):
    """A ratio, its interval and its standard error; None if there is too little data for them."""

    value: float
    low: float | None = None
    high: float | None = None
    se: float | None = None


class Method(NamedTuple):
    """What was resampled, and how."""

    kind: Literal["documents", "blocks"]
    n_clusters: int
    block_tokens: int | None  # None if documents are resampled
    seed: int
    n_resamples: int
    optimistic: str | None  # a sentence on why the intervals are likely too narrow; None if they are not


def interval(y: Floats, x: Floats, *, seed: int = 0, n_resamples: int = N_RESAMPLES, level: float = 0.95) -> Interval:
    """Return sum(y) / sum(x) over clusters (n,) and its bootstrap-t interval.

    See Efron and Tibshirani 1993, section 12.5. With r = y - value x and X = sum x, the standard error is the
    jackknife's: se^2 = (n - 1) / n sum (r / (X - x))^2. That of a resample is linearized: n / (n - 1) sum r^2 / X^2.
    Both are equal if all x are; otherwise the latter is mostly smaller, which makes intervals of unequal clusters
    longer, so that they cover the truth more often. Equal seeds and n give the same resamples.

    An infinite y gives an infinite value without an interval. Without variance the interval has no width. If no y is
    negative, the interval does not reach below 0. Raises ValueError if x sums to 0, or if there are too few resamples
    for the level.

    >>> nats, tokens = np.array([30.0, 12.0, 45.0, 20.0, 28.0]), np.array([10.0, 5.0, 14.0, 8.0, 9.0])
    >>> ratio = interval(nats, tokens)
    >>> round(ratio.value, 3), round(ratio.se, 3), ratio.low < ratio.value < ratio.high
    (2.935, 0.154, True)
    """
    ratio = _resampled(y, x, seed, n_resamples).interval(level)
    return ratio._replace(low=max(ratio.low, 0.0)) if ratio.low is not None and y.min() >= 0 else ratio


def paired(
    y_a: Floats, y_b: Floats, x: Floats, *, seed: int = 0, n_resamples: int = N_RESAMPLES, level: float = 0.95
) -> tuple[Interval, float | None]:
    """Return the difference sum(y_a - y_b) / sum(x) of two ratios on the same clusters, and its two-sided p-value.

    The test inverts the interval: p < 1 - level if the interval excludes 0. It is at least 2 / (n_resamples + 1), None
    without a standard error, and 1 if the difference is 0. Raises ValueError as `interval` does.

    >>> paired(np.array([3.0, 5.0, 8.0]), np.array([3.0, 5.0, 8.0]), np.array([2.0, 4.0, 6.0]))
    (Interval(value=0.0, low=0.0, high=0.0, se=0.0), 1.0)
    """
    resampled = _resampled(y_a - y_b, x, seed, n_resamples)
    return resampled.interval(level), resampled.p_value()


class _Resampled(NamedTuple):
    """A ratio and its studentized resamples: t = (resampled value - value) / resampled se, ascending."""

    value: float
    se: float | None
    t: Floats

    def interval(self, level: float) -> Interval:
        if self.se is None:
            return Interval(self.value)
        beyond = math.floor((len(self.t) + 1) * (1 - level) / 2 + ROUNDING)  # so many t are outside at either end
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
        raise ValueError("a ratio needs something to divide by: x sums to 0")
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
    """Return t of every resample, ascending; infinite if the clusters drawn agree, but not with the value."""
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
    """Draw how often each of n clusters is in each resample, (n_resamples, n): multinomial."""
    drawn = generator.integers(n, size=(n_resamples, n)) + n * np.arange(n_resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * n_resamples).reshape(n_resamples, n).astype(np.float64)


def effective_size(variance: float, se: float | None, n_tokens: float) -> float | None:
    """Return the effective sample size: tokens (se_iid / se)^2 = variance / se^2.

    A sample of so many tokens, each independent of the others, would estimate the mean loss equally well. `variance` is
    the variance of the tokens' losses, `se` the standard error of nats / token; the result is None if `se` is unknown
    or 0. It is at most `n_tokens`, because few clusters may by chance vary less than single tokens do.

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
    """Choose the clusters to resample: documents if at least 30 have tokens, else blocks inside them.

    Args:
        documents: (n, k) sums of each document. The first two columns are y and x of the ratio that decides the length
            of blocks, such as nats and tokens; the others may be anything.
        base: (m, k) sums of the base blocks in the order of the text; needed for fewer than 30 documents.
        document: (m,) the document of each base block.
        seed: seed of the resamples.
        n_resamples: number of resamples.

    Returns:
        The method, and the sums (n_clusters, k) of the clusters, without those whose x is 0.

    Raises:
        ValueError: no cluster is left, or base blocks are needed and missing.

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
        why = why_unreliable(documents, "document")
        return Method("documents", len(documents), None, seed, n_resamples, why), documents
    if base is None or document is None:
        raise ValueError(
            f"{len(documents)} documents are too few to resample: give the sums of their blocks of {BASE_TOKENS} tokens"
        )
    length = block_length(base[:, 0], base[:, 1], document)
    clusters = blocks(base, document, length)
    clusters = clusters[clusters[:, 1] > 0]
    why = why_unreliable(clusters, "block") or _too_narrow(len(documents), length, len(base))
    return Method("blocks", len(clusters), length * BASE_TOKENS, seed, n_resamples, why), clusters


def why_unreliable(clusters: Floats, kind: str) -> str | None:
    """Say why clusters are too few or too unequal to resample; None if they are good enough.

    `clusters` is (n, k); the first two columns are y and x.
    """
    return _too_few(clusters[:, 1], kind) or _lopsided(clusters, kind)


def _too_few(x: Floats, kind: str) -> str | None:
    """Say why clusters of these sizes are too few to resample; None if they are enough."""
    effective = float(x.sum() ** 2 / (x**2).sum()) if len(x) else 0.0
    narrow, what = "The intervals are likely too narrow", counted(len(x), kind)
    if len(x) < ENOUGH_CLUSTERS:
        return f"{narrow}: {what} to resample, and at least {ENOUGH_CLUSTERS} are needed."
    if effective < ENOUGH_EFFECTIVE:
        return f"{narrow}: {what} of unequal size count as only {effective:.1f}."
    return None


def _lopsided(clusters: Floats, kind: str) -> str | None:
    """Say so if one cluster has too much of the nats to estimate their spread; None for differences."""
    y, x = clusters[:, 0], clusters[:, 1]
    if y.min() < 0 or not 0 < y.sum() < math.inf:
        return None
    excess = y / y.sum() - x / x.sum()
    most = int(excess.argmax())
    if excess[most] <= TOO_MUCH_IN_ONE:
        return None
    return f"The intervals are unreliable: one of {counted(len(y), kind)} holds {y[most] / y.sum():.0%} of the nats."


def _too_narrow(n_documents: int, length: int, n_base: int) -> str | None:
    """Say what blocks inside documents cannot tell; None if they suffice."""
    if n_documents > 1:
        return (
            f"The intervals tell how the loss varies inside these {n_documents} documents, not from one document to "
            f"another: that needs at least {ENOUGH_DOCUMENTS} documents."
        )
    if length >= n_base // ENOUGH_CLUSTERS:
        return (
            f"The intervals are likely too narrow: the loss may depend on more text than blocks of "
            f"{length * BASE_TOKENS} tokens hold, and longer ones would be fewer than {ENOUGH_CLUSTERS}."
        )
    return None


def block_length(y: Floats, x: Floats, document: Ints) -> int:
    """Choose the length, in base blocks, of the blocks to resample, automatically as in Politis and White (2004).

    This is their rule for the circular block bootstrap, as corrected by Patton, Politis and White (2009). The series is
    r = y - (sum y / sum x) x of base blocks (m,), in the order of the text. Autocovariances are taken only inside
    documents. The length is at least 1, at most the longest document, and leaves at least 20 blocks. Raises ValueError
    if the documents are not in order.

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
    """Return y - (sum y / sum x) x, with 0 for what is only rounding."""
    residual: Floats = y - y.sum() / x.sum() * x
    residual[np.abs(residual) <= ROUNDING * np.abs(y)] = 0
    return residual


def _autocovariance(series: Floats, document: Ints, n_lags: int) -> Floats:
    """Return the autocovariance of a series of mean 0 at lags 0 to n_lags, only inside documents.

    Zeros between the documents keep them apart.
    """
    _, which = np.unique(document, return_inverse=True)
    at = np.arange(len(series)) + n_lags * which
    padded = np.zeros(1 << (int(at[-1]) + n_lags).bit_length())
    padded[at] = series
    power = np.abs(np.fft.rfft(padded)) ** 2
    return np.fft.irfft(power)[: n_lags + 1] / len(series)


def blocks(columns: Floats, document: Ints, length: int) -> Floats:
    """Sum `columns` (m, k) over blocks of `length` base blocks, none across two documents (m,), to (n_blocks, k).

    The rest at the end of a document joins its last block if it is shorter than half a block, else it is a block.

    >>> blocks(np.ones((9, 1)), np.array([0, 0, 0, 0, 0, 0, 0, 1, 1]), length=3)[:, 0]
    array([3., 4., 2.])
    """
    _, first, n_base = np.unique(document, return_index=True, return_counts=True)
    whole, rest = np.divmod(n_base, length)
    n_blocks = np.maximum(1, whole + (2 * rest >= length))
    which = np.arange(n_blocks.sum()) - np.repeat(np.cumsum(n_blocks) - n_blocks, n_blocks)
    sums: Floats = np.add.reduceat(columns, np.repeat(first, n_blocks) + length * which, axis=0)
    return sums
