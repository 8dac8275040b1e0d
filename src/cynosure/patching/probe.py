"""A few tokens through a model, which is left as it was: what a patch is verified on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from cynosure.patching.heads import release
from cynosure.patching.inputs import CACHE_OPTIONS, Inputs, probe_inputs

MOST_KEPT = 2**20  # elements of a buffer that is put back: statistics are small, quantized weights may lie in buffers


def probe(model: Any, given: Inputs) -> Any:
    """The model's output for these inputs, which it may change in place, without dropout and gradients."""
    given = tree_map_only(torch.Tensor, torch.clone, given)
    try:
        with torch.inference_mode(False), torch.no_grad(), untouched(model):
            return model(**given)
    finally:
        release(model)


def own_probe(model: Any, example: Inputs | None = None) -> tuple[Inputs, Any]:
    """Inputs that the model's own forward takes, `example` if it is given, and its output for them.

    ValueError where it gives no loss for any that can be guessed.
    """
    reasons = []
    for given in probe_inputs(model) if example is None else [example]:
        for options in CACHE_OPTIONS:
            try:
                output = probe(model, given | options)
            except Exception as error:
                reasons.append(f"its own forward fails on {' and '.join(given)}: {' '.join(str(error).split())}")
                continue
            if getattr(output, "loss", None) is not None:
                return given | options, output
            reasons.append(f"its own forward gives no loss for {' and '.join(given)}")
    reason = reasons[0] if reasons else "its forward takes no input_ids"
    raise ValueError(f"{reason}. Give patch an example: patch(model, example=batch)" if example is None else reason)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; modes, gradients, buffers and the random generators are as before afterwards."""
    training = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    buffers = [(x, x.clone()) for x in model.buffers() if x.device.type != "meta" and x.numel() <= MOST_KEPT]
    devices = {parameter.device for parameter in gradients if parameter.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices, key=str)):
        model.eval()
        try:
            yield
        finally:
            for module, mode in training.items():
                module.training = mode
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
            with torch.no_grad():
                for buffer, before in buffers:
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)
