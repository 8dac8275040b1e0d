"""A model's backbone under torch.compile, layer by layer: compiled in seconds, and the model itself is unchanged."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Backbone = Callable[[Tensor], Tensor]  # (B, T) ids to (B, T, D) hidden states


def compiled(backbone: Backbone, module: nn.Module) -> Backbone:
    """The same backbone compiled: the layers of its module one by one where it has a list of them, else all at once.

    Layers of one kind share what is compiled, so it takes seconds. A second shape is compiled once more, and serves
    for those that follow. The compiled layers are in place while the body runs, no longer.
    """
    layers = longest_list(module)
    if not layers:
        return torch.compile(backbone)
    calls = [torch.compile(layer._call_impl) for layer in layers]

    def run(ids: Tensor) -> Tensor:
        with in_place(layers, calls):
            return backbone(ids)

    return run


def longest_list(module: nn.Module) -> list[nn.Module]:
    """The members of the longest list of modules in a module: the layers of a transformer; none where there is none."""
    lists = [list(part) for part in module.modules() if isinstance(part, nn.ModuleList)]
    return max(lists, key=len, default=[])


@contextmanager
def in_place(layers: list[nn.Module], calls: list[Any]) -> Iterator[None]:
    """While it is entered, calling a layer calls its compiled twin, as after `nn.Module.compile`."""
    before = [layer._compiled_call_impl for layer in layers]
    try:
        for layer, call in zip(layers, calls, strict=True):
            layer._compiled_call_impl = call
        yield
    finally:
        for layer, call in zip(layers, before, strict=True):
            layer._compiled_call_impl = call
