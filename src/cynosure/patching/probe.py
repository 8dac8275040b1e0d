"""A few tokens through a model, which is left as it was: what a patch is verified on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cynosure.patching.heads import release
from cynosure.patching.labelled import IGNORED

N_TOKENS = 16  # in two rows
MOST_KEPT = 2**20  # elements of a buffer that is put back: statistics are small, quantized weights may lie in buffers


def probe(model: Any, **options: Any) -> Any:
    """The model's output for a few fixed tokens and labels, without dropout and gradients.

    With a cache where that is the model's own default, and without where that fails.
    """
    ids = torch.arange(N_TOKENS, device=input_device(model)).view(2, -1) % model.config.get_text_config().vocab_size
    labels = ids.clone()
    labels[:, : N_TOKENS // 8] = IGNORED
    given = {"input_ids": ids, "labels": labels, **options}
    try:
        with torch.inference_mode(False), torch.no_grad(), untouched(model):
            try:
                return model(**given)
            except Exception as error:
                first = error
            try:
                return model(**given, use_cache=False)
            except Exception:
                raise first from None
    finally:
        release(model)


def input_device(model: Any) -> torch.device:
    """Where a model takes its inputs: where its embedding runs, if Accelerate has offloaded that."""
    embedding = model.get_input_embeddings()
    weight = getattr(embedding, "weight", None)
    for module in (embedding, *model.modules()):
        hook = getattr(module, "_hf_hook", None)
        for part in getattr(hook, "hooks", (hook,)):
            device = getattr(part, "execution_device", None)
            if device is not None:
                return torch.device(device)
        if weight is not None and weight.device.type != "meta":
            return weight.device  # type: ignore[no-any-return]
    return next(model.parameters()).device  # type: ignore[no-any-return]


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
