"""Several shifts in one batch, as multi-token prediction trains them: one pass over the weight, one dW.

S shifts. hidden (S, ..., T, D): hidden[s] predicts target[..., t + shift[s]].
"""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from cynosure.loss.batch import CountedBatch, make_batch
from cynosure.loss.options import ReduceOptions, RowOptions, Shift
from cynosure.loss.targets import Target


def lead_of(lead: torch.Size, shift: Shift) -> torch.Size:
    """Return the leading shape (..., T) of the target of hidden states with the leading shape `lead`."""
    if not isinstance(shift, tuple):
        return lead
    if len(lead) < 2 or lead[0] != len(shift):
        raise ValueError(
            f"{len(shift)} shifts need hidden of shape ({len(shift)}, ..., T, D), one entry for each shift, got the "
            f"leading shape {tuple(lead)}: pass torch.stack(hidden_states)"
        )
    return lead[1:]


def make_batch_of_shifts(
    target: Target, lead: torch.Size, device: torch.device, row: RowOptions, options: ReduceOptions, dtype: torch.dtype
) -> CountedBatch:  # fmt: skip
    """Return the rows of all shifts as one batch. `lead` is the target's (..., T); a mean has a normalizer each."""
    if not isinstance(options.shift, tuple):
        return make_batch(target, lead, device, row, options, dtype)
    batches = [
        make_batch(target, lead, device, row, replace(options, shift=k, shift_weight=None), dtype)
        for k in options.shift
    ]
    shape = torch.Size((len(batches), *lead))
    if target.is_abstract:
        return CountedBatch(target, shape.numel(), shape, shape)
    n_places = lead.numel()
    weights = options.shift_weight or (1.0,) * len(batches)
    weight = torch.cat([batch.weight * w for batch, w in zip(batches, weights, strict=True)])
    whole = all(batch.inputs is None for batch in batches)
    inputs = None if whole else joined([batch.inputs for batch in batches], batches, n_places)
    counted = None
    if any(batch.counted is not None for batch in batches):
        counted = torch.cat(
            [torch.ones_like(b.weight, dtype=torch.bool) if b.counted is None else b.counted for b in batches]
        )
    return CountedBatch(
        target, sum(batch.n_rows for batch in batches), shape, shape, inputs,
        joined([batch.targets for batch in batches], batches, 0), inputs, counted,
        k=torch.cat([batch.k for batch in batches]), weight=weight,
    )  # fmt: skip


def joined(rows: list[Tensor | None], batches: list[CountedBatch], step: int) -> Tensor:
    """Return the flat rows of all batches; each batch's begin `step` after those of the one before it."""
    parts = [
        (torch.arange(batch.n_rows, device=batch.k.device) if x is None else x) + i * step
        for i, (x, batch) in enumerate(zip(rows, batches, strict=True))
    ]
    return torch.cat(parts)


def by_shift(losses: Tensor, shift: Shift) -> Tensor:
    """Return a tuple of the losses (..., T - shift) of each of several shifts, from those of all (S, ..., T).

    For type checkers it is a Tensor, which is unpacked and indexed alike, so that the loss has one type.
    """
    if not isinstance(shift, tuple):
        return losses
    n = losses.shape[-1]
    return cast(Tensor, tuple(x[..., : n - k] for x, k in zip(losses, shift, strict=True)))
