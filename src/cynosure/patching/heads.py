"""Intercept the matmul of a model's head: recognize it, defer it, or say why it cannot be deferred."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

from cynosure.loss import uncompiled
from cynosure.patching.lent import lent
from cynosure.patching.matmuls import HeadMatmul, matmul_of
from cynosure.patching.pending import Owner, PendingLogits
from cynosure.patching.quantized import rounding, rounding_weight
from cynosure.patching.recipe import Recipe, matmul_dtype
from cynosure.system.upstream import (
    gather_flat,
    has_backward_hook,
    is_traceable_wrapper_subclass,
    own_weight,
    release_flat,
)


class Deferring(TorchFunctionMode):
    """While active, matmuls that compute a model's logits return stand-ins; `owner` as in `PendingLogits.of`.

    A matmul is recognized by its operands, not by the module that runs it: hidden states times a matrix with a row per
    class. So the head may be any module, a parameter, or the embedding. The matrix may itself be computed, and
    gradients flow on to what it was computed from.
    """

    def __init__(self, model: Any, owner: Owner) -> None:
        super().__init__()
        self.layers = layers = head_layers(model)
        self.classes, self.owner = class_counts(model), owner
        # Why this head's matmul cannot be deferred, if anything about the head itself prevents it.
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
        matmul = matmul_of(func, args, kwargs or {})
        if matmul is None or matmul.weight.shape[0] not in self.classes or not self.defers(matmul):
            return func(*args, **(kwargs or {}))
        return self.logits(matmul)

    @uncompiled
    def logits(self, matmul: HeadMatmul) -> Tensor:
        """Return the stand-in for the logits of this matmul."""
        hidden, weight, bias = matmul
        self.owner.deferred += 1
        own = matmul_dtype(hidden)
        dtype = self.owner.head_dtype or own
        return PendingLogits.of(Recipe(hidden, weight, bias, 1.0, None, dtype, dtype, own), self.owner)

    def defers(self, matmul: HeadMatmul) -> bool:
        """Whether this matmul can be deferred. One under another grad mode, inside an autograd function, cannot."""
        hidden, weight, _ = matmul
        if isinstance(hidden, PendingLogits) or isinstance(weight, PendingLogits):
            return False
        self.obstacle = self.obstacle or sharded(weight) or rounding_weight(weight)
        if torch.is_grad_enabled() != self.grad_enabled or is_traceable_wrapper_subclass(hidden):
            return False
        same_dtype = hidden.dtype == weight.dtype or torch.is_autocast_enabled(hidden.device.type)
        return same_dtype and self.obstacle is None

    def why_not(self) -> str | None:
        """Return why the matmul that computes the logits has not been deferred; None if it has been."""
        if self.obstacle is not None or self.owner.deferred:
            return self.obstacle
        counts = " or ".join(map(str, sorted(self.classes)))
        nothing = f"no matmul of hidden states and one weight in its forward gives {counts} classes"
        # A head in an FSDP unit is sharded as well, but gathered for its matmul.
        weights = [] if any(map(is_fsdp, self.layers)) else [x for layer in self.layers for x in layer.parameters()]
        return next(filter(None, map(sharded, weights)), nothing)


def class_counts(model: Any) -> set[int]:
    """Return how many rows the head's matrix may have: the size of the vocabulary, or that of its padded weight.

    A layer with fewer rows is not the head, even if the model says so: its own loss reshapes logits to the vocabulary.
    """
    vocab_size = getattr(model.config.get_text_config(), "vocab_size", None) or 1
    counts = {vocab_size, max(map(rows, head_layers(model)), default=0)}
    return {n for n in counts if n >= vocab_size}


def rows(layer: nn.Module) -> int:
    """Return the number of classes of a linear layer or an embedding; 0 for other layers.

    A plain weight's shape decides: PEFT's copies of tied heads have out_features and in_features swapped.
    """
    n = getattr(layer, "out_features", None) or getattr(layer, "num_embeddings", None) or 0
    weight = own_weight(layer)
    if n and isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point():
        n = weight.shape[0]
    return int(n)


def head_layers(model: Any) -> list[nn.Module]:
    """Return the module that the model names as its head, and all modules inside; [] if it names none."""
    head = model.get_output_embeddings()
    return list(head.modules()) if isinstance(head, nn.Module) else []


def hooked(layers: list[nn.Module], classes: set[int]) -> str | None:
    """Return why a backward hook of the head prevents deferring; None if there is none."""
    for layer in layers:
        gives_logits = layer is layers[0] or rows(layer) in classes
        if gives_logits and has_backward_hook(layer):
            return "its head has a backward hook, which needs the gradient of full logits: remove the hook"
    return None


def gather_head(model: Any) -> None:
    """Gather a head that is an FSDP unit, until its backward: FSDP frees it after its forward, before the loss."""
    for module in head_layers(model):
        if isinstance(module, FSDPModule):
            module.unshard()
        elif isinstance(module, FullyShardedDataParallel):
            gather_flat(module)


def release(model: Any) -> None:
    """Reshard after a forward without a backward: an optimizer created now would hold the gathered weights."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # the root keeps what it has gathered
        elif isinstance(module, FullyShardedDataParallel):
            release_flat(module)


def is_fsdp(module: nn.Module) -> bool:
    """Whether FSDP, of either version, gathers this module's weights."""
    return isinstance(module, (FSDPModule, FullyShardedDataParallel))


def is_in_fsdp1(model: Any) -> bool:
    """Whether FSDP1 has put a model's weights into flat ones; FSDP2, with the same mark, leaves them DTensors."""
    managed = getattr(model, "_is_fsdp_managed_module", False)
    return managed and not any(isinstance(weight, DTensor) for weight in model.parameters())


def sharded(weight: Tensor) -> str | None:
    """Return how a head's weight is sharded during its own forward; None if it is whole."""
    if not isinstance(weight, DTensor):
        return None
    placements = weight.placements
    return (
        f"its head is tensor-parallel (a DTensor with placements {placements}): leave the head out of the parallel plan"
    )


def partitioned(layers: list[nn.Module]) -> str | None:
    """Return how a head's weights are sharded before and after its forward; None if they are not.

    DeepSpeed multiplies such weights in its own autograd function, where the matmul is not recognized.
    """
    if not any(hasattr(weight, "ds_id") for layer in layers for weight in layer.parameters()):
        return None
    return "its head is sharded by DeepSpeed ZeRO-3, which frees the weight after its own forward: use ZeRO-2 or FSDP"
