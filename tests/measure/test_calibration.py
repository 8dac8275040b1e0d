"""Calibration against direct computations on all tokens, closed forms, and populations off by a known amount."""

import itertools
import json
import math
import random

import numpy as np
import pytest

from cynosure.measure.statistics.calibration import N_CELLS, TEMPERATURES, Calibration, best_temperature

GRID = (*TEMPERATURES, 1.0)


def nll_at(logits: np.ndarray, target: np.ndarray, temperature: float) -> np.ndarray:
    z = logits / temperature
    top = z.max(axis=1)
    return top + np.log(np.exp(z - top[:, None]).sum(axis=1)) - z[np.arange(len(z)), target]


def scored(logits: np.ndarray, target: np.ndarray) -> Calibration:
    """What scoring would hand over for these logits (N, V) and targets (N,)."""
    p = np.exp(-np.stack([nll_at(logits, np.full(len(logits), v), 1.0) for v in range(logits.shape[1])], axis=1))
    found = Calibration()
    found.update(
        p.max(axis=1),
        p.argmax(axis=1) == target,
        ((p - np.eye(logits.shape[1])[target]) ** 2).sum(axis=1),
        nll_at(logits, target, 1.0),
        -(p * np.log(p)).sum(axis=1),
        np.stack([nll_at(logits, target, t) for t in TEMPERATURES], axis=1),
    )
    return found


def confident(confidence: np.ndarray, correct: np.ndarray, impossible: bool = False) -> Calibration:
    """Tokens of which the confidence alone matters."""
    n, found = len(confidence), Calibration()
    nll = np.full(n, math.inf if impossible else 1.0)
    found.update(confidence, correct, np.full(n, 0.5), nll, np.full(n, 1.0), np.ones((n, len(TEMPERATURES))))
    return found


def drawn(n: int, accuracy_of, seed: int = 0, shape: tuple[float, float] = (1.2, 0.8)) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    confidence = generator.beta(*shape, n)
    return confidence, generator.random(n) < accuracy_of(confidence)


