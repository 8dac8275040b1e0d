"""Quantized heads, which multiply in their own kernels: use their weight with `F.linear` if that is exact."""

from collections.abc import Iterable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

ROUNDING = {  # layers that also round hidden states: (package, class)
    ("bitsandbytes", "Linear8bitLt"): "bitsandbytes' 8-bit layer",
    ("torchao", "Float8Linear"): "torchao's float8 layer",
}
ROUNDING_WEIGHTS = {"BitNetTrainingLinearWeight", "BitNetPacked2bitLinearWeight", "IntxOpaqueTensor"}  # torchao's
ROUNDING_MARKS = (  # attributes of torchao's other weights that round hidden states
    *("act_quant_kwargs", "act_quant_scale", "activation_quantization"),
    "row_scale",  # of Int4PreshuffledTensor with float8 states
)
WAY_OUT = "which rounds hidden states too: leave the head out of quantization"


def of_package(layer: nn.Module) -> Iterator[tuple[str, str]]:
    """Return (package, name) of a layer's class and its base classes."""
    return ((kind.__module__.partition(".")[0], kind.__name__) for kind in type(layer).__mro__)


def rounding(layers: Iterable[nn.Module]) -> str | None:
    """Return why a head is not a matmul with one weight: a layer that also rounds hidden states; None without one."""
    for layer in layers:
        for kind in of_package(layer):
            if kind in ROUNDING:
                return f"its head is {ROUNDING[kind]}, {WAY_OUT}"
    return None


def rounding_weight(weight: Tensor) -> str | None:
    """Return the same for a weight whose class rounds hidden states; None for other weights."""
    kind = type(weight)
    if not kind.__module__.startswith("torchao"):
        return None
    marked = any(getattr(weight, mark, None) is not None for mark in ROUNDING_MARKS)
    states = getattr(weight, "activation_dtype", None)  # the dtype in which Int4Tensor multiplies
    if marked or kind.__name__ in ROUNDING_WEIGHTS or (states is not None and states.itemsize == 1):
        return f"its head's weight is torchao's {kind.__name__}, {WAY_OUT}"
    return None


def replaced(layer: nn.Module) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Yield (attributes, name, function) to make bitsandbytes' 4-bit layers multiply by their dequantized weight."""
    if ("bitsandbytes", "Linear4bit") in of_package(layer):
        name = "_old_forward" if "_old_forward" in vars(layer) else "forward"  # beneath Accelerate's wrapper
        yield vars(layer), name, partial(linear_4bit, layer)


def linear_4bit(layer: Any, x: Tensor) -> Tensor:
    """Compute `Linear4bit.forward` with `F.linear`."""
    dequantize_4bit = import_module("bitsandbytes.functional").dequantize_4bit
    if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):  # an evaluation has packed it for a kernel
        layer.state_dict()  # unpacks it
    weight = dequantize_4bit(layer.weight.data.view(-1, 1), layer.weight.quant_state)
    dtype = layer.compute_dtype or x.dtype
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return F.linear(x.to(dtype), weight.to(dtype), bias).to(x.dtype)
