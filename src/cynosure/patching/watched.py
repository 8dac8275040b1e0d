"""The gradient of logits that a fused loss skips, for callers that ask: `retain_grad`, `register_hook`."""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import Function

from cynosure.loss import cross_entropy, uncompiled
from cynosure.patching.labelled import NAMES, PLAIN, Objective
from cynosure.patching.losses import Asked
from cynosure.patching.recipe import Recipe
from cynosure.system.upstream import backward_hooks

SAID = (
    "the gradient of a patched model's logits was requested (retain_grad, register_hook): its backward materializes "
    "the full logits, as an unpatched model does"
)


class Step(NamedTuple):
    """An operation on logits: a function and its arguments; the logits are argument number `at`."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    at: int
    kwargs: dict[str, Any]

    def __call__(self, logits: Tensor) -> Any:
        return self.function(*self.args[: self.at], logits, *self.args[self.at + 1 :], **self.kwargs)

    @property
    def learned(self) -> Iterator[Tensor]:
        """Other operands that require grad."""
        operands = (*self.args, *self.kwargs.values())
        return (x for x in operands if isinstance(x, Tensor) and x.requires_grad)


def step_of(function: Callable[..., Any], logits: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
    """Build the step of an operation on the stand-in `logits`; the step holds no reference to it."""
    at = next(i for i, x in enumerate(args) if x is logits)
    return Step(function, (*args[:at], None, *args[at + 1 :]), at, kwargs)


def last_step(asked: Asked, step: Step, objective: Objective) -> Step:
    """Return the requested loss as an operation on full logits, with the z-loss and smoothing of `objective`."""
    if objective == PLAIN:
        return step
    labelled, reduction = asked.labelled, cast(Any, asked.reduction)

    def loss(logits: Tensor) -> Tensor:
        losses = cross_entropy(
            logits.movedim(labelled.recipe.axis, -1), labelled.target, ignore_index=labelled.ignore_index,
            reduction=reduction, class_weight=labelled.class_weight, z_loss=objective.z_loss,
            label_smoothing=objective.label_smoothing or labelled.label_smoothing,
        )  # fmt: skip
        return asked.finish(losses)

    return Step(loss, (None,), 0, {})


class Link(NamedTuple):
    """A stand-in on the way to a loss, by weak reference; `step` is the operation applied to it."""

    node: "weakref.ref[Any]"
    state: tuple[Any, ...]
    step: Step


@uncompiled
def watched(loss: Tensor, logits: Any, last: Step) -> Tensor:
    """Attach the stand-ins to a loss that `last` computes from `logits`; its gradient passes through watched ones."""
    if not loss.requires_grad:
        return loss
    chain: list[Link] = []
    parts: dict[int, Tensor] = {}
    node, step = logits, last
    while node is not None:
        chain.append(Link(weakref.ref(node), state_of(node.recipe), step))
        parts |= {id(x): x for x in (*node.recipe.operands, *step.learned) if x is not None}
        node, step = node.base, node.step
    result: Tensor = Watched.apply(loss, chain, *parts.values())  # type: ignore[no-untyped-call]
    return result


def state_of(recipe: Recipe) -> tuple[Any, ...]:
    """Return the parts of a recipe that an in-place operation would change."""
    return (*map(id, recipe.operands), recipe.scale, recipe.softcap)


class Watched(Function):
    """The identity. If logits are watched, its backward goes through them instead of through the fused loss."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, chain: list[Link], *parts: Tensor) -> Tensor:
        ctx.chain, ctx.ids, kind = chain, [id(x) for x in parts], loss.device.type
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        return loss.clone()  # Trainer scales the loss in place

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        chain: list[Link] = ctx.chain
        first = next((i for i in reversed(range(len(chain))) if is_watched(chain[i].node())), None)
        if first is None:
            return (upstream[0], None, *[None] * len(ctx.ids))
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the gradient of a patched model's logits has no second derivative: leave out create_graph=True"
            )
        with torch.autocast(*ctx.autocast):
            by_id = gradients(chain[: first + 1], set(ctx.ids), upstream[0])
        return (None, None, *(by_id.get(key) for key in ctx.ids))


def is_watched(node: Any) -> bool:
    made = None if node is None else node.made
    return made is not None and bool(made.retains_grad or backward_hooks(made))


def gradients(chain: list[Link], wanted: set[int], upstream: Tensor) -> dict[int, Tensor]:
    """Return gradients by id of the `wanted` tensors, through the logits of a chain whose last stand-in is watched."""
    recipe: Recipe = chain[-1].node().recipe  # type: ignore[union-attr]
    for hook in recipe.before_backward:
        upstream = hook(upstream)
    own = {id(x): x.detach().requires_grad_(x.requires_grad) for x in recipe.operands if x is not None}
    changed: dict[str, Any] = {
        name: None if x is None else own[id(x)] for name, x in zip(NAMES, recipe.operands, strict=True)
    }
    with torch.enable_grad():
        z = replace(recipe, **changed).logits()
        for link in reversed(chain):
            node = link.node()
            if node is not None and state_of(node.recipe) != link.state:
                raise RuntimeError(
                    "logits of a patched model were changed in place after their loss: change a clone instead"
                )
            if is_watched(node):
                watch(z, node.made)
            z = link.step(z)
    learned = {id(x): x for link in chain for x in link.step.learned if id(x) in wanted}
    leaves = {key: x for key, x in (own | learned).items() if x.requires_grad}
    results = torch.autograd.grad(z, list(leaves.values()), upstream.to(z.dtype), allow_unused=True)
    return {key: x for key, x in zip(leaves, results, strict=True) if x is not None}


def watch(logits: Tensor, made: Any) -> None:
    """Run the hooks of the watched stand-in on the gradient of these logits, and keep its grad."""
    for hook in backward_hooks(made).values():
        logits.register_hook(hook)  # type: ignore[no-untyped-call]
    if made.retains_grad:

        def keep(dlogits: Tensor) -> None:
            made.grad = dlogits.clone() if made.grad is None else made.grad + dlogits

        logits.register_hook(keep)  # type: ignore[no-untyped-call]


def grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Run `torch.autograd.grad` if some inputs are stand-ins: hooks on their logits collect the gradient."""
    inputs = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    collected: dict[int, Tensor] = {}
    handles, real_inputs = [], []
    for number, x in enumerate(inputs):
        recipe = getattr(x, "recipe", None)
        if recipe is None:
            real_inputs.append(x)
            continue

        def keep(dlogits: Tensor, number: int = number) -> None:
            collected[number] = collected[number] + dlogits if number in collected else dlogits.clone()

        handles.append(x.logits("torch.autograd.grad").register_hook(keep))
        real_inputs.append(next(part for part in recipe.operands if part is not None and part.requires_grad))
    try:
        results = torch.autograd.grad(outputs, real_inputs, *args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(collected.get(i, x) if hasattr(inputs[i], "recipe") else x for i, x in enumerate(results))
