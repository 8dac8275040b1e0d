"""Models whose numbers are not finite: which of their tensors are the first, and what helps."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cynosure.loss import multiplies_itself


def check_finite(module: nn.Module, name: str, values: Tensor, run: Callable[[], Any]) -> None:
    """ValueError where values of a model are NaN, or its states infinite; `run` runs it again to find where.

    Logits may hold -inf: some models rule out classes so.
    """
    if values.isnan().any() or (values == torch.inf).any():
        raise ValueError(why_not_finite(module, name, run))


def why_not_finite(module: nn.Module, name: str, run: Callable[[], Any]) -> str:
    """The sentence of the error: its weights that are not finite, or the first place where states overflow."""
    weights = {key: p for key, p in module.named_parameters() if p.is_floating_point()}
    dtype = next((str(p.dtype).removeprefix("torch.") for p in weights.values()), "float32")
    counts = {key: int((~dequantized(p).isfinite()).sum()) for key, p in weights.items()}
    found = {key: n for key, n in counts.items() if n}
    if found:
        more = f", and {len(found) - 1} more tensors" if len(found) > 1 else ""
        start = "The" if dtype == "float32" else "Load it in float32; if they remain, the"
        return (
            f"{name} has weights that are not finite in {dtype}: {shown(weights, found)}{more}. "
            f"{start} checkpoint is damaged or its training diverged: use an earlier one"
        )
    buffers = {key: dequantized(p) for key, p in module.named_buffers() if p.is_floating_point()}
    found = {key: n for key, p in buffers.items() if (n := int((p.isnan() | (p == torch.inf)).sum()))}
    if found:  # -inf may hide what attention must not see
        return (
            f"{name} has finite weights and a buffer that is not finite: {shown(buffers, found)}, as its configuration "
            "has it: correct its config.json"
        )
    where = first_not_finite(module, run)
    ways = {"float16": "load it in float32 or bfloat16"}
    way = ways.get(dtype, "its training diverged, use an earlier checkpoint")
    return f"{name} has finite weights, but its {where} overflow in {dtype}: {way}"


def dequantized(x: Tensor) -> Tensor:
    """A quantized weight as what it stands for; others as they are."""
    return x.dequantize() if multiplies_itself(x) and hasattr(x, "dequantize") else x


def shown(tensors: Mapping[str, Tensor], found: dict[str, int]) -> str:
    """The first of them, and how many of its elements are not finite."""
    first, n = next(iter(found.items()))
    return f"{first} ({n:,} of {tensors[first].numel():,})"


@torch.no_grad()
def first_not_finite(module: nn.Module, run: Callable[[], Any]) -> str:
    """What overflows first when the model runs: hidden states, and where, or logits."""
    places: list[str] = []
    with watched(module, places):
        run()
    return f"hidden states, first {places[0]}," if places else "logits"


@contextmanager
def watched(module: nn.Module, places: list[str]) -> Iterator[None]:
    """While it is entered, layers that get or give what is not finite are noted, in the order of their calls."""

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
    """Whether a tensor is, and every tensor of a tuple; all else is."""
    if isinstance(value, tuple):
        return all(map(finite, value))
    plain = type(value) is Tensor and value.is_floating_point()
    return not plain or bool(value.isfinite().all())
