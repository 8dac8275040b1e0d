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
SPENT = 0.97  # part of both budgets at which they are balanced, and of the columns below which another round pays
SUBSET = 2**13  # columns on which the multipliers are found; each stands for others of a larger vocabulary
TINY = 1e-30
LEAST = 2.0**-12  # probability of a column: none counts more than 4,096 times
STEP = 2.0**-24  # of a uniform float32 number: probabilities are multiples of it, so that they hold exactly
TYPICAL = 6500, 2.0**-8, 0.55  # columns that trained heads of 49,152 and 262,144 classes keep, at a tolerance


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


def expected_columns(tolerance: float, vocab_size: int) -> int:
    """Return the columns of a chunk that a trained model's head keeps at this tolerance; all if that is half or more.

    A rule of thumb: within a fifth for the heads of SmolLM2 and Gemma-3-270M from 2**-10 to 2**-6.

    >>> expected_columns(2**-6, 262_144), expected_columns(2**-10, 16_000)
    (3032, 16000)
    """
    if tolerance == 0:
        return vocab_size
    columns, at, exponent = TYPICAL
    kept = round(columns * (at / tolerance) ** exponent)
    return kept if kept < vocab_size / 2 else vocab_size


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
    for _ in range(ROUNDS):
        multipliers, spent, n_kept = spend(shares, multipliers, step)
        is_settled = SPENT * fewest < n_kept <= fewest
        if not n_kept >= fewest:  # a round may go too far; what is no number keeps every column
            fewest, best = n_kept, multipliers
        if min(spent) > SPENT or is_settled:
            break
        multipliers = [x * max(part, SLOWEST) ** PACE for x, part in zip(multipliers, spent, strict=True)]
    return best


def spend(shares: list[Tensor], multipliers: list[float], step: int) -> tuple[list[float], list[float], float]:
    """Scale the multipliers so that the tightest budget is spent.

    Returns them, the spent part of each budget, and how many of the given columns are kept.
    """
    g, order = weighed(shares, multipliers).double().sqrt_().sort()
    if not g[-1] > 0:
        return multipliers, [1.0] * len(shares), 0.0
    # With q = min(1, g / c), the k smallest spend c * sum(share / g) - sum(share), and the others are kept surely.
    smallest = torch.stack([share[order].double() for share in shares])
    whole, over_g = (x.cumsum(1).mul_(step) for x in (smallest, smallest / g.clamp(min=g[-1] * TINY)))
    spent_by_k = (over_g[:, :-1] * g[1:] - whole[:, :-1]).amax(0)  # with c at the next larger g
    k = int(torch.searchsorted(spent_by_k, 1.0))
    c = float(((1 + whole[:, k]) / over_g[:, k].clamp(min=TINY)).amin())
    spent = (over_g[:, k] * c - whole[:, k]).tolist()
    return [x / c**2 for x in multipliers], spent, float((g / c).clamp_(max=1).sum())


def draw(q: Tensor, generator: torch.Generator) -> Kept:
    """Keep each column with its probability q (V,)."""
    ids = (torch.rand(len(q), generator=generator) < q).nonzero()[:, 0]
    return Kept(ids, q[ids])
