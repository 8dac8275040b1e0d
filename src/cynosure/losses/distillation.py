"""Losses of distillation: from both models' hidden states, or from the log-probabilities of one token a position."""

from typing import Any

from torch import Tensor

from cynosure.loss import accumulation_dtype, as_number, linear_kl_div
from cynosure.losses.inputs import Reduction, as_bool, check_choice, check_floating, of_tokens
from cynosure.losses.kl import Estimator, sampled_kl
from cynosure.losses.reduce import over_tokens

MADE_HERE = {"direction": "beta", "token_weight": "mask"}  # options of the divergence, and what they come from


def gkd_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    mask: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    shift: int = 0,
    reduction: Reduction = "mean",
    **head_options: Any,
) -> Tensor:
    """Compute the loss of generalized knowledge distillation (GKD), without materializing the logits of either model.

    With t and s the softmaxes of the teacher's and the student's logits divided by the temperature, and
    `m = beta t + (1 - beta) s`: `beta KL(t || m) + (1 - beta) KL(s || m)` for each token, from "On-Policy Distillation
    of Language Models" (Agarwal et al., 2023, arXiv:2306.13649). As in TRL, beta = 0 is KL(t || s) and beta = 1 is
    KL(s || t). The tokens may come from a data set, from the teacher or, on-policy, from the student.

    Args:
        student_hidden: (..., D) hidden states, floating point.
        student_weight: (V, D) output embedding.
        teacher_hidden: (..., E) hidden states of the same tokens, computed under `torch.no_grad()`.
        teacher_weight: (V, E) output embedding; pass it detached.
        mask: (...) bool, or 0 and 1: the tokens that count.
        beta: in [0, 1].
        temperature: positive number that divides the logits of both, after the cap.
        shift: with 1, `mask` is aligned with the tokens, as labels are: the hidden state of position t counts if token
            t + 1 does.
        reduction: "mean" over the tokens that count, or "none" for (...) losses, (..., T - shift) under shift, with 0
            where masked.
        **head_options: further options of `cynosure.linear_kl_div`, for example `student_softcap` or `normalizer`.

    Returns:
        A 0-d tensor, or (...) for "none"; 0.0 if no token counts. float32, or float64 if one model's inputs are.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.

    Example:
        >>> import torch
        >>> student, teacher, head = torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2), torch.eye(2)
        >>> gkd_loss(student, head, teacher, head, torch.tensor([1]), beta=0.0)  # KL(teacher || student)
        tensor(0.4338)
    """
    beta = as_number("beta", beta, "in [0, 1]", 0.0, 1.0)
    for name, source in MADE_HERE.items():
        if name in head_options:
            raise TypeError(f"gkd_loss() takes no {name}: pass {source} instead")
    check_choice("reduction", reduction, ("mean", "none"))
    check_floating("student_hidden", student_hidden)
    counted = as_bool("mask", mask, "student_hidden but for its last dimension", student_hidden[..., 0])
    return linear_kl_div(
        student_hidden,
        student_weight,
        teacher_hidden,
        teacher_weight,
        direction="forward" if beta == 0 else "reverse" if beta == 1 else "jsd",
        beta=beta if 0 < beta < 1 else None,
        temperature=temperature,
        token_weight=counted.to(accumulation_dtype(student_hidden.dtype)),
        reduction=reduction,
        shift=shift,
        **head_options,
    )


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
