"""The divergence between a student and the stored top-k log-probabilities of a teacher."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cynosure.loss.compiler import public
from cynosure.loss.divergence.jobs import ModelHead, rows_batch
from cynosure.loss.divergence.options import Tail, cap_options, check_direction, check_tail
from cynosure.loss.divergence.stored import IGNORED, check_stored, kl_of, outcomes, stored_ids
from cynosure.loss.logprobs import token_logprobs
from cynosure.loss.options import (
    ReduceOptions,
    Reduction,
    accumulation_dtype,
    as_positive,
    check_chunk_tokens,
    one_shift,
)


class TopkArguments(NamedTuple):
    """The arguments of `linear_topk_kl_div`, in the order of the schema of `cynosure::topk_ids`."""

    student_hidden: Tensor
    student_weight: Tensor
    student_bias: Tensor | None
    ids: Tensor
    logprobs: Tensor
    token_weight: Tensor | None
    normalizer: float | Tensor | None
    direction: Literal["forward", "reverse"]
    tail: Tail
    temperature: float
    student_softcap: float | None
    student_scale: float
    reduction: Reduction
    shift: int
    head_dtype: torch.dtype | None
    chunk_tokens: int | None

    def reduce(self) -> ReduceOptions:
        """Check the options that weigh and reduce the rows; return them."""
        return ReduceOptions(
            reduction=self.reduction, token_weight=self.token_weight, normalizer=self.normalizer, shift=self.shift
        )

    def checked_ids(self) -> Tensor:
        """Check all arguments; return ids (..., K) that are IGNORED in the rows that do not count."""
        check_direction(self.direction, ("forward", "reverse"))
        check_tail(self.tail)
        as_positive("temperature", self.temperature)
        cap_options("student_", self.student_softcap, self.student_scale)
        reduce = self.reduce()
        check_chunk_tokens(self.chunk_tokens)
        head = ModelHead(self.student_hidden, self.student_weight, self.student_bias, self.head_dtype)
        head.check("student_")
        lead, vocab_size = head.hidden.shape[:-1], head.weight.shape[0]
        check_stored(self.ids, self.logprobs, lead, vocab_size, head.hidden.device)
        batch = rows_batch(head.hidden, reduce, accumulation_dtype(head.dtype))
        return stored_ids(self.ids, self.logprobs, batch, vocab_size)

    def divergence(self, ids: Tensor) -> Tensor:
        """Compute the divergence with these ids in operations that a graph can have."""
        student = token_logprobs(
            self.student_hidden, self.student_weight, ids, bias=self.student_bias, softcap=self.student_softcap,
            scale=self.student_scale, temperature=self.temperature, ignore_index=IGNORED, head_dtype=self.head_dtype,
            chunk_tokens=self.chunk_tokens,
        )  # fmt: skip
        ignored = ids[..., 0] == IGNORED
        # An ignored row gets any finite values, since the NaN of a gradient stays NaN times 0.
        teacher = self.logprobs.to(student.dtype).masked_fill(ignored[..., None], -32.0)
        both = outcomes(teacher, student, self.tail, self.student_weight.shape[0])
        divergences = kl_of(*both if self.direction == "forward" else both[::-1]).masked_fill(ignored, 0)
        if self.shift:
            divergences = divergences[..., : divergences.shape[-1] - self.shift]
        weighted = divergences * self.row_weights(divergences)
        return weighted if self.reduction == "none" else weighted.sum()

    def row_weights(self, rows: Tensor) -> Tensor:
        """Return the weight of each of these rows (..., T - shift), over the normalizer for "mean"."""
        weight = torch.ones_like(rows)
        if self.token_weight is not None:
            weight = self.token_weight[..., self.shift :] if self.shift else self.token_weight
            weight = weight.to(rows.dtype)
        if self.reduction != "mean":
            return weight
        total = weight.sum()
        if self.normalizer is not None:
            total = torch.as_tensor(self.normalizer, dtype=rows.dtype, device=rows.device).detach().reshape(())
        return weight / total.masked_fill(total == 0, 1)  # then no row counts


@public
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
    derivatives, forward mode and `torch.func` raise NotImplementedError.

    `torch.compile` and `torch.export` capture the call without a graph break, as operators and plain tensor operations.
    Tensor subclasses (for example DTensors and quantized weights) and NumPy numbers break the graph.

    DTensors are gathered, and their gradients get their placements; the result is a plain tensor on every process.

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
    given = TopkArguments(
        student_hidden, student_weight, student_bias, ids, logprobs, token_weight, normalizer, direction, tail,
        temperature, student_softcap, student_scale, reduction, shift, head_dtype, chunk_tokens,
    )  # fmt: skip
    reduce = given.reduce()
    return given._replace(normalizer=reduce.normalizer, shift=one_shift(reduce.shift)).divergence(given.checked_ids())
