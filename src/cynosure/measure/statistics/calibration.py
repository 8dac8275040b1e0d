"""Calibration: whether a model is right as often as it is confident, and the gain of a single temperature.

Memory is bounded: confidences are counted in fixed cells. Everything else is summed exactly, so parts of a run can be
merged in any order with the same result.
"""

import math
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from cynosure.measure.statistics.sums import Sums

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Without 1.0, which is the nll itself. Their inverses are evenly spaced, so that one exponential is enough for all.
TEMPERATURES = tuple(14 / (28 - 3 * i) for i in range(8))  # 0.5 to 2
N_BINS = 15  # customary since Guo et al. (2017)
Binning = Literal["mass", "width"]  # bins of equally many tokens, or of equal width as in torchmetrics and netcal
N_CONFIDENCES = 20  # cells of the histogram
N_CELLS = 4096
EDGES = np.sin(np.linspace(0, np.pi / 2, N_CELLS + 1)) ** 2  # cells of 1.5e-7 at 0 and 1, of 3.8e-4 in the middle
GRID = 4096  # cells of equal width, in which confidences are smoothed
CURVE = np.linspace(0, 1, 101)
ENOUGH = 10  # minimum effective number of tokens behind a point of the curve


@dataclass(frozen=True)
class Bin:
    """Tokens of similar confidence, from `low` to `high`."""

    low: float
    high: float
    count: int
    confidence: float  # mean
    accuracy: float
    accuracy_low: float  # ends of its 95% interval
    accuracy_high: float


class AtTemperature(NamedTuple):
    """The loss with all logits divided by a temperature."""

    temperature: float
    nats_per_token: float


class ConfidenceCount(NamedTuple):
    """How many tokens have a confidence from `low` to `high`, and how many of their likeliest tokens are right."""

    low: float
    high: float
    tokens: int
    correct: int


