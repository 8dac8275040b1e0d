"""Run the model and the loss that an audit examines: the model's own loss or the user's."""

import inspect
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cynosure.auditing.batch import COMPLETION
from cynosure.patching import find_causal_lm, input_device

LossFunction = Callable[..., Tensor]


@dataclass
class Subject:
    """A model, the transformers model inside it, and the loss to examine."""

    model: Any
    inner: Any
    loss_fn: LossFunction | None
    accepted: set[str] | None  # inputs that the model's forward takes; None for any
    takes_items: bool  # whether the loss takes num_items_in_batch
    autocast: torch.dtype | None = field(default=None)  # the one in which the loss ran the model

    @property
    def device(self) -> torch.device:
        return input_device(self.inner)

    @property
    def name(self) -> str:
        return "the model" if self.loss_fn is None else "loss_fn"

    def inputs(self, given: Any, without: Set[str] = frozenset()) -> dict[str, Any]:
        """Return the columns of a batch that the model accepts."""
        left_out = {*COMPLETION, "labels", *without}
        return {
            name: value
            for name, value in given.items()
            if name not in left_out
            and isinstance(value, Tensor | int | float)
            and (self.accepted is None or name in self.accepted)
        }

    def loss(self, given: Any, items: int | None = None) -> Tensor:
        """Return the loss of a batch, a 0-d tensor: the mean, or the sum divided by a number of items."""
        count = torch.tensor(items, device=self.device) if items is not None else None
        options: dict[str, Any] = {"num_items_in_batch": count} if count is not None else {}
        hook = self.inner.get_input_embeddings().register_forward_pre_hook(self.note_autocast)
        try:
            if self.loss_fn is None:
                loss = self.model(**self.inputs(given), labels=given["labels"], **options).loss
            else:
                loss = self.loss_fn(self.model, given, **options)
        finally:
            hook.remove()
        if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
            what = f"{loss.dtype} of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            way = "return the 0-d tensor that backward() is called on" if self.loss_fn else "pass a loss_fn"
            raise TypeError(f"{self.name} gives {what} as the loss of a batch: {way}")
        return loss

    def precision(self) -> torch.autocast:
        """Return the autocast in which the loss ran the model."""
        kind = self.device.type
        dtype = self.autocast or torch.get_autocast_dtype(kind)
        return torch.autocast(kind, dtype, enabled=self.autocast is not None)

    def note_autocast(self, *_: Any) -> None:
        kind = self.device.type
        self.autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def find_subject(model: Any, loss_fn: LossFunction | None) -> Subject:
    """Raise TypeError if `model` is not a transformers causal language model or `loss_fn` is not a function."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"an audit needs a transformers causal language model, got {type(model).__name__}")
    if loss_fn is not None and not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function of (model, batch), got {type(loss_fn).__name__}")
    try:
        inner = find_causal_lm(model)
    except TypeError:
        kind = type(model).__name__
        raise TypeError(f"an audit needs a transformers causal language model, got {kind}") from None
    parameters = inspect.signature(inner.forward).parameters
    accepted = None if takes_any(parameters) else set(parameters)
    if loss_fn is None:
        takes_items = getattr(inner, "accepts_loss_kwargs", takes_any(parameters))  # Trainer's own rule
    else:
        taken = parameters_of(loss_fn)
        takes_items = takes_any(taken) or "num_items_in_batch" in taken
    return Subject(model, inner, loss_fn, accepted, bool(takes_items))


def takes_any(parameters: Any) -> bool:
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())


def parameters_of(function: Callable[..., Any]) -> Any:
    try:
        return inspect.signature(function).parameters
    except ValueError:  # some functions written in C have no signature
        return {}
