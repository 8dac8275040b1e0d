"""A model's body under torch.compile, part by part: compiled in seconds, and nothing of the model is changed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cynosure.models.splitting import SplitModel


def compiled(model: SplitModel) -> SplitModel:
    """The same with its body compiled: its layers one by one where it has a list of them, else the whole of it.

    Layers of one kind share what is compiled, so it takes seconds. A second shape is compiled once more, and serves
    for those that follow. The compiled layers are in place while the body runs, no longer.
    """
    layers = longest_list(model.modules[0])
    if not layers:
        return replace(model, body=torch.compile(model.body))
    calls = [torch.compile(layer._call_impl) for layer in layers]

    def body(ids: Tensor) -> Tensor:
        with in_place(layers, calls):
            return model.body(ids)

    return replace(model, body=body)


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
