"""Means that are 0.0, with a graph, where there is nothing to average."""

from torch import Tensor

from cynosure.losses.inputs import Reduction, check_choice


def over_sequences(losses: Tensor, reduction: Reduction) -> Tensor:
    """Reduce losses (B,)."""
    check_choice("reduction", reduction, ("mean", "none"))
    return losses if reduction == "none" else losses.sum() / max(losses.numel(), 1)


def over_tokens(losses: Tensor, counted: Tensor, reduction: Reduction) -> Tensor:
    """Reduce losses that are 0 where a token does not count; the mean is over those that do."""
    check_choice("reduction", reduction, ("mean", "none"))
    return losses if reduction == "none" else losses.sum() / counted.sum().clamp(min=1)
