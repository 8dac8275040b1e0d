"""Intervals against closed forms, a plain loop over resamples, and texts whose true mean loss is known."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest

from cynosure.measure.statistics import bootstrap
from cynosure.measure.statistics.bootstrap import (
    Interval,
    block_length,
    blocks,
    choose,
    effective_size,
    interval,
    paired,
)
from tests.measure import coverage


def clusters(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = np.ceil(generator.lognormal(5, 0.7, n))
    return x * generator.gamma(9, 1 / 3, n), x


def linearised(y: np.ndarray, x: np.ndarray) -> float:
    residual = y - y.sum() / x.sum() * x
    return math.sqrt(len(x) / (len(x) - 1) * (residual**2).sum()) / x.sum()


def jackknife(y: np.ndarray, x: np.ndarray) -> float:
    n = len(x)
    without = np.array([np.delete(y, i).sum() / np.delete(x, i).sum() for i in range(n)])
    return math.sqrt((n - 1) / n * ((without - y.sum() / x.sum()) ** 2).sum())


def ar1(n: int, correlation: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(n)
    for i in range(1, n):
        noise[i] = correlation * noise[i - 1] + math.sqrt(1 - correlation**2) * noise[i]
    return noise


@pytest.mark.parametrize("n", [8, 40])
def test_the_interval_is_that_of_a_plain_loop_over_resamples(n: int) -> None:
    y, x = clusters(n)
    found = interval(y, x, n_resamples=20_000)
    generator, t = np.random.default_rng(1), []
    for _ in range(20_000):
        drawn = generator.integers(n, size=n)
        t.append((y[drawn].sum() / x[drawn].sum() - found.value) / linearised(y[drawn], x[drawn]))
    se = jackknife(y, x)
    assert found.value == pytest.approx(y.sum() / x.sum())
    assert found.se == pytest.approx(se)
    assert found.low == pytest.approx(found.value - np.quantile(t, 0.975) * se, abs=0.1 * se)
    assert found.high == pytest.approx(found.value - np.quantile(t, 0.025) * se, abs=0.1 * se)


def test_many_equal_clusters_give_the_textbook_interval() -> None:
    y = np.random.default_rng(0).normal(3, 1, 1900)
    found = interval(y, np.ones(1900), n_resamples=20_000)
    half = 1.96 * y.std(ddof=1) / math.sqrt(1900)
    assert found.se == pytest.approx(y.std(ddof=1) / math.sqrt(1900))
    assert (found.low, found.high) == pytest.approx((y.mean() - half, y.mean() + half), abs=0.05 * half)


def test_skewed_losses_make_the_interval_longer_where_the_tail_is() -> None:
    y = np.random.default_rng(0).exponential(3, 40)
    found = interval(y, np.ones(40))
    assert found.high - found.value > 1.1 * (found.value - found.low)


def test_the_unit_does_not_matter() -> None:
    y, x = clusters(40)
    nats, bits = interval(y, x), interval(y / math.log(2), x)
    assert bits == pytest.approx(np.array(nats) / math.log(2), rel=1e-9)


def test_a_level_of_less_is_narrower_and_the_seed_decides() -> None:
    y, x = clusters(40)
    wide, narrow = interval(y, x), interval(y, x, level=0.5)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert interval(y, x) == wide
    assert interval(y, x, seed=1) != wide
    with pytest.raises(ValueError, match="an interval of 95% needs more than 20 resamples"):
        interval(y, x, n_resamples=20)


def test_the_weights_in_slices_are_the_same_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = clusters(40)
    whole = interval(y, x)
    monkeypatch.setattr(bootstrap, "SLICE", 40 * 7)
    assert interval(y, x) == pytest.approx(whole, rel=1e-12)


def test_more_clusters_than_are_resampled_are_added_up() -> None:
    y, x = clusters(50_000)
    found = interval(y, x)
    assert found.value == y.sum() / x.sum()
    assert found.se == pytest.approx(linearised(y, x), rel=0.1)
    assert (found.high - found.low) / found.se == pytest.approx(3.92, rel=0.1)


def test_no_variance_is_an_interval_of_no_width() -> None:
    x = np.arange(1.0, 50) / 7
    found = interval(x * 3.1, x)
    assert (found.low, found.high, found.se) == (found.value, found.value, 0.0)
    assert interval(np.zeros(9), np.ones(9)) == Interval(0.0, 0.0, 0.0, 0.0)


def test_what_cannot_be_told_is_none() -> None:
    assert interval(np.array([6.0]), np.array([2.0])) == Interval(3.0, None, None, None)
    assert interval(np.array([6.0, math.inf, 2.0]), np.ones(3)) == Interval(math.inf, None, None, None)
    assert interval(np.array([6.0, 1.0]), np.array([2.0, 0.0])) == Interval(3.5, None, None, None)
    two = interval(np.array([6.0, 7.0]), np.array([2.0, 2.0]))  # half of the resamples draw one cluster twice
    assert (two.value, two.low, two.high) == (3.25, None, None)
    assert two.se == pytest.approx(0.25)


def test_resamples_without_variance_break_nothing() -> None:
    x = np.array([0.3, 0.7, 1.1, 1.9, 2.3, 3.1, 1.7])  # the ratio of all but the last is 0.1, but for rounding
    y = np.append(x[:6] / 10, 0.7)
    assert interval(y, x).low is None  # a third of the resamples leave the last out
    t = bootstrap._resampled(y, x, 0, 2000).t
    assert np.isinf(t).mean() == pytest.approx((6 / 7) ** 7, abs=0.04)
    y = np.array([1.0] * 4 + [2.0, 3.0, 5.0, 4.0])
    found = interval(y, np.ones(8))
    assert -math.inf < found.low < found.value < found.high < math.inf


def test_bad_sums_are_refused() -> None:
    with pytest.raises(ValueError, match="x sums to 0"):
        interval(np.ones(3), np.zeros(3))
    with pytest.raises(ValueError, match=r"one y and one x for each cluster, got \(3,\) and \(2,\)"):
        interval(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="too few to resample: give the sums of their blocks"):
        choose(np.ones((3, 2)))
    with pytest.raises(ValueError, match="no document has a scored token"):
        choose(np.zeros((3, 2)))


def test_pairs_share_what_is_hard_for_both() -> None:
    y, x = clusters(60)
    better = y - 0.05 * x + np.random.default_rng(1).normal(0, 0.01, 60) * x
    difference, p = paired(y, better, x)
    assert difference.low < 0.05 < difference.high
    assert difference.high - difference.low < 0.1 * (interval(y, x).high - interval(y, x).low)
    assert p == pytest.approx(2 / 2001)
    assert paired(better, y, x)[0].value == -difference.value


def test_p_is_small_where_the_interval_leaves_zero_out() -> None:
    kinds = set()
    for seed in range(40):
        generator = np.random.default_rng(seed)
        a, x = generator.normal(0.3, 1, 40), np.ones(40)
        difference, p = paired(a, np.zeros(40), x, seed=seed)
        kinds.add(p < 0.05)
        assert (p < 0.05) == (not difference.low <= 0 <= difference.high)
    assert kinds == {True, False}


def test_p_of_no_difference_is_uniform() -> None:
    values = []
    for seed in range(300):
        a, b = np.random.default_rng(seed).exponential(1, (2, 30))
        values.append(paired(a, b, np.ones(30), seed=seed, n_resamples=400)[1])
    assert [np.mean(np.array(values) < level) for level in (0.1, 0.5)] == pytest.approx([0.1, 0.5], abs=0.07)


def test_p_at_the_ends() -> None:
    x = np.ones(30)
    assert paired(x * 2, x, x, n_resamples=999) == (Interval(1.0, 1.0, 1.0, 0.0), 0.002)
    assert paired(x, x, x)[1] == 1.0
    assert paired(x[:1], x[:1], x[:1])[1] is None


def test_effective_size_counts_independent_tokens() -> None:
    losses = np.random.default_rng(0).exponential(3, 1900)
    se = interval(losses, np.ones(1900)).se
    assert effective_size(losses.var(ddof=1), se, 1900) == pytest.approx(1900)
    repeated = np.repeat(losses[:190], 10)  # ten tokens that say the same are one
    by_ten = blocks(np.stack([repeated, np.ones(1900)], axis=1), np.zeros(1900, dtype=int), 10)
    assert effective_size(repeated.var(ddof=1), interval(*by_ten.T).se, 1900) == pytest.approx(190, rel=0.01)
    assert effective_size(1.0, None, 10) is None


def test_blocks_are_whole_and_inside_documents() -> None:
    generator = np.random.default_rng(0)
    for length in (1, 2, 3, 7):
        document = np.repeat(np.arange(12) * 5, np.arange(1, 13))
        sizes, expected = generator.random((len(document), 3)), []
        for owner in np.unique(document):
            rows = sizes[document == owner]
            edges = [*range(0, len(rows), length), len(rows)]
            if 2 * (edges[-1] - edges[-2]) < length and len(edges) > 2:
                del edges[-2]
            expected += [rows[a:b].sum(axis=0) for a, b in pairwise(edges)]
        assert blocks(sizes, document, length) == pytest.approx(np.array(expected))


def reference_length(r: np.ndarray) -> float:
    """Politis and White (2004) with the correction of 2009, lag by lag, for one document."""
    n, r = len(r), r - r.mean()
    covariance = [sum(r[i] * r[i + k] for i in range(n - k)) / n for k in range(math.ceil(math.sqrt(n)) + 6)]
    loud = [abs(c) >= 2 * math.sqrt(math.log10(n) / n) * covariance[0] for c in covariance]
    m = next(m for m in range(len(loud)) if not any(loud[m + 1 : m + 6]))
    m = 2 * max(m, 1)
    window = [min(1.0, 2 * (1 - abs(k) / m)) for k in range(-m, m + 1)]
    g = sum(w * abs(k) * covariance[abs(k)] for k, w in zip(range(-m, m + 1), window, strict=True))
    spectrum = sum(w * covariance[abs(k)] for k, w in zip(range(-m, m + 1), window, strict=True))
    return (2 * g**2 / (4 / 3 * spectrum**2)) ** (1 / 3) * n ** (1 / 3)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6, 0.8])
def test_the_block_length_is_that_of_politis_and_white(correlation: float) -> None:
    series = ar1(1200, correlation) + 3
    found = block_length(series, np.ones(1200), np.zeros(1200, dtype=int))
    assert found == max(1, math.ceil(reference_length(series)))


def test_longer_dependence_takes_longer_blocks() -> None:
    lengths = [block_length(ar1(4000, rho), np.ones(4000), np.zeros(4000, dtype=int)) for rho in (0.0, 0.5, 0.9)]
    assert lengths[0] < lengths[1] < lengths[2]
    assert 10 < lengths[2] < 100


def test_dependence_is_looked_for_inside_documents_alone() -> None:
    up, n = np.tile([1.0, -1.0], 100), np.ones(400)
    series = np.stack([up, up], axis=1).ravel()  # pairs of equal values: dependent, unless every pair is cut
    whole, cut = np.zeros(400, dtype=int), (np.arange(400) + 1) // 2
    assert block_length(series, n, whole) > 1
    assert block_length(series, n, cut) <= 2
    covariance = bootstrap._autocovariance(series, cut, 1)
    assert covariance == pytest.approx([1.0, -199 / 400])
    assert bootstrap._autocovariance(series, whole, 2) == pytest.approx([1.0, 1 / 400, -398 / 400])


def test_the_block_length_keeps_its_bounds() -> None:
    drift = np.cumsum(np.random.default_rng(0).standard_normal(400))
    assert block_length(drift, np.ones(400), np.zeros(400, dtype=int)) == 400 // 20
    assert block_length(drift, np.ones(400), np.arange(400) // 4) <= 4
    assert block_length(drift[:30], np.ones(30), np.zeros(30, dtype=int)) == 1
    assert block_length(np.full(50, 3.3), np.ones(50), np.zeros(50, dtype=int)) == 1
    assert block_length(np.array([1.0]), np.ones(1), np.zeros(1, dtype=int)) == 1
    assert block_length(np.append(drift, math.inf), np.ones(401), np.zeros(401, dtype=int)) == 1
    with pytest.raises(ValueError, match="document by document"):
        block_length(np.ones(2), np.ones(2), np.array([1, 0]))


def test_thirty_documents_are_resampled_and_fewer_are_cut_into_blocks() -> None:
    generator = np.random.default_rng(0)
    base = np.stack([generator.gamma(16, 3, 2900), np.full(2900, 16.0), np.full(2900, 61.0)], axis=1)
    document = np.arange(2900) // 100
    documents = blocks(base, document, 100)
    method, sums = choose(np.concatenate([documents, [[40.0, 12, 46], [0, 0, 0]]]), seed=7, n_resamples=500)
    assert method == ("documents", 30, None, 7, 500, None)
    assert sums.shape == (30, 3)
    method, sums = choose(documents, base, document)
    assert (method.kind, method.block_tokens) == ("blocks", 16 * block_length(*base[:, :2].T, document))
    assert method.n_clusters == len(sums) >= 20
    assert sums.sum(axis=0) == pytest.approx(documents.sum(axis=0))
    assert "inside these 29 documents" in method.optimistic
    empty = np.insert(base[:1000], 500, 0, axis=0), np.repeat([0, 1, 2], [500, 1, 500])  # the second without a token
    assert choose(documents[:10], *empty)[1][:, 1].min() > 0


def one_document(n_base: int, correlation: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    base = np.stack([16 * (ar1(n_base, correlation) + 3), np.full(n_base, 16.0)], axis=1)
    return base.sum(axis=0)[None], base, np.zeros(n_base, dtype=int)


def test_it_is_said_where_an_interval_is_likely_too_narrow() -> None:
    unequal = np.stack([np.ones(40), np.append(np.ones(39), 300)], axis=1)
    assert choose(unequal)[0].optimistic == (
        "The intervals are likely too narrow: 40 documents of unequal size count as only 1.3."
    )
    assert "19 blocks to resample, and at least 20 are needed" in choose(*one_document(19))[0].optimistic
    assert "more text than blocks of 16 tokens hold" in choose(*one_document(30))[0].optimistic
    assert "more text than blocks of 800 tokens hold" in choose(*one_document(1000, 0.998))[0].optimistic
    assert choose(*one_document(1000))[0].optimistic is None


def test_one_block_that_costs_nearly_all_is_said_and_no_loss_is_below_zero() -> None:
    noise = np.random.default_rng(0).random(100)
    base = np.stack([np.where(np.arange(100) < 2, 300.0, 1.0) + noise, np.full(100, 16.0)], axis=1)
    method, sums = choose(base.sum(axis=0)[None], base, np.zeros(100, dtype=int))
    share = sums[:, 0].max() / sums[:, 0].sum()
    assert share > 0.4
    assert (
        method.optimistic == f"The intervals are unreliable: one of {len(sums)} blocks holds {share:.0%} of the nats."
    )
    found, _ = choose((base * [-1, 1]).sum(axis=0)[None], base * [-1, 1], np.zeros(100, dtype=int))
    assert "of the nats" not in (found.optimistic or "")
    nats = np.array([1.0, 2, 0, 0, 0, 3])
    assert interval(nats, np.ones(6)).low == 0
    assert paired(nats, np.zeros(6), np.ones(6))[0].low < 0  # a difference may be negative


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    cases = {case.name: case for case in coverage.simulate(200)}
    main, small = list(cases.values())[:5], list(cases.values())[5:]
    for case in main:
        assert 0.88 <= case.covered <= 0.99, case
        assert case.said < 0.2, case
        assert case.above + case.covered + case.below == pytest.approx(1)
    for case in small:
        assert case.covered < 0.92, case
        assert case.said > 0.9, case
        assert case.honest, case
    assert cases["5 documents"].said == cases["300 tokens, AR(1) 0.9"].said == 1.0


def test_coverage_is_told_in_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(coverage, "CASES", {"few": coverage.unequal_documents(5), "one": coverage.unequal_documents(1)})
    monkeypatch.setattr("sys.argv", ["coverage", "--runs", "60"])
    cases = coverage.simulate(60)
    with pytest.raises(SystemExit) as done:
        coverage.main()
    assert done.value.code == (0 if all(case.honest for case in cases) else 1)
    told = json.loads(capsys.readouterr().out)
    assert [(case["name"], case["runs"]) for case in told["cases"]] == [("few", 60), ("one", 60)]
    assert told["cases"][0]["covered"] == cases[0].covered


def test_the_simulated_texts_have_the_mean_that_is_called_true() -> None:
    for spread, slope in ((1.0, 0.0), (0.5, -0.2)):
        texts = coverage.unequal_documents(40_000, spread, slope)(np.random.default_rng(0))
        nats, tokens = next(texts).documents.sum(axis=0)
        assert nats / tokens == pytest.approx(coverage.MEAN, rel=0.01)
    losses = [next(coverage.dependent_tokens(3000, 0.5, True)(np.random.default_rng(i))).documents for i in range(40)]
    assert np.sum(losses, axis=0)[0][0] / 120_000 == pytest.approx(coverage.MEAN, rel=0.03)


def test_tokens_taken_as_independent_would_not_hold_the_truth() -> None:
    draw, missed = coverage.dependent_tokens(2000, 0.9)(np.random.default_rng(0)), 0
    for _ in range(100):
        sample = next(draw)
        tokens = interval(*sample.base.T, n_resamples=400)  # base blocks of 16 tokens, each for itself
        missed += not tokens.low <= coverage.MEAN <= tokens.high
    assert missed > 12
