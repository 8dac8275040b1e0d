"""What the operators of torch have in common: records of arguments, their gradients and FLOPs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from cynosure.loss.autograd import NO_SECOND, first_order
from cynosure.loss.batch import CountedBatch
from cynosure.loss.chunked import LossJob
from cynosure.loss.devices import autocast_to
from cynosure.loss.linear import HeadWeights
from cynosure.system.upstream import with_autograd


class OperatorJob(Protocol):
    """The job of an operator."""

    @property
    def batch(self) -> CountedBatch:
        """The rows that count."""


class Arguments(Protocol):
    """A record of an operator's arguments, in the order of its schema."""

    @property
    def inputs(self) -> Tensor:
        """Hidden states or logits."""

    @property
    def autocast(self) -> torch.dtype | None:
        """Autocast's dtype where the operator was called: a graph may run outside of it."""

    def job(self) -> OperatorJob:
        """Check the arguments; return the job."""


class ModelTensors(NamedTuple):
    """Hidden states (..., D) and their head; or without a weight, logits (..., V)."""

    inputs: Tensor
    weight: Tensor | None
    bias: Tensor | None

    @property
    def rows(self) -> Tensor:
        """hidden (N, D)."""
        return self.inputs.reshape(-1, self.inputs.shape[-1])

    def head(self, job: LossJob) -> HeadWeights:
        """The head's weight and bias, as the job takes them."""
        return cast(HeadWeights, job.head(self.weight, self.bias))


@contextmanager
def as_called(inputs: Tensor, autocast: torch.dtype | None) -> Iterator[None]:
    """Record for autograd, under the autocast of the operator's call."""
    with with_autograd(), torch.enable_grad(), autocast_to(inputs.device, autocast):
        yield


def gemm_flops(given: Arguments, *n_gemms: tuple[Tensor | None, int]) -> int:
    """The floating-point operations of this many GEMMs with each weight; none for given logits."""
    if all(weight is None for weight, _ in n_gemms):
        return 0
    with as_called(given.inputs, given.autocast):
        n_rows = given.job().batch.n_rows
    return sum(2 * n * n_rows * weight.numel() for weight, n in n_gemms if weight is not None)


def leaf(token_weight: Tensor | None, trained: bool) -> Tensor | None:
    """Token weights as a leaf of their own, which requires grad if their gradient is wanted."""
    return None if token_weight is None else token_weight.detach().requires_grad_(trained)


def reduced(batch: CountedBatch, losses: Tensor, reduction: str) -> Tensor:
    """The result of weighed losses (n,)."""
    return batch.spread(losses) if reduction == "none" else losses.sum()


def weighed_upstream(batch: CountedBatch, reduction: str, upstream: Tensor) -> Tensor:
    """The gradient (n,) of the weighed losses from that of the result."""
    weighed = torch.zeros_like(batch.weight).requires_grad_()
    return torch.autograd.grad(reduced(batch, weighed, reduction), weighed, upstream)[0]


def dtoken_weights(token_weight: Tensor | None, batch: CountedBatch, upstream: Tensor) -> Tensor | None:
    """The gradient of the token weights from that of the rows' weights (n,)."""
    if token_weight is None or not token_weight.requires_grad:
        return None
    return torch.autograd.grad(batch.weight, token_weight, upstream)[0]


def shaped(gradients: Sequence[Tensor | None], leaves: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The gradients in the shapes of their tensors; empty where there is none. The first of these is no None."""
    nothing = cast(Tensor, leaves[0]).new_empty
    pairs = zip(gradients, leaves, strict=True)
    return tuple(nothing(0) if d is None or x is None else d.reshape(x.shape).contiguous() for d, x in pairs)


def fakes(
    leaves: Sequence[Tensor | None], dtypes: Sequence[torch.dtype | None], wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    """Gradients without values, of these dtypes."""
    new = cast(Tensor, leaves[0]).new_empty
    kinds = zip(leaves, dtypes, wanted, strict=True)
    return tuple(new(x.shape, dtype=dtype) if w and x is not None else new(0) for x, dtype, w in kinds)


def dtypes_of(leaves: Sequence[Tensor | None]) -> list[torch.dtype | None]:
    """The dtypes of tensors that may be None."""
    return [None if x is None else x.dtype for x in leaves]


class EarlyGradients(NamedTuple):
    """The derivative of an operator whose forward computes its gradients, relative to a unit, if they are `wanted`.

    Its results are (result, unit, gradients...). The unit is empty where the forward computed none.
    """

    backward: Any  # the operator that computes them from the inputs
    n_arguments: int  # the last is `wanted`
    n_tensors: int  # of the first arguments
    n_gradients: int  # of the first tensors

    def save(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the inputs, and the gradients of the forward if it has all that are needed."""
        ctx.set_materialize_grads(False)
        wanted, needed = inputs[-1], ctx.needs_input_grad[: self.n_gradients]
        is_early = output[1].numel() > 0 and all(w or not n for w, n in zip(wanted, needed, strict=True))
        ctx.constants, ctx.dtypes = inputs[self.n_tensors : -1], dtypes_of(inputs[: self.n_gradients])
        ctx.save_for_backward(*inputs[: self.n_tensors], *(output[1:] if is_early else ()))
        ctx.mark_non_differentiable(*output[1:])

    def differentiate(self, ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Any, ...]:
        """The gradients of the arguments."""
        needed = list(ctx.needs_input_grad[: self.n_gradients])
        nothing = [None] * (self.n_arguments - self.n_gradients)
        if upstream is None:
            return (*[None] * self.n_gradients, *nothing)
        gradients: tuple[Tensor, ...]
        saved = ctx.saved_tensors  # read once: a checkpoint gives them no second time
        if early := saved[self.n_tensors :]:
            factor = upstream * early[0]  # which may be beyond float16
            gradients = tuple(d.to(factor.dtype) * factor for d in early[1:])
        else:
            gradients = self.backward(upstream, *saved, *ctx.constants, needed)
        typed = zip(gradients, ctx.dtypes, needed, strict=True)
        return (*first_order([d.to(dtype) if need else None for d, dtype, need in typed], ctx, upstream), *nothing)


def refuse_second(ctx: Any, *upstream: Tensor) -> Any:
    """A derivative of a gradient."""
    raise NotImplementedError(NO_SECOND)
