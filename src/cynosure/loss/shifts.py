"""Several shifts in one batch, as multi-token prediction trains them: one pass over the weight, one dW.

S shifts. hidden (S, ..., T, D): hidden[s] predicts target[..., t + shift[s]].
"""

from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor

from cynosure.loss.batch import CountedBatch, make_batch
from cynosure.loss.options import ReduceOptions, RowOptions, as_integer, as_number
from cynosure.loss.targets import Target

Shift = int | tuple[int, ...]


class Shifts(NamedTuple):
    """Distances to the targets, and the weight of each distance in the loss."""

    distances: tuple[int, ...]
    weights: tuple[float, ...]


def check_shifts(shift: Shift, shift_weight: tuple[float, ...] | None) -> tuple[int, Shifts | None]:
    """Return (shift, None) for a single number, and (0, shifts) for a tuple."""
    if not isinstance(shift, (tuple, list)):
        if shift_weight is not None:
            raise ValueError(f"shift_weight needs a tuple of shifts, got shift={shift!r}: leave shift_weight out")
        return shift, None
    if not shift:
        raise ValueError("shift must have at least one entry, got ()")
    distances = tuple(as_integer("shift", k) for k in shift)
    if min(distances) < 0:
        raise ValueError(f"shift must not be negative, got {min(distances)}")
    if shift_weight is None:
        return 0, Shifts(distances, (1.0,) * len(distances))
    weights = tuple(as_number("shift_weight", x, "finite") for x in shift_weight)
    if len(weights) != len(distances):
        raise ValueError(f"shift_weight must have one number for each of {len(distances)} shifts, got {len(weights)}")
    return 0, Shifts(distances, weights)


def lead_of(lead: torch.Size, shifts: Shifts | None) -> torch.Size:
    """Return the leading shape (..., T) of the target of hidden states with the leading shape `lead`."""
    if shifts is None:
        return lead
    if len(lead) < 2 or lead[0] != len(shifts.distances):
        raise ValueError(
            f"{len(shifts.distances)} shifts need hidden of shape ({len(shifts.distances)}, ..., T, D), one entry for "
            f"each shift, got the leading shape {tuple(lead)}: pass torch.stack(hidden_states)"
        )
    return lead[1:]


def make_shifted_batch(
    target: Target, lead: torch.Size, device: torch.device, row: RowOptions, options: ReduceOptions,
    dtype: torch.dtype, shifts: Shifts,
) -> CountedBatch:  # fmt: skip
    """Return the rows of all shifts as one batch. `lead` is the target's (..., T); a mean has a normalizer each."""
    batches = [make_batch(target, lead, device, row, replace(options, shift=k), dtype) for k in shifts.distances]
    shape = torch.Size((len(batches), *lead))
    if target.is_abstract:
        return CountedBatch(target, shape.numel(), shape, shape)
    n_places = lead.numel()
    weight = torch.cat([batch.weight * w for batch, w in zip(batches, shifts.weights, strict=True)])
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
        torch.cat([batch.k for batch in batches]), weight,
    )  # fmt: skip


def joined(rows: list[Tensor | None], batches: list[CountedBatch], step: int) -> Tensor:
    """Return the flat rows of all batches; each batch's begin `step` after those of the one before it."""
    parts = [
        (torch.arange(batch.n_rows, device=batch.k.device) if x is None else x) + i * step
        for i, (x, batch) in enumerate(zip(rows, batches, strict=True))
    ]
    return torch.cat(parts)


def by_shift(losses: Tensor, shifts: Shifts) -> Tensor:
    """Return a tuple of the losses (..., T - shift) of each shift, from those of all (S, ..., T).

    For type checkers it is a Tensor, which is unpacked and indexed alike, so that the loss has one type.
    """
    n = losses.shape[-1]
    return cast(Tensor, tuple(x[..., : n - k] for x, k in zip(losses, shifts.distances, strict=True)))
