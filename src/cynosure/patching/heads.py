"""A model's head: which product makes its logits, how that is put off, and why it cannot be."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.fsdp._runtime_utils import _reshard, _unshard
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from cynosure.loss import uncompiled
from cynosure.patching.lent import lent
from cynosure.patching.pending import Owner, PendingLogits
from cynosure.patching.products import Product, product_of
from cynosure.patching.quantized import rounding, rounding_weight
from cynosure.patching.recipe import Recipe, product_dtype


class Deferring(TorchFunctionMode):
    """Inside of it the products that make logits of a model give stand-ins; `owner` as in `PendingLogits.of`.

    They are known by what they are, not by the module that makes them: a matrix of as many rows as there are classes,
    computed or not, times states. So the head may be any module, a parameter, or the embedding; its weight is the one
    that was multiplied by, and gradients go on to what that was made of.
    """

    def __init__(self, model: Any, owner: Owner) -> None:
        super().__init__()
        self.layers = layers = head_layers(model)
        self.classes, self.owner = class_counts(model), owner
        # What there is in the head itself against putting it off.
        self.obstacle = rounding(layers) or hooked(layers, self.classes) or partitioned(layers)
        self.lent = lent(layers)  # entered with it
        self.grad_enabled = torch.is_grad_enabled()

    def __enter__(self) -> "Deferring":
        self.lent.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self.lent.__exit__(*raised)
        self.owner.obstacle = self.why_not()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        product = product_of(func, args, kwargs or {})
        if product is None or product.weight.shape[0] not in self.classes or not self.defers(product):
            return func(*args, **(kwargs or {}))
        return self.logits(product)

    @uncompiled
    def logits(self, product: Product) -> Tensor:
        """What stands for the logits of such a product."""
        hidden, weight, bias = product
        self.owner.deferred += 1
        return PendingLogits.of(Recipe(hidden, weight, bias, 1.0, None, product_dtype(hidden)), self.owner)

    def defers(self, product: Product) -> bool:
        """Whether this product can be put off; one of another grad mode is inside of an autograd function."""
        hidden, weight, _ = product
        if isinstance(hidden, PendingLogits) or isinstance(weight, PendingLogits):
            return False
        self.obstacle = self.obstacle or sharded(weight) or rounding_weight(weight)
        if torch.is_grad_enabled() != self.grad_enabled or is_traceable_wrapper_subclass(hidden):
            return False
        same_dtype = hidden.dtype == weight.dtype or torch.is_autocast_enabled(hidden.device.type)
        return same_dtype and self.obstacle is None

    def why_not(self) -> str | None:
        """Why the product that makes logits has not been put off; None where it has been."""
        if self.obstacle is not None or self.owner.deferred:
            return self.obstacle
        counts = " or ".join(map(str, sorted(self.classes)))
        nothing = f"no product of hidden states and one weight in its forward gives {counts} classes"
        # A head in a unit of FSDP is sharded as well, but gathered for its product.
        weights = [] if any(map(is_fsdp, self.layers)) else [x for layer in self.layers for x in layer.parameters()]
        return next(filter(None, map(sharded, weights)), nothing)


def class_counts(model: Any) -> set[int]:
    """How many rows the matrix of a head may have: as many as the vocabulary, or those of its padded weight.

    A layer of fewer is no head, whatever the model says: its own loss reshapes logits to the vocabulary.
    """
    vocab_size = getattr(model.config.get_text_config(), "vocab_size", None) or 1
    counts = {vocab_size, max(map(rows, head_layers(model)), default=0)}
    return {n for n in counts if n >= vocab_size}


def rows(layer: nn.Module) -> int:
    """The classes of a linear layer or an embedding; 0 for what is neither.

    By its weight where that is a plain matrix: PEFT's copies of tied heads have out_features and in_features swapped.
    """
    n = getattr(layer, "out_features", None) or getattr(layer, "num_embeddings", None) or 0
    weight = layer._parameters.get("weight")  # not one that is computed, which may change its layer's state
    if n and isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point():
        n = weight.shape[0]
    return int(n)


def head_layers(model: Any) -> list[nn.Module]:
    """What the model says that its head is, and all inside of it; nothing where it does not say."""
    head = model.get_output_embeddings()
    return list(head.modules()) if isinstance(head, nn.Module) else []


def hooked(layers: list[nn.Module], classes: set[int]) -> str | None:
    """The hook that is to have the gradient of a head's logits; None for none."""
    everywhere = torch.nn.modules.module._global_backward_hooks or torch.nn.modules.module._global_backward_pre_hooks
    for layer in layers:
        gives_logits = layer is layers[0] or rows(layer) in classes
        if gives_logits and (everywhere or layer._backward_hooks or layer._backward_pre_hooks):
            return "its head has a backward hook, which needs the gradient of full logits: remove the hook"
    return None


def gather_head(model: Any) -> None:
    """Gather a head that FSDP shards by itself: it is let go after its forward, but the loss reads it later."""
    for module in head_layers(model):  # until its backward
        if isinstance(module, FSDPModule):
            module.unshard()
        elif isinstance(module, FullyShardedDataParallel) and module._handle is not None:
            _unshard(module, module._handle, module._unshard_stream, module._pre_unshard_stream)


def release(model: Any) -> None:
    """Let go what is gathered after a forward that has no backward: an optimizer made now would hold it."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # the root keeps what it has gathered
        elif isinstance(module, FullyShardedDataParallel):
            handle = module._handle
            if handle is not None and handle.uses_sharded_strategy:
                _reshard(module, handle, True)


def is_fsdp(module: nn.Module) -> bool:
    """Whether FSDP, of either version, gathers this module's weights."""
    return isinstance(module, (FSDPModule, FullyShardedDataParallel))


def is_in_fsdp1(model: Any) -> bool:
    """Whether FSDP1 has put a model's weights into flat ones; FSDP2, with the same mark, leaves them DTensors."""
    managed = getattr(model, "_is_fsdp_managed_module", False)
    return managed and not any(isinstance(weight, DTensor) for weight in model.parameters())


def sharded(weight: Tensor) -> str | None:
    """What spreads a head's weight over processes in its own forward; None where it is there as a whole."""
    if not isinstance(weight, DTensor):
        return None
    how = f"tensor-parallel, its weight a DTensor of placements {weight.placements}"
    return f"its head is {how}: leave the head out of that"


def partitioned(layers: list[nn.Module]) -> str | None:
    """What spreads a head's weights over processes before its forward and after it; None for nothing.

    The products of such weights are made by a function of DeepSpeed's own, in which they are not recognized.
    """
    if not any(hasattr(weight, "ds_id") for layer in layers for weight in layer.parameters()):
        return None
    how = "sharded by DeepSpeed ZeRO-3, which lets its weight go after its own forward"
    return f"its head is {how}: use ZeRO-2 or FSDP"
