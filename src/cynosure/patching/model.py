"""A transformers model on the fused loss: its own forward, with the logits left out between its head and its loss."""

import inspect
import sys
import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cynosure.loss import TokenStats
from cynosure.patching.find import find_causal_lm
from cynosure.patching.forward import Forward, leads_to
from cynosure.patching.heads import Deferring, gather_head, head_layers
from cynosure.patching.labelled import IGNORED, PLAIN, Labelled, mean_of
from cynosure.patching.pending import PendingLogits
from cynosure.patching.verify import verify

KNOWN = ("num_items_in_batch", "ignore_index", "shift_labels")  # options of its own loss that the fused one takes
OWN = ("forward", "_loss_function")  # what a patch replaces


class Patch:
    """A patched model; `undo` takes it back, as does leaving it as a context manager.

    There is one for a model: patching that again gives the same, which is in place until each of them is left. It goes
    along where the model is copied, pickled or sent to another process.
    """

    def __init__(self, model: Any) -> None:
        self.model = find_causal_lm(model)
        self.observer: Callable[[TokenStats], None] | None = None  # is told every token's figures in evaluation
        self.objective = PLAIN  # of training
        self.plain: Tensor | None = None  # the cross-entropy alone of the last loss in training, without a graph
        self.made_by: list[str] = []  # what has asked for full logits, in the last forward with labels
        self.seen: list[Labelled] | None = None  # what losses were made of, while they are verified
        self.fused = 0  # losses made without logits
        self.entries = 0  # how often it has been asked for, and not left
        self.warned = False
        self.paused = False  # the model is as it was meanwhile
        self.without_labels = False  # its logits are put off too

    @classmethod
    def on(cls, model: Any) -> "Patch":
        """The patch of a model, put in place and verified where it is not; entered once more. Errors as of `apply`."""
        inner = find_causal_lm(model)
        found: Patch = vars(inner).get("_cynosure_patch") or cls(inner)
        entries = found.entries
        if found.in_place:
            verify(found)  # PEFT may have changed the head since
        else:
            found.undo()
            found.apply()
        found.entries = entries + 1
        return found

    @property
    def in_place(self) -> bool:
        """Whether the model is patched by this, and no one has put another forward there since."""
        own = vars(self.model)
        return own.get("_cynosure_patch") is self and leads_to(own.get("forward"), self.installed)

    def apply(self) -> "Patch":
        """Put it in place and verify it, once for a model and its head.

        Raises ValueError, the model being as before, where it cannot be proved equal.
        """
        model = self.model
        if is_patched(model):
            raise ValueError(f"this {type(model).__name__} is patched already: undo that first")
        if not is_the_loss(model.loss_function):
            raise ValueError(f"{type(model).__name__} cannot be patched: it has a loss function of its own")
        head_layers(model)
        self.own_forward, self.own_loss = model.forward, model.loss_function
        self.heeded = heeded(self.own_loss)
        self.own = {name: value for name, value in vars(model).items() if name in OWN}
        model.forward = self.installed = Forward(model)
        model.loss_function = self.loss
        model._cynosure_patch = self
        try:
            verify(self)
        except BaseException:
            self.undo()
            raise
        return self

    def undo(self) -> None:
        """Leave the model as it was, whoever else has asked for the patch; once is enough."""
        model, self.entries = self.model, 0
        if vars(model).get("_cynosure_patch") is not self:
            return
        del model._cynosure_patch
        own = dict(self.own)
        forward = vars(model).get("forward")
        if forward is not None and getattr(forward, "__func__", None) is not self.installed.__func__:
            own["forward"] = forward  # Accelerate has put its autocast around ours, which lets everything through now
        for name in OWN:
            vars(model).pop(name, None)
        vars(model).update(own)

    def leave(self) -> None:
        """Undo it, unless it has been asked for more often than left."""
        self.entries -= 1
        if self.entries <= 0:
            self.undo()

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"observer": None, "plain": None}

    def called(self, *args: Any, **kwargs: Any) -> Any:
        """What the patched model gives for a call."""
        if kwargs.pop("fused_lm_head", False):  # TRL's trainers ask for per-token figures
            return import_module("cynosure.patching.trl").per_token_output(self, *args, **kwargs)
        given = self.installed.__signature__.bind_partial(*args, **kwargs).arguments
        given = given | given.get("kwargs", {})
        if given.get("labels") is None and given.get("shift_labels") is None and not self.without_labels:
            return self.own_forward(*args, **kwargs)
        return self.forward(*args, **kwargs)

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
        found = Labelled.of(logits.recipe, labels, **options)
        if self.seen is not None:
            self.seen.append(found)
        return found

    def needs_logits(self, logits: Tensor, vocab_size: int | None, options: dict[str, Any]) -> str | None:
        """What keeps this loss from being fused; None for nothing, "" for nothing to be said of."""
        if self.paused:
            return ""
        if not isinstance(logits, PendingLogits) or logits.made is not None:
            return f"{self.made_by[0]} between head and loss" if self.made_by else "logits that are not its head's"
        unknown = [name for name in self.heeded if options.get(name) is not None and name not in KNOWN]
        if unknown:
            return f"{', '.join(unknown)} of its loss"
        return None if vocab_size in (None, logits.shape[-1]) else f"a loss over {vocab_size} classes"

    def warn(self, why: str) -> None:
        """Say, once, that a loss is the model's own."""
        if why and not self.warned:
            name = type(self.model).__name__
            warnings.warn(f"{name} is patched, but {why} needs full logits: they are made", stacklevel=4)
        self.warned = self.warned or bool(why)


@lru_cache(maxsize=32)  # asked at each call of `causal_lm_loss`
def is_the_loss(loss_function: Any) -> bool:
    """Whether a loss function is transformers' own for causal models, by its name and by what it gives."""
    if getattr(loss_function, "__name__", "") != "ForCausalLMLoss":
        return False
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
