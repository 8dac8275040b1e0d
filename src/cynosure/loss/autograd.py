"""The driver as autograd functions: exact gradients for any upstream gradient and any number of backwards."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from cynosure.loss.chunked import (
    Gradients,
    LossJob,
    Wanted,
    compute,
    compute_dlogits,
    compute_dtarget,
    compute_logits,
    logprobs_job,
)
from cynosure.loss.forward import compute_logprobs, compute_loss, logits_logprobs
from cynosure.loss.tensors import plain
from cynosure.loss.transforms import refuse_batched

NO_SECOND = (
    "the fused loss has no second derivative: for double backward (a Hessian-vector product, a gradient penalty) use "
    "torch.nn.functional.cross_entropy (of a divergence, kl_div) on full logits"
)
NO_FORWARD = (
    "the fused loss has no forward-mode derivative: use reverse mode (backward), or "
    "torch.nn.functional.cross_entropy (of a divergence, kl_div) on full logits"
)


class FirstOrder(Function):
    """A function that supports only reverse mode; forward mode raises a clear error."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(NO_FORWARD)


class _RefuseSecond(Function):
    """The identity on a first derivative, whose own derivative raises an error.

    It also takes the tensors that the derivative was computed from, so that autograd reaches the error on every path
    to them and never silently skips a second derivative.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *made_from: Tensor | None) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        raise NotImplementedError(NO_SECOND)


def received(upstream: Tensor) -> Tensor:
    """Convert an upstream gradient to a plain tensor; refuse a batch of them."""
    refuse_batched(upstream)
    gradient: Tensor = plain("the upstream gradient", upstream)
    return gradient


def first_order(gradients: list[Tensor | None], ctx: Any, *upstream: Tensor | None) -> list[Tensor | None]:
    """Return the gradients; under create_graph=True, differentiating them again raises an error."""
    if not torch.is_grad_enabled():
        return gradients
    made_from = (*ctx.saved_tensors, *upstream)
    return [None if g is None else _RefuseSecond.apply(g, *made_from) for g in gradients]  # type: ignore[no-untyped-call]


class FusedSum(FirstOrder):
    """sum_i weight_i * loss_i. Its gradients are computed in the forward: three GEMMs.

    The first backward scales and returns the gradients from the forward; later ones recompute them.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, probability: Tensor | None,
        row_weight: Tensor, job: LossJob,
    ) -> Tensor:  # fmt: skip
        ctx.job, ctx.wanted, head = job, Wanted(*ctx.needs_input_grad[:4]), job.head(weight, bias)
        if any(ctx.wanted):
            loss, ctx.gradients = compute(job, hidden, head, row_weight, ctx.wanted)
        else:
            loss, ctx.gradients = compute_loss(job, hidden, head), None
        _save(ctx, hidden, weight, bias, probability, row_weight, loss)
        return (row_weight * loss).sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        dsum = received(upstream[0])
        gradients: Gradients | None = ctx.gradients
        ctx.gradients = None
        hidden, weight, bias, _, row_weight, loss = ctx.saved_tensors
        if gradients is None and any(ctx.wanted):
            gradients = compute(ctx.job, hidden, ctx.job.head(weight, bias), row_weight, ctx.wanted)[1]
        parts: list[Tensor | None] = [None] * 4 if gradients is None else gradients.take(dsum.detach(), ctx.dtypes)
        drow_weight = dsum.detach() * loss if ctx.needs_input_grad[4] else None
        return (*first_order([*parts, drow_weight], ctx, dsum), None)


