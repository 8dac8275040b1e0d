"""Make the layers of a head compute their matmul with `F.linear` while a patched model runs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from cynosure.patching import adapters, quantized

Replaced = tuple[dict[str, Any], str, Any]  # attributes, name of one of them, its temporary value


@contextmanager
def lent(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block, layers that are equivalent to one weight compute their logits with `F.linear`."""
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
