"""Apply an operation on deferred logits to their recipe: operations on values here, those on rows in `rows`."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cynosure.patching import rows
from cynosure.patching.recipe import Recipe


def noted(name: str, recipe: Recipe, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recipe | None:
    """Return the recipe after the operation of that name; None if a recipe cannot express the result."""
    name = name.strip("_")
    operation = OF_ROWS.get(name) or (None if recipe.normalized else OF_VALUES.get(name))
    if operation is None:
        return None
    try:
        bound = signature(operation).bind(recipe, *args, **kwargs)
    except TypeError:
        return None
    return operation(*bound.args, **bound.kwargs)


@cache
def signature(operation: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(operation)


def multiplied(recipe: Recipe, other: Any, power: int = 1) -> Recipe | None:
    """Multiply by a power of a number, or of a factor per class."""
    each = for_each_class(recipe, other)
    if each is None:
        return None
    if each.numel() > 1 or each.requires_grad:
        return promoted(recipe.times_each(each**power), other)
    factor = each.item()
    if factor == 0:
        return None
    return recipe.times(factor**power) if factor > 0 else recipe.times_each(factor**power)


def divided(recipe: Recipe, other: Any, rounding_mode: str | None = None) -> Recipe | None:
    return None if rounding_mode is not None else multiplied(recipe, other, -1)


def added(recipe: Recipe, other: Any, alpha: float = 1) -> Recipe | None:
    """Add another recipe, a number, or a number per class."""
    if isinstance(other, Recipe):
        return recipe.plus(other) if alpha == 1 and not other.normalized else None
    each = for_each_class(recipe, other)
    return None if each is None else promoted(recipe.plus_each(each, alpha), other)


def subtracted(recipe: Recipe, other: Any, alpha: float = 1) -> Recipe | None:
    if isinstance(other, Recipe):
        negative = None if other.normalized else other.times_each(-alpha)
        return negative and recipe.plus(negative)
    return added(recipe, other, -alpha)


def for_each_class(recipe: Recipe, value: Any) -> Tensor | None:
    """Return an operand's value per class, (V,) or (1,); None if it differs between rows."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.tensor([value], dtype=torch.float64)
    if not isinstance(value, Tensor) or value.dtype == torch.bool or value.ndim > len(recipe.shape):
        return None
    if value.numel() == 1:
        return value.reshape(1)
    alike = not recipe.after and value.numel() == value.shape[-1] == recipe.n_classes
    return value.reshape(-1) if alike else None


def promoted(recipe: Recipe | None, by: Any) -> Recipe | None:
    """Cast to the dtype to which an operand promotes the logits."""
    if recipe is None or not isinstance(by, Tensor):
        return recipe
    return replace(recipe, dtype=torch.result_type(torch.empty(1, dtype=recipe.dtype), by))


def capped(recipe: Recipe) -> Recipe | None:
    return recipe.capped()


def log_softmax(
    recipe: Recipe, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> Recipe | None:
    n_dims = len(recipe.shape)
    if dim is None or dim % n_dims != recipe.axis:
        return None
    return replace(recipe, normalized=True, dtype=dtype or recipe.dtype)


def cast(recipe: Recipe, *given: Any, **options: Any) -> Recipe | None:
    """`.to(...)`: cast to another dtype on the same device."""
    dtype, device = recipe.dtype, recipe.hidden.device
    for value in (*given, *options.values()):
        if isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, torch.device | str):
            device = torch.device(value)
        elif isinstance(value, Tensor):
            dtype, device = value.dtype, value.device
        elif isinstance(value, Recipe):
            dtype, device = value.dtype, value.hidden.device
        elif not isinstance(value, bool | torch.memory_format | None):
            return None
    if not dtype.is_floating_point or device != recipe.hidden.device:
        return None
    return recipe if dtype == recipe.dtype else replace(recipe, dtype=dtype)


def cast_to(dtype: torch.dtype) -> Callable[[Recipe], Recipe | None]:
    def function(recipe: Recipe) -> Recipe | None:
        return cast(recipe, dtype)

    return function


def zeros(recipe: Recipe, dtype: torch.dtype | None = None) -> Recipe:
    """`zeros_like`: a matmul with inner size 0, to which others can be added."""
    weight = recipe.hidden.new_empty(recipe.n_classes, 0)
    hidden = recipe.hidden.detach()[..., :0]
    plain = replace(recipe, hidden=hidden, weight=weight, bias=None, scale=1.0, softcap=None, versions=())
    return replace(plain, normalized=False, before_backward=(), dtype=dtype or recipe.dtype)


def same(recipe: Recipe, memory_format: Any = None) -> Recipe:
    return recipe


OF_VALUES: dict[str, Callable[..., Recipe | None]] = {
    **dict.fromkeys(("mul", "rmul", "imul", "multiply"), multiplied),
    **dict.fromkeys(("div", "truediv", "itruediv", "true_divide", "divide"), divided),
    **dict.fromkeys(("add", "radd", "iadd"), added),
    **dict.fromkeys(("sub", "isub", "subtract"), subtracted),
    "tanh": capped,
    "log_softmax": log_softmax,
}
OF_ROWS: dict[str, Callable[..., Recipe | None]] = {
    "float": cast_to(torch.float32),
    "double": cast_to(torch.float64),
    "half": cast_to(torch.float16),
    "bfloat16": cast_to(torch.bfloat16),
    "to": cast,
    "type_as": cast,
    "contiguous": same,
    "clone": same,
    "zeros_like": zeros,
    **rows.OPERATIONS,
}
