"""PyTorch's losses of logits that are not made yet: what they are measured against, and how it is reduced."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cynosure.patching.labelled import IGNORED, Labelled
from cynosure.patching.recipe import Recipe
from cynosure.system.upstream import legacy_reduction

NONE_IGNORED = -(2**31)  # no class index


class Asked(NamedTuple):
    """A loss that was asked for; `finish` makes of it what the function gives."""

    labelled: Labelled
    reduction: str
    finish: Callable[[Tensor], Tensor] = lambda loss: loss


def cross_entropy(
    recipe: Recipe,
    target: Any,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = IGNORED,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Asked | None:
    """`F.cross_entropy`, classes in the second dimension, or in the only one; None for what it is to refuse itself."""
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    if recipe.axis != (1 if recipe.rows else 0) or not isinstance(target, Tensor):
        return None
    if target.shape == recipe.shape and target.is_floating_point():
        target = target.movedim(recipe.axis, -1)
    elif target.shape != recipe.rows or target.is_floating_point():
        # PyTorch says what is wrong, of shapes alone.
        F.cross_entropy(torch.empty(recipe.shape, dtype=recipe.dtype, device="meta"), target.to("meta"))
        return None
    if target.requires_grad or (weight is not None and weight.requires_grad):
        return None
    return Asked(Labelled(recipe, target, 0, ignore_index, weight, label_smoothing), reduction)


def nll_loss(
    recipe: Recipe,
    target: Any,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = IGNORED,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Asked | None:
    """`F.nll_loss` of log-probabilities."""
    if not recipe.normalized or not isinstance(target, Tensor) or target.is_floating_point():
        return None
    return cross_entropy(recipe, target, weight, size_average, ignore_index, reduce, reduction)


def gather(recipe: Recipe, dim: int, index: Any) -> Asked | None:
    """`log_softmax(...).gather(...)`: the log-probability of one class in each row."""
    n_dims, axis = len(recipe.shape), recipe.axis
    if not recipe.normalized or not isinstance(index, Tensor) or dim % n_dims != axis:
        return None
    if index.shape != (*recipe.shape[:axis], 1, *recipe.shape[axis + 1 :]):
        return None
    labelled = Labelled(recipe, index.squeeze(axis), 0, NONE_IGNORED)
    return Asked(labelled, "none", lambda loss: -loss.unsqueeze(axis))


LOSSES: dict[Any, Callable[..., Asked | None]] = {
    F.cross_entropy: cross_entropy,
    F.nll_loss: nll_loss,
    Tensor.gather: gather,
    torch.gather: gather,
}
