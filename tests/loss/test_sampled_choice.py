"""The probabilities of columns: within their budgets, and the cheapest that are; and what is learned of the scales."""

import math

import pytest
import torch

from cynosure.loss.sampling.choice import LEAST, STEP, SUBSET, Budget, draw, probabilities
from cynosure.loss.sampling.scales import DOUBT, Ratio, Scale

pytestmark = pytest.mark.cpu_only

SHAPES = {
    "alike": lambda v: 1 + 0.1 * torch.rand(v),
    "spread": lambda v: (2 * torch.randn(v)).exp(),
    "one large": lambda v: torch.ones(v).index_fill_(0, torch.tensor([v // 2]), 1e6),
    "mostly zero": lambda v: torch.where(torch.rand(v) < 0.9, 0.0, torch.rand(v)).index_fill_(
        0, torch.tensor([0]), 1.0
    ),
    "tiny": lambda v: 1e-30 * (2 * torch.randn(v)).exp(),
}
SPEND = [1e-3, 0.3, 3.0, 300.0]  # of what a budget has, for the sum of its variances: with q = 1/2 they spend 1


def budget_of(shape, v, spend, seed=0):
    torch.manual_seed(seed)
    variances = SHAPES[shape](v)
    return Budget(variances, spend * float(variances.double().sum()))


def spent(q, budget, always=None):
    """The share of a budget that these probabilities spend."""
    a = budget.variances.double()
    a = a if always is None else a.index_fill(0, always, 0)
    return float(((1 / q.double() - 1) * a).sum() / budget.most)


def cheapest(budgets):
    """The columns kept by the best of many allocations within the budgets, each sqrt(sum_j m_j a_j) by a factor."""
    shares = [budget.variances.double() / budget.most for budget in budgets]
    mixes = torch.logspace(-6, 6, 97, dtype=torch.float64)[:, None] if len(budgets) == 2 else torch.zeros(1, 1)
    g = torch.cat([shares[0] + mixes * shares[-1], torch.stack(shares)]).sqrt()
    low, high = torch.full((len(g), 1), -9.0), torch.full((len(g), 1), 12.0)

    def allocation(power):
        q = (g * 10.0**power).clamp(LEAST, 1)
        return q, torch.stack([((1 / q - 1) * share).sum(1) for share in shares]).amax(0)[:, None] <= 1

    for _ in range(50):
        middle = (low + high) / 2
        is_within = allocation(middle)[1]
        low, high = torch.where(is_within, low, middle), torch.where(is_within, middle, high)
    q, is_within = allocation(high)
    return float(q.sum(1)[is_within[:, 0]].min())


@pytest.mark.parametrize("spend", SPEND)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("v", [1, 2, 301, SUBSET])
def test_one_budget(v, shape, spend):
    budget = budget_of(shape, v, spend)
    q = probabilities([budget], None)
    assert q.shape == (v,)
    assert bool((q >= LEAST).all() and (q <= 1).all())
    assert torch.equal(q / STEP, (q / STEP).round())
    assert spent(q, budget) <= 1.001
    assert float(q.double().sum()) <= 1.02 * cheapest([budget])  # columns that LEAST raises are not taken into account
    inside = (q > 2 * LEAST) & (q < 1)
    odds = q[inside].double() / budget.variances[inside].double().sqrt()  # constant: Neyman's allocation
    assert not len(odds) or float(odds.max()) <= 1.001 * float(odds.min())


@pytest.mark.parametrize("spend", [(1e-3, 0.3), (0.3, 0.3), (3.0, 0.5), (0.2, 300.0), (30.0, 30.0)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("other", SHAPES)
def test_two_budgets(other, shape, spend):
    budgets = [budget_of(shape, 301, spend[0]), budget_of(other, 301, spend[1], seed=1)]
    q = probabilities(budgets, None)
    assert max(spent(q, budget) for budget in budgets) <= 1.001
    assert float(q.double().sum()) <= 1.06 * cheapest(budgets) + 0.2 * LEAST * len(q)


@pytest.mark.parametrize("v", [SUBSET + 1, 3 * SUBSET - 7, 50_257])
@pytest.mark.parametrize("shape", ["alike", "spread"])
def test_some_columns_stand_for_a_large_vocabulary(shape, v):
    budgets = [budget_of(shape, v, 2.0), budget_of("spread", v, 1.0, seed=1)]
    for few in (budgets[:1], budgets):
        q = probabilities(few, None)
        assert 0.8 < max(spent(q, budget) for budget in few) <= 1.1


@pytest.mark.parametrize("n_budgets", [1, 2])
def test_columns_that_are_kept_always_cost_no_budget(n_budgets):
    always = torch.arange(0, 301, 5)
    budgets = [budget_of("spread", 301, 0.2), budget_of("alike", 301, 0.3, seed=1)][:n_budgets]
    budgets[0].variances[always] *= 1e9
    before = [budget.variances.clone() for budget in budgets]
    q = probabilities(budgets, always)
    assert bool((q[always] == 1).all())
    assert max(spent(q, budget, always) for budget in budgets) <= 1.001
    without = [Budget(b.variances.index_fill(0, always, 0), b.most) for b in budgets]
    others = torch.ones(301, dtype=torch.bool).index_fill_(0, always, False)
    assert torch.equal(q[others], probabilities(without, None)[others])
    assert all(map(torch.equal, before, (budget.variances for budget in budgets)))


@pytest.mark.parametrize("most", [0.0, -1.0, math.nan])
def test_a_budget_of_nothing_keeps_every_column(most):
    fine = budget_of("spread", 50, 1.0)
    for budgets in ([Budget(fine.variances, most)], [fine, Budget(fine.variances, most)]):
        assert bool((probabilities(budgets, None) == 1).all())


@pytest.mark.parametrize("n_columns", [50, 2 * SUBSET + 1])
@pytest.mark.parametrize("where", [0, 1, -1])
def test_variances_that_are_no_number_keep_every_column(where, n_columns):
    """The sum over the probabilities is then no number either, which is not below half of the columns."""
    fine = budget_of("spread", n_columns, 1.0)
    fine.variances[where] = math.nan
    q = probabilities([fine, budget_of("alike", n_columns, 1.0)], None)
    assert not float(q.sum()) < n_columns / 2


@pytest.mark.parametrize("n_columns", [50, 2 * SUBSET + 1])
@pytest.mark.parametrize("where", [0, 1, -1])
def test_a_column_of_infinite_variance_is_kept(where, n_columns):
    fine = budget_of("spread", n_columns, 1.0)
    fine.variances[where] = math.inf
    q = probabilities([fine, budget_of("alike", n_columns, 1.0)], None)
    assert not float(q.sum()) < n_columns / 2 or (n_columns > SUBSET and float(q[where]) == 1)


def test_variances_of_zero_keep_least():
    q = probabilities([Budget(torch.zeros(40), 1.0)], torch.tensor([3]))
    assert bool((q[3] == 1) & (q[:3] == LEAST).all() & (q[4:] == LEAST).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_are_kept_as_often_as_is_said(dtype):
    """Probabilities are multiples of the step of a uniform number, so that none is kept more or less often."""
    q = torch.tensor([LEAST, 0.03, 0.5, 0.97, 1 - STEP, 1.0], dtype=dtype).div_(STEP).ceil_().mul_(STEP)
    generator, many = torch.Generator().manual_seed(0), q.repeat_interleave(100_000)
    kept = draw(many, generator)
    assert torch.equal(kept.ids, kept.ids.sort().values)
    assert torch.equal(kept.probability, many[kept.ids])
    share = torch.bincount(kept.ids // 100_000, minlength=6).double() / 100_000
    z = (share - q) / ((q * (1 - q)).sqrt() / 100_000**0.5).clamp(min=1e-9)
    assert float(z.abs().max()) < 4.5
    assert share[-1] == 1


def test_a_ratio_starts_at_1_and_is_believed_the_more_is_seen():
    ratio = Ratio()
    assert ratio.value == 1.0
    ratio.add(5.0, 0.0, 9)
    ratio.add(5.0, 2.0, 0)
    assert ratio.value == 1.0
    ratio.add(6.0, 2.0, DOUBT)
    assert ratio.value == 2.0  # halfway between 1 and 3
    ratio.add(18.0, 6.0, 10**9)
    assert math.isclose(ratio.value, 3.0, rel_tol=1e-6)


def test_an_error_is_relative_to_the_norm():
    scale = Scale()
    assert scale.error == 0.0
    for square, variance in ((3.0, 0.5), (5.0, 1.5)):
        scale.add(square, variance)
    assert scale.error == 0.5
    scale.add(0.0, -10.0)
    assert scale.error == 0.0
    assert Scale(0.0, 1.0).error == math.inf
