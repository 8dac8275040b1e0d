"""A transformers model on the fused loss: its own forward, with the logits left out between its head and its loss."""

import inspect
import sys
import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from itertools import count
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cynosure.loss import TokenStats
from cynosure.patching.find import find_causal_lm
from cynosure.patching.heads import Deferring, gather_head, head_layers
from cynosure.patching.labelled import IGNORED, PLAIN, Labelled, mean_of
from cynosure.patching.pending import PendingLogits
from cynosure.patching.probe import probe
from cynosure.system.apart import apart

NUMBERS = count()
KNOWN = ("num_items_in_batch", "ignore_index", "shift_labels")  # options of its own loss that the fused one takes
OWN = ("forward", "_loss_function")  # what a patch replaces

VERIFIED: WeakKeyDictionary[Any, list[nn.Module]] = WeakKeyDictionary()  # models, and the layers of their heads


class Patch:
    """A patched model; `undo` takes it back, as does leaving it as a context manager."""

    def __init__(self, model: Any) -> None:
        self.model = find_causal_lm(model)
        name = type(self.model).__name__
        if is_patched(self.model):
            raise ValueError(f"this {name} is patched already: undo that first")
        if not is_the_loss(self.model.loss_function):
            raise ValueError(f"{name} cannot be patched: it has a loss function of its own")
        head_layers(self.model)
        self.own_forward, self.own_loss = self.model.forward, self.model.loss_function
        self.heeded = heeded(self.own_loss)
        self.own = {name: value for name, value in vars(self.model).items() if name in OWN}
        self.observer: Callable[[TokenStats], None] | None = None  # is told every token's figures in evaluation
        self.objective = PLAIN  # of training
        self.plain: Tensor | None = None  # the cross-entropy alone of the last loss in training, without a graph
        self.number = next(NUMBERS)
        self.made_by: list[str] = []  # what has asked for full logits, in the last forward with labels
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
            own = None if known else probe(model).loss
        except Exception as error:
            why = f"its own forward fails on a few input_ids and labels: {error}"
            raise ValueError(f"{type(model).__name__} cannot be patched: {why}") from error
        own_tokens = probe(model, fused_lm_head=True) if per_token else None
        self.function = forward_of(model, self.number)
        model.forward = MethodType(self.function, model)
        model.loss_function = self.loss
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
        # The layers are looked up each time: PEFT and FSDP replace them or their weights after patching.
        with Deferring(head_layers(self.model), self.made_by.append):
            return self.own_forward(*args, **kwargs)

    def loss(self, logits: Tensor, labels: Tensor | None = None, vocab_size: int | None = None, **options: Any) -> Any:
        """The model's loss function: fused where the logits are not made yet, else its own."""
        why = self.needs_logits(logits, vocab_size, options)
        if why is not None:
            self.warn(why)
            return self.own_loss(logits, labels, vocab_size, **options)
        given = {name: value for name, value in options.items() if value is not None and name in KNOWN}
        items = given.pop("num_items_in_batch", None)
        found = self.labelled(logits, labels, **given)
        if self.observer is None or torch.is_grad_enabled():
            made = found.loss(items, self.objective)
            self.plain = found.plain(made, items, self.objective)
            return found.hooked(made)
        stats = found.stats()
        self.observer(stats)
        return mean_of(stats, items)

    def labelled(self, logits: Any, labels: Tensor | None, **options: Any) -> Labelled:
        """Logits that are not made yet with what they are measured against, the head's weight being there."""
        self.fused += 1
        gather_head(self.model)
        return Labelled.of(logits.recipe, labels, **options)

    def needs_logits(self, logits: Tensor, vocab_size: int | None, options: dict[str, Any]) -> str | None:
        """What keeps this loss from being fused; None for nothing."""
        if not isinstance(logits, PendingLogits) or logits.made is not None:
            return f"{self.made_by[0]} between head and loss" if self.made_by else "logits that are not its head's"
        unknown = [name for name in self.heeded if options.get(name) is not None and name not in KNOWN]
        if unknown:
            return f"{', '.join(unknown)} of its loss"
        return None if vocab_size in (None, logits.shape[-1]) else f"a loss over {vocab_size} classes"

    def warn(self, why: str) -> None:
        """Say, once, that a loss is the model's own."""
        if not self.warned:
            name = type(self.model).__name__
            warnings.warn(f"{name} is patched, but {why} needs full logits: they are made", stacklevel=4)
        self.warned = True

    def verify(self, own: Tensor) -> None:
        """Compare a loss of the model as it was with one of the model as it is now."""
        model, name = self.model, type(self.model).__name__
        self.warned = True
        ours = probe(model).loss
        self.warned = False
        if not self.fused:
            why = f"{self.made_by[0]} needs full logits" if self.made_by else "it has a loss function of its own"
            raise ValueError(f"{name} cannot be patched: between its head and its loss, {why}")
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


@lru_cache(maxsize=32)  # asked at each call of `causal_lm_loss`
def is_the_loss(loss_function: Any) -> bool:
    """Whether a loss function is transformers' own for causal models, by its name and by what it gives."""
    return getattr(loss_function, "__name__", "") == "ForCausalLMLoss" and apart(gives_the_loss, loss_function)


def gives_the_loss(loss_function: Any) -> bool:
    """Whether a loss function gives what transformers' own does, with and without a number of items."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 6, 11, generator=generator) * 3, torch.arange(12).view(2, 6) % 11
    labels[:, 2] = IGNORED
    summed = F.cross_entropy(logits[:, :-1].reshape(-1, 11), labels[:, 1:].reshape(-1), reduction="sum")
    with torch.no_grad():
        found = [loss_function(logits, labels, 11, num_items_in_batch=items) for items in (None, 5)]
    return all(bool(torch.isclose(loss, summed / n)) for loss, n in zip(found, (8, 5), strict=True))


def is_patched(model: Any) -> bool:
    return "_cynosure_patch" in vars(model)


def heeded(loss_function: Any) -> set[str]:
    """Options that transformers' loss takes by name; others, such as lengths of packed texts, it does not look at."""
    functions = [loss_function, getattr(sys.modules.get(loss_function.__module__), "fixed_cross_entropy", None)]
    return {
        name
        for function in functions
        if function is not None
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    } - {"logits", "labels", "vocab_size", "source", "target"}


def takes_fused_head(model: Any) -> bool:
    """Whether a trainer of TRL has given the model a forward that takes `fused_lm_head`."""
    function = model.forward
    while function is not None:
        code = getattr(function, "__code__", None)
        if code is not None and "fused_lm_head" in code.co_varnames:
            return True
        function = getattr(function, "__wrapped__", None)  # Accelerate's autocast around it
    return False
