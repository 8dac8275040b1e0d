"""Advantages from the rewards of several texts for each prompt. A reward of NaN says that there is none."""

from typing import Literal

import torch
from torch import Tensor

from cynosure.loss import accumulation_dtype, as_integer
from cynosure.losses.inputs import check_choice

# Added to a standard deviation before the division, as in TRL.
SMALL = 1e-4


def group_advantages(rewards: Tensor, group_size: int, *, scale: Literal["group", "batch", "none"] = "group") -> Tensor:
    """Compute the advantages of GRPO: how much better a reward is than the mean of its group.

    `(reward - mean of the group) / (standard deviation + 1e-4)`, from "DeepSeekMath" (Shao et al., 2024,
    arXiv:2402.03300). The standard deviation has Bessel's correction, as in TRL.

    Args:
        rewards: (B,) of any real dtype or bool; those of one prompt are neighbours. NaN: no reward, left out of means.
        group_size: number of texts for each prompt, which divides B.
        scale: "group" divides by the standard deviation of the group, "batch" by that of all rewards, and "none", as
            Dr. GRPO, not at all.

    Returns:
        (B,) constant advantages, 0.0 where the reward is NaN. float32, or float64 for float64 rewards.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or value; the message names it.

    Example:
        >>> import torch
        >>> group_advantages(torch.tensor([1.0, 0.0, 3.0, 3.0]), 2)
        tensor([ 0.7070, -0.7070,  0.0000,  0.0000])
    """
    check_choice("scale", scale, ("group", "batch", "none"))
    groups = _groups(rewards, group_size)
    centered = groups - groups.nanmean(-1, keepdim=True)
    if scale == "group":
        centered = centered / (_deviation(centered, -1) + SMALL)
    elif scale == "batch":
        centered = centered / (_deviation(groups.flatten() - groups.nanmean(), 0) + SMALL)
    return centered.nan_to_num(nan=0.0).flatten()


def rloo_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """Compute the advantages of RLOO: how much better a reward is than the mean of the others in its group.

    `reward - (sum of the group - reward) / (group_size - 1)`, from "Back to Basics" (Ahmadian et al., 2024,
    arXiv:2402.14740).

    Args:
        rewards: (B,) of any real dtype or bool; those of one prompt are neighbours. NaN: no reward, left out of means.
        group_size: number of texts for each prompt, which divides B.

    Returns:
        (B,) constant advantages, 0.0 where the reward is NaN or the only one. float32, or float64 for float64 rewards.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or value; the message names it.

    Example:
        >>> import torch
        >>> rloo_advantages(torch.tensor([1.0, 0.0, 2.0]), 3)
        tensor([ 0.0000, -1.5000,  1.5000])
    """
    groups = _groups(rewards, group_size)
    others = (~groups.isnan()).sum(-1, keepdim=True) - 1
    baselines = (groups.nansum(-1, keepdim=True) - groups) / others  # 0 / 0 for the only reward of a group
    return (groups - baselines).nan_to_num(nan=0.0).flatten()


def _groups(rewards: Tensor, group_size: int) -> Tensor:
    """Return rewards as (groups, group_size) constants in the dtype of the loss."""
    if not isinstance(rewards, Tensor):
        raise TypeError(f"rewards must be a tensor, got {type(rewards).__name__}")
    if rewards.is_complex():
        raise TypeError(f"rewards must be real, got {rewards.dtype}")
    if rewards.ndim != 1:
        raise ValueError(f"rewards must have shape (B,), one for each text, got {tuple(rewards.shape)}")
    size = as_integer("group_size", group_size)
    if size < 1 or len(rewards) % size:
        raise ValueError(f"group_size must be at least 1 and divide the number of rewards, {len(rewards)}, got {size}")
    return rewards.detach().to(accumulation_dtype(rewards.dtype)).view(-1, size)


def _deviation(centered: Tensor, dim: int) -> Tensor:
    """Return the standard deviation along a dimension, kept; 0 for a single value, which has none."""
    others = (~centered.isnan()).sum(dim, keepdim=True) - 1
    return torch.sqrt((centered**2).nansum(dim, keepdim=True) / others.clamp(min=1))
