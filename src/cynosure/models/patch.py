"""A transformers model on the fused loss: its own forward, with the logits left out between its head and its loss."""

import functools
import inspect
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from cynosure.loss import linear_cross_entropy
from cynosure.models.pending import Deferring, PendingLogits, Recipe

IGNORED = -100
N_PROBE = 16  # tokens of the verification


VERIFIED: WeakKeyDictionary[Any, list[nn.Module]] = WeakKeyDictionary()  # models, and the layers of their heads


class Patch:
    """A patched model; `undo` takes it back, as does leaving it as a context manager."""

    def __init__(self, model: Any) -> None:
        self.model = find_causal_lm(model)
        name = type(self.model).__name__
        if is_patched(self.model):
            raise ValueError(f"this {name} is patched already: undo that first")
        if getattr(self.model.loss_function, "__name__", "") != "ForCausalLMLoss":
            raise ValueError(f"{name} cannot be patched: it has a loss function of its own")
        self.layers = head_layers(self.model)
        self.own_forward, self.own_loss = self.model.forward, self.model.loss_function
        self.had_loss = "_loss_function" in vars(self.model)
        self.made_by: list[str] = []  # what has asked for full logits, in the last forward with labels
        self.fused = 0  # losses made without logits

    def apply(self) -> "Patch":
        """Put it in place and verify it, once for a model and its head.

        Raises ValueError, the model being as before, where it cannot be proved equal.
        """
        model, new = self.model, VERIFIED.get(self.model) != self.layers
        own = probe_loss(model) if new else None
        signature = inspect.signature(self.own_forward)

        @functools.wraps(self.own_forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind_partial(*args, **kwargs).arguments
            given = given | given.get("kwargs", {})
            if given.get("labels") is None and given.get("shift_labels") is None:
                return self.own_forward(*args, **kwargs)
            self.made_by.clear()
            with Deferring(self.layers, self.made_by.append):
                return self.own_forward(*args, **kwargs)

        model.forward = forward
        model.loss_function = self.loss
        model._cynosure_patch = self
        try:
            if own is not None:
                self.verify(own)
        except BaseException:
            self.undo()
            raise
        VERIFIED[model] = self.layers
        return self

    def undo(self) -> None:
        """Leave the model as it was; once is enough."""
        model = self.model
        if vars(model).pop("_cynosure_patch", None) is None:
            return
        del model.forward
        if self.had_loss:
            model.loss_function = self.own_loss
        else:
            del model._loss_function

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def loss(self, logits: Tensor, labels: Tensor | None = None, vocab_size: int | None = None, **options: Any) -> Any:
        """The model's loss function: fused where the logits are not made yet, else its own."""
        pending = isinstance(logits, PendingLogits) and logits.made is None
        if not pending or not known(options, vocab_size, logits):
            return self.own_loss(logits, labels, vocab_size, **options)
        self.fused += 1
        return fused_loss(logits.recipe, labels, **options)  # type: ignore[attr-defined]

    def verify(self, own: Tensor) -> None:
        """Compare a loss of the model as it was with one of the model as it is now."""
        model, name = self.model, type(self.model).__name__
        ours = probe_loss(model)
        if not self.fused:
            why = f"{self.made_by[0]} needs full logits" if self.made_by else "it has a loss function of its own"
            raise ValueError(f"{name} cannot be patched: between its head and its loss, {why}")
        tolerance = 16 * torch.finfo(model.dtype).eps
        if not abs(float(ours) - float(own)) <= tolerance * max(1.0, abs(float(own))):
            raise ValueError(
                f"{name} cannot be patched: its own loss is {float(own):.6f}, and without its logits {float(ours):.6f}"
            )


def known(options: dict[str, Any], vocab_size: int | None, logits: Tensor) -> bool:
    """Whether the fused loss knows these options of the model's own."""
    names = {"num_items_in_batch", "ignore_index", "shift_labels"}
    used = {name for name, value in options.items() if value is not None}
    return used <= names and vocab_size in (None, logits.shape[-1])


def fused_loss(
    recipe: Recipe,
    labels: Tensor | None,
    *,
    num_items_in_batch: Tensor | float | None = None,
    ignore_index: int = IGNORED,
    shift_labels: Tensor | None = None,
    **_: None,
) -> Tensor:
    """The loss of transformers' causal language models from a recipe: the mean, or the sum over the items given."""
    target = labels if shift_labels is None else shift_labels
    if target is None:
        raise ValueError("a loss needs labels or shift_labels")
    return linear_cross_entropy(
        recipe.hidden,
        recipe.weight,
        target.to(recipe.hidden.device).reshape(recipe.hidden.shape[:-1]),
        bias=recipe.bias,
        scale=recipe.scale,
        softcap=recipe.softcap,
        ignore_index=ignore_index,
        shift=1 if shift_labels is None else 0,
        normalizer=num_items_in_batch,
    )


def find_causal_lm(model: Any) -> Any:
    """The transformers model inside of what wraps it: PEFT, DistributedDataParallel, torch.compile."""
    while True:
        inner = getattr(model, "get_base_model", None)
        if callable(inner):
            model = inner()
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        elif isinstance(getattr(model, "module", None), nn.Module) and not hasattr(model, "get_output_embeddings"):
            model = model.module
        else:
            break
    if not hasattr(model, "get_output_embeddings") or not hasattr(model, "loss_function"):
        raise TypeError(f"patch needs a causal language model of transformers, got {type(model).__name__}")
    return model


def is_patched(model: Any) -> bool:
    return "_cynosure_patch" in vars(model)


def head_layers(model: Any) -> list[nn.Module]:
    """The linear layers in the model's head that give logits: one, and more where PEFT has wrapped it."""
    head = model.get_output_embeddings()
    layers = [layer for layer in head.modules() if isinstance(layer, nn.Linear)] if head is not None else []
    if not layers:
        raise ValueError(f"{type(model).__name__} cannot be patched: it has no linear output layer")
    n_classes = max(layer.out_features for layer in layers)
    return [layer for layer in layers if layer.out_features == n_classes]


@torch.no_grad()
def probe_loss(model: Any) -> Tensor:
    """The model's loss on a few fixed tokens, without dropout."""
    training = [module for module in model.modules() if module.training]
    weight = next(model.parameters())
    ids = torch.arange(N_PROBE, device=weight.device)[None] % model.config.get_text_config().vocab_size
    labels = ids.clone()
    labels[:, : N_PROBE // 4] = IGNORED
    model.eval()
    try:
        loss: Tensor = model(input_ids=ids, labels=labels, use_cache=False).loss.detach()
    finally:
        for module in training:
            module.training = True
    return loss


def patch(model: Any) -> Patch:
    """Put a causal language model of transformers on the fused loss, until `undo()` or to the end of a `with` block.

    `model(..., labels=...)` works as before, `num_items_in_batch` and `shift_labels` too: the same loss, the same
    gradients, auxiliary losses kept, but no logits are made. Those in the output stand for them, and are made when
    something looks at them. Without labels nothing changes. The model may be wrapped by PEFT, low-rank updates of its
    head included.

    What the model does to its logits (scale, softcap, bias, padded vocabulary) is seen when it does it. Raises
    ValueError, with the reason, where the loss cannot be shown equal on a few tokens; TypeError for what is no model.

    >>> from tests.lm.conftest import tiny_model
    >>> model, ids = tiny_model(), torch.arange(12)[None]
    >>> own = model(ids, labels=ids).loss
    >>> with patch(model):
    ...     fused = model(ids, labels=ids).loss
    >>> torch.testing.assert_close(fused, own)
    """
    return Patch(model).apply()


def causal_lm_loss(
    model: Any,
    input_ids: Tensor,
    labels: Tensor | None = None,
    attention_mask: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    **model_inputs: Any,
) -> Tensor:
    """The next-token loss of a transformers model, without its logits: nats, a 0-d tensor with a graph.

    `input_ids` (B, T); `labels` (B, T) are by default these, ignored where `attention_mask` is 0; -100 is ignored. The
    mean over the tokens that are not, or the sum divided by `normalizer`, the number of them in a whole accumulated or
    distributed batch. `model_inputs` go to the model. Errors as of `patch`, which is in place during the call unless it
    has been before.

    >>> from tests.lm.conftest import tiny_model
    >>> ids = torch.arange(12)[None]
    >>> round(causal_lm_loss(tiny_model(spread=0.0), ids).item(), 4)  # ln 300
    5.7038
    """
    if labels is None:
        labels = input_ids if attention_mask is None else input_ids.masked_fill(attention_mask == 0, IGNORED)
    given = model_inputs | {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}
    if normalizer is not None:
        given["num_items_in_batch"] = normalizer
    inner = find_causal_lm(model)
    with nullcontext() if is_patched(inner) else Patch(inner).apply():
        found: Tensor = model(**given).loss
    return found
