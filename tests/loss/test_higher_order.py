"""Second derivatives, forward mode, torch.func: each right, or one error that says what to do; never silently wrong."""

import re

import pytest
import torch
import torch._dynamo

from cynosure.loss import (
    CrossEntropyLoss,
    LinearCrossEntropyLoss,
    cross_entropy,
    linear_cross_entropy,
    linear_kl_div,
    linear_topk_kl_div,
    logits_token_logprobs,
    logits_token_stats,
    token_logprobs,
    token_stats,
)
from tests.loss import oracle
from tests.loss.cases import make_case
from tests.loss.graphs import full_graph

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


LOGITS = {
    "logits_token_logprobs": lambda h, w, t, **o: logits_token_logprobs(h @ w.T, t, **o),
    "logits_token_stats": lambda h, w, t, **o: logits_token_stats(h @ w.T, t, **o).nll,
}
DIVERGENCES = {
    "linear_kl_div": lambda h, w, t, **o: linear_kl_div(h, w, torch.ones(len(t), w.shape[1], dtype=w.dtype), w, **o),
    "linear_topk_kl_div": lambda h, w, t, **o: linear_topk_kl_div(h, w, t[:, None] * 0, -torch.ones(len(t), 1), **o),
}
OPERATIONS = SECOND | LOGITS | DIVERGENCES | {"token_stats": lambda *args, **o: token_stats(*args, **o).nll}
# By how: what does it, and what of it the message must name.
HOW = {
    "grad": (lambda f, h: torch.func.grad(lambda x: f(x).sum())(h), r"torch\.func\.grad"),
    "vjp": (lambda f, h: torch.func.vjp(f, h), "vjp"),
    "jacrev": (lambda f, h: torch.func.jacrev(f)(h), "jacrev"),
    "jvp": (lambda f, h: torch.func.jvp(f, (h,), (h,)), r"torch\.func\.jvp"),
    "jacfwd": (lambda f, h: torch.func.jacfwd(f)(h), "jacfwd"),
    "linearize": (lambda f, h: torch.func.linearize(f, h), "forward mode"),
    "functionalize": (lambda f, h: torch.func.functionalize(f)(h), "functionalize"),
    "vmap": (lambda f, h: torch.vmap(f)(h[None].expand(3, -1, -1)), "vmap"),
    "vmap of grad": (lambda f, h: torch.vmap(torch.func.grad(lambda x: f(x).sum()))(h[None]), "grad"),
    "jit.trace": (lambda f, h: torch.jit.trace(f, (h,)), r"torch\.jit\.trace"),
    "compiled grad": (lambda f, h: full_graph(torch.func.grad(lambda x: f(x).sum()))(h), r"torch\.compile"),
    "compiled vmap": (lambda f, h: full_graph(torch.vmap(f))(h[None]), r"torch\.compile"),
    "compiled jvp": (lambda f, h: full_graph(lambda x: torch.func.jvp(f, (x,), (x,)))(h), r"torch\.compile"),
}


@pytest.mark.filterwarnings("ignore")  # of torch's own, about what is deprecated or goes into a graph as a constant
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("op", OPERATIONS)
def test_every_transform_is_refused_in_one_sentence(op, how):
    case, (transform, name) = make_case(), HOW[how]
    with pytest.raises((NotImplementedError, torch._dynamo.exc.Unsupported)) as caught:
        transform(lambda h: OPERATIONS[op](h, case.weight, case.target), case.hidden.detach())
    assert_says_what_to_do(caught.value, name)


DIFFERENTIABLE = SECOND | DIVERGENCES | {"logits_token_logprobs": LOGITS["logits_token_logprobs"]}


@pytest.mark.parametrize("how", ["is_grads_batched", "jacobian"])
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_batched_gradients_are_refused_in_one_sentence(op, how):
    case = make_case()

    def run(hidden):
        return DIFFERENTIABLE[op](hidden, case.weight, case.target)

    hidden = case.hidden.detach().requires_grad_()
    with pytest.raises(NotImplementedError) as caught:  # noqa: PT012
        if how == "jacobian":
            torch.autograd.functional.jacobian(run, hidden, vectorize=True)
        loss = run(hidden)
        torch.autograd.grad(loss, hidden, torch.ones(2, *loss.shape, dtype=loss.dtype), is_grads_batched=True)
    assert_says_what_to_do(caught.value, "is_grads_batched.*vectorize")
    torch.autograd.functional.jacobian(run, hidden)  # one at a time


@pytest.mark.parametrize("op", OPERATIONS)
def test_a_tangent_is_never_dropped(op):
    case = make_case()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(case.hidden.detach(), torch.ones_like(case.hidden))
        with pytest.raises(NotImplementedError) as caught:
            OPERATIONS[op](dual, case.weight, case.target)
        assert OPERATIONS[op](case.hidden, case.weight, case.target).isfinite().any()  # no tangent, no refusal
    assert_says_what_to_do(caught.value, "forward mode")


class Scripted(torch.nn.Module):
    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits, target)


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
@pytest.mark.parametrize(
    "scripted",
    [linear_cross_entropy, cross_entropy, token_logprobs, token_stats, logits_token_logprobs, logits_token_stats,
     LinearCrossEntropyLoss(), CrossEntropyLoss(), Scripted()],
)  # fmt: skip
def test_torch_script_is_refused_in_one_sentence(scripted):
    with pytest.raises(NotImplementedError) as caught:
        torch.jit.script(scripted)
    assert_says_what_to_do(caught.value, r"torch\.jit\.script")
