"""The public operations: check, pair, compute, reduce.

... leading shape, N tokens in all, D hidden size, V vocabulary
"""

import torch
from torch import Tensor

from cynosure.loss.autograd import FusedRows, FusedSum, LogitsRows, Shapes, apply
from cynosure.loss.chunked import LossJob
from cynosure.loss.compiler import public
from cynosure.loss.jobs import linear_job, logits_job, sampled
from cynosure.loss.linear import HeadWeights
from cynosure.loss.options import ReduceOptions, Reduction, RowOptions, Shift, accumulation_dtype
from cynosure.loss.sampling.options import GradTolerance
from cynosure.loss.shifts import by_shift
from cynosure.loss.targets import TargetLike, probability_of


@public
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: TargetLike,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    scale: float = 1.0,
    class_weight: Tensor | None = None,
    token_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    shift: Shift = 0,
    shift_weight: tuple[float, ...] | None = None,
    n_counted: int | None = None,
    head_dtype: torch.dtype | None = None,
    backend: str | None = None,
    chunk_tokens: int | None = None,
    grad_tolerance: GradTolerance = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Compute the cross-entropy of `hidden @ weight.T + bias` without materializing the N x V logits.

    Equal to `F.cross_entropy(F.linear(hidden, weight, bias), target, ...)` for arguments that both accept, with two
    exceptions. If there is nothing to average, the loss is 0.0 (with a graph) instead of NaN. The loss of inputs
    narrower than float32 is float32. All options can be combined. `docs/explanation/math.md` has the formulas,
    `cynosure.loss.reference` has them as code.

    hidden, weight, bias, token_weight and a target's probabilities get gradients if they require them, in three
    matmuls (four for "none"). Second derivatives, forward mode and `torch.func` raise NotImplementedError.

    `torch.compile` and `torch.export` capture the call as one operator, without a graph break. Tensor subclasses (for
    example DTensors and quantized weights) and NumPy numbers break the graph.

    DTensors are gathered, and their gradients get their placements; the result is a plain tensor on every process.
    Tensors without values (fake, or on the meta device) give a result without values. Numeric options accept Python
    and NumPy numbers, and tensors or arrays with one element.

    Args:
        hidden: (..., D) hidden states, floating point.
        weight: (V, D) output embedding, of hidden's dtype (autocast casts both, as for `F.linear`). A frozen subclass
            that implements `F.linear`, for example a quantized weight, is multiplied with its own implementation.
        target: class indices (...) of any integer dtype; or probabilities (..., V); or a pair of class indices (..., K)
            and their probabilities (..., K), where all other classes have probability 0. Probabilities must be finite
            and not negative (checked on a CPU). They need not add up to 1, and may require grad.
        bias: (V,), of hidden's dtype.
        ignore_index: class indices of this value are ignored: they cost nothing and get no gradient. With
            probabilities, a value of 0 or more is an error, as in torch.
        reduction: "mean" over the normalizer, "sum", or "none" for (...) losses with 0 where ignored.
        label_smoothing: epsilon in [0, 1]; the target becomes (1 - epsilon) y + epsilon / V.
        z_loss: coefficient of lse^2, added to the loss of each token.
        softcap: logits become softcap * tanh(logits / softcap), after the scale. None: no cap.
        scale: logits are multiplied by it.
        class_weight: (V,) weight of each class, a constant.
        token_weight: (...) weight of each token, aligned with the target; 0 means ignored. May require grad.
        normalizer: constant by which "mean" divides, for example the number of tokens in the whole accumulated or
            distributed batch. None: the sum of token weights times class_weight[target].
        shift: k pairs hidden[..., :T-k, :] with target[..., k:], without copies; 1 is next-token prediction. A tuple of
            S shifts is multi-token prediction, in one pass over the weight: hidden is (S, ..., T, D), hidden[s]
            predicts shift[s] tokens ahead, and the loss is the sum over s of shift_weight[s] times that of hidden[s].
        shift_weight: S weights of the shifts. None: 1 each.
        n_counted: number of targets that are not ignored, or more; of several shifts, for each. On a GPU the loss then
            skips the other rows; without it all rows are multiplied, since counting them there would wait for the
            device.
        head_dtype: dtype of the matmuls, and of the logits: float32 for hidden states and a weight of bfloat16, as in
            reinforcement learning. The weight is cast once, not per chunk. None: hidden's dtype, or autocast's.
        backend: name of a backend (`cynosure.backends()` lists them). None: the best.
        chunk_tokens: rows of logits held at once. None: chosen by size.
        grad_tolerance: relative error, in norm, that sampling may add to the gradient of hidden and to that of weight,
            in [0, 1). 0 computes them exactly. Above 0, the backward multiplies only a random part of the vocabulary's
            columns, where fewer than half suffice. Its gradients are unbiased; the loss and all other gradients stay
            exact. "dtype" allows the rounding of the matmuls' dtype: 2**-8 for bfloat16, 2**-11 for float16; float32
            and float64 stay exact. Only on a CPU; programs of `torch.export` stay exact.
        generator: CPU generator of the draws. None: torch's default one. One integer is drawn a call, if
            `grad_tolerance` is above 0 and hidden or weight gets a gradient; a second backward repeats its columns.

    Returns:
        A 0-d tensor. For "none", a tensor of shape (...), or (..., T - shift) under shift; a tuple of one for each of
        several shifts. float32, or float64 for float64 inputs.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.
        IndexError: a class index is outside [0, V); the message has its position.

    Example:
        >>> import torch
        >>> hidden = torch.tensor([[2.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> weight = torch.eye(2)
        >>> loss = linear_cross_entropy(hidden, weight, torch.tensor([0, 0]))
        >>> round(loss.item(), 4)  # the mean of ln(1 + e^-2) and ln(1 + e)
        0.7201
        >>> loss.backward()
        >>> hidden.grad[1]  # (softmax - one-hot) / 2 tokens, since the weight is the identity
        tensor([-0.3655,  0.3655])
    """
    options = RowOptions(label_smoothing, z_loss, softcap, scale, class_weight)
    reduce = ReduceOptions(ignore_index, reduction, token_weight, normalizer, shift, n_counted, shift_weight)
    job = linear_job(HeadWeights(weight, bias), hidden, target, options, reduce, backend, chunk_tokens, head_dtype)
    job = sampled(job, hidden, weight, grad_tolerance, generator)
    rows, probability = hidden.reshape(-1, hidden.shape[-1]), probability_of(target)
    given = weight if job.own_weight is None else None
    if job.batch.target.is_abstract:
        result = _shapes(job, reduction, hidden, weight, bias, token_weight, probability)
        return by_shift(result, reduce.shift) if reduction == "none" else result
    if reduction == "none":
        losses = apply(FusedRows, rows, given, bias, probability, job)
        return by_shift(job.batch.spread(losses * job.batch.weight), reduce.shift)
    return apply(FusedSum, rows, given, bias, probability, job.batch.weight, job)


@public
def cross_entropy(
    logits: Tensor,
    target: TargetLike,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    scale: float = 1.0,
    class_weight: Tensor | None = None,
    token_weight: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    shift: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Compute the cross-entropy of existing logits; classes are the last dimension.

    `torch.nn.functional.cross_entropy` has classes in dimension 1: pass `logits.movedim(1, -1)`. The wrong layout
    raises ValueError if the shapes reveal it; for logits of shape (N, C, C) they do not.

    No further memory of the size of the logits and their gradient is allocated: the backward recomputes probabilities.

    Args:
        logits: (..., V), floating point. They are not modified.
        target: class indices (...), probabilities (..., V), or a pair of both, as for `linear_cross_entropy`.
        ignore_index: class indices of this value are ignored: they cost nothing and get no gradient.
        reduction: "mean" over the normalizer, "sum", or "none" for (...) losses with 0 where ignored.
        label_smoothing: epsilon in [0, 1]; the target becomes (1 - epsilon) y + epsilon / V.
        z_loss: coefficient of lse^2, added to the loss of each token.
        softcap: logits become softcap * tanh(logits / softcap), after the scale. None: no cap.
        scale: logits are multiplied by it.
        class_weight: (V,) weight of each class, a constant.
        token_weight: (...) weight of each token; 0 means ignored. May require grad.
        normalizer: constant by which "mean" divides. None: the sum of token weights times class_weight[target].
        shift: k pairs position t with target t + k, without copies; 1 is next-token prediction.
        backend: name of a backend (`cynosure info` lists them). None: the best.

    Returns:
        A 0-d tensor. For "none", a tensor of shape (...), or (..., T - shift) under shift. float32, or float64 for
        float64 logits.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.
        IndexError: a class index is outside [0, V); the message has its position.

    Example:
        >>> import torch
        >>> cross_entropy(torch.zeros(3, 5, 100), torch.zeros(3, 5, dtype=torch.long), shift=1)  # ln 100
        tensor(4.6052)
    """
    options = RowOptions(label_smoothing, z_loss, softcap, scale, class_weight)
    reduce = ReduceOptions(ignore_index, reduction, token_weight, normalizer, shift)
    job = logits_job(logits, target, options, reduce, backend)
    if job.batch.target.is_abstract:
        return _shapes(job, reduction, logits, token_weight, probability_of(target))
    losses = apply(LogitsRows, logits, probability_of(target), job)
    losses = losses * job.batch.weight
    return job.batch.spread(losses) if reduction == "none" else losses.sum()


def _shapes(job: LossJob, reduction: Reduction, *given: Tensor | None) -> Tensor:
    """Return the result of tensors without values: only a shape and a dtype."""
    shape = job.batch.shape if reduction == "none" else torch.Size()
    return apply(Shapes, shape, accumulation_dtype(job.dtype), *given)
