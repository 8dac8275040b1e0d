"""Which dtypes go in, and which come out."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from cynosure.loss import cross_entropy, linear_cross_entropy, token_logprobs, token_stats
from tests.loss import oracle
from tests.loss.cases import REDUCTIONS, Case, assert_same, evaluate, make_case


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


INTEGERS = [
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip


@pytest.mark.parametrize("function", [token_logprobs, lambda *given, **options: token_stats(*given, **options).nll])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_tokens_of_any_integer_dtype(dtype, function, backend):
    case = make_case(lead=(2, 6), ignored=0.0)
    truth = function(case.hidden, case.weight, case.target, shift=1, backend=backend)
    torch.testing.assert_close(
        function(case.hidden, case.weight, case.target.to(dtype), shift=1, backend=backend), truth, rtol=0, atol=0
    )


@pytest.mark.parametrize("kind", ["indices", "sparse"])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_targets_of_any_integer_dtype(dtype, kind, backend):
    """token_weight leaves rows out, so that they are indexed and not sliced."""
    case = make_case(lead=(3, 5), kind=kind, ignored=0.0, class_weight=True, token_weight=True, shift=1)
    target = (case.target[0].to(dtype), case.target[1]) if kind == "sparse" else case.target.to(dtype)
    assert_same(
        evaluate(linear_cross_entropy, replace(case, target=target), backend=backend), evaluate(oracle.loss, case)
    )


@pytest.mark.parametrize("dtype", INTEGERS)
def test_an_ignore_index_that_the_dtype_cannot_hold_ignores_nothing(dtype, backend):
    """torch compares with the remainder: its uint8 156 equals -100."""
    logits = torch.randn(2, 200, dtype=torch.float64)
    target = torch.tensor([156 if dtype != torch.int8 else 100, 3])
    truth = oracle.loss_of_logits(logits, target)
    for ignore_index in (-100, -(2**70), 2**70):
        ours = cross_entropy(logits, target.to(dtype), ignore_index=ignore_index, backend=backend)
        torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ignored", [255, 2**16 - 100, 2**64 - 100])
def test_an_ignore_index_in_the_range_of_unsigned_integers(ignored, backend):
    logits = torch.randn(2, 7, dtype=torch.float64)
    dtype = torch.uint8 if ignored < 256 else torch.uint16 if ignored < 2**16 else torch.uint64
    target = torch.tensor([ignored, 3], dtype=dtype)
    ours = cross_entropy(logits, target, ignore_index=ignored, backend=backend)
    torch.testing.assert_close(ours, oracle.loss_of_logits(logits[1:], torch.tensor([3])), rtol=1e-12, atol=1e-12)
