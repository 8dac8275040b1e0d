"""Ignored, missing and impossible tokens: what costs nothing, poisons nothing, is zero, is infinite."""

import pytest
import torch
import torch.nn.functional as F

from cynosure.loss import cross_entropy, linear_cross_entropy, token_logprobs
from tests.loss import oracle
from tests.loss.cases import KINDS, REDUCTIONS, Case, assert_same, evaluate, make_case, make_target
from tests.loss.probes import Gemms

pytestmark = pytest.mark.usefixtures("poison_empty")

INF = float("inf")
NAN = float("nan")
EVERYTHING = {"bias": True, "class_weight": True, "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 3.0, "shift": 1}


def on_logits(hidden, weight, target, *, bias=None, chunk_tokens=None, **options):
    return cross_entropy(F.linear(hidden, weight, bias), target, **options)


OPS = {"linear_cross_entropy": linear_cross_entropy, "cross_entropy": on_logits}


@pytest.fixture(params=OPS)
def op(request):
    return OPS[request.param]


def with_ignored_rows(kind, reduction, rows=(1, 2, 6), **options):
    """A batch whose `rows` are ignored, by the index where there is one and else by a token weight of zero."""
    case = make_case(lead=(8,), kind=kind, ignore_index=-7, reduction=reduction, **options)
    if kind == "indices":
        case.target.copy_(torch.randint(7, (8,)))
        case.target[list(rows)] = -7
        return case
    weights = torch.ones(8, dtype=torch.float64)
    weights[list(rows)] = 0
    return case.using(token_weight=weights).freeze("token_weight")


@pytest.mark.cpu_only
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("reduction", "products"), [("mean", 3), ("sum", 3), ("none", 4)])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 2, 3, 100])
def test_ignored_rows_cost_no_matrix_product(kind, reduction, products, chunk_tokens, backend):
    case = with_ignored_rows(kind, reduction)
    with Gemms() as gemms:
        evaluate(linear_cross_entropy, case, backend=backend, chunk_tokens=chunk_tokens)
    assert gemms.count(5, 5, 7) == products
    with Gemms() as gemms:
        case.call(linear_cross_entropy, backend=backend, chunk_tokens=chunk_tokens)
    assert gemms.count(5, 5, 7) == 1


@pytest.mark.cpu_only
def test_rows_that_shift_drops_cost_nothing_either(backend):
    case = make_case(lead=(3, 6), shift=2)
    case.target.clamp_(min=0)
    with Gemms() as gemms:
        evaluate(linear_cross_entropy, case, backend=backend)
    assert gemms.count(3 * 4, 5, 7) == 3


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_nan_in_an_ignored_row_poisons_nothing(options, reduction, kind, bad, backend):
    rows = [1, 2, 6]
    case = with_ignored_rows(kind, reduction, **options)
    truth = evaluate(oracle.loss, case)
    shift = options.get("shift", 0)
    hidden = case.hidden.clone()
    hidden[[r - shift for r in rows]] = bad
    poisoned = Case(hidden, case.weight, case.target, case.options, case.frozen)
    ours = evaluate(linear_cross_entropy, poisoned, backend=backend, chunk_tokens=3)
    assert (ours.grads["hidden"][[r - shift for r in rows]] == 0).all()
    assert_same(ours, truth)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_nan_in_ignored_logits_poisons_nothing(reduction, backend):
    case = with_ignored_rows("indices", reduction)
    logits = F.linear(case.hidden, case.weight)
    truth_leaf = logits.clone().requires_grad_()
    oracle.loss_of_logits(truth_leaf, case.target, **case.options).sum().backward()
    logits[[1, 2, 6]] = NAN
    logits.requires_grad_()
    cross_entropy(logits, case.target, **case.options, backend=backend).sum().backward()
    torch.testing.assert_close(logits.grad, truth_leaf.grad, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_nan_in_the_distribution_of_an_ignored_row_poisons_nothing(kind, op, backend):
    case = with_ignored_rows(kind, "mean")
    truth = evaluate(oracle.loss, case)
    probabilities = case.target if kind == "dense" else case.target[1]
    probabilities[[1, 2, 6]] = NAN
    assert_same(evaluate(op, case, backend=backend), truth)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_nan_weight_on_an_ignored_index_poisons_nothing(reduction, op, backend):
    case = with_ignored_rows("indices", reduction)
    weights = torch.rand(8, dtype=torch.float64) + 0.5
    truth = evaluate(oracle.loss, case.using(token_weight=weights))
    spoilt = weights.clone()
    spoilt[[1, 2, 6]] = NAN
    ours = evaluate(op, case.using(token_weight=spoilt), backend=backend)
    assert_same(ours, truth)


def empty(kind):
    return Case(
        torch.zeros(0, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64), make_target(kind, (0,), 7)
    )


def ignored(kind):
    case = make_case(lead=(2, 3), kind=kind)
    if kind == "indices":
        case.target.fill_(-100)
        return case
    return case.using(token_weight=torch.zeros(2, 3, dtype=torch.float64)).freeze("token_weight")


def weightless(kind):
    """Class weights of zero wherever a target points: the normalizer is zero though no row is ignored."""
    case = make_case(lead=(4,), kind="indices", class_weight=True)
    case.target.fill_(1)
    assert case.options["class_weight"][1] == 0
    return case


@pytest.mark.parametrize("nothing", [empty, ignored, weightless])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("normalizer", [None, 4.0])
def test_nothing_to_learn_is_zero_with_a_graph(nothing, kind, reduction, normalizer, op, backend):
    case = nothing(kind).using(reduction=reduction)
    if normalizer and reduction == "mean":
        case = case.using(normalizer=normalizer)
    hidden, weight = case.hidden.clone().requires_grad_(), case.weight.clone().requires_grad_()
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True)
    loss = op(hidden, weight, case.target, bias=bias, backend=backend, **case.options)
    assert loss.shape == (hidden.shape[:-1] if reduction == "none" else ())
    assert (loss == 0).all()
    loss.sum().backward()
    for leaf in (hidden, weight, bias):
        assert leaf.grad is not None
        assert (leaf.grad == 0).all()


