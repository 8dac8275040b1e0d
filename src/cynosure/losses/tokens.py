"""Losses of single tokens that differ from the cross-entropy."""

from torch import Tensor

from cynosure.loss import as_number
from cynosure.losses.complement import log1mexp
from cynosure.losses.inputs import Reduction, of_tokens
from cynosure.losses.reduce import over_tokens


def unlikelihood_loss(logprobs: Tensor, mask: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Compute the unlikelihood loss, which makes tokens less likely.

    `-log(1 - p)` for each token, from "Neural Text Generation with Unlikelihood Training" (Welleck et al., 2019,
    arXiv:1908.04319). It is accurate for p near 0 and near 1. 1 - p is taken to be at least the rounding of the dtype
    (2**-23 in float32), so that a p that rounds to 1 costs 15.9 instead of infinity and has a finite gradient.

    Args:
        logprobs: (...) log-probabilities of the unwanted tokens.
        mask: (...) bool, or 0 and 1: the tokens that count.
        reduction: "mean" over the tokens that count, or "none" for (...) losses with 0 where masked.

    Returns:
        A 0-d tensor, or (...) for "none"; 0.0 if no token counts. float32, or float64 for float64 log-probabilities.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.

    Example:
        >>> import torch
        >>> unlikelihood_loss(torch.tensor([0.5, 0.9]).log(), torch.tensor([1, 1]), reduction="none")  # ln 2, ln 10
        tensor([0.6931, 2.3026])
    """
    counted, logprobs = of_tokens(mask, logprobs=logprobs)
    return over_tokens(-log1mexp(logprobs).where(counted, 0.0), counted, reduction)


def focal_loss(logprobs: Tensor, mask: Tensor, *, gamma: float = 2.0, reduction: Reduction = "mean") -> Tensor:
    """Compute the focal loss, which gives tokens that are already likely less weight.

    `-(1 - p)^gamma log p` for each token, from "Focal Loss for Dense Object Detection" (Lin et al., 2017,
    arXiv:1708.02002). The weight gets a gradient too, as in the paper.

    Args:
        logprobs: (...) log-probabilities of the target tokens.
        mask: (...) bool, or 0 and 1: the tokens that count.
        gamma: at least 0; 0 is the cross-entropy.
        reduction: "mean" over the tokens that count, or "none" for (...) losses with 0 where masked.

    Returns:
        A 0-d tensor, or (...) for "none"; 0.0 if no token counts. float32, or float64 for float64 log-probabilities.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value; the message names it.

    Example:
        >>> import torch
        >>> focal_loss(torch.tensor([0.5, 0.9]).log(), torch.tensor([1, 1]), reduction="none")  # ln 2 / 4, ...
        tensor([0.1733, 0.0011])
    """
    gamma = as_number("gamma", gamma, "finite and not negative", low=0.0)
    counted, logprobs = of_tokens(mask, logprobs=logprobs)
    weight = (gamma * log1mexp(logprobs)).exp()
    return over_tokens(-weight * logprobs, counted, reduction)
