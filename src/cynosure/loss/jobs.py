"""Check the arguments of a loss and build its job.

... leading shape, N tokens in all, D hidden size, V vocabulary
"""

from dataclasses import replace

import torch
from torch import Tensor

from cynosure.loss.backends.registry import Backend, choose_backend
from cynosure.loss.batch import CountedBatch
from cynosure.loss.chunked import LossJob
from cynosure.loss.linear import HeadWeights, OwnHead, check_frozen, make_head
from cynosure.loss.options import ReduceOptions, RowOptions, accumulation_dtype, check_chunk_tokens, one_shift
from cynosure.loss.sampling.options import (
    GradTolerance,
    Sampling,
    check_device,
    check_generator,
    check_tolerance,
    draw_seed,
)
from cynosure.loss.shifts import lead_of, make_batch_of_shifts
from cynosure.loss.targets import GivenIds, TargetLike, check_target

COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_logits(logits: Tensor) -> None:
    """Check that logits are floating point, of shape (..., V)."""
    check_floating("logits", logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape (..., V) with V >= 1, got {tuple(logits.shape)}")


def check_class_indices(target: Tensor) -> None:
    """Check that a target is class indices."""
    if not isinstance(target, Tensor) or target.is_floating_point():
        raise TypeError(f"target must be class indices (an integer tensor), got {kind(target)}")


def check_head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, head_dtype: torch.dtype | None = None, of: str = ""
) -> HeadWeights | OwnHead:
    """Check that hidden (..., D), weight (V, D) and bias (V,) have one dtype and device; return the head.

    With a `head_dtype` their dtypes may differ. In errors `of` stands before their names: "student_" for student_hidden
    and its head.
    """
    check_head_dtype(head_dtype)
    for name, x in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if x is None and name == "bias":
            continue
        x = check_floating(of + name, x)
        if x.device != hidden.device:
            raise ValueError(f"{of}{name} is on {x.device}, but {of}hidden is on {hidden.device}")
        if x.dtype != hidden.dtype and not autocasts(hidden) and head_dtype is None:
            raise TypeError(
                f"{of}{name} is {x.dtype}, but {of}hidden is {hidden.dtype}: cast one of them, use torch.autocast, or "
                f"pass head_dtype=torch.float32"
            )
    if hidden.ndim == 0 or weight.ndim != 2 or hidden.shape[-1] != weight.shape[1] or weight.shape[0] == 0:
        raise ValueError(
            f"{of}hidden must have shape (..., D) and {of}weight (V, D) with the same D and V >= 1, "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{of}bias must have shape ({weight.shape[0]},), one entry per row of {of}weight, got {tuple(bias.shape)}"
        )
    return make_head(weight, bias)


def check_floating(name: str, x: object) -> Tensor:
    """Return x, checked to be a tensor of a floating-point dtype that torch computes in."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {kind(x)}")
    if x.dtype not in COMPUTED:
        raise TypeError(
            f"{name} is {x.dtype}, which torch stores but does not compute in: cast it, for example to bfloat16"
        )
    return x


def check_head_dtype(head_dtype: torch.dtype | None) -> None:
    """Check that a dtype for the head is one that torch computes in, or None."""
    if head_dtype is not None and head_dtype not in COMPUTED:
        raise TypeError(f"head_dtype must be None or {', '.join(map(str, COMPUTED))}, got {head_dtype!r}")


def matmul_dtype(hidden: Tensor, head_dtype: torch.dtype | None = None) -> torch.dtype:
    """Return the dtype of the head's matmuls.

    It is `head_dtype`, or that of `F.linear`: hidden's, or autocast's if that is on (except for float64).
    """
    if head_dtype is not None:
        return head_dtype
    if autocasts(hidden) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(hidden.device.type)
    return hidden.dtype


def autocasts(hidden: Tensor) -> bool:
    """Whether hidden's device has autocast, and it is on."""
    device = hidden.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def linear_job(
    head: HeadWeights, hidden: Tensor, target: TargetLike | GivenIds, options: RowOptions, reduce: ReduceOptions,
    backend: str | None, chunk_tokens: int | None, head_dtype: torch.dtype | None = None,
) -> LossJob:  # fmt: skip
    """Check the arguments of a loss of hidden (..., D) under a head; return the job.

    With several shifts hidden is (S, ..., T, D).
    """
    weight = head.weight
    own_weight = weight if isinstance(check_head(hidden, *head, head_dtype), OwnHead) else None
    if own_weight is not None:
        check_frozen(weight)
    chunk_tokens, dtype = check_chunk_tokens(chunk_tokens), matmul_dtype(hidden, head_dtype)
    parts = _parts_of_job(hidden, weight.shape[0], target, options, reduce, backend, dtype)
    return LossJob(*parts, dtype, weight.dtype, chunk_tokens, own_weight)


def sampled(
    job: LossJob, hidden: Tensor, weight: Tensor, grad_tolerance: GradTolerance, generator: torch.Generator | None
) -> LossJob:
    """Return the job with its sampling, if that is asked for and hidden or weight gets a gradient.

    Only then is a seed drawn. The job keeps it, so that every backward of the call draws the same columns.
    """
    tolerance = check_tolerance(grad_tolerance, job.dtype)
    check_generator(generator)
    check_device(tolerance, hidden.device)
    trained = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if tolerance == 0 or not trained or job.batch.target.is_abstract:
        return job
    return job._replace(sampling=Sampling(tolerance, int(draw_seed(generator))))


def logits_job(
    logits: Tensor, target: TargetLike | GivenIds, options: RowOptions, reduce: ReduceOptions, backend: str | None
) -> LossJob:
    """Check the arguments of a loss of logits (..., V); return the job."""
    check_logits(logits)
    one_shift(reduce.shift)
    _check_classes_last(logits, target)
    parts = _parts_of_job(logits, logits.shape[-1], target, options, reduce, backend, logits.dtype)
    return LossJob(*parts, logits.dtype, logits.dtype, None)


def _parts_of_job(
    rows: Tensor, vocab_size: int, target: TargetLike | GivenIds, options: RowOptions, reduce: ReduceOptions,
    backend: str | None, dtype: torch.dtype,
) -> tuple[CountedBatch, RowOptions, Backend]:  # fmt: skip
    lead, weight = lead_of(rows.shape[:-1], reduce.shift), options.class_weight
    if weight is not None:
        if weight.shape != (vocab_size,):
            raise ValueError(f"class_weight must have shape ({vocab_size},), the vocabulary, got {tuple(weight.shape)}")
        if weight.device != rows.device:
            raise ValueError(f"class_weight is on {weight.device}, but hidden or logits is on {rows.device}")
        options = replace(options, class_weight=weight.to(accumulation_dtype(dtype)))
    checked = check_target(target, lead, vocab_size, rows.device, reduce.ignore_index)
    batch = make_batch_of_shifts(checked, lead, rows.device, options, reduce, dtype)
    return batch, options, choose_backend(backend, rows.device)[0]


def _check_classes_last(logits: Tensor, target: TargetLike | GivenIds) -> None:
    """Refuse torch's layout (N, V, ...) if the target's shape reveals it."""
    shape = logits.shape
    if isinstance(target, Tensor) and len(shape) > 2 and target.shape == (shape[0], *shape[2:]) != shape[:-1]:
        raise ValueError(
            f"logits of shape {tuple(shape)} with a target of shape {tuple(target.shape)} have their classes in "
            f"dimension 1, but classes must come last: pass logits.movedim(1, -1)"
        )


def kind(x: object) -> str:
    """Describe an argument in an error message."""
    return f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
