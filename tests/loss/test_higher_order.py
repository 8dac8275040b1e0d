"""Second derivatives, forward mode, torch.func: each right, or one error that says what to do; never silently wrong."""

import re

import pytest
import torch

from cynosure.loss import cross_entropy, linear_cross_entropy, token_logprobs
from tests.loss import oracle
from tests.loss.cases import make_case

WHAT_TO_DO = r"(use|call|try|instead).*cross_entropy"

SECOND = {
    "linear_cross_entropy": linear_cross_entropy,
    "none": lambda *args, **o: linear_cross_entropy(*args, **o, reduction="none").sum(),
    "token_logprobs": lambda *args, **o: token_logprobs(*args, **o).sum(),
    "cross_entropy": lambda h, w, t, **o: cross_entropy(h @ w.T, t, **o),
}


def gradient_of_a_penalty(op, case, how):
    """A loss whose gradient is penalised, differentiated in one of three usual ways."""
    p = torch.ones_like(case.hidden).requires_grad_()  # a parameter below the hidden states
    w = case.weight.clone().requires_grad_()
    loss = op(case.hidden * p, w, case.target)
    (dp,) = torch.autograd.grad(loss, p, create_graph=True)
    if how == "penalty alone":
        return torch.autograd.grad(dp.square().sum(), [p, w], allow_unused=True)
    if how == "grad":
        return torch.autograd.grad(loss + dp.square().sum(), [p, w])
    (loss + dp.square().sum()).backward()
    return p.grad, w.grad


@pytest.mark.parametrize("how", ["backward", "grad", "penalty alone"])
@pytest.mark.parametrize("op", SECOND)
def test_a_second_derivative_is_right_or_one_clear_error(op, how, backend):
    case = make_case()

    def plain(*args):
        loss = oracle.loss(*args, reduction="mean" if op.endswith("cross_entropy") else "sum")
        return -loss if op == "token_logprobs" else loss

    try:
        ours = gradient_of_a_penalty(lambda *args: SECOND[op](*args, backend=backend), case, how)
    except (RuntimeError, NotImplementedError) as error:
        assert_says_what_to_do(error, "second|double")
    else:
        for x, y in zip(ours, gradient_of_a_penalty(plain, case, how), strict=True):
            assert x is not None, "a part of the gradient was silently dropped"
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


def assert_says_what_to_do(error, what):
    message = str(error)
    assert re.search(what, message), message
    assert re.search(WHAT_TO_DO, message), message


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # forward mode's own
@pytest.mark.parametrize("op", SECOND)
def test_forward_mode_is_right_or_one_clear_error(op, backend):
    case = make_case()
    tangent = torch.randn_like(case.hidden)

    def run():
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(case.hidden, tangent)
            loss = SECOND[op](dual, case.weight, case.target, backend=backend)
            return torch.autograd.forward_ad.unpack_dual(loss).tangent

    try:
        ours = run()
    except (RuntimeError, NotImplementedError) as error:
        assert_says_what_to_do(error, "forward")
    else:
        h = case.hidden.clone().requires_grad_()
        (dh,) = torch.autograd.grad(SECOND[op](h, case.weight, case.target, backend=backend), h)
        torch.testing.assert_close(ours, (dh * tangent).sum(), rtol=1e-12, atol=1e-12)


FUNC = {
    "grad": lambda f, h: torch.func.grad(f)(h),
    "vjp": lambda f, h: torch.func.vjp(f, h)[1](torch.ones((), dtype=torch.float64))[0],
    "grad_and_value": lambda f, h: torch.func.grad_and_value(f)(h)[0],
}


@pytest.mark.parametrize("transform", FUNC)
@pytest.mark.parametrize("op", SECOND)
def test_func_transforms_are_right_or_one_clear_error(op, transform, backend):
    case = make_case()
    plain = case.hidden.clone().requires_grad_()
    SECOND[op](plain, case.weight, case.target, backend=backend).backward()
    try:
        ours = FUNC[transform](lambda h: SECOND[op](h, case.weight, case.target, backend=backend), case.hidden)
    except (RuntimeError, NotImplementedError) as error:
        assert_says_what_to_do(error, "torch.func|functorch|vmap|grad")
    else:
        torch.testing.assert_close(ours, plain.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("op", SECOND)
def test_vmap_is_right_or_one_clear_error(op, backend):
    hidden, weight = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    target = torch.randint(7, (4,))
    try:
        ours = torch.func.vmap(lambda h: SECOND[op](h, weight, target, backend=backend))(hidden)
    except (RuntimeError, NotImplementedError) as error:
        assert_says_what_to_do(error, "vmap")
    else:
        for x, h in zip(ours, hidden, strict=True):
            torch.testing.assert_close(x, SECOND[op](h, weight, target, backend=backend), rtol=1e-12, atol=1e-12)
