"""Is a model as often right as it believes to be, and what would dividing its logits by one temperature gain?

Memory is bounded: confidences are counted in fixed cells, everything else is summed exactly, so parts of a run can be
merged in any order with the same result.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from cynosure.measure.statistics.sums import Sums

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Beside 1.0, which is the nll itself. Their inverses are evenly spaced, so that one exponential serves for all of them.
TEMPERATURES = tuple(14 / (28 - 3 * i) for i in range(8))  # 0.5 to 2
N_BINS = 15  # the custom since Guo et al. (2017)
Binning = Literal["mass", "width"]  # bins of equally many tokens, or of equal width as in torchmetrics and netcal
N_CELLS = 4096
EDGES = np.sin(np.linspace(0, np.pi / 2, N_CELLS + 1)) ** 2  # cells of 1.5e-7 at 0 and 1, of 3.8e-4 in the middle
GRID = 4096  # even cells in which confidences are smoothed
CURVE = np.linspace(0, 1, 101)
ENOUGH = 10  # tokens that a point of the curve is made of, in effect


@dataclass(frozen=True)
class Bin:
    """Tokens of similar confidence: between which edges, how many, their mean confidence and how often right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class CalibrationReport:
    """How well confidence and accuracy agree, over `tokens` tokens; `impossible` ones of infinite loss are left out."""

    tokens: int
    impossible: int
    ece: float
    ece_debiased: float
    smooth_ece: float
    brier: float  # mean over tokens of sum over the vocabulary of (p - y)^2
    best_temperature: float
    at_edge: bool  # the best is an end of the temperatures tried: what is best may lie beyond
    recoverable_nats_per_token: float
    n_bins: int  # asked for: those without tokens are not in `bins`
    binning: Binning
    bins: tuple[Bin, ...]
    curve: tuple[tuple[float, float], ...]  # (confidence, accuracy), smooth

    def to_json(self) -> dict[str, Any]:
        """Everything by its name, in tuples, dicts and numbers."""
        return asdict(self)


