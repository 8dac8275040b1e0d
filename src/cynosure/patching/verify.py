"""Verify that patching leaves a model's loss unchanged, and the gradients of its hidden states and head."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from cynosure.loss import as_if_large, autocast_to
from cynosure.patching.forward import fused_head
from cynosure.patching.heads import head_layers, is_fsdp, partitioned
from cynosure.patching.inputs import Inputs
from cynosure.patching.labelled import NAMES, Labelled
from cynosure.patching.losses import Asked
from cynosure.patching.probe import own_probe, probe
from cynosure.patching.recipe import Recipe

VERIFIED: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # verified models, and their heads at that time


def verify(patched: Any) -> None:
    """Compare a patched model with its own forward, once per model and head; raise ValueError if they differ."""
    model, name = patched.model, type(patched.model).__name__
    fused, head = fused_head(patched.own_forward), (*head_of(model), patched.head_dtype)
    if VERIFIED.get(model) == head and fused is None:
        return
    with attribute(patched, "paused", True):
        try:
            given, output = own_probe(patched.probed, patched.example)
        except ValueError as error:
            # Before deepspeed.initialize no forward works on weights that ZeRO-3 has sharded.
            reason = partitioned(head_layers(model)) or error
            raise ValueError(f"{name} cannot be patched: {reason}") from error
        own_tokens = None if fused is None else probe(model, given | {"fused_lm_head": True})
    why = difference(patched, given, output.loss)
    if why is not None:
        raise ValueError(f"{name} cannot be patched: {why}")
    if fused is not None:
        patched.fused_head = fused
        with attribute(patched, "head_dtype", None):  # as in TRL's head, to compare without the rounding of its dtype
            ours = probe(model, given | {"fused_lm_head": True})
        from cynosure.patching.trl import verify_tokens

        verify_tokens(own_tokens, ours, model.dtype)
    VERIFIED[model] = head


def head_of(model: Any) -> Any:
    """Return what a verification depends on: the layers of the head, and which of their weights are trained."""
    layers = head_layers(model)
    return layers, [parameter.requires_grad for layer in layers for parameter in layer.parameters()]


@contextmanager
def attribute(patched: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute for the duration of the block."""
    before = getattr(patched, name)
    setattr(patched, name, value)
    try:
        yield
    finally:
        setattr(patched, name, before)


def difference(patched: Any, given: Inputs, own: Tensor) -> str | None:
    """Return how the patched model differs from its own forward, which gave this loss; None if it does not."""
    seen: list[Asked] = []
    with (
        attribute(patched, "warned", True),
        attribute(patched, "seen", seen),
        attribute(patched, "grad_tolerance", 0.0),
    ):
        try:
            ours = probe(patched.probed, given).loss
        except RuntimeError as error:
            return " ".join(str(error).split())
    if patched.made_by or not seen:
        return patched.why_not()  # type: ignore[no-any-return]
    if not torch.isfinite(own):
        return f"its own loss is {float(own)} on a few tokens: check its weights, or its dtype for overflow"
    recipes = [asked.labelled.recipe for asked in seen]
    dtypes = {patched.model.dtype, *(dtype for recipe in recipes for dtype in (recipe.own_dtype, recipe.head_dtype))}
    tolerance = 16 * max(torch.finfo(dtype).eps for dtype in dtypes)
    if not abs(float(ours) - float(own)) <= tolerance * max(1.0, abs(float(own))):
        return f"its own loss is {float(own):.6f}, but the loss without logits is {float(ours):.6f}"
    if any(map(is_fsdp, patched.model.modules())):
        return None  # FSDP would mistake a backward of the head alone for one of the model
    try:
        return next(filter(None, (gradient_difference(asked.labelled) for asked in seen)), None)
    except NotImplementedError as error:  # only the weight's class knows its gradient
        return str(error)


