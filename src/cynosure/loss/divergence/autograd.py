"""The divergence as autograd functions: exact gradients for any upstream gradient and any number of backwards."""

from typing import Any

from torch import Tensor

from cynosure.loss.autograd import FirstOrder, first_order, received
from cynosure.loss.chunked import Gradients, Wanted
from cynosure.loss.divergence.chunks import DivergenceJob, HeadInputs, compute

N_INPUTS = 6  # hidden, weight and bias of the student, then those of the teacher


class DivergenceSum(FirstOrder):
    """sum_i weight_i * divergence_i. Its gradients are computed in the forward.

    The first backward scales and returns the gradients from the forward; later ones recompute them.
    """

    @staticmethod
    def forward(ctx: Any, job: DivergenceJob, row_weight: Tensor, *inputs: Tensor | None) -> Tensor:
        ctx.job, ctx.wanted = job, wanted_of(ctx.needs_input_grad[2:])
        upstream = row_weight if any(map(any, ctx.wanted)) else None
        divergence, ctx.gradients = compute(job, by_model(inputs), upstream, ctx.wanted)
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        ctx.save_for_backward(row_weight, divergence, *inputs)
        return (row_weight * divergence).sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        dsum = received(upstream[0])
        gradients: list[Gradients | None] | None = ctx.gradients
        ctx.gradients = None
        row_weight, divergence, *inputs = ctx.saved_tensors
        if gradients is None:
            gradients = compute(ctx.job, by_model(inputs), row_weight, ctx.wanted)[1]
        drow_weight = dsum.detach() * divergence if ctx.needs_input_grad[1] else None
        return (None, *first_order([drow_weight, *taken_of(gradients, dsum.detach(), ctx.dtypes)], ctx, dsum))


class RowDivergences(FirstOrder):
    """divergence_i of every counted row; the backward recomputes the logits, for any upstream."""

    @staticmethod
    def forward(ctx: Any, job: DivergenceJob, *inputs: Tensor | None) -> Tensor:
        ctx.job = job
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        ctx.save_for_backward(*inputs)
        return compute(job, by_model(inputs), None, wanted_of([False] * N_INPUTS))[0]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        drows, wanted = received(upstream[0]), wanted_of(ctx.needs_input_grad[1:])
        gradients = compute(ctx.job, by_model(ctx.saved_tensors), drows.detach(), wanted)[1]
        return (None, *first_order(taken_of(gradients, None, ctx.dtypes), ctx, drows))


def by_model(inputs: Any) -> tuple[HeadInputs, HeadInputs]:
    """Return the inputs of the student and those of the teacher."""
    return HeadInputs(*inputs[:3]), HeadInputs(*inputs[3:])


def wanted_of(needed: Any) -> tuple[Wanted, Wanted]:
    """Return the gradients that are wanted of each model, from what each input needs."""
    student_hidden, student_weight, student_bias, teacher_hidden, teacher_weight, teacher_bias = needed
    return (
        Wanted(student_hidden, student_weight, student_bias, False),
        Wanted(teacher_hidden, teacher_weight, teacher_bias, False),
    )


def taken_of(gradients: list[Gradients | None], upstream: Tensor | None, dtypes: list[Any]) -> list[Tensor | None]:
    """Return the gradients of the inputs in these dtypes. Call once."""
    taken: list[Tensor | None] = []
    for of_model, at in zip(gradients, (slice(0, 3), slice(3, 6)), strict=True):
        taken += [None] * 3 if of_model is None else of_model.take(upstream, [*dtypes[at], None])[:3]
    return taken
