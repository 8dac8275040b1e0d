"""A loss is a plain function of its inputs: any upstream gradient, any number of backwards, any subset of inputs."""

from dataclasses import replace
from functools import partial
from itertools import chain, combinations

import pytest
import torch
import torch.nn.functional as F

from cynosure.loss import cross_entropy, linear_cross_entropy
from tests.loss import oracle
from tests.loss.cases import LEAVES, REDUCTIONS, assert_same, evaluate, make_case, upstream_like
from tests.loss.probes import Gemms

EVERYTHING = {"bias": True, "token_weight": True, "class_weight": True, "label_smoothing": 0.1, "z_loss": 0.01}
SUBSETS = list(chain.from_iterable(combinations(LEAVES, n) for n in range(len(LEAVES) + 1)))


def on_logits(hidden, weight, target, *, bias=None, chunk_tokens=None, **options):
    return cross_entropy(F.linear(hidden, weight, bias), target, **options)


OPS = {"linear_cross_entropy": linear_cross_entropy, "cross_entropy": on_logits}


@pytest.fixture(params=OPS)
def op(request):
    return OPS[request.param]


@pytest.fixture(params=REDUCTIONS)
def case(request):
    return make_case(lead=(10,), reduction=request.param, **EVERYTHING)


def close(x, y):
    torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)


def leaf_case(case, names=LEAVES):
    leaves = {n: x.detach().clone().requires_grad_(n in names) for n, x in case.leaves().items()}
    return case.with_leaves(leaves), leaves


@pytest.mark.parametrize("factor", [0.0, 1.0, -3.0, 1e-3, 1024.0])
def test_a_factor_on_the_loss_is_a_factor_on_its_gradients(case, op, factor, backend):
    fresh, leaves = leaf_case(case)
    (fresh.call(op, backend=backend, chunk_tokens=3).sum() * factor).backward()
    ones = torch.ones_like(case.call(oracle.loss))
    truth = evaluate(oracle.loss, case, ones)
    for name, x in leaves.items():
        close(x.grad, factor * truth.grads[name])


def test_backward_again_and_again_accumulates(case, op, backend):
    fresh, leaves = leaf_case(case)
    loss = fresh.call(op, backend=backend, chunk_tokens=3)
    ups = [upstream_like(loss, seed) for seed in range(4)]
    for up in ups:
        loss.backward(up, retain_graph=True)
    truth = evaluate(oracle.loss, case, sum(ups))
    for name, x in leaves.items():
        close(x.grad, truth.grads[name])


def test_the_same_backward_thrice_is_three_times_it(case, op, backend):
    fresh, leaves = leaf_case(case)
    loss = fresh.call(op, backend=backend)
    up = torch.ones_like(loss)
    for _ in range(3):
        loss.backward(up, retain_graph=True)
    truth = evaluate(oracle.loss, case, up)
    for name, x in leaves.items():
        close(x.grad, 3 * truth.grads[name])


def test_gradients_handed_out_are_the_users_to_change(case, op, backend):
    fresh, leaves = leaf_case(case)
    loss = fresh.call(op, backend=backend)
    up = upstream_like(loss)
    for grad in torch.autograd.grad(loss, list(leaves.values()), up, retain_graph=True):
        grad.fill_(float("nan"))
    again = torch.autograd.grad(loss, list(leaves.values()), up)
    truth = evaluate(oracle.loss, case, up)
    for name, grad in zip(leaves, again, strict=True):
        close(grad, truth.grads[name])


def test_the_upstream_gradient_is_left_as_it_was(case, op, backend):
    fresh, _ = leaf_case(case)
    loss = fresh.call(op, backend=backend)
    up = upstream_like(loss)
    before = up.clone()
    loss.backward(up)
    assert torch.equal(up, before)


