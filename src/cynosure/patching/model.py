"""A transformers model on the fused loss: its own forward and its own loss, with the logits left out between them."""

import inspect
import warnings
from collections.abc import Callable
from importlib import import_module
from itertools import count
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from cynosure.loss import TokenStats
from cynosure.loss.compiler import uncompiled
from cynosure.patching.find import find_causal_lm
from cynosure.patching.heads import Deferring, gather_head, head_layers, is_in_fsdp1
from cynosure.patching.labelled import PLAIN, reduced
from cynosure.patching.losses import Asked
from cynosure.patching.probe import probe

NUMBERS = count()
OWN = ("forward",)  # what a patch replaces

VERIFIED: WeakKeyDictionary[Any, list[nn.Module]] = WeakKeyDictionary()  # models, and the layers of their heads


class Patch:
    """A patched model; `undo` takes it back, as does leaving it as a context manager."""

    def __init__(self, model: Any) -> None:
        self.model = find_causal_lm(model)
        # What is called to verify it: FSDP1 gathers weights around the model, and nowhere else.
        self.called = model if isinstance(model, FullyShardedDataParallel) else self.model
        name = type(self.model).__name__
        if is_patched(self.model):
            raise ValueError(f"this {name} is patched already: undo that first")
        if self.called is self.model and is_in_fsdp1(self.model):
            raise ValueError(
                f"{name} cannot be patched: FullyShardedDataParallel gathers its weights around it, not inside of it: "
                "patch what that has given, or the model before it is wrapped"
            )
        self.own_forward = self.model.forward
        self.own = {name: value for name, value in vars(self.model).items() if name in OWN}
        self.observer: Callable[[TokenStats], None] | None = None  # is told every token's figures in evaluation
        self.objective = PLAIN  # of training
        self.plain: Tensor | None = None  # the cross-entropy alone of the last sum in training, without a graph
        self.number = next(NUMBERS)
        self.made_by: list[str] = []  # what has asked for full logits, in the last forward with labels
        self.obstacle: str | None = None  # what its head has against being put off
        self.deferred = 0  # products of the head put off in it
        self.fused = 0  # losses made without logits
        self.warned = False

    def apply(self) -> "Patch":
        """Put it in place and verify it, once for a model and its head.

        Raises ValueError, the model being as before, where it cannot be proved equal.
        """
        model, layers = self.model, head_layers(self.model)
        per_token = takes_fused_head(model)
        known = VERIFIED.get(model) == layers and not per_token
        try:
            own = None if known else probe(self.called).loss
        except Exception as error:
            why = f"its own forward fails on a few input_ids and labels: {error}"
            raise ValueError(f"{type(model).__name__} cannot be patched: {why}") from error
        own_tokens = probe(model, fused_lm_head=True) if per_token else None
        self.function = forward_of(model, self.number)
        model.forward = MethodType(self.function, model)
        model._cynosure_patch = self
        try:
            if own is not None:
                self.verify(own)
            if own_tokens is not None:
                ours = probe(model, fused_lm_head=True)
                import_module("cynosure.patching.trl").verify(own_tokens, ours, model.dtype)
        except BaseException:
            self.undo()
            raise
        VERIFIED[model] = layers
        return self

    def undo(self) -> None:
        """Leave the model as it was; once is enough."""
        model = self.model
        if vars(model).get("_cynosure_patch") is not self:
            return
        del model._cynosure_patch
        own = dict(self.own)
        forward = vars(model).get("forward")
        if forward is not None and getattr(forward, "__func__", None) is not self.function:
            own["forward"] = forward  # Accelerate has put its autocast around ours, which lets everything through now
        for name in OWN:
            vars(model).pop(name, None)
        vars(model).update(own)

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward, its logits left out."""
        self.made_by.clear()
        self.plain, self.deferred, fused = None, 0, self.fused
        # Made anew each time: PEFT and FSDP replace layers or their weights after patching.
        with Deferring(self.model, self):
            output = self.own_forward(*args, **kwargs)
        if self.made_by or (self.fused == fused and has_loss(output)):
            self.warn()
        return output

    def tell(self, why: str) -> None:
        """What has asked for full logits."""
        if why != "T":  # of the identity times low-rank weights, as PEFT's DoRA has it: a weight, not logits
            self.made_by.append(why)

    @uncompiled
    def loss(self, asked: Asked) -> Tensor:
        """A loss of the model's logits, without them."""
        self.ready()
        labelled, reduction = asked.labelled, asked.reduction
        dtype = labelled.recipe.dtype
        if self.observer is not None and not torch.is_grad_enabled() and labelled.is_plain:
            stats = labelled.stats()
            self.observer(labelled.spread(stats))
            return reduced(stats, reduction).to(dtype)
        made = labelled.loss(reduction, self.objective)
        if reduction == "sum":
            with torch.no_grad():
                self.plain = made.detach() if self.objective == PLAIN else labelled.loss(reduction)
        return labelled.hooked(made).to(dtype)

    def ready(self) -> None:
        """Before a loss: count it, and see that the head's weight is there."""
        self.fused += 1
        gather_head(self.model)

    def why_not(self) -> str:
        """Why the last forward gave no loss without logits."""
        if self.obstacle is not None:
            return self.obstacle
        if self.made_by:
            return f"between its head and its loss, {self.made_by[0]} needs full logits"
        return "its loss is no cross-entropy of its logits"

    def warn(self) -> None:
        """Say, once, that a loss is made of full logits."""
        if not self.warned:
            warnings.warn(f"{type(self.model).__name__} is patched, but {self.why_not()}", stacklevel=4)
        self.warned = True

    def verify(self, own: Tensor) -> None:
        """Compare a loss of the model as it was with one of the model as it is now."""
        model, name = self.model, type(self.model).__name__
        self.warned = True
        ours = probe(self.called).loss
        self.warned = False
        if self.made_by or not self.fused:
            raise ValueError(f"{name} cannot be patched: {self.why_not()}")
        tolerance = 16 * torch.finfo(model.dtype).eps
        if not abs(float(ours) - float(own)) <= tolerance * max(1.0, abs(float(own))):
            raise ValueError(
                f"{name} cannot be patched: its own loss is {float(own):.6f}, and without its logits {float(ours):.6f}"
            )


