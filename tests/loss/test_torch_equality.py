"""Equal to torch.nn.functional.cross_entropy, loss and gradients, over every combination of arguments both accept."""

import pytest
import torch
import torch.nn.functional as F

from cynosure.loss import cross_entropy, linear_cross_entropy
from tests.loss.cases import REDUCTIONS, assert_same, evaluate, make_case

pytestmark = pytest.mark.usefixtures("poison_empty")

V = 7
TARGETS = [("indices", index) for index in (-100, -1, 0, 3)] + [("dense", -100), ("dense", -1)]


def torch_linear(hidden, weight, target, *, bias=None, class_weight=None, **options):
    return F.cross_entropy(F.linear(hidden, weight, bias), target, weight=class_weight, **options)


def on_logits(hidden, weight, target, *, bias=None, **options):
    return cross_entropy(F.linear(hidden, weight, bias), target, **options)


@pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("with_class_weight", [False, True], ids=["", "class_weight"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("kind", "ignore_index"), TARGETS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_equal_to_torch(reduction, kind, ignore_index, label_smoothing, with_class_weight, with_bias, backend):
    case = make_case(
        lead=(11,),
        v=V,
        kind=kind,
        bias=with_bias,
        class_weight=with_class_weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    truth = evaluate(torch_linear, case)
    assert_same(evaluate(linear_cross_entropy, case, backend=backend), truth)
    assert_same(evaluate(linear_cross_entropy, case, backend=backend, chunk_tokens=4), truth)
    assert_same(evaluate(on_logits, case, backend=backend), truth)


def test_a_row_without_batch_dimensions_is_one_token(backend):
    case = make_case(lead=(), v=V)
    case = type(case)(case.hidden, case.weight, torch.tensor(3))
    truth = evaluate(torch_linear, case)
    assert_same(evaluate(linear_cross_entropy, case, backend=backend), truth)
    assert_same(evaluate(on_logits, case, backend=backend), truth)


def test_classes_are_last_where_torch_has_them_second(backend):
    case = make_case(lead=(2, 3, 4), v=V)
    logits = F.linear(case.hidden, case.weight)
    truth = F.cross_entropy(logits.movedim(-1, 1), case.target, reduction="none")
    assert_same_tensor(cross_entropy(logits, case.target, reduction="none", backend=backend), truth)
    ours = linear_cross_entropy(case.hidden, case.weight, case.target, reduction="none", backend=backend)
    assert_same_tensor(ours, truth)


def assert_same_tensor(x, y):
    torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_the_one_difference_everything_ignored_is_zero_not_nan(backend):
    case = make_case(v=V)
    case.target.fill_(-100)
    assert torch_linear(case.hidden, case.weight, case.target).isnan()
    assert linear_cross_entropy(case.hidden, case.weight, case.target, backend=backend) == 0
    assert on_logits(case.hidden, case.weight, case.target, backend=backend) == 0
