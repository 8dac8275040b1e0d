"""Explain values of a model that are not finite: the first such tensor, and the way out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cynosure.loss import multiplies_itself


def check_finite(module: nn.Module, name: str, values: Tensor, run: Callable[[], Any]) -> None:
    """Raise ValueError if values of a model are NaN or +inf; `run` runs it again to find where they begin.

    Logits may hold -inf, with which some models rule out tokens.
    """
    if values.isnan().any() or (values == torch.inf).any():
        raise ValueError(why_not_finite(module, name, run))


def why_not_finite(module: nn.Module, name: str, run: Callable[[], Any]) -> str:
    """Return a sentence that names the weights that are not finite, or the first place where states overflow."""
    weights = {key: p for key, p in module.named_parameters() if p.is_floating_point()}
    dtype = next((str(p.dtype).removeprefix("torch.") for p in weights.values()), "float32")
    counts = {key: int((~dequantized(p).isfinite()).sum()) for key, p in weights.items()}
    bad = {key: n for key, n in counts.items() if n}
    if bad:
        more = f", and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        start = "The" if dtype == "float32" else "Load it in float32; if they remain, the"
        return (
            f"{name} has weights that are not finite in {dtype}: {shown(weights, bad)}{more}. "
            f"{start} checkpoint is damaged or its training diverged: use an earlier one"
        )
    buffers = {key: dequantized(p) for key, p in module.named_buffers() if p.is_floating_point()}
    bad = {key: n for key, p in buffers.items() if (n := int((p.isnan() | (p == torch.inf)).sum()))}
    if bad:  # -inf is allowed: masks use it
        return (
            f"{name} has finite weights and a buffer that is not finite: {shown(buffers, bad)}. Its configuration "
            "determines that buffer: fix its config.json"
        )
    where = first_not_finite(module, run)
    ways = {"float16": "load it in float32 or bfloat16"}
    way = ways.get(dtype, "its training diverged, use an earlier checkpoint")
    return f"{name} has finite weights, but its {where} overflow in {dtype}: {way}"


def dequantized(x: Tensor) -> Tensor:
    """Dequantize a quantized weight; return others unchanged."""
    return x.dequantize() if multiplies_itself(x) and hasattr(x, "dequantize") else x


def shown(tensors: Mapping[str, Tensor], bad: dict[str, int]) -> str:
    """Name the first tensor, and how many of its elements are not finite."""
    first, n = next(iter(bad.items()))
    return f"{first} ({n:,} of {tensors[first].numel():,})"


@torch.no_grad()
def first_not_finite(module: nn.Module, run: Callable[[], Any]) -> str:
    """Run the model and name what overflows first: hidden states and their layer, or logits."""
    places: list[str] = []
    with watched(module, places):
        run()
    return f"hidden states, first {places[0]}," if places else "logits"


@contextmanager
def watched(module: nn.Module, places: list[str]) -> Iterator[None]:
    """Record layers whose inputs or outputs are not finite in `places`, in the order of their calls."""

    def watch(key: str, layer: nn.Module) -> Iterator[Any]:
        def before(_: nn.Module, inputs: Any) -> None:
            if not all(map(finite, inputs)):
                places.append(f"before {key}")

        def after(_: nn.Module, __: Any, output: Any) -> None:
            if not finite(output):
                places.append(f"in {key}")

        yield layer.register_forward_pre_hook(before)
        yield layer.register_forward_hook(after)

    leaves = [(key, layer) for key, layer in module.named_modules() if not list(layer.children())]
    hooks = [hook for key, layer in leaves for hook in watch(key, layer)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def finite(value: Any) -> bool:
    """Whether a tensor, or every tensor of a tuple, is finite; true for any other value."""
    if isinstance(value, tuple):
        return all(map(finite, value))
    plain = type(value) is Tensor and value.is_floating_point()
    return not plain or bool(value.isfinite().all())
