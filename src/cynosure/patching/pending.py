"""Deferred logits: a stand-in that records the operations applied to it until it reaches the loss."""

import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from cynosure.patching import rows
from cynosure.patching.labelled import Objective
from cynosure.patching.losses import LOSSES, Asked
from cynosure.patching.noted import noted, signature
from cynosure.patching.reached import reach
from cynosure.patching.recipe import Recipe
from cynosure.patching.watched import SAID, Step, grad, last_step, step_of, watched
from cynosure.system.upstream import make_wrapper_subclass, without_torch_function


class Owner(Protocol):
    """The owner of deferred logits: the patch of a model."""

    deferred: int  # number of matmuls deferred
    obstacle: str | None  # why the head cannot be deferred
    objective: Objective  # what is minimised in addition to the loss
    head_dtype: torch.dtype | None  # of the head's matmul and its logits; None: hidden's, or autocast's

    def tell(self, why: str) -> None:
        """Record an operation that needed full logits."""

    def loss(self, asked: Asked) -> Tensor:
        """Compute a loss of deferred logits."""


class PendingLogits(Tensor):
    """The stand-in. Operations that a recipe cannot record materialize the logits first.

    `made` holds the materialized logits, if any. The owner records which operation materialized them.
    """

    recipe: Recipe
    made: Tensor | None
    owner: Owner
    with_graph: bool  # they were computed in grad mode
    base: "PendingLogits | None"  # the stand-in from which `step` derived this one
    step: Step | None
    is_reached: bool  # DistributedDataParallel finds the parameters through it
    views: list["weakref.ref[PendingLogits]"]  # all stand-ins that share its memory, itself included

    @staticmethod
    def of(
        recipe: Recipe, owner: Owner, base: "PendingLogits | None" = None, step: Step | None = None
    ) -> "PendingLogits":
        """Create a stand-in for the logits of a recipe, which the operation `step` derived from `base`.

        `step` is None if other stand-ins were among its operands.
        """
        pending: PendingLogits = make_wrapper_subclass(
            PendingLogits, recipe.shape, dtype=recipe.dtype, device=recipe.hidden.device
        )
        pending.recipe, pending.made, pending.owner = recipe, None, owner
        pending.with_graph = (base is None or base.with_graph) and torch.is_grad_enabled()
        pending.views = [weakref.ref(pending)]
        pending.base, pending.step = (None, None) if step is None else (base, step)
        pending.is_reached = False
        if base is not None and base.is_reached:
            reach(pending)
        return pending

    def logits(self, why: str) -> Tensor:
        """Materialize the logits, once, with a graph if the model ran in grad mode.

        Raises RuntimeError if the weights have changed since the forward: no model ever had these logits.
        """
        if self.made is None:
            if self.recipe.stale:
                raise RuntimeError(
                    "the weights of a patched model have changed since its forward, so its logits can no longer "
                    "be materialized: read the logits before the optimizer's step"
                )
            if why not in ("T", "t"):  # PEFT multiplies low-rank weights by the identity: a weight, not logits
                self.owner.tell(why)
            with torch.inference_mode(False), torch.set_grad_enabled(self.with_graph):
                self.made = self.recipe.logits()
            for hook in self.recipe.before_backward if self.made.requires_grad else ():
                self.made.register_hook(hook)  # type: ignore[no-untyped-call]
        return self.made

    def full_tensor(self) -> Tensor:
        """Materialize the logits when a fused loss is given a stand-in; the name is DTensor's."""
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
            with without_torch_function():
                return func(*args, **kwargs)
        if func is torch.autograd.grad:
            with without_torch_function():
                return grad(*args, **kwargs)
        first = next((x for x in (*args[:2], *kwargs.values()) if isinstance(x, PendingLogits)), None)
        if name in ("retain_grad", "register_hook") and not of_wrapper(args[-1]):
            warnings.warn(SAID, stacklevel=2)
        if first is not None and first.made is None:
            if name == "requires_grad":
                return first.with_graph and first.recipe.requires_grad
            if name == "grad_fn":  # DistributedDataParallel asks whether there is one
                return first.recipe.hidden.grad_fn if first.with_graph and not first.is_reached else None
            if name == "register_hook" and of_wrapper(args[1]):
                first.recipe = replace(first.recipe, before_backward=(*first.recipe.before_backward, args[1]))
                return None
            if name == "is_leaf":
                return not (first.with_graph and first.recipe.requires_grad)
            result = followed(func, name, first, args, kwargs)
            if result is not None:
                return result
        return func(*made(args, name), **made(kwargs, name))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} was given deferred logits: this is a bug in cynosure, please report it")


