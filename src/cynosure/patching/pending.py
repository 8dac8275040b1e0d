"""Logits that are not made yet: a stand-in that notes what is done to it until it reaches the loss.

h (..., D) hidden states, w (V, D) the head's weight, b (V,) its bias. What a model does between its head and its loss
is one of few things: it multiplies by a number, caps by tanh, casts, and drops the end of a padded vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Recipe:
    """logits = softcap * tanh(scale * (h w^T + b) / softcap), or without softcap scale * (h w^T + b); cast to dtype."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    dtype: torch.dtype
    before_backward: tuple[Callable[[Tensor], Any], ...] = ()  # hooks by which FSDP2 gathers the weight again
    versions: tuple[int, ...] = ()  # how often weight and bias had been changed in place; () is for now

    def __post_init__(self) -> None:
        if not self.versions:
            object.__setattr__(self, "versions", versions(self.weight, self.bias))

    @property
    def stale(self) -> bool:
        """Whether the weights have changed since: by an optimizer's step."""
        return self.versions != versions(self.weight, self.bias)

    @property
    def requires_grad(self) -> bool:
        return any(x is not None and x.requires_grad for x in (self.hidden, self.weight, self.bias))

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.hidden.shape[:-1], self.weight.shape[0]))

    def times(self, factor: float) -> "Recipe":
        if self.softcap is None:
            return replace(self, scale=self.scale * factor)
        return replace(self, scale=self.scale * factor, softcap=self.softcap * factor)

    def capped(self) -> "Recipe | None":
        """tanh of it; None where it has been capped before."""
        return replace(self, softcap=1.0) if self.softcap is None else None

    def classes(self, n: int) -> "Recipe":
        """The first n classes alone."""
        return replace(self, weight=self.weight[:n], bias=None if self.bias is None else self.bias[:n])

    def plus(self, other: "Recipe") -> "Recipe | None":
        """The sum of two products, as one of hidden states and weights side by side; None where there is a cap.

        So are a head and its low-rank update one head again, whatever dropout has done to the states of the latter.
        """
        if self.softcap is not None or other.softcap is not None or self.shape != other.shape:
            return None
        hidden = torch.cat([self.hidden * self.scale, other.hidden * other.scale], -1)
        biases = [part.scale * part.bias for part in (self, other) if part.bias is not None]
        bias = sum(biases[1:], biases[0]).to(hidden.dtype) if biases else None
        hooks = self.before_backward + other.before_backward
        weight = torch.cat([self.weight, other.weight], 1)
        found = Recipe(hidden, weight, bias, 1.0, None, self.dtype, hooks)
        return replace(found, versions=(-1,)) if self.stale or other.stale else found

    def logits(self) -> Tensor:
        """(..., V), in full."""
        z = F.linear(self.hidden, self.weight, self.bias)
        z = z if self.scale == 1 else z * self.scale
        if self.softcap is not None:
            z = torch.tanh(z / self.softcap) * self.softcap
        return z.to(self.dtype)


def versions(*tensors: Tensor | None) -> tuple[int, ...]:
    """How often each of them has been changed in place."""
    return tuple(0 if x is None or x.is_inference() else x._version for x in tensors)


class PendingLogits(Tensor):
    """The stand-in. Whatever is asked of it beyond its shape and what a recipe can hold, makes the logits first.

    `made` are these, once something has asked for them: `of` is told.
    """

    recipe: Recipe
    made: Tensor | None
    tell: Callable[[str], None]
    with_graph: bool  # what led to them was done in grad mode

    @staticmethod
    def of(recipe: Recipe, tell: Callable[[str], None], with_graph: bool = True) -> "PendingLogits":
        """Stand for the logits of a recipe; `tell` is called with the name of what makes them necessary."""
        found: PendingLogits = Tensor._make_wrapper_subclass(
            PendingLogits, recipe.shape, dtype=recipe.dtype, device=recipe.hidden.device
        )
        found.recipe, found.made, found.tell = recipe, None, tell
        found.with_graph = with_graph and torch.is_grad_enabled()
        return found

    def logits(self, why: str) -> Tensor:
        """The logits in full, made once, with a graph if they were to have one, whoever looks at them.

        RuntimeError where the weights have changed since: they would be those of no model.
        """
        if self.made is None:
            if self.recipe.stale:
                raise RuntimeError(
                    "the logits of a patched model are made when they are looked at, and its weights have changed "
                    "since then: look at them before the optimizer's step"
                )
            self.tell(why)
            with torch.inference_mode(False), torch.set_grad_enabled(self.with_graph):
                self.made = self.recipe.logits()
        return self.made

    def full_tensor(self) -> Tensor:
        """The same, where the fused loss is given a stand-in: by the name that DTensor has for it."""
        return self.logits("a loss of logits")

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # of a property
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        if func in ASKING or func in PROPERTIES:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        first = next((x for x in args if isinstance(x, PendingLogits)), None)
        if first is not None and first.made is None:
            if name == "requires_grad":
                return first.with_graph and first.recipe.requires_grad
            if name == "grad_fn":  # DistributedDataParallel asks whether there is one
                return first.recipe.hidden.grad_fn if first.with_graph else None
            if name == "register_hook" and args[1].__module__.startswith("torch.distributed.fsdp"):
                first.recipe = replace(first.recipe, before_backward=(*first.recipe.before_backward, args[1]))
                return None
            changed = noted(name, args, kwargs)
            if changed is not None:
                if not in_place(name):
                    return PendingLogits.of(changed, first.tell, first.with_graph)
                first.recipe = changed
                return first
        return func(*made(args, name), **made(kwargs, name))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} was given logits that are not made yet: a fault of cynosure's own")


