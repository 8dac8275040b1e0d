"""A few tokens through a model: what a patch is verified on."""

from typing import Any

import torch

from cynosure.patching.inputs import Inputs, probe_inputs


@torch.no_grad()
def probe(model: Any, given: Inputs) -> Any:
    """The model's output for these inputs, without dropout."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        return model(**given)
    finally:
        for module in training:
            module.training = True
        for module in model.modules():
            if hasattr(module, "reshard"):
                module.reshard()  # FSDP2's root keeps what it gathered, which an optimizer made now would hold


def own_probe(model: Any, example: Inputs | None = None) -> tuple[Inputs, Any]:
    """Inputs that the model's own forward takes, `example` if it is given, and its output for them.

    ValueError where it gives no loss for any that can be guessed.
    """
    reasons = []
    for given in probe_inputs(model) if example is None else [example]:
        for options in ({"use_cache": False}, {}):
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
