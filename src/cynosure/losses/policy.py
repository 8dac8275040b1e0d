"""Policy gradients of texts that the model sampled: GRPO and its kin, PPO, RLOO.

B texts, T tokens; r is the importance ratio p / p_old, A an advantage.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from cynosure.loss import as_integer, as_number, as_positive
from cynosure.losses.inputs import Reduction, check_choice, check_floating, check_rows, of_tokens
from cynosure.losses.kl import sampled_kl
from cynosure.losses.reduce import over_sequences, over_tokens

Aggregate = Literal["grpo", "dapo", "dr_grpo", "luspo"]
BELOW_ONE = math.nextafter(1.0, 0.0)


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    delta: float | None = None,
    beta: float = 0.0,
    ref_logprobs: Tensor | None = None,
    importance: Literal["token", "sequence"] = "token",
    aggregate: Aggregate = "dapo",
    normalizer: float | Tensor | None = None,
    max_completion_length: int | None = None,
) -> Tensor:
    """Compute the loss of group relative policy optimization (GRPO) and its kin, as TRL's `GRPOTrainer` does.

    With `r = exp(logprobs - old_logprobs)` and `d = ref_logprobs - logprobs`, for each token:
    `-min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A) + beta (exp(d) - 1 - d)`, from "DeepSeekMath" (Shao et al.,
    2024, arXiv:2402.03300). `aggregate` says how the tokens are averaged:

    - "grpo": the mean over the tokens of each text, then over texts, as in DeepSeekMath.
    - "dapo": the sum over all tokens, divided by `normalizer`, from "DAPO" (Yu et al., 2025, arXiv:2503.14476). Without
      a normalizer it is TRL's "bnpo" and verl's "token-mean".
    - "dr_grpo": the sum over all tokens, divided by `B x max_completion_length`, from "Understanding R1-Zero-Like
      Training" (Liu et al., 2025, arXiv:2503.20783).
    - "luspo": the sum over the tokens of each text, then the mean over texts (arXiv:2602.05261).

    `importance="sequence"` with `aggregate="grpo"` is "Group Sequence Policy Optimization" (GSPO; Zheng et al., 2025,
    arXiv:2507.18071): r is then the geometric mean of a text's ratios.

    Args:
        logprobs: (B, T) log-probabilities of the sampled tokens under the model.
        old_logprobs: (B, T) those under the model that sampled them, a constant. On-policy: `logprobs.detach()`.
        advantages: (B,) for example of `group_advantages`, or (B, T), a constant.
        mask: (B, T) bool, or 0 and 1: the tokens that count.
        epsilon_low: r is clipped at `1 - epsilon_low` from below, in [0, 1). GSPO's authors use 3e-4.
        epsilon_high: r is clipped at `1 + epsilon_high` from above, of at least 0. DAPO's authors use 0.28.
        delta: the largest r where the advantage is negative, above `1 + epsilon_high` (two-sided clipping,
            arXiv:2505.07291; verl's `clip_ratio_c`). None: no limit.
        beta: weight of the KL penalty, of at least 0; above 0 it needs `ref_logprobs`.
        ref_logprobs: (B, T) log-probabilities under the reference model, a constant.
        importance: "token", or "sequence" for one ratio a text.
        aggregate: "grpo", "dapo", "dr_grpo" or "luspo".
        normalizer: for "dapo", what the sum is divided by, for example the tokens of the whole accumulated batch. None:
            the tokens of this batch that count.
        max_completion_length: for "dr_grpo", the limit on the tokens of a text. A constant: not T.

    Returns:
        A 0-d tensor; 0.0 if no token counts. float32, or float64 for float64 `logprobs`.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.

    Example:
        >>> import torch
        >>> logprobs = torch.tensor([[-1.0, -2.0], [-1.0, -1.0]], requires_grad=True)
        >>> mask = torch.tensor([[1, 1], [1, 0]])
        >>> loss = grpo_loss(logprobs, logprobs.detach(), torch.tensor([1.0, -1.0]), mask, aggregate="grpo")
        >>> loss.backward()
        >>> logprobs.grad
        tensor([[-0.2500, -0.2500],
                [ 0.5000,  0.0000]])
    """
    check_choice("importance", importance, ("token", "sequence"))
    counted, logprobs, old_logprobs = of_tokens(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    log_ratio = logprobs - old_logprobs.detach()
    if importance == "sequence":
        log_ratio = (log_ratio.sum(-1) / counted.sum(-1).clamp(min=1))[:, None].expand_as(logprobs)
    losses = _clipped(log_ratio, _per_token(advantages, counted, logprobs), epsilon_low, epsilon_high, delta)
    if beta := as_number("beta", beta, "finite and not negative", low=0.0):
        if ref_logprobs is None:
            raise ValueError(f"ref_logprobs must be given with beta={beta}, the weight of the KL penalty, got None")
        _, logprobs, ref_logprobs = of_tokens(counted, logprobs=logprobs, ref_logprobs=ref_logprobs)
        losses = losses + beta * sampled_kl(logprobs, ref_logprobs, "k3")
    return _aggregated(losses.where(counted, 0.0), counted, aggregate, normalizer, max_completion_length)


def ppo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    delta: float | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the clipped policy loss of proximal policy optimization (PPO).

    With `r = exp(logprobs - old_logprobs)`, for each token: `-min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A)`,
    from "Proximal Policy Optimization Algorithms" (Schulman et al., 2017, arXiv:1707.06347). The value loss is not
    part of it.

    Args:
        logprobs: (B, T) log-probabilities of the sampled tokens under the model.
        old_logprobs: (B, T) those under the model that sampled them, a constant.
        advantages: (B, T) or (B,), a constant.
        mask: (B, T) bool, or 0 and 1: the tokens that count.
        epsilon_low: r is clipped at `1 - epsilon_low` from below, in [0, 1).
        epsilon_high: r is clipped at `1 + epsilon_high` from above, of at least 0.
        delta: the largest r where the advantage is negative, above `1 + epsilon_high`, from "Mastering Complex Control"
            (dual-clip PPO; Ye et al., 2020, arXiv:1912.09729). None: no limit.
        reduction: "mean" over the tokens that count, or "none" for (B, T) losses with 0 where masked.

    Returns:
        A 0-d tensor, or (B, T) for "none"; 0.0 if no token counts. float32, or float64 for float64 `logprobs`.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.

    Example:
        >>> import torch
        >>> old, new = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.55, 0.9]]).log()
        >>> ppo_loss(new, old, torch.ones(1, 2), torch.ones(1, 2), reduction="none")  # r is 1.1; 1.8, clipped to 1.2
        tensor([[-1.1000, -1.2000]])
    """
    counted, logprobs, old_logprobs = of_tokens(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    advantages = _per_token(advantages, counted, logprobs)
    losses = _clipped(logprobs - old_logprobs.detach(), advantages, epsilon_low, epsilon_high, delta)
    return over_tokens(losses.where(counted, 0.0), counted, reduction)


def rloo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the loss of REINFORCE leave-one-out (RLOO), as TRL's `RLOOTrainer` does: one ratio for a whole text.

    With `r = exp(sum of logprobs - sum of old_logprobs)`, for each text:
    `-min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A)`, from "Back to Basics" (Ahmadian et al., 2024,
    arXiv:2402.14740).

    Args:
        logprobs: (B, T) log-probabilities of the sampled tokens under the model.
        old_logprobs: (B, T) those under the model that sampled them, a constant. On-policy: `logprobs.detach()`.
        advantages: (B,) for example of `rloo_advantages`, a constant.
        mask: (B, T) bool, or 0 and 1: the tokens that count.
        epsilon_low: r is clipped at `1 - epsilon_low` from below, in [0, 1).
        epsilon_high: r is clipped at `1 + epsilon_high` from above, of at least 0.
        reduction: "mean" over the texts, or "none" for (B,) losses.

    Returns:
        A 0-d tensor, or (B,) for "none". float32, or float64 for float64 `logprobs`.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.

    Example:
        >>> import torch
        >>> logprobs = torch.tensor([[-1.0, -2.0], [-1.0, -1.0]], requires_grad=True)
        >>> mask = torch.tensor([[1, 1], [1, 0]])
        >>> rloo_loss(logprobs, logprobs.detach(), torch.tensor([0.5, -0.5]), mask).backward()
        >>> logprobs.grad
        tensor([[-0.2500, -0.2500],
                [ 0.2500,  0.0000]])
    """
    _, logprobs, old_logprobs = of_tokens(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    check_rows("logprobs", logprobs)
    check_floating("advantages", advantages)
    log_ratio = logprobs.sum(-1) - old_logprobs.detach().sum(-1)
    if advantages.shape != log_ratio.shape:
        raise ValueError(f"advantages must have shape (B,), {tuple(log_ratio.shape)}, got {tuple(advantages.shape)}")
    losses = _clipped(log_ratio, advantages.detach().to(logprobs.dtype), epsilon_low, epsilon_high, None)
    return over_sequences(losses, reduction)


def _per_token(advantages: Tensor, counted: Tensor, logprobs: Tensor) -> Tensor:
    """Return constant advantages (B, T), 0 where a token does not count."""
    check_rows("logprobs", logprobs)
    check_floating("advantages", advantages)
    if advantages.shape not in (logprobs.shape, logprobs.shape[:1]):
        raise ValueError(
            f"advantages must have shape (B,) or (B, T), {tuple(logprobs.shape[:1])} or {tuple(logprobs.shape)}, "
            f"got {tuple(advantages.shape)}"
        )
    rows = advantages[:, None] if advantages.ndim == 1 else advantages
    return rows.detach().to(logprobs.dtype).where(counted, 0.0)


def _clipped(
    log_ratio: Tensor, advantages: Tensor, epsilon_low: float, epsilon_high: float, delta: float | None
) -> Tensor:
    """Return -min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A), with r at most delta where A is negative.

    That is -A min(r, 1 + epsilon_high) for A >= 0, and -A max(r, 1 - epsilon_low) for A < 0. What is clipped is log r:
    the gradient of a clipped r is then 0 even where r itself would overflow.
    """
    low = math.log1p(-as_number("epsilon_low", epsilon_low, "in [0, 1)", 0.0, BELOW_ONE))
    high = math.log1p(as_number("epsilon_high", epsilon_high, "finite and not negative", low=0.0))
    most = None
    if delta is not None:
        most = math.log(as_positive("delta", delta))
        if most <= high:
            raise ValueError(f"delta must be above 1 + epsilon_high, {1 + epsilon_high:.6g}, got {delta}")
    log_ratio = torch.where(advantages < 0, log_ratio.clamp(low, most), log_ratio.clamp(max=high))
    return -advantages * log_ratio.exp()


def _aggregated(
    losses: Tensor,
    counted: Tensor,
    aggregate: Aggregate,
    normalizer: float | Tensor | None,
    max_completion_length: int | None,
) -> Tensor:
    """Average losses (B, T), which are 0 where a token does not count, as `grpo_loss` says."""
    check_choice("aggregate", aggregate, ("grpo", "dapo", "dr_grpo", "luspo"))
    if normalizer is not None and aggregate != "dapo":
        raise ValueError(f"normalizer needs aggregate='dapo', got aggregate={aggregate!r}: leave one out")
    if (max_completion_length is None) == (aggregate == "dr_grpo"):
        raise ValueError(
            f"max_completion_length must be given with aggregate='dr_grpo' alone, got {max_completion_length} with "
            f"aggregate={aggregate!r}"
        )
    texts = max(len(losses), 1)
    if aggregate == "grpo":
        return (losses.sum(-1) / counted.sum(-1).clamp(min=1)).sum() / texts
    if aggregate == "luspo":
        return losses.sum() / texts
    if aggregate == "dr_grpo":
        limit = as_integer("max_completion_length", max_completion_length)
        return losses.sum() / (texts * as_positive("max_completion_length", limit))
    if normalizer is None:
        return over_tokens(losses, counted, "mean")
    return losses.sum() / (normalizer if isinstance(normalizer, Tensor) else as_positive("normalizer", normalizer))
