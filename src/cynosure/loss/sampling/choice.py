"""Which columns of d(logits) are multiplied: the fewest in expectation that keep the variance within a budget.

Column v is kept with probability q_v, independently, and counts 1 / q_v where it is kept. An estimate whose column v
would add the variance a_v if it were kept with probability 1/2 has the variance sum_v (1 / q_v - 1) a_v. The fewest
columns for one budget, or for two at once, are q_v = min(1, sqrt(sum_j m_j a_jv)) with a multiplier m_j >= 0 for each
budget (Lagrange; Neyman's allocation of a stratified sample is the case of one).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDS = 6  # of balancing two budgets
PACE = 1.5  # exponent of a round: 2 would be exact if no probability were 1
SLOWEST = 0.1  # a budget's multiplier falls at most this far in a round, to the power of PACE
SPENT = 0.97  # share of both budgets at which they are balanced
SUBSET = 2**13  # columns on which the multipliers are found; each stands for others of a larger vocabulary
TINY = 1e-30
LEAST = 2.0**-12  # probability of a column: none counts more than 4,096 times
STEP = 2.0**-24  # of a uniform float32 number: probabilities are multiples of it, so that they hold exactly


class Budget(NamedTuple):
    """The variance that an estimate may have."""

    variances: Tensor  # (V,) of each column, if it were kept with probability 1/2
    most: float  # of the sum over columns


class Kept(NamedTuple):
    """The columns of one draw."""

    ids: Tensor  # (K,) ascending
    probability: Tensor  # (K,) with which each was kept


def probabilities(budgets: list[Budget], always: Tensor | None) -> Tensor:
    """Return the probability (V,) with which to keep each column: 1 for the columns `always`, at least LEAST for all.

    A budget that is not greater than 0 keeps every column.
    """
    shares = [budget.variances / budget.most for budget in budgets if budget.most > 0]
    if len(shares) < len(budgets):
        return torch.ones_like(budgets[0].variances)
    if always is not None:
        shares = [share.index_fill_(0, always, 0) for share in shares]
    step = -(-len(shares[0]) // SUBSET)
    multipliers = find_multipliers([share[::step] for share in shares], step)
    q = weighed(shares, multipliers).sqrt_().clamp_(LEAST, 1).div_(STEP).ceil_().mul_(STEP)
    return q if always is None else q.index_fill_(0, always, 1)


def weighed(shares: list[Tensor], multipliers: list[float]) -> Tensor:
    """Return the sum of the shares (V,), each times its multiplier."""
    parts = [share * multiplier for share, multiplier in zip(shares, multipliers, strict=True)]
    return parts[0] if len(parts) == 1 else parts[0].add_(parts[1])


def find_multipliers(shares: list[Tensor], step: int) -> list[float]:
    """Return the multipliers under which no budget is exceeded, and each is spent or hardly costs a column.

    Each of the given columns, with its share of every budget, stands for `step` columns.
    """
    multipliers = best = [1.0] * len(shares)
    fewest = math.inf
    for round_ in range(ROUNDS):
        g, order = weighed(shares, multipliers).double().sqrt_().sort()
        if not g[-1] > 0:
            break
        # With q = min(1, g / c), the k smallest spend c * sum(share / g) - sum(share), and the others are kept surely.
        smallest = torch.stack([share[order].double() for share in shares])
        whole, over_g = (x.cumsum(1).mul_(step) for x in (smallest, smallest / g.clamp(min=g[-1] * TINY)))
        spent_by_k = (over_g[:, :-1] * g[1:] - whole[:, :-1]).amax(0)  # with c at the next larger g
        k = int(torch.searchsorted(spent_by_k, 1.0))
        c = float(((1 + whole[:, k]) / over_g[:, k].clamp(min=TINY)).amin())
        multipliers = [multiplier / c**2 for multiplier in multipliers]
        n_columns = float((g / c).clamp_(max=1).sum())
        if not n_columns >= fewest:  # a round may go too far; what is no number keeps every column
            fewest, best = n_columns, multipliers
        spent = (over_g[:, k] * c - whole[:, k]).tolist()
        if min(spent) > SPENT or round_ == ROUNDS - 1:
            break
        multipliers = [
            multiplier * max(part, SLOWEST) ** PACE for multiplier, part in zip(multipliers, spent, strict=True)
        ]
    return best


def draw(q: Tensor, generator: torch.Generator) -> Kept:
    """Keep each column with its probability q (V,)."""
    ids = (torch.rand(len(q), generator=generator) < q).nonzero()[:, 0]
    return Kept(ids, q[ids])