@dataclass(eq=False)
class Calibration:
    """What calibration is computed from, for tokens so far; `a + b` merges two.

    Of two classes the first has the probability 3/4, and is the right one three times out of four:

    >>> margin = np.log(3) * np.array([1, 1, 1, -1])  # the right class's logit less the other's
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
    figures: Sums = field(default_factory=lambda: Sums.zeros(3 + len(TEMPERATURES)))  # brier, nll, entropy, tempered
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
        """Add scored tokens, all (N,): the likeliest token's probability and whether it is the right one, nats.

        `nll_at_temperature` is (N, T), of the TEMPERATURES. Tokens of an infinite loss at any temperature are counted
        and left out. ValueError for other shapes, for a confidence outside [0, 1], and for NaN.
        """
        if nll_at_temperature.shape != (len(nll), len(TEMPERATURES)):
            raise ValueError(
                f"nll_at_temperature must be ({len(nll)}, {len(TEMPERATURES)}), a column for each of the temperatures "
                f"{TEMPERATURES}, got {nll_at_temperature.shape}"
            )
        if len(confidence) and not (confidence.min() >= 0 and confidence.max() <= 1 + 1e-6):
            raise ValueError(f"confidence must be in [0, 1], got {confidence.min()} to {confidence.max()}")
        figures = np.stack([brier, nll, entropy, *nll_at_temperature.T])
        kept = ~np.isposinf(figures).any(axis=0)
        cell = np.clip(np.searchsorted(EDGES, confidence[kept], side="right") - 1, 0, N_CELLS - 1)
        self.count = self.count + np.bincount(cell, minlength=N_CELLS)
        self.correct = self.correct + np.bincount(cell[correct[kept]], minlength=N_CELLS)
        self.confidence = self.confidence + Sums.of(confidence[kept], cell, N_CELLS)
        self.figures = self.figures + Sums.columns(figures[:, kept].T)
        self.impossible += int((~kept).sum())

    def __add__(self, other: "Calibration") -> "Calibration":
        return Calibration(
            self.count + other.count,
            self.correct + other.correct,
            self.confidence + other.confidence,
            self.figures + other.figures,
            self.impossible + other.impossible,
        )

    def compute(self, n_bins: int = N_BINS, binning: Binning = "mass") -> CalibrationReport | None:
        """The report, None where no token is in it.

        `ece`, `ece_debiased` and `bins` are of `n_bins` bins. With binning "mass" each holds equally many tokens; with
        "width" each is 1 / n_bins wide, as in Guo et al. (2017), torchmetrics and netcal. Tokens within 4e-4 of a bin's
        edge may fall on its other side. ValueError for fewer than one bin or another binning.
        """
        check_bins(n_bins, binning)
        n = int(self.count.sum())
        if n == 0:
            return None
        used = self.count > 0
        cells = _Cells(self.count[used].astype(float), self.correct[used].astype(float), self.confidence.values[used])
        brier, nll, entropy, *tempered = (self.figures.values / n).tolist()
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
        )


class _Cells(NamedTuple):
    """Of every cell with tokens, (n_cells,): how many, how many right, and the sum of their confidences."""

    tokens: Floats
    right: Floats
    confidence: Floats


def check_bins(n_bins: int, binning: str) -> None:
    """ValueError for bins that there cannot be."""
    if isinstance(n_bins, bool) or not isinstance(n_bins, int) or n_bins < 1:
        raise ValueError(f"n_bins must be an integer of at least 1, got {n_bins!r}")
    if binning not in get_args(Binning):
        raise ValueError(f"binning must be 'mass' or 'width', got {binning!r}")


def _bins(cells: _Cells, index: Ints, n_bins: int, binning: Binning) -> tuple[Bin, ...]:
    """Bins with tokens in them, made of whole cells; `index` says which of the N_CELLS a cell is."""
    middle = np.cumsum(cells.tokens) - cells.tokens / 2
    share = middle / cells.tokens.sum() if binning == "mass" else cells.confidence / cells.tokens
    of_bin = np.minimum((n_bins * share).astype(np.int64), n_bins - 1)
    numbers, first = np.unique(of_bin, return_index=True)
    last = np.append(first[1:], len(of_bin)) - 1
    tokens, right, confidence = (np.add.reduceat(column, first) for column in cells)
    low, high = EDGES[index[first]], EDGES[index[last] + 1]
    if binning == "width":
        low, high = numbers / n_bins, (numbers + 1) / n_bins
    columns = (low, high, tokens.astype(np.int64), confidence / tokens, right / tokens)
    return tuple(Bin(*row) for row in zip(*(column.tolist() for column in columns), strict=True))


def _expected_errors(bins: tuple[Bin, ...]) -> tuple[float, float]:
    """Mean |accuracy - confidence|, and the same less its bias: chance alone makes the first too large.

    The bias is taken for what drawing the accuracies once more would add (Kumar, Liang and Ma 2019). With gap g and
    s^2 = accuracy (1 - accuracy) / count they are drawn from Normal(g, s^2), whose mean size has a closed form:
    s sqrt(2 / pi) exp(-g^2 / (2 s^2)) + g erf(g / (s sqrt 2)). A part of the bias is left, about half where g is 0.
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
    """smECE of Blasiok and Nakkiran (2023), and the reliability curve at its bandwidth, where there are tokens.

    smECE_s is the integral over [0, 1] of |sum over tokens of K_s (correct - confidence)| / n, K_s a Gaussian of width
    s reflected at 0 and 1. It falls with s; smECE is where the two are equal, and so there is nothing to choose.
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
    """Masses on the even cells of [0, 1], spread by a Gaussian that the ends reflect: cosines, each damped."""
    damped = np.exp(-0.5 * (np.pi * width * np.arange(len(mass) + 1)) ** 2)
    return np.fft.irfft(np.fft.rfft(np.concatenate([mass, mass[::-1]])) * damped)[: len(mass)]


def best_temperature(nll: float, entropy: float, nll_at_temperature: Floats) -> tuple[float, float]:
    """The temperature at which the mean nll is least, and by how many nats / token it is less than at 1.

    Mean nats are given at 1 and at TEMPERATURES. In x = log T the curve is nll - (nll - entropy) x + x^2 p(x): its
    slope at T = 1 is known exactly, as d nll / d(1 / T) = nll - entropy there, and the polynomial p makes it pass
    through all the others. The best is looked for between the ends of TEMPERATURES.

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
