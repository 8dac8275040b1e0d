"""Heads of quantized layers that do not multiply by a tensor in sight: served where they stand for one weight."""

from collections.abc import Iterable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

ROUNDING = {  # layers that round the states too, by their package
    ("bitsandbytes", "Linear8bitLt"): "bitsandbytes' 8-bit layer",
    ("torchao", "Float8Linear"): "torchao's float8 layer",
}
ROUNDING_WEIGHTS = {"BitNetTrainingLinearWeight", "BitNetPacked2bitLinearWeight", "IntxOpaqueTensor"}  # torchao's
ROUNDING_MARKS = (  # of torchao's other weights that round them: how
    *("act_quant_kwargs", "act_quant_scale", "activation_quantization"),
    "row_scale",  # of Int4PreshuffledTensor for states in float8
)
WAY_OUT = "which rounds hidden states too: leave the head out of quantization"


def of_package(layer: nn.Module) -> Iterator[tuple[str, str]]:
    """(package, name) of a layer's class and of those that it is made from."""
    return ((kind.__module__.partition(".")[0], kind.__name__) for kind in type(layer).__mro__)


def rounding(layers: Iterable[nn.Module]) -> str | None:
    """The layer of a head that is no product with one weight, because it rounds the states too; None for none."""
    for layer in layers:
        for kind in of_package(layer):
            if kind in ROUNDING:
                return f"its head is {ROUNDING[kind]}, {WAY_OUT}"
    return None


def rounding_weight(weight: Tensor) -> str | None:
    """The same of a weight whose class rounds the states that it is multiplied by."""
    kind = type(weight)
    if not kind.__module__.startswith("torchao"):
        return None
    marked = any(getattr(weight, mark, None) is not None for mark in ROUNDING_MARKS)
    states = getattr(weight, "activation_dtype", None)  # of Int4Tensor, which multiplies in it
    if marked or kind.__name__ in ROUNDING_WEIGHTS or (states is not None and states.itemsize == 1):
        return f"its head's weight is torchao's {kind.__name__}, {WAY_OUT}"
    return None


def replaced(layer: nn.Module) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """(attributes, name, function): bitsandbytes' 4-bit layers multiply by their dequantized weight, in no kernel."""
    if ("bitsandbytes", "Linear4bit") in of_package(layer):
        name = "_old_forward" if "_old_forward" in vars(layer) else "forward"  # beneath what Accelerate wraps it in
        yield vars(layer), name, partial(linear_4bit, layer)


def linear_4bit(layer: Any, x: Tensor) -> Tensor:
    """`Linear4bit.forward` by `F.linear`."""
    dequantize_4bit = import_module("bitsandbytes.functional").dequantize_4bit
    if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):  # by an evaluation, for a kernel on CPUs
        layer.state_dict()  # unpacks it
    weight = dequantize_4bit(layer.weight.data.view(-1, 1), layer.weight.quant_state)
    dtype = layer.compute_dtype or x.dtype
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return F.linear(x.to(dtype), weight.to(dtype), bias).to(x.dtype)
