"""The layers of a model's head, and how their matrix products are put off."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cynosure.patching.pending import PendingLogits, Recipe, product_dtype


def head_layers(model: Any) -> list[nn.Module]:
    """The linear layers in the model's head that give logits: one, and more where PEFT has wrapped it."""
    head = model.get_output_embeddings()
    layers = [layer for layer in head.modules() if isinstance(layer, nn.Linear)] if head is not None else []
    if not layers:
        raise ValueError(f"{type(model).__name__} cannot be patched: it has no linear output layer")
    n_classes = max(layer.out_features for layer in layers)
    return [layer for layer in layers if layer.out_features == n_classes]


def gather_head(model: Any) -> None:
    """Gather a head that FSDP2 shards by itself: it is let go after its forward, but the loss reads it later."""
    for module in model.get_output_embeddings().modules():
        if hasattr(module, "unshard"):
            module.unshard()  # until its backward


class Deferring(TorchFunctionMode):
    """Inside of it, products with the weights of these layers give stand-ins; `tell` as in `PendingLogits.of`."""

    def __init__(self, layers: Iterable[nn.Module], tell: Callable[[str], None]) -> None:
        super().__init__()
        self.layers, self.tell = list(layers), tell

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            hidden, weight, bias = bound(*args, **(kwargs or {}))
            if any(layer.weight is weight for layer in self.layers):
                return self.logits(hidden, weight, bias)
        return func(*args, **(kwargs or {}))

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What such a product gives."""
        return PendingLogits.of(Recipe(hidden, weight, bias, 1.0, None, product_dtype(hidden)), self.tell)


def bound(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias
