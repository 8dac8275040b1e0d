"""Several shifts in one call are the weighed sum of calls with one shift each."""

import pytest
import torch

from cynosure.loss import (
    LinearCrossEntropyLoss,
    cross_entropy,
    linear_cross_entropy,
    logits_token_logprobs,
    token_logprobs,
    token_stats,
)
from tests.loss.cases import KINDS, REDUCTIONS, evaluate, make_case, upstream_like
from tests.loss.graphs import full_graph
from tests.loss.probes import Allocations, Gemms

SHIFTS, WEIGHTS = (1, 2, 0), (1.0, 0.3, -0.5)
T = 6
EVERYTHING = {
    "bias": True, "class_weight": True, "token_weight": True, "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 3.0,
    "scale": 0.7,
}  # fmt: skip


def one_by_one(hidden, weight, target, *, shift, shift_weight=None, reduction="mean", **options):
    """The truth: one call for each shift."""
    parts = [
        linear_cross_entropy(h, weight, target, shift=k, reduction=reduction, **options)
        for h, k in zip(hidden, shift, strict=True)
    ]
    weights = [1.0] * len(shift) if shift_weight is None else shift_weight
    parts = [w * part for w, part in zip(weights, parts, strict=True)]
    return flat(parts) if reduction == "none" else sum(parts)


def at_once(*args, **options):
    loss = linear_cross_entropy(*args, **options)
    return flat(loss) if options.get("reduction") == "none" else loss


def flat(losses):
    return torch.cat([x.reshape(-1) for x in losses])


def shifted_case(kind="indices", lead=(2, T), shifts=SHIFTS, **options):
    """hidden (S, ..., T, D), all else as for one shift."""
    case = make_case(lead=lead, kind=kind, **options)
    hidden = torch.randn(len(shifts), *case.hidden.shape, dtype=case.hidden.dtype)
    return case.with_leaves({"hidden": hidden}).using(shift=shifts)