def of_wrapper(hook: Any) -> bool:
    """Whether a hook belongs to a wrapper: FSDP gathers weights in it, DeepSpeed starts its backward."""
    # FSDP1's is a partial.
    module: str = getattr(getattr(hook, "func", hook), "__module__", "")
    return module.startswith(("torch.distributed.fsdp", "deepspeed."))


def followed(
    func: Callable[..., Any], name: str, first: PendingLogits, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Return the result of an operation on deferred logits; None if it needs full logits."""
    changes = in_place(name)
    if changes:
        alone(first, name)
    if "input" in kwargs:
        args, kwargs = (kwargs["input"], *args), {key: value for key, value in kwargs.items() if key != "input"}
    given = args
    if args[0] is not first:  # 2 * logits
        if name.strip("_") not in COMMUTING or len(args) != 2:
            return None
        args = (first, args[0])
    step = step_of(func, first, given, kwargs)
    rest = [as_recipe(x) for x in args[1:]]
    if any(x is None for x, own in zip(rest, args[1:], strict=True) if own is not None):
        return None
    if func in LOSSES:
        asked = bound(LOSSES[func], first.recipe, rest, kwargs)
        if asked is None:
            return None
        loss = asked.finish(first.owner.loss(asked))
        return watched(loss, first, last_step(asked, step, first.owner.objective))
    if name in ("matmul", "__matmul__", "mm") and len(rest) == 1 and isinstance(rest[0], Tensor):
        with torch.set_grad_enabled(first.with_graph and torch.is_grad_enabled()):
            return first.recipe.projected(rest[0])
    recipe = noted(name, first.recipe, tuple(rest), kwargs)
    if recipe is None:
        return None
    if recipe is first.recipe and name != "clone":
        return first
    if changes:
        first.recipe = recipe
        return first
    is_only_stand_in = not any(isinstance(x, PendingLogits) for x in (*step.args, *kwargs.values()))
    result = PendingLogits.of(recipe, first.owner, first, step if is_only_stand_in else None)
    if name.strip("_") in rows.OPERATIONS:
        first.views.append(weakref.ref(result))
        result.views = first.views
    return result


def bound(function: Callable[..., Any], recipe: Recipe, rest: list[Any], kwargs: dict[str, Any]) -> Asked | None:
    """Return the loss that a call requests; None if the arguments do not fit the function."""
    try:
        arguments = signature(function).bind(recipe, *rest, **kwargs)
    except TypeError:
        return None
    asked: Asked | None = function(*arguments.args, **arguments.kwargs)
    return asked


def as_recipe(value: Any) -> Any:
    """Return the recipe of a deferred operand, None if it has been materialized, and other operands unchanged."""
    if not isinstance(value, PendingLogits):
        return value
    return value.recipe if value.made is None else None


def deferred_recipe(logits: Any) -> Recipe | None:
    """Return the recipe of logits (..., V) that are deferred; None for other tensors and for log-probabilities."""
    recipe = as_recipe(logits)
    return recipe if isinstance(recipe, Recipe) and not recipe.after and not recipe.normalized else None


def in_place(name: str) -> bool:
    """Whether an operation of that name changes its first operand: mul_, __imul__, __setitem__."""
    return name.startswith(("__i", "__set")) if name.startswith("__") else name.endswith("_")


def alone(logits: PendingLogits, name: str) -> None:
    """Raise RuntimeError if views exist: they would not see an in-place change."""
    if sum(ref() is not None for ref in logits.views) > 1:
        raise RuntimeError(f"{name} changes deferred logits in place, but views of them exist: change a clone instead")


def made(value: Any, why: str) -> Any:
    """Return the value with every stand-in materialized."""
    if isinstance(value, PendingLogits):
        return value.logits(why)
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)(made(x, why) for x in value)
    if isinstance(value, dict):
        return {key: made(x, why) for key, x in value.items()}
    return value


COMMUTING = ("mul", "rmul", "multiply", "add", "radd")
ASKING = {
    *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.nelement, Tensor.__len__),
    *(Tensor.is_floating_point, Tensor.is_complex, Tensor.get_device, Tensor.element_size),
    Tensor.is_contiguous,
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
