"""Layers of a head that do not multiply by a tensor in sight, made to while a patched model runs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from cynosure.patching import adapters, quantized

Replaced = tuple[dict[str, Any], str, Any]  # attributes, the name of one of them, what it is meanwhile


@contextmanager
def lent(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Within it these layers give their own logits by `F.linear`, where they stand for one weight."""
    before = []
    for layer in layers:
        for attributes, name, function in (*quantized.replaced(layer), *adapters.replaced(layer)):
            before.append((attributes, name, attributes.get(name)))
            attributes[name] = function
    try:
        yield
    finally:
        for attributes, name, own in reversed(before):
            attributes.pop(name) if own is None else attributes.update({name: own})
