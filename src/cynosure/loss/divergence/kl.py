"""The divergence between a student and a teacher from their hidden states and heads."""

import torch
from torch import Tensor

from cynosure.loss.autograd import Shapes, apply
from cynosure.loss.compiler import public
from cynosure.loss.divergence.autograd import DivergenceSum, RowDivergences
from cynosure.loss.divergence.jobs import ModelHead, checked_heads, divergence_job
from cynosure.loss.divergence.options import Direction, divergence_options
from cynosure.loss.options import ReduceOptions, Reduction


@public
def linear_kl_div(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    direction: Direction = "forward",
    beta: float | None = None,
    temperature: float = 1.0,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    student_scale: float = 1.0,
    teacher_scale: float = 1.0,
    token_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    shift: int = 0,
    vocab_size: int | None = None,
    head_dtype: torch.dtype | None = None,
    chunk_tokens: int | None = None,
) -> Tensor:
    """Compute the divergence between two heads' softmaxes without materializing either's N x V logits.

    With t and s the softmaxes of the teacher's and the student's logits divided by the temperature, "forward" is
    KL(t || s) = sum t (log t - log s), "reverse" is KL(s || t), and "jsd" the generalized Jensen-Shannon divergence
    beta KL(t || m) + (1 - beta) KL(s || m) of the mixture m = beta t + (1 - beta) s, as in TRL's GKD. The result is not
    multiplied by the square of the temperature. `docs/explanation/math.md` has the formulas,
    `cynosure.loss.divergence.reference` has them as code.

    A class of probability 0 on the left adds 0. If only the right side is 0, the divergence is infinite.

    All tensors get gradients if they require them. Student and teacher take one matmul of logits each, and two more for
    the gradients of hidden and weight ("none" computes the logits again for these). A teacher that requires no grad
    costs its one matmul. Second derivatives, forward mode and `torch.func` raise NotImplementedError.

    `torch.compile` and `torch.export` capture the call as one operator, without a graph break. Tensor subclasses (for
    example DTensors and quantized weights) and NumPy numbers break the graph.

    DTensors are gathered, and their gradients get their placements; the result is a plain tensor on every process.

    Args:
        student_hidden: (..., D) hidden states, floating point.
        student_weight: (V, D) output embedding, of student_hidden's dtype (autocast casts both). A frozen subclass that
            implements `F.linear`, for example a quantized weight, is multiplied with its own implementation.
        teacher_hidden: (..., E) hidden states of the same tokens. D and E, and the dtypes of both models, may differ.
        teacher_weight: (V, E) output embedding, of teacher_hidden's dtype, likewise.
        direction: "forward", "reverse" or "jsd".
        beta: the teacher's weight in the mixture of "jsd", strictly between 0 and 1; an error with the other
            directions. None: 0.5.
        temperature: positive number that divides the logits of both, after the cap.
        student_bias: (V,), of student_hidden's dtype.
        teacher_bias: (V,), of teacher_hidden's dtype.
        student_softcap: logits become softcap * tanh(logits / softcap), after the scale. None: no cap.
        teacher_softcap: the same for the teacher.
        student_scale: the student's logits are multiplied by it.
        teacher_scale: the same for the teacher.
        token_weight: (...) weight of each token; 0 means ignored: it costs nothing and gets no gradient. May require
            grad.
        reduction: "mean" over the normalizer, "sum", or "none" for (...) divergences with 0 where ignored.
        normalizer: constant by which "mean" divides, for example the number of tokens in the whole accumulated or
            distributed batch. None: the sum of token weights.
        shift: k drops the last k positions of both hidden states, and reads token_weight from position k on: with
            shift=1 and a token_weight aligned with the tokens, each hidden state has the weight of the token it
            predicts.
        vocab_size: number of classes to compare, the first of both heads: for heads padded to different sizes. None:
            all, which must be equally many.
        head_dtype: dtype of the matmuls and logits of both, as for `linear_cross_entropy`. None: each model's own.
        chunk_tokens: rows of logits of each model held at once. None: chosen by size.

    Returns:
        A 0-d tensor; 0.0 if there is nothing to average. For "none", a tensor of shape (...), or (..., T - shift) under
        shift. float32, or float64 if the inputs of either model are.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[2.0, 0.0]], requires_grad=True), torch.zeros(1, 3)
        >>> loss = linear_kl_div(student, torch.eye(2), teacher, torch.zeros(2, 3))
        >>> round(loss.item(), 4)  # the teacher gives each class 1 / 2: the mean of ln(0.5 / s)
        0.4338
        >>> loss.backward()
        >>> student.grad  # s - t, since the weight is the identity
        tensor([[ 0.3808, -0.3808]])
    """
    caps, scales = (student_softcap, teacher_softcap), (student_scale, teacher_scale)
    options = divergence_options(direction, beta, temperature, caps, scales)
    reduce = ReduceOptions(reduction=reduction, token_weight=token_weight, normalizer=normalizer, shift=shift)
    student = ModelHead(student_hidden, student_weight, student_bias, head_dtype)
    teacher = ModelHead(teacher_hidden, teacher_weight, teacher_bias, head_dtype)
    student, teacher = checked_heads(student, teacher, vocab_size)
    job = divergence_job(student, teacher, options, reduce, chunk_tokens)
    batch, inputs = job.batch, (*student.inputs(), *teacher.inputs())
    if batch.target.is_abstract:
        shape = batch.shape if reduction == "none" else torch.Size()
        return apply(Shapes, shape, job.dtype, *inputs, token_weight)
    if reduction == "none":
        return batch.spread(apply(RowDivergences, job, *inputs) * batch.weight)
    return apply(DivergenceSum, job, batch.weight, *inputs)
