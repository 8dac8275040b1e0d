"""PyTorch's losses of deferred logits: read targets, options and reduction from a call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cynosure.patching.labelled import IGNORED, Labelled
from cynosure.patching.recipe import Recipe
from cynosure.system.upstream import legacy_reduction

NONE_IGNORED = -(2**31)  # never a class index


class Asked(NamedTuple):
    """A requested loss; `finish` turns it into the result of the called function."""

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
    """`F.cross_entropy` with classes in the second or only dimension; None for calls that it must handle itself."""
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    if recipe.axis != (1 if recipe.rows else 0) or not isinstance(target, Tensor):
        return None
    if target.shape == recipe.shape and target.is_floating_point():
        target = target.movedim(recipe.axis, -1)
    elif target.shape != recipe.rows or target.is_floating_point():
        # Raises PyTorch's own error, from the shapes.
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
    """`F.nll_loss` on log-probabilities."""
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