def fitted(logits: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """The best temperature and its mean nll by golden section on the exact nll."""
    low, high, golden = math.log(0.4), math.log(2.5), (math.sqrt(5) - 1) / 2
    for _ in range(32):
        a, b = high - golden * (high - low), low + golden * (high - low)
        if nll_at(logits, target, math.exp(a)).mean() < nll_at(logits, target, math.exp(b)).mean():
            high = b
        else:
            low = a
    return math.exp(low), float(nll_at(logits, target, math.exp(low)).mean())


@pytest.mark.parametrize("scale", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("true_temperature", [0.55, 0.6, 0.8, 0.97, 1.0, 1.05, 1.3, 1.8, 1.9])
def test_the_best_temperature_is_that_of_a_direct_fit(scale: float, true_temperature: float) -> None:
    generator = np.random.default_rng(0)
    logits = scale * generator.standard_normal((2500, 40)) * generator.lognormal(0, 0.5, (2500, 1))
    target = (logits / true_temperature + generator.gumbel(size=logits.shape)).argmax(axis=1)
    report = scored(logits, target).compute()
    best, nll = fitted(logits, target)
    recoverable = nll_at(logits, target, 1.0).mean() - nll
    assert report.best_temperature == pytest.approx(best, rel=0.01)
    assert report.recoverable_nats_per_token == pytest.approx(recoverable, rel=0.01, abs=1e-4)
    assert report.best_temperature == pytest.approx(true_temperature, rel=0.2)
    assert report.recoverable_nats_per_token >= 0
    assert not report.at_edge


@pytest.mark.parametrize(("true_temperature", "end"), [(0.3, 0.5), (4.0, 2.0)])
def test_a_best_temperature_beyond_the_grid_is_its_end_and_said(true_temperature: float, end: float) -> None:
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((2000, 10)) * 3
    target = (logits / true_temperature + generator.gumbel(size=logits.shape)).argmax(axis=1)
    report = scored(logits, target).compute()
    assert (report.best_temperature, report.at_edge) == (end, True)
    gain = nll_at(logits, target, 1.0).mean() - nll_at(logits, target, end).mean()
    assert report.recoverable_nats_per_token == pytest.approx(gain)


def test_the_slope_at_one_is_nll_less_entropy() -> None:
    polynomial = np.polynomial.Polynomial([2.0, -0.3, 0.7, -0.2, 0.1])  # in log T: its minimum is found exactly
    tempered = polynomial(np.log(TEMPERATURES))
    at = next(r.real for r in polynomial.deriv().roots() if abs(r.imag) < 1e-9 and polynomial.deriv(2)(r.real) > 0)
    temperature, gain = best_temperature(2.0, 2.0 - 0.3, tempered)
    assert temperature == pytest.approx(math.exp(at), rel=1e-4)
    assert gain == pytest.approx(2.0 - polynomial(at), rel=1e-6)


def test_binned_errors_are_those_of_the_sorted_tokens() -> None:
    confidence, correct = drawn(30_000, lambda c: c**1.3)
    report = confident(confidence, correct).compute()
    order = np.argsort(confidence)
    parts = [(confidence[part], correct[part]) for part in np.array_split(order, 15)]
    ece = sum(len(c) / 30_000 * abs(c.mean() - y.mean()) for c, y in parts)
    assert report.ece == pytest.approx(ece, abs=3e-4)
    assert sum(part.count for part in report.bins) == report.tokens == 30_000
    for (c, y), part in zip(parts, report.bins, strict=True):
        assert part.count == pytest.approx(2000, abs=40)
        assert (part.confidence, part.accuracy) == pytest.approx((c.mean(), y.mean()), abs=0.01)
        assert part.low <= part.confidence <= part.high


@pytest.mark.parametrize("confidence", [0.0, 1e-9, 0.3, 0.5, 0.9999, 1.0])
def test_a_token_lies_in_its_bin(confidence: float) -> None:
    report = confident(np.array([confidence]), np.array([True])).compute()
    (part,) = report.bins
    assert part.low <= confidence <= part.high


def test_tokens_of_one_confidence_are_where_their_middle_is() -> None:
    """Nine tenths of all stand below, and so does their middle; that of the others stands above."""
    confidence = np.repeat([0.2, 0.8], [90, 10])
    report = confident(confidence, confidence > 0.5).compute(n_bins=2)
    assert [part.count for part in report.bins] == [90, 10]


def test_a_known_miscalibration_is_found() -> None:
    confidence, correct = drawn(200_000, lambda c: 0.8 * c)
    report = confident(confidence, correct).compute()
    assert report.ece == pytest.approx(0.2 * confidence.mean(), abs=0.004)
    assert report.ece_debiased == pytest.approx(0.2 * confidence.mean(), abs=0.004)
    assert report.smooth_ece == pytest.approx(0.2 * confidence.mean(), abs=0.01)
    for at, accuracy in report.curve:
        if 0.2 < at < 0.8:  # farther than a few bandwidths from the ends
            assert accuracy == pytest.approx(0.8 * at, abs=0.02)


def test_where_calibration_is_perfect_chance_makes_the_plain_error_and_debiasing_takes_from_it() -> None:
    plain, debiased, smooth = [], [], []
    for seed in range(60):
        report = confident(*drawn(3000, lambda c: c, seed)).compute()
        plain.append(report.ece)
        debiased.append(report.ece_debiased)
        smooth.append(report.smooth_ece)
        assert 0 <= report.ece_debiased <= report.ece
    s = np.sqrt(np.mean(confidence_variance()) / 200)  # of a bin of 200
    assert np.mean(plain) == pytest.approx(math.sqrt(2 / math.pi) * s, rel=0.15)
    assert np.mean(debiased) < 0.65 * np.mean(plain)  # 2 - sqrt 2 = 0.59 where the gap is all chance
    assert np.mean(debiased) < 0.016
    assert np.mean(smooth) < 0.03


def confidence_variance() -> np.ndarray:
    confidence, _ = drawn(100_000, lambda c: c)
    return confidence * (1 - confidence)


def test_the_folded_normal_is_the_mean_of_draws() -> None:
    confidence, correct = drawn(1500, lambda c: 0.9 * c + 0.03)
    report = confident(confidence, correct).compute()
    generator, redrawn = np.random.default_rng(1), 0.0
    for part in report.bins:
        s = math.sqrt(part.accuracy * (1 - part.accuracy) / part.count)
        draws = generator.normal(part.accuracy, s, 100_000)
        redrawn += part.count / 1500 * np.abs(draws - part.confidence).mean()
    assert report.ece_debiased == pytest.approx(2 * report.ece - redrawn, abs=2e-4)


def kernel(at: np.ndarray, confidence: np.ndarray, width: float) -> np.ndarray:
    """The Gaussian reflected at 0 and 1, summed over its images: (len(at), N)."""
    images = [sign * confidence + 2 * k for k in range(-2, 3) for sign in (1, -1)]
    return sum(np.exp(-0.5 * ((at[:, None] - i) / width) ** 2) for i in images) / (width * math.sqrt(2 * math.pi))


def test_the_smooth_error_is_the_fixed_point_of_its_definition() -> None:
    confidence, correct = drawn(1500, lambda c: c**1.5)
    report = confident(confidence, correct).compute()
    at = (np.arange(500) + 0.5) / 500
    weights = kernel(at, confidence, report.smooth_ece)
    assert np.abs(weights @ (correct - confidence) / 1500).mean() == pytest.approx(report.smooth_ece, rel=0.01)
    points = np.array(report.curve)
    weights = kernel(points[:, 0], confidence, report.smooth_ece)
    assert points[:, 1] == pytest.approx(weights @ correct / weights.sum(axis=1), abs=2e-3)


def test_the_curve_is_drawn_where_there_are_tokens() -> None:
    report = confident(*drawn(4000, lambda c: c, shape=(30, 30))).compute()
    at = [point for point, _ in report.curve]
    assert 0.2 < min(at) < 0.4 < 0.6 < max(at) < 0.8
    assert len(at) == round((max(at) - min(at)) * 100) + 1


def test_certain_tokens_are_kept_apart_from_nearly_certain_ones() -> None:
    near = 1 - 2.0**-20
    report = confident(np.repeat([near, 1.0], 500), np.repeat([True, False], 500)).compute()
    assert [part.accuracy for part in report.bins] == [1.0, 0.0]
    assert report.ece == pytest.approx(0.5, abs=1e-5)
    tiny = confident(np.repeat([0.0, 2.0**-20], 500), np.repeat([False, True], 500)).compute()
    assert [part.accuracy for part in tiny.bins] == [0.0, 1.0]


def test_parts_merge_to_the_same_bits_in_any_order() -> None:
    generator, chance = np.random.default_rng(0), random.Random(0)
    logits = generator.standard_normal((900, 12)) * 3
    target = (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)
    parts = [scored(logits[i : i + 13], target[i : i + 13]) for i in range(0, 900, 13)]
    whole = scored(logits, target)
    for _ in range(3):
        merged = sum(chance.sample(parts, len(parts)), Calibration())
        assert merged.compute() == whole.compute()
        assert (merged.confidence, merged.sums) == (whole.confidence, whole.sums)
    updated = Calibration()
    logit_parts = scored(logits[:450], target[:450]) + scored(logits[450:], target[450:])
    assert (updated + logit_parts).compute() == whole.compute()


def test_brier_and_nll_are_means() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1]] * 4))
    report = scored(logits, np.array([0, 0, 1, 2])).compute()
    brier = [0.3**2 + 0.2**2 + 0.1**2] * 2 + [0.7**2 + 0.8**2 + 0.1**2, 0.7**2 + 0.2**2 + 0.9**2]
    assert report.brier == pytest.approx(np.mean(brier))
    assert report.ece == pytest.approx(0.2)
    assert report.tokens == 4


