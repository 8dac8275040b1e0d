"""Compile a model's backbone layer by layer with torch.compile, which takes seconds and leaves the model unchanged."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Backbone = Callable[[Tensor], Tensor]  # (B, T) ids to (B, T, D) hidden states


def compiled(backbone: Backbone, module: nn.Module) -> Backbone:
    """Compile a backbone layer by layer if its module has a list of layers, else as a whole.

    Layers of one kind share compiled code, so it takes seconds. A second shape causes one more compilation, which
    serves all further shapes. The compiled layers are in place only while the backbone runs.
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
    """Return the longest list of modules in a module, which holds the layers of a transformer, or an empty list."""
    lists = [list(part) for part in module.modules() if isinstance(part, nn.ModuleList)]
    return max(lists, key=len, default=[])


@contextmanager
def in_place(layers: list[nn.Module], calls: list[Any]) -> Iterator[None]:
    """Make calls of layers run their compiled versions, as after `nn.Module.compile`."""
    before = [layer._compiled_call_impl for layer in layers]
    try:
        for layer, call in zip(layers, calls, strict=True):
            layer._compiled_call_impl = call
        yield
    finally:
        for layer, call in zip(layers, before, strict=True):
            layer._compiled_call_impl = call