def test_an_expanded_upstream_of_none(op, backend):
    case = make_case(lead=(10,), reduction="none", **EVERYTHING)
    fresh, leaves = leaf_case(case)
    fresh.call(op, backend=backend).sum().backward()  # upstream: one number, expanded
    truth = evaluate(oracle.loss, case, torch.ones(10))
    for name, x in leaves.items():
        close(x.grad, truth.grads[name])


def test_a_weight_changed_in_place_is_never_used_as_if_it_had_not_been(case, op, backend):
    fresh, leaves = leaf_case(case)
    loss = fresh.call(op, backend=backend)
    up = upstream_like(loss)
    truth = evaluate(oracle.loss, case, up)
    inputs = list(leaves.values())
    torch.autograd.grad(loss, inputs, up, retain_graph=True)
    with torch.no_grad():
        leaves["weight"].mul_(2)
    try:
        grads = torch.autograd.grad(loss, inputs, up)
    except RuntimeError as error:
        refusal = str(error)
    else:
        for name, grad in zip(leaves, grads, strict=True):
            close(grad, truth.grads[name])
        return
    assert "modified by an inplace operation" in refusal


def test_two_losses_of_one_head_add_up(case, backend):
    fresh, leaves = leaf_case(case)
    first = fresh.call(linear_cross_entropy, backend=backend).sum()
    second = fresh.using(softcap=2.0).call(linear_cross_entropy, backend=backend).sum()
    (2 * first - second).backward()
    a, b = (evaluate(oracle.loss, c, torch.ones_like(c.call(oracle.loss))) for c in (case, case.using(softcap=2.0)))
    for name, x in leaves.items():
        close(x.grad, 2 * a.grads[name] - b.grads[name])


def suited(case, wanted):
    """The case, with probabilities for its target where they are wanted a gradient of."""
    dense = make_case(lead=(10,), kind="dense").target
    return replace(case, target=dense) if "probability" in wanted else case


@pytest.mark.parametrize("wanted", SUBSETS, ids="-".join)
def test_gradients_only_where_asked(case, op, wanted, backend):
    case = suited(case, wanted)
    fresh, leaves = leaf_case(case, wanted)
    loss = fresh.call(op, backend=backend, chunk_tokens=3)
    assert loss.requires_grad is bool(wanted)
    if not wanted:
        return
    up = upstream_like(loss)
    loss.backward(up)
    truth = evaluate(oracle.loss, case, up)
    for name, x in leaves.items():
        if name in wanted:
            close(x.grad, truth.grads[name])
        else:
            assert x.grad is None


@pytest.mark.cpu_only
@pytest.mark.parametrize("wanted", SUBSETS, ids="-".join)
def test_matrix_products_only_where_asked(case, wanted, backend):
    """One for the logits, one for each of dhidden and dweight; `none` makes the logits again to have a gradient."""
    case = suited(case, wanted)
    fresh, _ = leaf_case(case, wanted)
    v, d = case.weight.shape
    counted = torch.ones(case.hidden.shape[:-1], dtype=bool) if "probability" in wanted else case.target != -100
    if "token_weight" not in wanted:  # a constant weight of zero: ignored; a learned one has a derivative there
        counted &= case.options["token_weight"] != 0
    kept = int(counted.sum())
    with Gemms() as gemms:
        loss = fresh.call(linear_cross_entropy, backend=backend, chunk_tokens=3)
        if wanted:
            loss.backward(upstream_like(loss))
    products = 1 + ("hidden" in wanted) + ("weight" in wanted)
    again = case.options["reduction"] == "none" and wanted not in [(), ("token_weight",)]
    assert gemms.count(kept, d, v) == products + again


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_hot_probabilities_have_the_surprise_of_every_class(reduction, dtype, op, backend):
    """lse - z, where the probability is 0 too; in the probabilities' own dtype, 0 in rows that are left out."""
    case = make_case(lead=(3, 4), kind="dense", reduction=reduction, token_weight=True, shift=1).freeze("token_weight")
    case = replace(case, target=torch.eye(7, dtype=dtype)[torch.randint(7, (3, 4))])
    truth, ours = (evaluate(f, case).grads["probability"] for f in (oracle.loss, partial(op, backend=backend)))
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, truth, rtol=torch.finfo(dtype).eps * 10, atol=1e-12)
    assert (ours[:, 0] == 0).all()
    assert (ours[:, 1:][case.options["token_weight"][:, 1:] == 0] == 0).all()
    assert (ours != 0).sum() == 7 * (case.options["token_weight"][:, 1:] != 0).sum()