def gradient_difference(labelled: Labelled) -> str | None:
    """Return how the gradients of the fused loss differ from those of full logits; None if they do not.

    The fused loss runs with the matmuls of a large batch.

    The model is cut in front of its head: hidden states and weights become leaves. The gradient of the weight is large,
    so only its matmul with a random vector is compared.
    """
    # Autocast would round in the backward of full logits.
    with torch.inference_mode(False), torch.enable_grad(), autocast_to(labelled.target.device, None):
        labelled = labelled._replace(recipe=cut(labelled.recipe))
        recipe = labelled.recipe
        leaves = {name: x for name in NAMES if (x := getattr(recipe, name)) is not None and x.requires_grad}
        if not replace(recipe, bias=None).matmul().requires_grad:
            return f"its head's weight is a {type(recipe.weight).__name__}, whose matmul has no gradient"
        direction = torch.randn(recipe.hidden.shape[-1], generator=torch.Generator().manual_seed(0)).to(recipe.hidden)
        try:
            own = own_gradients(labelled, direction)
        except (RuntimeError, NotImplementedError):
            return None  # a head without a backward: nothing to compare with
        half = max(labelled.target.numel() // 2, 1)  # for two chunks: the first and the last
        with as_if_large():
            gradients = torch.autograd.grad(labelled.loss("sum", chunk_tokens=half), list(leaves.values()))
        ours = dict(zip(leaves, gradients, strict=True))
        if "weight" in ours:
            ours["weight"] = ours["weight"] @ direction.to(ours["weight"].dtype)
    eps = max(torch.finfo(dtype).eps for dtype in (recipe.head_dtype, recipe.hidden.dtype, recipe.weight.dtype))
    tolerance = max(eps**0.5, 16 * eps * own.largest)
    slack = eps * max(float(wide(x.detach()).norm(dim=-1).max()) for x in (recipe.hidden, recipe.matrix))
    for name, gradient in ours.items():
        truth = getattr(own, name).double()
        error, norm = float((gradient.double() - truth).norm()), float(truth.norm())
        if not error <= tolerance * norm + slack:
            return f"the gradient of its head's {name} is off by {error:.2g}; its norm is {norm:.2g}"
    return None


class OwnGradients(NamedTuple):
    """Gradients of the summed loss of full logits, by autograd; `largest` is the largest finite logit."""

    hidden: Tensor
    weight: Tensor  # (V,): multiplied by a direction (D,)
    bias: Tensor  # (V,)
    largest: float


def own_gradients(labelled: Labelled, direction: Tensor) -> OwnGradients:
    """Run autograd through full logits. Raises the error of a head without a backward."""
    recipe = labelled.recipe
    z = recipe.matmul()
    leaf = z.detach().requires_grad_()
    logits = replace(recipe, normalized=False, after=0).logits_of(leaf)
    (dz,) = torch.autograd.grad(loss_of(labelled, logits), leaf)
    (dhidden,) = torch.autograd.grad(z, recipe.hidden, dz)
    rows, states = (wide(x).reshape(-1, x.shape[-1]) for x in (dz, recipe.hidden.detach()))
    dweight = rows.t() @ (states @ direction.to(states.dtype))
    finite = logits.detach().nan_to_num(neginf=0.0)
    return OwnGradients(dhidden, dweight, rows.sum(0), float(finite.abs().max()))


def cut(recipe: Recipe) -> Recipe:
    """Replace the operands by leaves: hidden requires grad, and so do weight and bias if they are trained."""
    changed: dict[str, Any] = {}
    for name in NAMES:
        x = getattr(recipe, name)
        leaf = None if x is None else x.detach()
        if leaf is not None and not leaf.is_inference():
            leaf.requires_grad_(name == "hidden" or x.requires_grad)
        changed[name] = leaf
    return replace(recipe, **changed, before_backward=())


def wide(x: Tensor) -> Tensor:
    """Cast to float32, or keep a wider dtype."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def loss_of(labelled: Labelled, logits: Tensor) -> Tensor:
    """Compute the summed cross-entropy of full logits (..., V) with torch."""
    if labelled.shift:
        logits = logits[..., : -labelled.shift, :]
    target = labelled.predicted() if labelled.shift else labelled.target
    n_classes = logits.shape[-1]
    target = target.reshape(-1, n_classes) if target.is_floating_point() else target.flatten()
    return F.cross_entropy(
        wide(logits).reshape(-1, n_classes), target, labelled.class_weight,
        ignore_index=labelled.ignore_index, label_smoothing=labelled.label_smoothing, reduction="sum",
    )  # fmt: skip