class FusedRows(FirstOrder):
    """loss_i of every counted row; the backward recomputes the logits, for any upstream: four GEMMs in all."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, probability: Tensor | None, job: LossJob
    ) -> Tensor:
        ctx.job = job
        _save(ctx, hidden, weight, bias, probability)
        return compute_loss(job, hidden, job.head(weight, bias))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        drows = received(upstream[0])
        hidden, weight, bias, _ = ctx.saved_tensors
        wanted = Wanted(*ctx.needs_input_grad[:4])
        gradients = compute(ctx.job, hidden, ctx.job.head(weight, bias), drows.detach(), wanted)[1]
        return (*first_order(gradients.take(None, ctx.dtypes), ctx, drows), None)


class LogitsRows(FirstOrder):
    """loss_i of every counted row of given logits; the backward passes over them again."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, probability: Tensor | None, job: LossJob) -> Tensor:
        ctx.job = job
        ctx.save_for_backward(logits, probability if ctx.needs_input_grad[1] else None)
        return compute_logits(job, logits)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        logits, drows = ctx.saved_tensors[0], received(upstream[0])
        dloss = drows.detach()
        dlogits = compute_dlogits(ctx.job, logits, dloss) if ctx.needs_input_grad[0] else None
        dtarget = compute_dtarget(ctx.job, logits, dloss) if ctx.needs_input_grad[1] else None
        return (*first_order([dlogits, dtarget], ctx, drows), None)


class FusedLogprobs(FirstOrder):
    """The log-probabilities (n, K) of the given ids of every counted row, and its entropy (n,), empty if not wanted.

    The backward recomputes the logits, for any upstream: four GEMMs in all.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, job: LossJob, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.job = job
        ctx.set_materialize_grads(False)
        _save(ctx, hidden, weight, bias, None)
        return compute_logprobs(job, hidden, job.head(weight, bias), entropy)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        given = [None if x is None else received(x) for x in upstream]
        job, drows = logprobs_job(ctx.job, *(None if x is None else x.detach() for x in given))
        hidden, weight, bias, _ = ctx.saved_tensors
        dhidden, dweight, dbias = ctx.needs_input_grad[:3]
        wanted = Wanted(dhidden, dweight, dbias, dtarget=False)
        gradients = compute(job, hidden, job.head(weight, bias), drows, wanted)[1]
        return (*first_order(gradients.take(None, ctx.dtypes)[:3], ctx, *given), None, None)


class LogitsLogprobs(FirstOrder):
    """The same of given logits (..., V); the backward passes over them again."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, job: LossJob, entropy: bool) -> tuple[Tensor, Tensor]:
        ctx.job = job
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits)
        return logits_logprobs(job, logits, entropy)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        given = [None if x is None else received(x) for x in upstream]
        job, drows = logprobs_job(ctx.job, *(None if x is None else x.detach() for x in given))
        dlogits = compute_dlogits(job, ctx.saved_tensors[0], drows)
        return (*first_order([dlogits], ctx, *given), None, None)


class Shapes(FirstOrder):
    """A result without values (meta or fake) from inputs without values. Its gradients have no values either."""

    @staticmethod
    def forward(ctx: Any, shape: torch.Size, dtype: torch.dtype, *given: Tensor | None) -> Tensor:
        ctx.save_for_backward(*given)
        first = next(x for x in given if x is not None)
        return first.new_empty(shape, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return None, None, *(None if x is None else torch.empty_like(x) for x in ctx.saved_tensors)


def _save(
    ctx: Any, hidden: Tensor, weight: Tensor | None, bias: Tensor | None, probability: Tensor | None, *others: Tensor
) -> None:
    """Save what the backward of the fused functions reads.

    The job holds the probabilities. If they require grad they are saved too, so that a second derivative is refused.
    """
    ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias, probability)]
    ctx.save_for_backward(hidden, weight, bias, probability if ctx.needs_input_grad[3] else None, *others)


def apply(function: type[Function], *args: Any) -> Tensor:
    """Apply one of these functions; outside grad mode its inputs are detached, so no gradient is computed early."""
    result: Tensor = _applied(function, *args)
    return result


def apply_pair(function: type[Function], *args: Any) -> tuple[Tensor, Tensor]:
    """Apply a function of two results."""
    first, second = _applied(function, *args)
    return first, second


def _applied(function: type[Function], *args: Any) -> Any:
    if not torch.is_grad_enabled():
        args = tuple(x.detach() if isinstance(x, Tensor) else x for x in args)
    return function.apply(*args)  # type: ignore[no-untyped-call]