def test_impossible_tokens_are_counted_and_left_out() -> None:
    confidence, correct = drawn(1000, lambda c: c)
    alone = confident(confidence, correct)
    report = (alone + confident(np.full(7, 0.9), np.zeros(7, dtype=bool), impossible=True)).compute()
    assert (report.tokens, report.impossible) == (1000, 7)
    assert report.ece == alone.compute().ece
    among = Calibration()
    nll = np.array([1.0, math.inf, 1.0])
    among.update(np.array([0.2, 0.5, 0.8]), np.array([False, False, True]), nll, nll, nll, np.ones((3, 8)))
    assert [(part.count, part.accuracy) for part in among.compute().bins] == [(1, 0.0), (1, 1.0)]
    tempered = Calibration()
    tempered.update(*np.full((1, 1), 0.5), np.array([True]), *np.ones((3, 1)), np.full((1, len(TEMPERATURES)), np.inf))
    assert (tempered.impossible, tempered.compute()) == (1, None)


def test_nothing_has_no_report() -> None:
    assert Calibration().compute() is None
    assert confident(np.zeros(0), np.zeros(0, dtype=bool)).compute() is None


def test_one_token_has_a_report() -> None:
    report = confident(np.array([0.6]), np.array([True])).compute()
    assert (report.tokens, report.ece, len(report.bins)) == (1, pytest.approx(0.4), 1)
    assert report.curve == ()


def test_the_report_is_json() -> None:
    report = confident(*drawn(2000, lambda c: c)).compute().to_json()
    again = json.loads(json.dumps(report, allow_nan=False))
    assert again["ece"] == report["ece"]
    assert set(again["bins"][0]) == {
        *("low", "high", "count", "confidence", "accuracy", "accuracy_low", "accuracy_high")
    }
    assert set(again["temperatures"][0]) == {"temperature", "nats_per_token"}
    assert set(again["confidence"][0]) == {"low", "high", "tokens", "correct"}
    assert again["curve"][0] == list(report["curve"][0])


def test_bad_tokens_are_refused() -> None:
    one = np.ones(1)
    with pytest.raises(ValueError, match=r"nll_at_temperature must be \(1, 8\).*got \(1, 3\)"):
        Calibration().update(one, one > 0, one, one, one, np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"confidence must be in \[0, 1\], got 1.1 to 1.1"):
        confident(np.array([1.1]), np.array([True]))
    with pytest.raises(ValueError, match="only finite values"):
        Calibration().update(one, one > 0, one, one * math.nan, one, np.ones((1, 8)))
    with pytest.raises(ValueError, match="confidence"):
        confident(np.array([math.nan]), np.array([True]))


