"""Operations that reshape, permute or select rows of deferred logits, or drop the last classes.

Each returns the recipe of its result, or None if it would split the class dimension.
"""

from collections.abc import Callable
from math import prod
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from cynosure.patching.recipe import Recipe


def reshaped(recipe: Recipe, *shape: Any) -> Recipe | None:
    """`view` and `reshape`: change the shape of the rows; the classes stay last."""
    if len(shape) == 1 and not isinstance(shape[0], int):
        shape = shape[0]
    if isinstance(shape, torch.dtype) or not shape:
        return None
    if -1 in shape:
        known = prod(n for n in shape if n != -1)
        whole = recipe.shape.numel()
        if known <= 0 or whole % known:
            return None
        shape = tuple(whole // known if n == -1 else n for n in shape)
    lead = tuple(shape[:-1])
    if recipe.after or shape[-1] != recipe.n_classes or prod(lead) != recipe.rows.numel():
        return None
    return recipe.laid(lambda x: x.reshape(*lead, x.shape[-1]))


def like(recipe: Recipe, other: Any) -> Recipe | None:
    """`view_as` and `reshape_as`."""
    return reshaped(recipe, *other.shape)


def flattened(recipe: Recipe, start_dim: int = 0, end_dim: int = -1) -> Recipe | None:
    n_dims = len(recipe.shape)
    start, end = start_dim % n_dims, end_dim % n_dims
    if end >= n_dims - 1 and start < n_dims - 1:
        return None
    return reshaped(recipe, *recipe.shape[:start], -1, *recipe.shape[end + 1 :])


def unflattened(recipe: Recipe, dim: int, sizes: Any) -> Recipe | None:
    dim %= len(recipe.shape)
    return reshaped(recipe, *recipe.shape[:dim], *sizes, *recipe.shape[dim + 1 :])


def unsqueezed(recipe: Recipe, dim: int) -> Recipe | None:
    dim %= len(recipe.shape) + 1
    return reshaped(recipe, *recipe.shape[:dim], 1, *recipe.shape[dim:])


def squeezed(recipe: Recipe, dim: int) -> Recipe | None:
    """Remove a dimension of size 1; keep one of another size."""
    dim %= len(recipe.shape)
    if recipe.shape[dim] != 1:
        return recipe
    return reshaped(recipe, *recipe.shape[:dim], *recipe.shape[dim + 1 :])


def permuted(recipe: Recipe, *dims: Any) -> Recipe | None:
    order = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    n_dims = len(recipe.shape)
    order = [dim % n_dims for dim in order]
    if sorted(order) != list(range(n_dims)):
        return None
    rows = [dim - (dim > recipe.axis) for dim in order if dim != recipe.axis]
    return recipe.laid(lambda x: x.permute(*rows, -1), n_dims - 1 - order.index(recipe.axis))


def transposed(recipe: Recipe, dim0: int, dim1: int) -> Recipe | None:
    order = list(range(len(recipe.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permuted(recipe, *order)


def swapped(recipe: Recipe) -> Recipe | None:
    """`.mT`."""
    return transposed(recipe, -2, -1) if len(recipe.shape) > 1 else None


def moved(recipe: Recipe, source: int, destination: int) -> Recipe | None:
    order = list(range(len(recipe.shape)))
    order.insert(destination % len(order), order.pop(source))
    return permuted(recipe, *order)


def narrowed(recipe: Recipe, dim: int, start: int, length: int) -> Recipe | None:
    dim %= len(recipe.shape)
    start %= recipe.shape[dim] or 1
    return indexed(recipe, (*[slice(None)] * dim, slice(start, start + length)))


def selected(recipe: Recipe, dim: int, index: int) -> Recipe | None:
    return indexed(recipe, (*[slice(None)] * (dim % len(recipe.shape)), index))


def indexed(recipe: Recipe, index: Any) -> Recipe | None:
    """`[...]`: select rows by slices, numbers, masks or positions, and all classes or the first ones."""
    index = index if isinstance(index, tuple) else (index,)
    if recipe.after or not all(isinstance(i, slice | int | Tensor | EllipsisType | None) for i in index):
        return None
    if any(isinstance(i, bool) for i in index):
        return None
    missing = len(recipe.shape) - sum(map(consumed, index))
    at = next((n for n, i in enumerate(index) if i is ...), None)
    if at is None:
        at, index = len(index), (*index, ...)
    index = (*index[:at], *[slice(None)] * missing, *index[at + 1 :])
    if missing < 0 or not isinstance(index[-1], slice):
        return None
    start, stop, step = index[-1].indices(recipe.n_classes)
    if start != 0 or step != 1 or stop < 1:
        return None
    chosen = (*index[:-1], slice(None))
    if not all(isinstance(i, slice) and i == slice(None) for i in chosen):
        recipe = recipe.laid(lambda x: x[chosen])
    return recipe if stop == recipe.n_classes else recipe.classes(stop)


def consumed(index: Any) -> int:
    """Return how many dimensions a part of an index consumes."""
    if index is None or index is ...:
        return 0
    return index.ndim if isinstance(index, Tensor) and index.dtype == torch.bool else 1


OPERATIONS: dict[str, Callable[..., Recipe | None]] = {
    **dict.fromkeys(("view", "reshape"), reshaped),
    **dict.fromkeys(("view_as", "reshape_as"), like),
    "flatten": flattened,
    "unflatten": unflattened,
    "unsqueeze": unsqueezed,
    "squeeze": squeezed,
    "permute": permuted,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), transposed),
    "mT": swapped,
    **dict.fromkeys(("movedim", "moveaxis"), moved),
    "narrow": narrowed,
    "select": selected,
    "getitem": indexed,
}