def test_an_impossible_class_has_an_infinite_derivative_unless_it_weighs_nothing(op, backend):
    case = make_case(lead=(2,), kind="dense", bias=True, class_weight=True, softcap=None)
    case = replace(case, target=torch.eye(7, dtype=torch.float64)[[0, 3]])
    case.options["bias"][[1, 2]] = -torch.inf  # the first has class weight 0
    ours = evaluate(op, case, backend=backend).grads["probability"]
    assert (ours[:, 1] == 0).all()
    assert (ours[:, 2].abs() == torch.inf).all()
    assert ours[:, 3:].isfinite().all()


def test_a_frozen_backbone_still_trains_the_head(backend):
    head = torch.nn.Linear(5, 7, dtype=torch.float64)
    case = make_case()
    linear_cross_entropy(case.hidden, head.weight, case.target, bias=head.bias, backend=backend).backward()
    assert head.weight.grad.abs().sum() > 0
    assert head.bias.grad.abs().sum() > 0


def test_a_backward_of_a_backward_asked_for_but_not_used(case, op, backend):
    """create_graph=True alone, which some trainers always say, still gives the first derivative."""
    fresh, leaves = leaf_case(case)
    loss = fresh.call(op, backend=backend)
    up = upstream_like(loss)
    grads = torch.autograd.grad(loss, list(leaves.values()), up, create_graph=True)
    truth = evaluate(oracle.loss, case, up)
    for name, grad in zip(leaves, grads, strict=True):
        close(grad.detach(), truth.grads[name])


def test_inputs_are_left_as_they_were(case, op, backend):
    fresh, leaves = leaf_case(case)
    inputs = {**leaves, "target": fresh.target, "class_weight": fresh.options["class_weight"]}
    before = {name: (x.detach().clone(), x._version) for name, x in inputs.items()}
    loss = fresh.call(op, backend=backend)
    loss.backward(upstream_like(loss))
    for name, x in inputs.items():
        assert torch.equal(x, before[name][0]), name
        assert x._version == before[name][1], name


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_logits_and_distributions_are_left_as_they_were(kind, backend):
    case = make_case(kind=kind, label_smoothing=0.1, softcap=2.0)
    logits = F.linear(case.hidden, case.weight).requires_grad_()
    parts = [logits, *(case.target if isinstance(case.target, tuple) else [case.target])]
    before = [x.detach().clone() for x in parts]
    cross_entropy(logits, case.target, label_smoothing=0.1, softcap=2.0, backend=backend).backward()
    assert all(torch.equal(x, y) for x, y in zip(parts, before, strict=True))


def test_a_checkpointed_loss(case, op, backend):
    def checkpointed(hidden, weight, target, **options):
        return torch.utils.checkpoint.checkpoint(op, hidden, weight, target, use_reentrant=False, **options)

    assert_same(evaluate(checkpointed, case, backend=backend), evaluate(oracle.loss, case))


@pytest.mark.cpu_only
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(case, op, mode, backend):
    fresh, _ = leaf_case(case)
    with mode(), Gemms() as gemms:
        loss = fresh.call(op, backend=backend, chunk_tokens=3)
    assert not loss.requires_grad
    close(loss, case.call(oracle.loss))
    if op is linear_cross_entropy:
        kept = int(((case.target != -100) & (case.options["token_weight"] != 0)).sum())
        assert gemms.count(kept, 5, 7) == 1