def test_float32_tokens_are_taken_as_they_are() -> None:
    confidence, correct = drawn(500, lambda c: c)
    narrow = confidence.astype(np.float32)
    assert confident(narrow, correct).compute() == confident(narrow.astype(np.float64), correct).compute()
    assert confident(np.array([1.0 + 2**-23], dtype=np.float32), np.array([True])).count[N_CELLS - 1] == 1


def error_by_width(confidence: np.ndarray, correct: np.ndarray, n_bins: int) -> float:
    """The expected calibration error of Guo et al. (2017), bin by bin: (low, high]."""
    total, edges = 0.0, np.linspace(0, 1, n_bins + 1)
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return float(total)


@pytest.mark.parametrize("n_bins", [1, 7, 10, 15, 100])
def test_bins_of_equal_width(n_bins: int) -> None:
    confidence, correct = drawn(20_000, lambda p: p**1.5)
    report = confident(confidence, correct).compute(n_bins=n_bins, binning="width")
    assert report is not None
    assert report.ece == pytest.approx(error_by_width(confidence, correct, n_bins), abs=5e-4)
    assert len(report.bins) <= n_bins
    assert all(part.high - part.low == pytest.approx(1 / n_bins) for part in report.bins)
    assert sum(part.count for part in report.bins) == 20_000


@pytest.mark.parametrize("n_bins", [1, 4, 30])
def test_bins_of_equal_mass(n_bins: int) -> None:
    confidence, correct = drawn(20_000, lambda p: p**1.5)
    report = confident(confidence, correct).compute(n_bins=n_bins)
    assert report is not None
    order = np.argsort(confidence)
    parts = np.array_split(order, n_bins)
    expected = sum(len(part) / 20_000 * abs(correct[part].mean() - confidence[part].mean()) for part in parts)
    assert report.ece == pytest.approx(expected, abs=2e-3)
    assert len(report.bins) == n_bins


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"n_bins": 0}, "n_bins must be an integer of at least 1, got 0"),
        ({"n_bins": 1.5}, "n_bins must be an integer of at least 1, got 1.5"),
        ({"binning": "equal"}, "binning must be 'mass' or 'width', got 'equal'"),
    ],
)
def test_bins_that_there_cannot_be(how, message) -> None:
    with pytest.raises(ValueError, match=message):
        Calibration().compute(**how)


def test_the_loss_at_each_temperature() -> None:
    logits = 2 * np.random.default_rng(0).standard_normal((500, 20))
    target = np.random.default_rng(1).integers(20, size=500)
    report = scored(logits, target).compute()
    assert [row.temperature for row in report.temperatures] == sorted(GRID)
    for temperature, nats in report.temperatures:
        assert nats == pytest.approx(nll_at(logits, target, temperature).mean())


def test_the_histogram_of_confidence() -> None:
    confidence, correct = drawn(20_000, lambda p: p**1.5)
    report = confident(confidence, correct).compute()
    edges = np.linspace(0, 1, 21)
    tokens = np.array([part.tokens for part in report.confidence])
    rights = np.array([part.correct for part in report.confidence])
    assert [part.low for part in report.confidence] == pytest.approx(edges[:-1])
    assert [part.high for part in report.confidence] == pytest.approx(edges[1:])
    assert tokens == pytest.approx(
        np.histogram(confidence, edges)[0], abs=10
    )  # a cell at an edge may be the neighbour's
    assert rights == pytest.approx(np.histogram(confidence[correct], edges)[0], abs=10)
    assert (tokens.sum(), rights.sum()) == (20_000, correct.sum())
    one = confident(np.array([1.0]), np.array([True])).compute().confidence
    assert [tuple(part) for part in (one[0], one[-1])] == [(0, 0.05, 0, 0), (0.95, 1, 1, 1)]


def test_the_accuracy_of_a_bin_has_wilsons_interval() -> None:
    """Its ends are where |share - p| is 1.96 standard errors of a share with accuracy p."""
    confidence, correct = drawn(300, lambda p: p)
    for part in confident(confidence, correct).compute().bins:
        assert 0 <= part.accuracy_low <= part.accuracy <= part.accuracy_high <= 1
        for end in (part.accuracy_low, part.accuracy_high):
            if 0 < end < 1:
                assert abs(part.accuracy - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / part.count))
    (sure,) = confident(np.full(50, 0.9), np.ones(50, bool)).compute(n_bins=1).bins
    assert (sure.accuracy_low, sure.accuracy_high) == (pytest.approx(50 / (50 + 1.959964**2)), 1.0)
