"""Unwrap a transformers model."""

from typing import Any

from torch import nn


def find_causal_lm(model: Any) -> Any:
    """Return the transformers model inside PEFT, DistributedDataParallel, FSDP1 or torch.compile.

    Raises TypeError if there is no such model.
    """
    while True:
        if isinstance(getattr(model, "_fsdp_wrapped_module", None), nn.Module):
            model = model._fsdp_wrapped_module
            continue
        inner = getattr(model, "get_base_model", None)
        if callable(inner):
            model = inner()
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        elif isinstance(getattr(model, "module", None), nn.Module) and not hasattr(model, "get_output_embeddings"):
            model = model.module
        else:
            break
    if not hasattr(model, "get_output_embeddings"):
        raise TypeError(
            f"patch needs a transformers model with output embeddings (a language model), got {type(model).__name__}"
        )
    return model
