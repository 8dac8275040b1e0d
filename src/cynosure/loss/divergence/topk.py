"""The divergence between a student and the stored top-k log-probabilities of a teacher."""

from typing import Literal

import torch
from torch import Tensor

from cynosure.loss.autograd import Shapes, apply
from cynosure.loss.batch import rows_between
from cynosure.loss.compiler import uncompiled
from cynosure.loss.divergence.jobs import ModelHead, reduce_options, rows_batch
from cynosure.loss.divergence.options import Tail, cap_options, check_direction, check_tail
from cynosure.loss.divergence.stored import check_stored, counted_rows, kl_of, outcomes
from cynosure.loss.logprobs import token_logprobs
from cynosure.loss.options import Reduction, accumulation_dtype, as_positive, check_chunk_tokens
from cynosure.loss.tensors import plain


@uncompiled
def linear_topk_kl_div(
    student_hidden: Tensor,
    student_weight: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    *,
    direction: Literal["forward", "reverse"] = "forward",
    tail: Tail = "bucket",
    temperature: float = 1.0,
    student_bias: Tensor | None = None,
    student_softcap: float | None = None,
    student_scale: float = 1.0,
    token_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    shift: int = 0,
    head_dtype: torch.dtype | None = None,
    chunk_tokens: int | None = None,
) -> Tensor:
    """Compute the divergence between a student's head and the K likeliest classes of a teacher, as stored earlier.

    "forward" is KL(teacher || student), "reverse" KL(student || teacher). With tail="bucket", K + 1 outcomes are
    compared: the K classes, and one bucket with the rest of each distribution. With "renormalize" both distributions
    are divided by their sums over the K classes, and the rest is not learned.

    The student's logits are divided by the temperature; the teacher's log-probabilities are taken as they are, which
    is at that temperature already. The result is not multiplied by the square of the temperature.

    In float32 the rest of a student is known to about 1e-7, where K is above 1. A smaller one counts as that.

    student_hidden, student_weight, student_bias, token_weight and logprobs get gradients if they require them. Second
    derivatives, forward mode and `torch.func` raise NotImplementedError. In a graph of `torch.compile` the call is a
    graph break; `torch.export` cannot capture it.

    Args:
        student_hidden: (..., D) hidden states, floating point.
        student_weight: (V, D) output embedding, of student_hidden's dtype.
        ids: (..., K) classes, for example `top_ids` of `token_stats`; distinct within a position (checked on a CPU).
        logprobs: (..., K) the teacher's log-probabilities of these classes under its whole vocabulary; -inf for
            probability 0. Checked on a CPU: they are at most 0, and their probabilities add up to at most 1.
        direction: "forward" or "reverse". "reverse" is infinite where the teacher leaves nothing to the bucket.
        tail: what becomes of the other classes: "bucket" or "renormalize".
        temperature: positive number that divides the student's logits, after the cap.
        student_bias: (V,), of student_hidden's dtype.
        student_softcap: logits become softcap * tanh(logits / softcap), after the scale. None: no cap.
        student_scale: the student's logits are multiplied by it.
        token_weight: (...) weight of each token; 0 means ignored: it costs nothing and gets no gradient, and its ids
            and logprobs are not read. May require grad.
        reduction: "mean" over the normalizer, "sum", or "none" for (...) divergences with 0 where ignored.
        normalizer: constant by which "mean" divides. None: the sum of token weights.
        shift: k drops the last k positions of student_hidden, ids and logprobs, and reads token_weight from position k
            on.
        head_dtype: dtype of the matmuls and logits, as for `linear_cross_entropy`. None: the student's own.
        chunk_tokens: rows of logits held at once. None: chosen by size.

    Returns:
        A 0-d tensor; 0.0 if there is nothing to average. For "none", a tensor of shape (...), or (..., T - shift) under
        shift. float32, or float64 for float64 hidden states.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.
        IndexError: an id is outside [0, V); the message has its position.

    Example:
        >>> import torch
        >>> student, ids = torch.zeros(1, 2, requires_grad=True), torch.tensor([[2, 0]])
        >>> logprobs = torch.tensor([[0.5, 0.25]]).log()
        >>> loss = linear_topk_kl_div(student, torch.randn(4, 2), ids, logprobs)
        >>> round(loss.item(), 4)  # 0.5 ln(0.5 / 0.25) + 0.25 ln(0.25 / 0.25) + 0.25 ln(0.25 / 0.5)
        0.1733
    """
    check_direction(direction, ("forward", "reverse"))
    check_tail(tail)
    temperature, options = (
        as_positive("temperature", temperature),
        cap_options("student_", student_softcap, student_scale),
    )
    reduce, chunk_tokens = (
        reduce_options(student_hidden, token_weight, reduction, normalizer, shift),
        check_chunk_tokens(chunk_tokens),
    )
    head = ModelHead.plain("student_", student_hidden, student_weight, student_bias, head_dtype)
    head.check("student_")
    ids, logprobs = plain("ids", ids), plain("logprobs", logprobs)
    vocab_size, dtype = head.weight.shape[0], accumulation_dtype(head.dtype)
    check_stored(ids, logprobs, head.hidden.shape[:-1], vocab_size, head.hidden.device)
    batch = rows_batch(head.hidden, reduce, dtype)
    if batch.target.is_abstract:
        shape = batch.shape if reduction == "none" else torch.Size()
        return apply(Shapes, shape, dtype, *head[:3], logprobs, reduce.token_weight)
    classes, teacher = counted_rows(ids, logprobs, batch, vocab_size, dtype)
    rows = head.hidden.reshape(-1, head.hidden.shape[-1])[rows_between(batch.inputs, 0, batch.n_rows)]
    student = token_logprobs(
        batch.masked(rows, 0), head.weight, classes, bias=head.bias, scale=options.scale, softcap=options.softcap,
        temperature=temperature, head_dtype=head_dtype, chunk_tokens=chunk_tokens,
    )  # fmt: skip
    both = outcomes(teacher, student, tail, vocab_size)
    divergences = kl_of(*both if direction == "forward" else both[::-1])
    if batch.counted is not None:
        divergences = divergences.masked_fill(~batch.counted, 0)
    weighted = divergences * batch.weight
    return batch.spread(weighted) if reduction == "none" else weighted.sum()
