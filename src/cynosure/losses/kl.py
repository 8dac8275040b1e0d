"""Estimators of a KL divergence from the log-probabilities of sampled tokens."""

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def sampled_kl(logprobs: Tensor, other: Tensor, estimator: Estimator) -> Tensor:
    """Estimate KL(model || other) at each token that the model sampled, as `on_policy_distillation_loss` says."""
    ratio = logprobs - other.detach()
    if estimator == "k1":
        return ratio.detach() * (1 + logprobs - logprobs.detach())
    if estimator == "k2":
        return ratio**2 / 2
    return torch.expm1(-ratio) + ratio