def in_place(name: str) -> bool:
    """Whether an operation of that name changes its first operand: mul_, __imul__."""
    return name.startswith("__i") if name.startswith("__") else name.endswith("_")


def noted(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recipe | None:
    """What a recipe becomes by an operation; None for one that it cannot hold."""
    name = name.strip("_")
    x, rest = args[0], args[1:]
    if name in ("mul", "rmul", "imul", "multiply") and len(rest) == 1 and not kwargs:
        return scaled(x, rest[0], inverse=False)
    if name in ("div", "truediv", "itruediv", "true_divide", "divide") and len(rest) == 1 and not kwargs:
        return scaled(x, rest[0], inverse=True) if isinstance(x, PendingLogits) else None
    if not isinstance(x, PendingLogits):
        return None
    recipe = x.recipe
    if name == "tanh":
        return recipe.capped()
    if name in ("add", "iadd", "radd") and len(rest) == 1 and isinstance(rest[0], PendingLogits) and not kwargs:
        return recipe.plus(rest[0].recipe) if rest[0].made is None else None
    if name in CASTS and not rest and not kwargs:
        return replace(recipe, dtype=CASTS[name])
    if name == "to":
        return cast(recipe, rest, kwargs)
    if name in ("contiguous", "clone") and not rest and not kwargs:
        return recipe
    if name == "getitem":
        return part(recipe, rest[0])
    return None


def scaled(x: Any, y: Any, *, inverse: bool) -> Recipe | None:
    """A recipe times, or divided by, a number; None where it is not one, or one to be learned."""
    if not isinstance(x, PendingLogits):
        x, y = y, x
    if isinstance(y, Tensor):
        if isinstance(y, PendingLogits) or y.numel() != 1 or y.requires_grad or y.ndim > x.ndim:
            return None
        y = y.item()
    if isinstance(y, bool) or not isinstance(y, int | float) or y <= 0:
        return None
    return x.recipe.times(1 / y if inverse else float(y))  # type: ignore[no-any-return]


def cast(recipe: Recipe, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Recipe | None:
    """`.to(...)`: another dtype, on the same device."""
    dtype, device = recipe.dtype, recipe.hidden.device
    for value in (*rest, *kwargs.values()):
        if isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, torch.device | str):
            device = torch.device(value)
        elif isinstance(value, Tensor):
            dtype, device = value.dtype, value.device
        elif not isinstance(value, bool):
            return None
    return replace(recipe, dtype=dtype) if dtype.is_floating_point and device == recipe.hidden.device else None


def part(recipe: Recipe, index: Any) -> Recipe | None:
    """All rows and the first classes: what drops the end of a padded vocabulary, or nothing."""
    index = index if isinstance(index, tuple) else (index,)
    n_dims = len(recipe.shape)
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *[slice(None)] * (n_dims - len(index) + 1), *index[at + 1 :])
    index = (*index, *[slice(None)] * (n_dims - len(index)))
    if len(index) != n_dims or not all(isinstance(i, slice) for i in index):
        return None
    whole = [i.indices(n) == (0, n, 1) for i, n in zip(index, recipe.shape, strict=True)]
    start, stop, step = index[-1].indices(recipe.shape[-1])
    if not all(whole[:-1]) or start != 0 or step != 1 or stop < 1:
        return None
    return recipe.classes(stop)


def made(value: Any, why: str) -> Any:
    """The same with every stand-in in it made."""
    if isinstance(value, PendingLogits):
        return value.logits(why)
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)(made(x, why) for x in value)
    if isinstance(value, dict):
        return {key: made(x, why) for key, x in value.items()}
    return value


CASTS = {
    "float": torch.float32,
    "double": torch.float64,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
}
ASKING = {
    *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.nelement, Tensor.__len__),
    *(Tensor.is_floating_point, Tensor.is_complex, Tensor.get_device, Tensor.element_size),
    *(torch.is_floating_point, torch.is_complex, torch.numel),
}
PROPERTIES = {
    getattr(Tensor, name).__get__
    for name in (
        "shape",
        "dtype",
        "device",
        "ndim",
        "layout",
        "is_cuda",
        "is_cpu",
        "is_sparse",
        "is_meta",
        "is_mps",
        "_base",
    )
}


def product_dtype(hidden: Tensor) -> torch.dtype:
    """Of `F.linear`: autocast may choose another than that of the hidden states."""
    kind = hidden.device.type
    casts = torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if casts else hidden.dtype
