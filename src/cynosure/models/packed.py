"""Check that a model keeps the documents of a packed row apart."""

from typing import Any

import torch

from cynosure.models.finite import check_finite
from cynosure.models.head import trace
from cynosure.patching import input_device, untouched

N_APART = 6  # tokens in each of the two documents of the check
TOLERANCE = 1e-3  # relative to the largest hidden state: matmuls of other shapes round differently


@torch.no_grad()
def check_apart(model: Any, vocab_size: int) -> None:
    """Raise ValueError if hidden states depend on another document of the same row, or are NaN.

    As in transformers' own packed training, a document starts where `position_ids` restart.
    """
    name = type(model).__name__
    device = input_device(model)
    first, second = torch.randint(vocab_size, (2, N_APART), generator=torch.Generator().manual_seed(0)).to(device)
    places = torch.arange(N_APART, device=device)
    row, row_places = torch.cat([first, second])[None], torch.cat([places, places])[None]
    try:
        with untouched(model):
            together = trace(model, row, position_ids=row_places).hidden
            alone = trace(model, second[None], position_ids=places[None]).hidden
    except TypeError as error:
        raise ValueError(
            f"{name} takes no position_ids, so it cannot keep the documents of a packed row apart"
        ) from error
    check_finite(model, name, together, lambda: trace(model, row))
    if not bool((together[:, N_APART:] - alone).abs().max() <= TOLERANCE * alone.abs().max()):
        raise ValueError(
            f"{name} does not keep the documents of a packed row apart, so it cannot be trained on packed rows"
        )
