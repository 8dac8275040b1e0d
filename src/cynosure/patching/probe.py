"""A few tokens through a model: what a patch is verified on."""

from typing import Any

import torch

from cynosure.patching.heads import release
from cynosure.patching.labelled import IGNORED

N_TOKENS = 16  # in two rows


@torch.no_grad()
def probe(model: Any, **options: Any) -> Any:
    """The model's output for a few fixed tokens and labels, without dropout."""
    training = [module for module in model.modules() if module.training]
    device = next(model.parameters()).device
    ids = torch.arange(N_TOKENS, device=device).view(2, -1) % model.config.get_text_config().vocab_size
    labels = ids.clone()
    labels[:, : N_TOKENS // 8] = IGNORED
    model.eval()
    try:
        return model(input_ids=ids, labels=labels, use_cache=False, **options)
    finally:
        for module in training:
            module.training = True
        release(model)