@dataclass(frozen=True)
class CalibrationReport:
    """How well confidence and accuracy agree."""

    tokens: int
    impossible: int  # tokens of infinite loss, which are left out
    ece: float
    ece_debiased: float
    smooth_ece: float
    brier: float  # mean over tokens of sum over the vocabulary of (p - y)^2
    best_temperature: float
    at_edge: bool  # the best temperature is the lowest or highest tried, so the true one may be beyond
    recoverable_nats_per_token: float
    n_bins: int  # as given; `bins` has only those with tokens
    binning: Binning
    bins: tuple[Bin, ...]
    curve: tuple[tuple[float, float], ...]  # (confidence, accuracy), smooth
    temperatures: tuple[AtTemperature, ...]  # ascending, with 1.0
    confidence: tuple[ConfidenceCount, ...]  # in cells of equal width

    def to_json(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        rows = {name: [row._asdict() for row in getattr(self, name)] for name in ("temperatures", "confidence")}
        return asdict(self) | rows


@dataclass(eq=False)
class Calibration:
    """The sums that calibration is computed from; `a + b` merges two.

    Here the first of two classes has probability 3/4, and is right three times out of four:

    >>> margin = np.log(3) * np.array([1, 1, 1, -1])  # logit of the right class minus that of the other
    >>> nll, entropy = np.log1p(np.exp(-margin)), np.full(4, np.log(4) - 0.75 * np.log(3))
    >>> tempered = np.log1p(np.exp(-margin[:, None] / np.array(TEMPERATURES)))
    >>> tokens = Calibration()
    >>> tokens.update(np.full(4, 0.75), margin > 0, np.full(4, 0.375), nll, entropy, tempered)
    >>> report = (tokens + Calibration()).compute()
    >>> report.tokens, round(report.ece, 9), round(report.best_temperature, 3)
    (4, 0.0, 1.0)
    """

    count: Ints = field(default_factory=lambda: np.zeros(N_CELLS, np.int64))  # tokens in each cell of confidence
    correct: Ints = field(default_factory=lambda: np.zeros(N_CELLS, np.int64))
    confidence: Sums = field(default_factory=lambda: Sums.zeros(N_CELLS))
    sums: Sums = field(default_factory=lambda: Sums.zeros(3 + len(TEMPERATURES)))  # brier, nll, entropy, tempered
    impossible: int = 0

    def update(
        self,
        confidence: NDArray[Any],
        correct: NDArray[np.bool_],
        brier: NDArray[Any],
        nll: NDArray[Any],
        entropy: NDArray[Any],
        nll_at_temperature: NDArray[Any],
    ) -> None:
        """Add N scored tokens. Tokens of infinite loss at any temperature are counted and left out.

        Args:
            confidence: (N,) probability of the likeliest token.
            correct: (N,) whether the likeliest token is the right one.
            brier: (N,) Brier scores.
            nll: (N,) losses, nats.
            entropy: (N,) nats.
            nll_at_temperature: (N, T) losses at each of the TEMPERATURES, nats.

        Raises:
            ValueError: a shape is wrong, a confidence is outside [0, 1], or a value is NaN.
        """
        if nll_at_temperature.shape != (len(nll), len(TEMPERATURES)):
            raise ValueError(
                f"nll_at_temperature must be ({len(nll)}, {len(TEMPERATURES)}), one column for each temperature of "
                f"{TEMPERATURES}, got {nll_at_temperature.shape}"
            )
        if len(confidence) and not (confidence.min() >= 0 and confidence.max() <= 1 + 1e-6):
            raise ValueError(f"confidence must be in [0, 1], got {confidence.min()} to {confidence.max()}")
        values = np.stack([brier, nll, entropy, *nll_at_temperature.T])
        kept = ~np.isposinf(values).any(axis=0)
        cell = np.clip(np.searchsorted(EDGES, confidence[kept], side="right") - 1, 0, N_CELLS - 1)
        self.count = self.count + np.bincount(cell, minlength=N_CELLS)
        self.correct = self.correct + np.bincount(cell[correct[kept]], minlength=N_CELLS)
        self.confidence = self.confidence + Sums.of(confidence[kept], cell, N_CELLS)
        self.sums = self.sums + Sums.columns(values[:, kept].T)
        self.impossible += int((~kept).sum())

    def __add__(self, other: "Calibration") -> "Calibration":
        return Calibration(
            self.count + other.count,
            self.correct + other.correct,
            self.confidence + other.confidence,
            self.sums + other.sums,
            self.impossible + other.impossible,
        )

    def compute(self, n_bins: int = N_BINS, binning: Binning = "mass") -> CalibrationReport | None:
        """Compute the report; None if there are no tokens.

        Args:
            n_bins: number of bins of `ece`, `ece_debiased` and `bins`.
            binning: "mass" for bins of equally many tokens; "width" for bins that are 1 / n_bins wide, as in Guo et al.
                (2017), torchmetrics and netcal. Tokens within 4e-4 of an edge may count in the neighbouring bin.

        Raises:
            ValueError: there is less than one bin, or the binning is unknown.
        """
        check_bins(n_bins, binning)
        n = int(self.count.sum())
        if n == 0:
            return None
        used = self.count > 0
        cells = _Cells(self.count[used].astype(float), self.correct[used].astype(float), self.confidence.values[used])
        brier, nll, entropy, *tempered = (self.sums.values / n).tolist()
        best, recoverable = best_temperature(nll, entropy, np.array(tempered))
        bins = _bins(cells, np.flatnonzero(used), n_bins, binning)
        ece, debiased = _expected_errors(bins)
        smooth, curve = _smooth(cells)
        return CalibrationReport(
            tokens=n,
            impossible=self.impossible,
            ece=ece,
            ece_debiased=debiased,
            smooth_ece=smooth,
            brier=brier,
            best_temperature=best,
            at_edge=best in (TEMPERATURES[0], TEMPERATURES[-1]),
            recoverable_nats_per_token=recoverable,
            n_bins=n_bins,
            binning=binning,
            bins=bins,
            curve=curve,
            temperatures=tuple(sorted(map(AtTemperature, (*TEMPERATURES, 1.0), (*tempered, nll)))),
            confidence=_histogram(cells),
        )


class _Cells(NamedTuple):
    """The cells that have tokens; each field is (n_cells,)."""

    tokens: Floats
    right: Floats  # tokens whose likeliest token was right
    confidence: Floats  # sum


def check_bins(n_bins: int, binning: str) -> None:
    """Raise ValueError if there is less than one bin or the binning is unknown."""
    if isinstance(n_bins, bool) or not isinstance(n_bins, int) or n_bins < 1:
        raise ValueError(f"n_bins must be an integer of at least 1, got {n_bins!r}")
    if binning not in get_args(Binning):
        raise ValueError(f"binning must be 'mass' or 'width', got {binning!r}")


def _bins(cells: _Cells, index: Ints, n_bins: int, binning: Binning) -> tuple[Bin, ...]:
    """Group cells into bins with tokens; `index` is the place of each cell among the N_CELLS."""
    middle = np.cumsum(cells.tokens) - cells.tokens / 2
    share = middle / cells.tokens.sum() if binning == "mass" else cells.confidence / cells.tokens
    of_bin = np.minimum((n_bins * share).astype(np.int64), n_bins - 1)
    numbers, first = np.unique(of_bin, return_index=True)
    last = np.append(first[1:], len(of_bin)) - 1
    tokens, right, confidence = (np.add.reduceat(column, first) for column in cells)
    low, high = EDGES[index[first]], EDGES[index[last] + 1]
    if binning == "width":
        low, high = numbers / n_bins, (numbers + 1) / n_bins
    columns = (low, high, tokens.astype(np.int64), confidence / tokens, right / tokens, *wilson(right, tokens))
    return tuple(Bin(*row) for row in zip(*(column.tolist() for column in columns), strict=True))


def wilson(right: Floats, tokens: Floats) -> tuple[Floats, Floats]:
    """Return Wilson's 95% interval (1927) of the shares right / tokens, (n,); it takes tokens as independent.

    >>> [end.round(3).tolist() for end in wilson(np.array([0.0, 5.0]), np.array([10.0, 10.0]))]
    [[0.0, 0.237], [0.278, 0.763]]
    """
    share, z = right / tokens, NormalDist().inv_cdf(0.975)
    centre = share + z**2 / (2 * tokens)
    half = z * np.sqrt(share * (1 - share) / tokens + z**2 / (4 * tokens**2))
    low, high = ((centre + x) / (1 + z**2 / tokens) for x in (-half, half))
    return np.where(right == 0, 0.0, low), np.where(right == tokens, 1.0, high)


def _histogram(cells: _Cells) -> tuple[ConfidenceCount, ...]:
    """Count tokens by confidence, in cells of equal width."""
    at = np.minimum((N_CONFIDENCES * cells.confidence / cells.tokens).astype(np.int64), N_CONFIDENCES - 1)
    edges = (np.arange(N_CONFIDENCES + 1) / N_CONFIDENCES).tolist()
    tokens, right = (np.bincount(at, column, N_CONFIDENCES).astype(np.int64).tolist() for column in cells[:2])
    return tuple(map(ConfidenceCount, edges[:-1], edges[1:], tokens, right))


def _expected_errors(bins: tuple[Bin, ...]) -> tuple[float, float]:
    """Return the mean |accuracy - confidence|, and the same without its bias, since chance makes it too large.

    The bias is estimated as what drawing the accuracies again would add (Kumar, Liang and Ma 2019). With gap g and
    s^2 = accuracy (1 - accuracy) / count they are drawn from Normal(g, s^2), whose mean absolute value has a closed
    form: s sqrt(2 / pi) exp(-g^2 / (2 s^2)) + g erf(g / (s sqrt 2)). Some bias remains, about half of it if g is 0.
    """
    n = sum(part.count for part in bins)
    plain = again = 0.0
    for part in bins:
        gap = abs(part.accuracy - part.confidence)
        s = math.sqrt(part.accuracy * (1 - part.accuracy) / part.count)
        ratio = gap / s if s else math.inf
        drawn = s * math.sqrt(2 / math.pi) * math.exp(-(ratio**2) / 2) + gap * math.erf(ratio / math.sqrt(2))
        plain += part.count / n * gap
        again += part.count / n * drawn
    return plain, max(0.0, 2 * plain - again)


def _smooth(cells: _Cells) -> tuple[float, tuple[tuple[float, float], ...]]:
    """Return the smECE of Blasiok and Nakkiran (2023), and the reliability curve at its bandwidth.

    smECE_s is the integral over [0, 1] of |sum over tokens of K_s (correct - confidence)| / n. K_s is a Gaussian of
    width s reflected at 0 and 1. It falls as s grows; smECE is the s that equals it, so there is no width to choose.
    The curve has points only where there are enough tokens.
    """
    at = np.minimum((GRID * cells.confidence / cells.tokens).astype(np.int64), GRID - 1)
    tokens, right, confidence = (np.bincount(at, column, GRID) for column in cells)
    residual = (right - confidence) / tokens.sum()
    low, high = 0.0, 1.0
    for _ in range(40):
        s = (low + high) / 2
        low, high = (s, high) if np.abs(_reflected(residual, s)).sum() > s else (low, s)
    centre = (np.arange(GRID) + 0.5) / GRID
    mass, hits = (np.interp(CURVE, centre, _reflected(column, high)) for column in (tokens, right))
    enough = mass * GRID * 2 * math.sqrt(math.pi) * high >= ENOUGH  # (sum of K)^2 / (sum of K^2) tokens
    accuracy = np.clip(hits[enough] / mass[enough], 0, 1)
    return high, tuple(zip(CURVE[enough].tolist(), accuracy.tolist(), strict=True))


def _reflected(mass: NDArray[Any], width: float) -> Floats:
    """Smooth masses on equal cells of [0, 1] by a Gaussian reflected at the ends: damp their cosine series."""
    damped = np.exp(-0.5 * (np.pi * width * np.arange(len(mass) + 1)) ** 2)
    return np.fft.irfft(np.fft.rfft(np.concatenate([mass, mass[::-1]])) * damped)[: len(mass)]


def best_temperature(nll: float, entropy: float, nll_at_temperature: Floats) -> tuple[float, float]:
    """Return the temperature with the lowest mean nll, and how many nats / token that is below the nll at 1.

    The mean nll is known at 1 and at TEMPERATURES. As a function of x = log T the curve is
    nll - (nll - entropy) x + x^2 p(x). Its slope at T = 1 is exact, because d nll / d(1 / T) = nll - entropy there. The
    polynomial p makes it pass through all other points. The minimum is searched between the ends of TEMPERATURES.

    >>> tempered = [1.0 + math.log(t / 1.3) ** 2 for t in TEMPERATURES]
    >>> nll, slope = 1.0 + math.log(1.3) ** 2, -2 * math.log(1.3)
    >>> [round(x, 3) for x in best_temperature(nll, nll + slope, np.array(tempered))]
    [1.3, 0.069]
    """
    x = np.log(TEMPERATURES)
    powers = x[:, None] ** np.arange(2, 2 + len(x))
    rest = np.linalg.solve(powers, nll_at_temperature - nll + (nll - entropy) * x)
    tried = np.linspace(x[0], x[-1], 10_001)
    values = np.polyval([*rest[::-1], entropy - nll, nll], tried)
    best = int(values.argmin())
    temperature = {0: TEMPERATURES[0], len(tried) - 1: TEMPERATURES[-1]}.get(best, math.exp(tried[best]))
    return temperature, max(0.0, nll - float(values[best]))
