"""The losses from the formulas of their papers, in plain autograd, on probabilities and one row at a time.

They share no line with the package. In float64 they are the truth; in a narrower dtype they are the "plain torch" of a
three-way comparison. Arguments and options are those of the losses.
"""

import torch


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def mean(losses, reduction):
    return losses if reduction == "none" else losses.mean()


def token_mean(losses, mask, reduction):
    """Losses of the tokens that count; in their places, or averaged."""
    if reduction == "mean":
        return torch.stack(
            [loss for loss, counts in zip(losses.flatten(), mask.flatten(), strict=True) if counts]
        ).mean()
    return torch.where(mask, losses, torch.zeros_like(losses))


def dpo_loss(
    chosen, rejected, ref_chosen, ref_rejected, beta=0.1, variant="sigmoid", label_smoothing=0.0, reduction="mean"
):
    rewards = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    won = sigmoid(rewards[0] - rewards[1])
    if variant == "ipo":
        losses = ((rewards[0] - rewards[1]) / beta - 0.5 / beta).square()
    elif variant == "hinge":
        losses = torch.maximum(torch.zeros_like(won), 1 - (rewards[0] - rewards[1]))
    elif variant == "robust":
        losses = (label_smoothing * torch.log(1 - won) - (1 - label_smoothing) * torch.log(won)) / (
            1 - 2 * label_smoothing
        )
    else:
        losses = -label_smoothing * torch.log(1 - won) - (1 - label_smoothing) * torch.log(won)
    return mean(losses, reduction)


def simpo_loss(chosen, rejected, beta=2.0, gamma=1.0, label_smoothing=0.0, reduction="mean"):
    won = sigmoid(beta * chosen - beta * rejected - gamma)
    return mean(-(1 - label_smoothing) * torch.log(won) - label_smoothing * torch.log(1 - won), reduction)


def orpo_loss(chosen, rejected, nll, beta=0.1, reduction="mean"):
    p, q = chosen.exp(), rejected.exp()
    return mean(nll - beta * torch.log(sigmoid(torch.log(p / (1 - p) / (q / (1 - q))))), reduction)


def cpo_loss(
    chosen, rejected, nll, beta=0.1, alpha=1.0, variant="sigmoid", label_smoothing=0.0, reduction="mean"
):  # fmt: skip
    if variant == "sigmoid":
        return mean(alpha * nll + simpo_loss(chosen, rejected, beta, 0.0, label_smoothing, "none"), reduction)
    margin = beta * chosen - beta * rejected
    return mean(alpha * nll + torch.maximum(torch.zeros_like(margin), 1 - margin), reduction)


def kto_loss(
    logprobs, ref_logprobs, desirable, kl_logprobs, ref_kl_logprobs, beta=0.1, desirable_weight=1.0,
    undesirable_weight=1.0, reduction="mean",
):  # fmt: skip
    baseline = max(0.0, (kl_logprobs - ref_kl_logprobs).mean().item())
    losses = []
    for gain, wanted in zip(logprobs - ref_logprobs, desirable, strict=True):
        value = sigmoid(beta * (gain - baseline)) if wanted else sigmoid(beta * (baseline - gain))
        losses.append((desirable_weight if wanted else undesirable_weight) * (1 - value))
    return mean(torch.stack(losses), reduction)


def surrogate(ratio, advantage, low, high, delta=None):
    """The clipped surrogate of one token or text, in the words of TRL: both sides are clipped where delta is given."""
    limited = ratio if delta is None else torch.clamp(ratio, max=delta)
    return -torch.minimum(limited * advantage, torch.clamp(ratio, 1 - low, 1 + high) * advantage)


def ppo_loss(logprobs, old_logprobs, advantages, mask, epsilon_low=0.2, epsilon_high=0.2, delta=None, reduction="mean"):
    advantages = advantages if advantages.ndim == 2 else advantages.unsqueeze(1).expand_as(logprobs)
    ratio = logprobs.exp() / old_logprobs.exp()
    return token_mean(surrogate(ratio, advantages, epsilon_low, epsilon_high, delta), mask, reduction)


def rloo_loss(logprobs, old_logprobs, advantages, mask, epsilon_low=0.2, epsilon_high=0.2, reduction="mean"):
    losses = []
    for row, old, advantage, counted in zip(logprobs, old_logprobs, advantages, mask, strict=True):
        ratio = row[counted].exp().prod() / old[counted].exp().prod()
        losses.append(surrogate(ratio, advantage, epsilon_low, epsilon_high))
    return mean(torch.stack(losses), reduction)


def grpo_loss(
    logprobs, old_logprobs, advantages, mask, epsilon_low=0.2, epsilon_high=0.2, delta=None, beta=0.0,
    ref_logprobs=None, importance="token", aggregate="dapo", normalizer=None, max_completion_length=None,
):  # fmt: skip
    sums, counts = [], []
    for i, counted in enumerate(mask):
        row, old = logprobs[i][counted], old_logprobs[i][counted]
        ratio = row.exp() / old.exp()
        if importance == "sequence":
            ratio = ratio.prod().pow(1 / max(len(row), 1)).expand_as(row)
        advantage = (advantages[i].expand(len(counted)) if advantages.ndim == 1 else advantages[i])[counted]
        losses = surrogate(ratio, advantage, epsilon_low, epsilon_high, delta)
        if beta:
            other = ref_logprobs[i][counted].exp() / row.exp()
            losses = losses + beta * (other - torch.log(other) - 1)
        sums.append(losses.sum())
        counts.append(len(row))
    if aggregate == "grpo":
        return sum(total / max(count, 1) for total, count in zip(sums, counts, strict=True)) / len(sums)
    if aggregate == "luspo":
        return sum(sums) / len(sums)
    if aggregate == "dr_grpo":
        return sum(sums) / (len(sums) * max_completion_length)
    return sum(sums) / (sum(counts) if normalizer is None else normalizer)


def unlikelihood_loss(logprobs, mask, reduction="mean"):
    return token_mean(-torch.log(1 - logprobs.exp()), mask, reduction)


def focal_loss(logprobs, mask, gamma=2.0, reduction="mean"):
    p = logprobs.exp()
    return token_mean(-((1 - p) ** gamma) * torch.log(p), mask, reduction)


def sequence_kd_loss(logprobs, mask, reduction="mean"):
    return token_mean(-torch.log(logprobs.exp()), mask, reduction)


def on_policy_distillation_loss(logprobs, teacher_logprobs, mask, estimator="k1", reduction="mean"):
    other = teacher_logprobs.exp() / logprobs.exp()
    if estimator == "k1":  # the surrogate of the policy gradient with the reward log(other), shifted to the value
        reward = torch.log(other).detach()
        losses = -reward * (logprobs.exp() / logprobs.exp().detach())
    elif estimator == "k2":
        losses = torch.log(other).square() / 2
    else:
        losses = other - 1 - torch.log(other)
    return token_mean(losses, mask, reduction)
