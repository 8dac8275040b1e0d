"""Many draws of the sampled backward of one case, and what they must add up to."""

import math
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple
from unittest.mock import patch

import jaxtyping
import torch
import torch.nn.functional as F

from cynosure.loss import linear_cross_entropy, record_sampling
from tests.loss import oracle
from tests.loss.cases import evaluate, make_case, upstream_like

BOUND = 4.5  # standard errors: of some 1,000 statistics at a normal's tails, none is expected beyond
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-11, torch.float16: 2**-14}
SAMPLED = ("hidden", "weight")


class Draws(NamedTuple):
    """Linear statistics of the errors of many draws, and the records of what was kept."""

    names: list
    errors: torch.Tensor  # (draws, statistics), each the projection on a direction of norm 1
    sizes: torch.Tensor  # (statistics,) the norm of the whole gradient
    squares: dict  # the mean squared norm of the error of each gradient, relative to the gradient's
    records: list


def sampled_case(dtype=torch.float32, weight_offset=0.0, **options):
    """Logits with a few large columns, and hidden states that have a mean."""
    case = make_case(**{"lead": (24,), "d": 6, "v": 300, "std": 3.0, **options})
    return replace(case, hidden=case.hidden + 0.5, weight=case.weight + weight_offset).to(dtype)


def truth_of(case, upstream):
    """The exact gradients in float64: of the formulas, or for a half of the exact path, which rounds as ours does."""
    half = case.hidden.dtype in (torch.bfloat16, torch.float16)
    op, wide = (linear_cross_entropy, case) if half else (oracle.loss, case.double().without("chunk_tokens", "backend"))
    return {name: x.double() for name, x in evaluate(op, wide, upstream).grads.items()}


def classes_of(case):
    """The classes of the targets, which are always kept; none for distributions."""
    if not oracle.is_indices(case.target):
        return torch.empty(0, dtype=torch.int64)
    shift = case.options.get("shift", 0)
    target = case.target[..., shift:]
    return target[target != case.options.get("ignore_index", -100)].unique()


def groups_of(name, exact, case):
    """Groups of rows of a gradient, by name."""
    rows = torch.arange(len(exact))
    if name == "hidden":
        return {"all": rows, **{f"quarter {i}": part for i, part in enumerate(rows.chunk(4))}}
    others = torch.ones(len(exact), dtype=torch.bool).index_fill_(0, classes_of(case), False).nonzero()[:, 0]
    order = others[exact[others].norm(dim=1).argsort(descending=True)]
    n = len(order) // 4
    return {"all": rows, "targets": classes_of(case), "frequent": order[:n], "rare": order[n:]}


def directions_of(name, exact, case):
    """Directions (S, rows * D) of norm 1 in a gradient (rows, D), by name: groups of rows, and what lies in them."""
    generator = torch.Generator().manual_seed(5)
    mean = F.normalize(case.hidden.double().reshape(-1, exact.shape[1]).mean(0), dim=0)
    found = {}
    for group, rows in groups_of(name, exact, case).items():
        fields = {"along itself": exact, "along the mean": mean.expand_as(exact), "sum": torch.ones_like(exact)}
        fields["random"] = torch.randn(exact.shape, generator=generator, dtype=torch.float64)
        for field, x in fields.items():
            part = torch.zeros_like(exact).index_copy_(0, rows, x[rows])
            if part.norm() > 0:
                found[f"d{name}, {group}, {field}"] = (part / part.norm()).flatten()
    return found


@contextmanager
def unchecked():
    """Leave out the checks of annotations, which take more time than the loss."""
    decorator = patch.object(jaxtyping, "jaxtyped", lambda **_: lambda function: function)
    with decorator, patch.object(jaxtyping.config, "jaxtyping_disable", True):
        yield


def draw_many(case, n_draws, tolerance, upstream=None):
    """Run forward and backward so many times, each with a seed of its own."""
    upstream = upstream_like(case.call(linear_cross_entropy)) if upstream is None else upstream
    truth = truth_of(case, upstream)
    exact = evaluate(linear_cross_entropy, case, upstream)
    leaves = {name: x.detach().clone().requires_grad_() for name, x in case.leaves().items()}
    names, flat, sampled = list(leaves), {}, [name for name in leaves if name in SAMPLED]
    for name in sampled:
        truth[name] = truth[name].reshape(-1, truth[name].shape[-1])
        flat[name] = directions_of(name, truth[name], case)
    matrices = {name: torch.stack(list(x.values())) for name, x in flat.items()}
    errors, squares = [], dict.fromkeys(sampled, 0.0)
    case, generator = case.with_leaves(leaves), torch.Generator().manual_seed(11)
    with record_sampling() as records, unchecked():
        for _ in range(n_draws):
            loss = case.call(linear_cross_entropy, grad_tolerance=tolerance, generator=generator)
            grads = dict(zip(names, torch.autograd.grad(loss, list(leaves.values()), upstream), strict=True))
            off = {name: (grads[name].double().view_as(truth[name]) - truth[name]).flatten() for name in sampled}
            errors.append(torch.cat([matrices[name] @ off[name] for name in sampled]))
            for name in sampled:
                squares[name] += float(off[name].square().sum() / truth[name].square().sum() / n_draws)
    assert torch.equal(loss, exact.loss), "the loss is not that of the exact path"
    for name in set(names) - set(sampled):
        torch.testing.assert_close(grads[name], exact.grads[name], msg=lambda m, name=name: f"d{name}: {m}")
    sizes = torch.cat([truth[name].norm().expand(len(matrices[name])) for name in sampled])
    return Draws([key for x in flat.values() for key in x], torch.stack(errors), sizes, squares, records)


def check_unbiased(case, n_draws, tolerance, upstream=None):
    """Return the largest mean error in standard errors. Fail where it is not chance, and where nothing was sampled."""
    draws = draw_many(case, n_draws, tolerance, upstream)
    assert len(draws.records) == n_draws
    kept = sum(record.columns_kept for record in draws.records) / n_draws
    assert kept < 0.5, f"nothing was sampled: {kept:.0%} of the columns were kept"
    mean, se = draws.errors.mean(0).abs(), draws.errors.std(0) / math.sqrt(n_draws)
    rounding = ROUNDING[case.hidden.dtype] * draws.sizes
    biased = [
        f"{name}: {m:.2e} +- {s:.2e}"
        for name, m, s, r in zip(draws.names, mean, se, rounding, strict=True)
        if m > BOUND * s + r
    ]
    assert not biased, f"biased: {biased}"
    return float((mean / (se + rounding)).max())
