"""PEFT layers whose own forward updates the logits, (N, V), without a matmul that we can intercept."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Offsets = list[int | None] | None  # per row: number of tokens from aLoRA's invocation on; None means none


def replaced(layer: Any) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Yield (attributes, name, function) for each method of a layer that must be replaced."""
    kind = tuner(layer)
    if kind in FORWARDS and type(getattr(layer, "base_layer", None)) is nn.Linear:
        yield vars(layer), "forward", partial(unless_switched_off, layer, layer.forward, FORWARDS[kind])
    if kind == "lora" and hasattr(layer, "lora_variant"):
        yield vars(layer), "_mixed_batch_forward", partial(mixed, layer, layer._mixed_batch_forward)
        for name, variant in layer.lora_variant.items():
            if type(variant).__name__ == "ALoraLinearVariant":
                yield layer.lora_variant, name, Activated


def tuner(layer: nn.Module) -> str | None:
    """Return the name of the PEFT method that a layer belongs to; None for other layers."""
    package, _, kind = type(layer).__module__.partition(".tuners.")
    return kind.partition(".")[0] if package == "peft" else None


def unless_switched_off(
    layer: Any, own: Callable[..., Tensor], function: Callable[[Any, Tensor], Tensor], x: Tensor, **options: Any
) -> Tensor:
    """Call `function` on the states, or the layer's own forward if its adapters are off or merged."""
    if layer.disable_adapters or layer.merged or options:
        return own(x, **options)
    return function(layer, x).to(x.dtype)


def c3a(layer: Any, x: Tensor) -> Tensor:
    """A block-circular convolution of the states, as a matmul with a block-circulant matrix."""
    circulant = import_module("peft.tuners.c3a.utils").get_circulant_fast
    result: Tensor = layer.base_layer(x)
    states = x.float()
    for name in active(layer, layer.c3a_kernel):
        states = F.linear(states, circulant(layer.c3a_kernel[name].float()) / states.shape[-1])
        result = result + states.to(result.dtype)
    return result


def gralora(layer: Any, x: Tensor) -> Tensor:
    """Low-rank updates of every block of states for every block of classes, as one with a block-diagonal matrix."""
    result: Tensor = layer.base_layer(x)
    for name in active(layer, layer.gralora_A):
        a, b, k = layer.gralora_A[name], layer.gralora_B[name], layer.gralora_k[name]
        dropout, scaling = layer.gralora_dropout[name], layer.scaling[name]
        blocks = dropout(x.to(a.dtype)).unflatten(-1, (k, -1))
        low = torch.einsum("...ni,nir->...nr", blocks, a)
        low = low.view(*low.shape[:-1], k, -1).transpose(-3, -2).flatten(-3)  # by blocks of classes, then of states
        update = F.linear(low, torch.block_diag(*b).t())  # type: ignore[no-untyped-call]
        result = result + (update * scaling).to(result.dtype)
        if layer.hybrid_r[name] > 0:
            general = layer.gralora_B_general[name](layer.gralora_A_general[name](dropout(x.to(a.dtype))))
            result = result + (general * scaling).to(result.dtype)
    return result


def road(layer: Any, x: Tensor) -> Tensor:
    """Rotate and scale pairs of logits by doing so to the weight's rows and the bias."""
    apply_road = import_module("peft.tuners.road.layer")._apply_road
    weight, bias = layer.base_layer.weight.t(), layer.base_layer.bias
    for name in active(layer, layer.road_theta):
        theta, alpha = layer.road_theta[name], layer.road_alpha[name]
        turned = partial(apply_road, layer.variant[name], layer.group_size[name], theta, alpha)
        weight, bias = turned(weight.to(theta.dtype)), None if bias is None else turned(bias.to(theta.dtype))
    return F.linear(x.to(weight.dtype), weight.t(), bias)


def adamss(layer: Any, x: Tensor) -> Tensor:
    """Low-rank updates of clusters of classes, as one update of all classes; each class is in one cluster."""
    x = x.to(layer.dtype)
    result: Tensor = layer.base_layer(x)
    states = x if layer.get_base_layer().bias is None else F.pad(x, (0, 1), value=1.0)
    for name in active(layer, layer.adamss_A):
        clusters = zip(layer.adamss_A[name], layer.adamss_B[name], strict=True)
        rows = torch.cat([b.to(x.dtype) @ a.to(x.dtype) for a, b in clusters])
        order = layer.scatter_index[name].to(rows.device)
        weight = rows.new_zeros(result.shape[-1], rows.shape[1]).index_copy(0, order, rows)
        result = result + F.linear(F.linear(states, layer.adamss_newB[name].to(x.dtype)), weight)
    return result


def active(layer: Any, known: Any) -> Iterator[str]:
    return (name for name in layer.active_adapters if name in known)


FORWARDS: dict[str, Callable[[Any, Tensor], Tensor]] = {"adamss": adamss, "c3a": c3a, "gralora": gralora, "road": road}


def mixed(
    layer: Any,
    own: Callable[..., Tensor],
    x: Tensor,
    *args: Any,
    adapter_names: list[str],
    alora_offsets: Offsets = None,
    **more: Any,
) -> Tensor:
    """LoRA where each row names its own adapter, or `__base__` for none."""
    names = [name for name in dict.fromkeys(adapter_names) if name in layer.lora_A]
    if any(layer.lora_variant.get(name) not in (None, Activated) for name in names):
        return own(x, *args, adapter_names=adapter_names, alora_offsets=alora_offsets, **more)
    result: Tensor = layer.base_layer(x, *args)
    for name in names:
        chosen = torch.tensor([other == name for other in adapter_names], device=x.device)
        if name in layer.lora_variant:
            chosen = chosen[:, None] & activated(x, alora_offsets)
        result = of_rows(layer, name, x, result, chosen)
    return result


class Activated:
    """aLoRA: only tokens from its invocation on are updated."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, alora_offsets: Offsets = None) -> Tensor:
        return of_rows(module, active_adapter, x, result, activated(x, alora_offsets))


def activated(x: Tensor, alora_offsets: Offsets) -> Tensor:
    """(B, T) bool: the last tokens of each row, as many as its offset says."""
    n_last = torch.tensor([n or 0 for n in alora_offsets or [0] * len(x)], device=x.device)
    return torch.arange(x.shape[-2], device=x.device) >= x.shape[-2] - n_last[:, None]


def of_rows(layer: Any, name: str, x: Tensor, result: Tensor, chosen: Tensor) -> Tensor:
    """Logits plus the LoRA update of the chosen rows; `chosen` masks the first dimensions, other rows get zero."""
    a, b = layer.lora_A[name], layer.lora_B[name]
    low = a(layer.lora_dropout[name](x[chosen].to(a.weight.dtype)))
    weight = b.weight
    if b.bias is not None:  # for the chosen rows only
        low, weight = F.pad(low, (0, 1), value=1.0), torch.cat([weight, b.bias[:, None]], 1)
    low = low.new_zeros(*x.shape[:-1], low.shape[-1]).index_put((chosen,), low)
    update: Tensor = F.linear(low, weight) * layer.scaling[name]
    return result + update.to(result.dtype)