def forward_of(model: Any, number: int) -> Any:
    """The function that a patched model has as its forward instead of its own, with the signature of that.

    It finds its patch by the model that it is called on, so that a deep copy of a patched model is one in itself; once
    that is undone it is the model's own.
    """
    own = model.forward
    signature = inspect.signature(own)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        patched: Patch | None = vars(self).get("_cynosure_patch")
        if patched is None or patched.number != number:
            return own(*args, **kwargs) if self is model else type(self).forward(self, *args, **kwargs)
        if kwargs.pop("fused_lm_head", False):  # TRL's trainers ask for per-token figures
            return import_module("cynosure.patching.trl").per_token_output(patched, *args, **kwargs)
        given = signature.bind_partial(*args, **kwargs).arguments
        given = given | given.get("kwargs", {})
        if given.get("labels") is None and given.get("shift_labels") is None:
            return patched.own_forward(*args, **kwargs)
        return patched.forward(*args, **kwargs)

    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *signature.parameters.values()]
    forward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    forward.__doc__ = own.__doc__
    return forward


def has_loss(output: Any) -> bool:
    """Whether a model gave a loss; a tuple is not known to have one."""
    return getattr(output, "loss", None) is not None


def is_patched(model: Any) -> bool:
    return "_cynosure_patch" in vars(model)


def takes_fused_head(model: Any) -> bool:
    """Whether a trainer of TRL has given the model a forward that takes `fused_lm_head`."""
    function = model.forward
    while function is not None:
        code = getattr(function, "__code__", None)
        if code is not None and "fused_lm_head" in code.co_varnames:
            return True
        function = getattr(function, "__wrapped__", None)  # Accelerate's autocast around it
    return False
