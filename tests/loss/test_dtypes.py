"""Which dtypes go in, and which come out."""

import pytest
import torch
import torch.nn.functional as F

from cynosure.loss import cross_entropy, linear_cross_entropy
from tests.loss import oracle
from tests.loss.cases import REDUCTIONS, Case, evaluate, make_case


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_dtypes_of_losses_and_gradients(reduction, dtype, backend):
    case = make_case(bias=True, reduction=reduction).to(dtype)
    ours = evaluate(linear_cross_entropy, case, backend=backend)
    assert ours.loss.dtype == oracle.wide(dtype)
    assert {name: g.dtype for name, g in ours.grads.items()} == dict.fromkeys(ours.grads, dtype)
    logits = F.linear(case.hidden, case.weight).requires_grad_()
    loss = cross_entropy(logits, case.target, reduction=reduction, backend=backend)
    assert loss.dtype == oracle.wide(dtype)
    assert torch.autograd.grad(loss, logits, torch.ones_like(loss))[0].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_and_distributions_of_other_float_dtypes(dtype, backend):
    """Class weights, token weights and probabilities may be narrower or wider than the hidden states."""
    case = make_case(kind="dense", class_weight=True, token_weight=True, dtype=torch.float32)
    truth = case.call(oracle.loss)
    other = {name: case.options[name].double() for name in ("class_weight", "token_weight")}
    mixed = Case(case.hidden, case.weight, case.target.double(), {**case.options, **other})
    torch.testing.assert_close(mixed.call(linear_cross_entropy, backend=backend), truth, rtol=1e-6, atol=1e-6)
    half = case.to(dtype)
    loss = half.call(linear_cross_entropy, backend=backend)
    torch.testing.assert_close(loss, half.call(oracle.loss), rtol=1e-5, atol=1e-5)


def test_a_normalizer_that_requires_grad_is_a_constant(backend):
    case = make_case()
    normalizer = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    h = case.hidden.clone().requires_grad_()
    linear_cross_entropy(h, case.weight, case.target, normalizer=normalizer, backend=backend).backward()
    assert normalizer.grad is None
    assert h.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_integer_targets_of_any_width(dtype, backend):
    case = make_case(ignored=0.0)
    truth = case.call(oracle.loss)
    narrow = Case(case.hidden, case.weight, case.target.to(dtype))
    torch.testing.assert_close(narrow.call(linear_cross_entropy, backend=backend), truth, rtol=1e-12, atol=1e-12)
