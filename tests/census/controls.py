"""Faults on purpose: what the census must flag, so that it is known to be able to."""

from typing import Any

import torch

from tests.census.calls import IGNORED
from tests.census.patched import Calls, Tamper

OFF = 1 + 1e-3


def scale_off(model: Any, calls: Calls) -> Calls:
    """Logits a thousandth too large."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(OFF)
    return calls


def logits_looked_at(model: Any, calls: Calls) -> Calls:
    """Something between head and loss wants numbers."""
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: output.sum().item() and None)
    return calls


def gradient_off(model: Any, calls: Calls) -> Calls:
    """The head's gradient a thousandth too large."""
    model.get_output_embeddings().weight.register_hook(lambda gradient: gradient * OFF)
    return calls


def wrong_ignored_label(model: Any, calls: Calls) -> Calls:
    """One token counted that the labels ignore."""
    found = {}
    for name, call in calls.items():
        labels = call.inputs["labels"].clone()
        labels[0, 2] = 7
        found[name] = call._replace(inputs=call.inputs | {"labels": labels})
    assert any(call.inputs["labels"][0, 2] == IGNORED for call in calls.values())
    return found


CONTROLS: dict[str, Tamper] = {
    "a scale off by 1e-3": scale_off,
    "a look at the logits": logits_looked_at,
    "a gradient off by 1e-3": gradient_off,
    "an ignored label counted": wrong_ignored_label,
}
CALLS = ("plain", "train", "num_items_in_batch")
ON = (("llama", "causal"), ("gemma2", "causal"), ("paligemma", "other"))