def assert_close(ours, truth, tol=1e-12):
    for (name, x), y in zip(ours.named().items(), truth.named().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=tol, atol=tol, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("shift_weight", [None, WEIGHTS])
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_is_the_sum_of_the_shifts(reduction, kind, options, shift_weight):
    case = shifted_case(kind, reduction=reduction, **options).using(shift_weight=shift_weight)
    assert_close(evaluate(at_once, case), evaluate(one_by_one, case))


@pytest.mark.parametrize("kind", KINDS)
def test_on_every_backend(kind, backend):
    case = shifted_case(kind, **EVERYTHING).using(backend=backend, chunk_tokens=5)
    assert_close(evaluate(at_once, case), evaluate(one_by_one, case))


@pytest.mark.parametrize("normalizer", [7.0, 0.0])
def test_a_normalizer_divides_every_shift(normalizer):
    case = shifted_case(shift_weight=WEIGHTS).using(normalizer=normalizer)
    assert_close(evaluate(at_once, case), evaluate(one_by_one, case))


@pytest.mark.parametrize(("lead", "shifts"), [((1,), (0,)), ((2,), (1, 2)), ((3, 2, 4), (4, 1)), ((T,), (1,))])
def test_ugly_shapes(lead, shifts):
    case = shifted_case(lead=lead, shifts=shifts, reduction="sum", ignored=0.5)
    assert_close(evaluate(at_once, case), evaluate(one_by_one, case))


def test_all_ignored():
    case = shifted_case(ignored=1.1)
    ours = evaluate(at_once, case)
    assert ours.loss == 0
    assert all(not g.any() for g in ours.grads.values())


def test_nan_in_ignored_rows_reaches_nothing():
    case = shifted_case(ignored=0.0)
    target = case.target.clone()
    target[:, 3] = -100
    hidden = case.hidden.clone()
    for s, k in enumerate(SHIFTS):  # the rows that predict token 3, and those beyond the end
        hidden[s, :, 3 - k] = torch.nan
        hidden[s, :, T - k :] = torch.nan
    case = case.with_leaves({"hidden": hidden})
    ours = evaluate(at_once, type(case)(hidden, case.weight, target, case.options))
    assert all(x.isfinite().all() for x in ours.named().values())


def test_losses_are_a_tuple():
    case = shifted_case(reduction="none")
    losses = case.call(linear_cross_entropy)
    assert [x.shape for x in losses] == [(2, T - k) for k in SHIFTS]


def test_backward_twice_and_another_upstream():
    case = shifted_case().freeze("weight")
    hidden = case.hidden.clone().requires_grad_()
    loss = case.with_leaves({"hidden": hidden}).call(linear_cross_entropy)
    first = torch.autograd.grad(loss, hidden, upstream_like(loss), retain_graph=True)[0]
    second = torch.autograd.grad(loss, hidden, upstream_like(loss))[0]
    torch.testing.assert_close(first, second)


@pytest.mark.cpu_only
def test_one_pass_over_the_weight():
    """Three matmuls of all rows, and nothing of the size of dW for each shift."""
    d, v, n, shifts = 4, 500, 40, (0, 0, 0)
    hidden, weight = torch.randn(3, n, d), torch.randn(v, d)
    hidden.requires_grad_(), weight.requires_grad_()
    with Gemms() as gemms, Allocations(hidden, weight, large=v * d) as made:
        linear_cross_entropy(hidden, weight, torch.randint(v, (n,)), shift=shifts, backend="torch").backward()
    assert gemms.count(3 * n, d, v) == 3
    assert sum(storage.nbytes() == v * d * 4 for storage in made.kept.values()) == 1


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_in_a_graph(reduction):
    case = shifted_case(reduction=reduction, shift_weight=WEIGHTS).to(torch.float32)
    compiled = full_graph(at_once, "aot_eager")
    assert_close(evaluate(compiled, case), evaluate(at_once, case), 1e-6)


def test_bounds_on_the_counted_targets():
    case = shifted_case(ignored=0.5)
    n_counted = int((case.target != -100).sum())
    torch.testing.assert_close(case.call(at_once, n_counted=n_counted), case.call(at_once))


def test_the_module():
    case = shifted_case(shift_weight=WEIGHTS)
    module = LinearCrossEntropyLoss(shift=SHIFTS, shift_weight=WEIGHTS)
    assert module(case.hidden, case.weight, case.target) == case.call(linear_cross_entropy)


def test_without_values():
    case = shifted_case(reduction="none")
    inputs = [x.to("meta") for x in (case.hidden, case.weight, case.target)]
    losses = linear_cross_entropy(*inputs, shift=SHIFTS, reduction="none")
    assert [x.shape for x in losses] == [(2, T - k) for k in SHIFTS]


BAD = [
    ({"shift": ()}, "shift must have at least one entry"),
    ({"shift": (1, -1)}, "shift must not be negative, got -1"),
    ({"shift": (1, 1.5)}, "shift must be an integer, got 1.5"),
    ({"shift": (1, 99, 2)}, "shift must be at most the sequence length 6, got 99"),
    ({"shift": 1, "shift_weight": (1.0,)}, "shift_weight needs a tuple of shifts, got shift=1"),
    ({"shift_weight": (1.0, 2.0)}, "shift_weight must have one number for each of 3 shifts, got 2"),
    ({"shift_weight": (1.0, 2.0, float("nan"))}, "shift_weight must be finite"),
    ({"shift": (1, 2)}, r"2 shifts need hidden of shape \(2, ..., T, D\).*pass torch.stack"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        shifted_case().call(linear_cross_entropy, **options)


@pytest.mark.parametrize("op", [token_logprobs, token_stats])
def test_other_operations_take_one_shift(op):
    case = shifted_case()
    with pytest.raises(TypeError, match=r"here, got .* only linear_cross_entropy takes several"):
        op(case.hidden, case.weight, case.target, shift=SHIFTS)


@pytest.mark.parametrize("op", [cross_entropy, logits_token_logprobs])
def test_operations_on_logits_take_one_shift(op):
    with pytest.raises(TypeError, match="shift must be an integer here, got"):
        op(torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.long), shift=(1, 2))
