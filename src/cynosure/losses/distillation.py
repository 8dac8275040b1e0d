"""Losses that need the log-probabilities of one token a position from student and teacher, not their distributions."""

from torch import Tensor

from cynosure.losses.inputs import Reduction, check_choice, of_tokens
from cynosure.losses.kl import Estimator, sampled_kl
from cynosure.losses.reduce import over_tokens


def sequence_kd_loss(logprobs: Tensor, mask: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Compute the loss of sequence-level knowledge distillation: the cross-entropy of a text that the teacher wrote.

    `-log p(y_t)` for each token, from "Sequence-Level Knowledge Distillation" (Kim and Rush, 2016, arXiv:1606.07947).
    The teacher is needed to write the text, and no longer for the loss.

    Args:
        logprobs: (...) log-probabilities of the teacher's tokens under the student.
        mask: (...) bool, or 0 and 1: the tokens that count.
        reduction: "mean" over the tokens that count, or "none" for (...) losses with 0 where masked.

    Returns:
        A 0-d tensor, or (...) for "none"; 0.0 if no token counts. float32, or float64 for float64 log-probabilities.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.

    Example:
        >>> import torch
        >>> sequence_kd_loss(torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[1, 1, 0]]))
        tensor(1.5000)
    """
    counted, logprobs = of_tokens(mask, logprobs=logprobs)
    return over_tokens(-logprobs, counted, reduction)


def on_policy_distillation_loss(
    logprobs: Tensor,
    teacher_logprobs: Tensor,
    mask: Tensor,
    *,
    estimator: Estimator = "k1",
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the loss of on-policy distillation: KL(student || teacher), estimated at tokens that the student sampled.

    With `d = logprobs - teacher_logprobs`, for each token, after "Approximating KL Divergence" (Schulman, 2020):

    - "k1": the value is `d`. The gradient is the policy gradient for the reward `-d`, `d x grad logprobs`, as in
      "On-Policy Distillation" (Thinking Machines, 2025). Both are unbiased.
    - "k2": `d^2 / 2`. The gradient is that of "k1"; the value is biased, and never negative.
    - "k3": `exp(-d) - 1 + d`, the penalty of `grpo_loss`. The value is unbiased and never negative; the mean of its
      gradient is that of the other direction, KL(teacher || student).

    Args:
        logprobs: (...) log-probabilities of the sampled tokens under the student.
        teacher_logprobs: (...) those under the teacher, a constant.
        mask: (...) bool, or 0 and 1: the tokens that count.
        estimator: "k1", "k2" or "k3".
        reduction: "mean" over the tokens that count, or "none" for (...) losses with 0 where masked.

    Returns:
        A 0-d tensor, or (...) for "none"; 0.0 if no token counts. float32, or float64 for float64 `logprobs`.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-2.0, -2.0]])
        >>> on_policy_distillation_loss(student, teacher, torch.tensor([[1, 1]]), reduction="none")
        tensor([[1., 0.]])
    """
    check_choice("estimator", estimator, ("k1", "k2", "k3"))
    counted, logprobs, teacher_logprobs = of_tokens(mask, logprobs=logprobs, teacher_logprobs=teacher_logprobs)
    return over_tokens(sampled_kl(logprobs, teacher_logprobs, estimator), counted, reduction)
