"""Packed rows: whether a model keeps the documents of a row apart."""

from typing import Any

import torch

N_APART = 6  # tokens of each of the two documents of the check
TOLERANCE = 1e-3  # of the largest hidden state: products of other shapes round differently


@torch.no_grad()
def check_apart(model: Any, vocab_size: int) -> None:
    """ValueError where hidden states of a transformers model depend on another document of the same row.

    Documents are told apart by `position_ids` that begin again, as transformers' own packed training tells them.
    """
    name = type(model).__name__
    body, device = model.base_model, next(model.parameters()).device
    first, second = torch.randint(vocab_size, (2, N_APART), generator=torch.Generator().manual_seed(0)).to(device)
    places = torch.arange(N_APART, device=device)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        together = body(
            input_ids=torch.cat([first, second])[None], position_ids=torch.cat([places, places])[None], use_cache=False
        ).last_hidden_state[:, N_APART:]
        alone = body(input_ids=second[None], position_ids=places[None], use_cache=False).last_hidden_state
    except TypeError as error:
        raise ValueError(
            f"{name} takes no position_ids, so that it cannot keep the documents of a row apart"
        ) from error
    finally:
        for module in training:
            module.training = True
    if not bool((together - alone).abs().max() <= TOLERANCE * alone.abs().max()):
        raise ValueError(
            f"{name} does not keep the documents of a packed row apart, and cannot be trained on such here"
        )
