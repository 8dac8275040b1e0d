"""The driver as autograd functions: gradients exact for any upstream and any number of backwards."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from cynosure.loss.chunked import Gradients, Head, Job, Wanted, compute, compute_dlogits, compute_logits
from cynosure.loss.forward import compute_loss
from cynosure.loss.transforms import refuse_batched

NO_SECOND = (
    "the fused loss has no second derivative: for double backward (Hessian-vector products, gradient penalties) use "
    "torch.nn.functional.cross_entropy on full logits"
)
NO_FORWARD = (
    "the fused loss has no forward-mode derivative: use reverse mode (backward), or "
    "torch.nn.functional.cross_entropy on full logits"
)


class _FirstOrder(Function):
    """A function with reverse mode alone, which says so when asked for more."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(NO_FORWARD)


class _RefuseSecond(Function):
    """The identity on a first derivative. It also hangs on what that was made from, so that its own derivative, which
    is an error, is met on every path and never silently left out."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *made_from: Tensor | None) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        raise NotImplementedError(NO_SECOND)


def _first_order(gradients: list[Tensor | None], ctx: Any, upstream: Tensor) -> list[Tensor | None]:
    """The gradients, which under create_graph=True lead to an error where a second derivative would begin."""
    if not torch.is_grad_enabled():
        return gradients
    made_from = (*ctx.saved_tensors, upstream)
    return [None if g is None else _RefuseSecond.apply(g, *made_from) for g in gradients]  # type: ignore[no-untyped-call]


class FusedSum(_FirstOrder):
    """sum_i weight_i * loss_i, its gradients made in the forward: three GEMMs.

    The first backward scales and hands over what the forward made; a further one computes it again.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, row_weight: Tensor, job: Job) -> Tensor:
        ctx.job, ctx.wanted = job, Wanted(*ctx.needs_input_grad[:3])
        if any(ctx.wanted):
            loss, ctx.gradients = compute(job, hidden, Head(weight, bias), row_weight, ctx.wanted)
        else:
            loss, ctx.gradients = compute_loss(job, hidden, Head(weight, bias)), None
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        ctx.save_for_backward(hidden, weight, bias, row_weight, loss)
        return (row_weight * loss).sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        refuse_batched(upstream[0])
        (dsum,) = upstream
        gradients: Gradients | None = ctx.gradients
        ctx.gradients = None
        if gradients is None and any(ctx.wanted):
            hidden, weight, bias, row_weight, _ = ctx.saved_tensors
            gradients = compute(ctx.job, hidden, Head(weight, bias), row_weight, ctx.wanted)[1]
        parts: list[Tensor | None] = [None] * 3 if gradients is None else gradients.take(dsum.detach(), ctx.dtypes)
        drow_weight = dsum.detach() * ctx.saved_tensors[4] if ctx.needs_input_grad[3] else None
        return (*_first_order([*parts, drow_weight], ctx, dsum), None)


class FusedRows(_FirstOrder):
    """loss_i of every counted row; the backward makes the logits again, for any upstream: four GEMMs in all."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: Job) -> Tensor:
        ctx.job = job
        ctx.save_for_backward(hidden, weight, bias)
        return compute_loss(job, hidden, Head(weight, bias))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        refuse_batched(upstream[0])
        hidden, weight, bias = ctx.saved_tensors
        wanted = Wanted(*ctx.needs_input_grad[:3])
        gradients = compute(ctx.job, hidden, Head(weight, bias), upstream[0].detach(), wanted)[1]
        dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        return (*_first_order(gradients.take(None, dtypes), ctx, upstream[0]), None)


class LogitsRows(_FirstOrder):
    """loss_i of every counted row of logits that are there already; the backward visits them again."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, job: Job) -> Tensor:
        ctx.job = job
        ctx.save_for_backward(logits)
        return compute_logits(job, logits)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        refuse_batched(upstream[0])
        (logits,) = ctx.saved_tensors
        dlogits = compute_dlogits(ctx.job, logits, upstream[0].detach())
        return (*_first_order([dlogits], ctx, upstream[0]), None)


def apply(function: type[Function], *args: Any) -> Tensor:
    """Apply one of these functions; without grad mode its inputs ask for no gradient, so none is made ahead."""
    if not torch.is_grad_enabled():
        args = tuple(x.detach() if isinstance(x, Tensor) else x for x in args)
    result: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
    return result
