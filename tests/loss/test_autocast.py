"""Autocast: what F.linear and F.cross_entropy would do under it, without the memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cynosure.loss import cross_entropy, linear_cross_entropy, token_logprobs, token_stats
from tests.loss import oracle
from tests.loss.cases import REDUCTIONS, evaluate, make_case, upstream_like
from tests.loss.probes import Gemms, assert_three_way, rms_error


def autocast(dtype=torch.bfloat16, enabled=True):
    return torch.autocast(torch.get_default_device().type, dtype=dtype, enabled=enabled)


def torch_linear(hidden, weight, target, *, bias=None, **options):
    return F.cross_entropy(F.linear(hidden, weight, bias), target, **options)


def under_autocast(op, case, dtype=torch.bfloat16, **how):
    """Forward inside autocast, backward outside it, as training loops do."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in case.leaves().items()}
    with autocast(dtype):
        loss = case.with_leaves(leaves).call(op, **how)
    inputs, up = list(leaves.values()), upstream_like(loss)
    grads = torch.autograd.grad(loss, inputs, up, retain_graph=True)
    again = torch.autograd.grad(loss, inputs, up)
    assert all(torch.equal(x, y) for x, y in zip(grads, again, strict=True))
    return {"loss": loss.detach(), **{f"d{name}": g for name, g in zip(leaves, grads, strict=True)}}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_autocast(reduction, dtype, backend):
    """The matrix products run in autocast's dtype, the loss in float32, gradients in the parameters' dtype."""
    case = make_case(lead=(64,), d=16, v=50, std=4, bias=True, reduction=reduction, dtype=torch.float32)
    truth = evaluate(oracle.loss, case.double()).named()
    theirs = under_autocast(torch_linear, case, dtype)
    with Gemms() as gemms:
        ours = under_autocast(linear_cross_entropy, case, dtype, backend=backend, chunk_tokens=10)
    assert gemms.dtypes == {dtype}
    for name, x in ours.items():
        assert x.dtype == torch.float32
        eps = torch.finfo(torch.float32).eps * (1 + truth[name].abs().max().item())
        assert_three_way(x, theirs[name], truth[name], eps=eps, name=name, error=rms_error)


def test_autocast_with_half_precision_hidden_states_of_its_own_making(backend):
    """Inside autocast a float32 layer gives bfloat16 hidden states, which meet a float32 head."""
    torch.manual_seed(0)
    body, head, target = nn.Linear(5, 5), nn.Linear(5, 7), torch.randint(7, (9,))
    x = torch.randn(9, 5)
    with autocast():
        hidden = body(x)
        assert hidden.dtype == torch.bfloat16
        loss = linear_cross_entropy(hidden, head.weight, target, bias=head.bias, backend=backend)
        theirs = F.cross_entropy(head(hidden), target)
        logprobs = token_logprobs(hidden, head.weight, target, bias=head.bias, backend=backend)
        stats = token_stats(hidden, head.weight, target, bias=head.bias, backend=backend)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in [*body.parameters(), *head.parameters()])
    torch.testing.assert_close(loss.detach(), theirs.detach(), rtol=0.01, atol=0.01)
    torch.testing.assert_close(-logprobs.mean(), loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats.nll.mean(), loss, rtol=1e-5, atol=1e-5)


def test_autocast_of_logits(backend):
    case = make_case(dtype=torch.float32)
    with autocast():
        logits = F.linear(case.hidden, case.weight)
        assert logits.dtype == torch.bfloat16
        ours, theirs = cross_entropy(logits, case.target, backend=backend), F.cross_entropy(logits.float(), case.target)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_autocast_leaves_float64_alone(backend):
    case = make_case(bias=True)
    with autocast():
        loss = case.call(linear_cross_entropy, backend=backend)
    torch.testing.assert_close(loss, case.call(oracle.loss), rtol=1e-12, atol=1e-12)


def test_autocast_turned_off_inside(backend):
    case = make_case(dtype=torch.float32)
    with autocast(), autocast(enabled=False), Gemms() as gemms:
        case.call(linear_cross_entropy, backend=backend)
    assert gemms.dtypes == {torch.float32}