@pytest.mark.cpu_only
def test_nothing_kept_costs_no_matrix_product(backend):
    with Gemms() as gemms:
        evaluate(linear_cross_entropy, ignored("indices"), backend=backend)
    assert gemms.flops == 0


def test_impossible_targets_cost_infinity_and_harm_no_other_row(op, backend):
    case = make_case(lead=(6,), bias=True, reduction="none")
    case.target.copy_(torch.tensor([0, 4, 1, 4, 2, 3]))
    case.options["bias"][4] = -INF
    impossible = case.target == 4
    fresh = {name: x.clone().requires_grad_() for name, x in case.leaves().items()}
    losses = case.with_leaves(fresh).call(op, backend=backend)
    assert (losses[impossible] == INF).all()
    truth = case.call(oracle.loss)
    torch.testing.assert_close(losses[~impossible], truth[~impossible], rtol=1e-12, atol=1e-12)
    losses.sum().backward()
    for name, x in fresh.items():
        assert not x.grad.isnan().any(), name
    without = case.using(token_weight=(~impossible).double()).freeze("token_weight")
    dhidden = evaluate(oracle.loss, without, torch.ones(6)).grads["hidden"]
    torch.testing.assert_close(fresh["hidden"].grad[~impossible], dhidden[~impossible], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_an_impossible_target_makes_the_scalar_infinite_not_nan(reduction, op, backend):
    case = make_case(lead=(6,), bias=True, reduction=reduction)
    case.target[0] = 4
    case.options["bias"][4] = -INF
    ours = evaluate(op, case, torch.tensor(1.0), backend=backend)
    assert ours.loss == INF
    assert_same(ours, evaluate(oracle.loss, case, torch.tensor(1.0)))


def test_an_impossible_target_has_logprob_minus_infinity(backend):
    case = make_case(lead=(6,), bias=True)
    case.target[0] = 4
    case.options["bias"][4] = -INF
    assert case.call(token_logprobs, backend=backend)[0] == -INF


@pytest.mark.parametrize(
    "options", [{"kind": "dense"}, {"kind": "sparse"}, {"kind": "indices", "label_smoothing": 0.2}]
)
def test_what_is_not_wanted_of_an_impossible_class_counts_zero(options, op, backend):
    """q = 0 at a logit of minus infinity: no mass, by the target or by a class weight of zero, so no loss."""
    case = make_case(lead=(6,), bias=True, class_weight=True, **options)
    case.options["bias"][1] = -INF  # whose class weight is zero
    ours = evaluate(op, case, backend=backend)
    assert ours.loss.isfinite()
    assert_same(ours, evaluate(oracle.loss, case))


def test_an_impossible_target_that_weighs_nothing_counts_zero(op, backend):
    case = make_case(lead=(6,), bias=True, class_weight=True, reduction="none")
    case.target.copy_(torch.tensor([0, 1, 2, 1, 3, 4]))
    case.options["bias"][1] = -INF
    assert_same(evaluate(op, case, backend=backend), evaluate(oracle.loss, case))


@pytest.mark.cpu_only
@pytest.mark.parametrize("bad", [7, -1, -2, 2**40, -(2**40)])
@pytest.mark.parametrize("lead", [(9,), (3, 3)])
def test_an_index_out_of_range_is_named_with_its_place(lead, bad, op, backend):
    case = make_case(lead=lead)
    case.target.view(-1)[5] = bad
    place = "[5]" if len(lead) == 1 else "[1, 2]"
    with pytest.raises(IndexError) as caught:
        case.call(op, backend=backend)
    message = str(caught.value)
    assert "target" in message
    assert str(bad) in message
    assert place.strip("[]") in message
    assert "7" in message


@pytest.mark.cpu_only
def test_an_index_out_of_range_under_shift_is_placed_in_the_target_given(backend):
    case = make_case(lead=(2, 5), shift=2)
    case.target[1, 3] = 99
    with pytest.raises(IndexError, match=r"1, 3.*99"):
        case.call(linear_cross_entropy, backend=backend)


@pytest.mark.cpu_only
def test_an_index_out_of_range_in_a_sparse_target(op, backend):
    case = make_case(lead=(4,), kind="sparse")
    case.target[0][2, 1] = 7
    with pytest.raises(IndexError, match=r"2, 1.*7"):
        case.call(op, backend=backend)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sequences_as_short_as_the_shift_hold_nothing_to_predict(reduction, op, backend):
    case = make_case(lead=(3, 1), shift=1, reduction=reduction)
    ours = evaluate(op, case, backend=backend)
    assert ours.loss.shape == ((3, 0) if reduction == "none" else ())
    assert all((x == 0).all() for x in ours.named().values())


@pytest.mark.parametrize("n", [0, 1])
def test_none_of_few_tokens(n, op, backend):
    case = make_case(lead=(n,), reduction="none")
    assert case.call(op, backend=backend).shape == (n,)
