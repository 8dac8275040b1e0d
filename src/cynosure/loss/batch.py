"""The rows of a batch that count, what each is paired with, and its weight.

On a CPU the rows that do not count are left out. On an asynchronous device their number is not read: they stay, marked
as not counted, unless the target is on the CPU or the caller says how many rows count.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from cynosure.loss.devices import check_later, is_asynchronous, sent
from cynosure.loss.options import ReduceOptions, RowOptions, Shift, accumulation_dtype, one_shift
from cynosure.loss.targets import Target, check_probabilities, check_tensor, take_rows
from cynosure.loss.tensors import is_abstract


class CountedBatch(NamedTuple):
    """The n rows of the loss: where they stand, and what the reduction does with them."""

    target: Target
    n_rows: int
    shape: torch.Size  # of an unreduced result: (..., T - shift)
    places: torch.Size  # that `outputs` counts: `shape`, or (..., T)
    inputs: Tensor | None = None  # (n,) flat rows of hidden or logits; None: all of them, in order
    targets: Tensor | None = None  # (n,) flat rows of the target, likewise
    outputs: Tensor | None = None  # (n,) flat rows of `places`, likewise
    counted: Tensor | None = None  # (n,) bool, on an asynchronous device: False where the loss is 0; None: all count
    k: Tensor = torch.empty(0)  # (n,)
    entropy: Tensor | None = None  # (n,) multiplier of the entropy, as in `TargetRows`
    weight: Tensor = torch.empty(0)  # (n,) of each row's loss: the token weight, over the normalizer for "mean"

    def counted_rows(self, start: int, stop: int) -> Tensor | None:
        """Which of rows start to stop count; None where all do."""
        return None if self.counted is None else self.counted[start:stop]

    def classes(self, start: int, stop: int) -> Tensor:
        """The class indices or given ids (r, K) of rows start to stop."""
        assert self.target.classes is not None
        return take_rows(self.target.classes, rows_between(self.targets, start, stop))

    def masked(self, hidden: Tensor, start: int) -> Tensor:
        """hidden (r, D) of rows from `start` on, 0 in rows that do not count: their NaN would reach dW."""
        counted = self.counted_rows(start, start + len(hidden))
        return hidden if counted is None else hidden.masked_fill(~counted[:, None], 0)

    def spread(self, values: Tensor, fill: float = 0) -> Tensor:
        """values (n, ...) in the shape of the result (..., T - shift, ...), `fill` where nothing counts."""
        if self.counted is not None:
            values = values.masked_fill(~self.counted.view(-1, *[1] * (values.ndim - 1)), fill)
        if self.outputs is not None:
            whole = values.new_full((self.places.numel(), *values.shape[1:]), fill)
            values = whole.index_copy(0, self.outputs, values)
        values = values.view((*self.places, *values.shape[1:]))
        return values if self.places == self.shape else values.narrow(len(self.shape) - 1, 0, self.shape[-1])


def rows_between(rows: Tensor | None, start: int, stop: int) -> "slice | Tensor":
    """The flat rows behind rows start to stop of a batch."""
    return slice(start, stop) if rows is None else rows[start:stop]


def make_batch(
    target: Target, lead: torch.Size, device: torch.device, row: RowOptions, options: ReduceOptions, dtype: torch.dtype
) -> CountedBatch:
    """Pair inputs with targets, leave out or mark the ignored ones, weigh the rest.

    `lead` is hidden's or logits' (...), and `device` theirs; the target is there too, or on the CPU.
    """
    shift = _one_shift(options.shift, lead)
    if options.token_weight is not None:
        check_tensor("token_weight", options.token_weight, device, tuple(lead))
    # Neither torch.Size() nor numel(), which fix a symbolic shape.
    shape = lead[:-1] + (lead[-1] - shift,) if shift else lead  # noqa: RUF005
    if target.is_abstract:
        return CountedBatch(target, math.prod(shape), shape, shape)
    if is_asynchronous(target.device):
        batch = _marked(target, lead, shape, shift, options)
    else:
        batch = _left_out(target, shape, shift, options)
        check_probabilities(batch.target, batch.targets)
        if is_asynchronous(device):
            batch = _sent(batch, options, device)
    return _weighed(batch, row.class_weight, options, accumulation_dtype(dtype))


def _left_out(target: Target, shape: torch.Size, shift: int, options: ReduceOptions) -> CountedBatch:
    """The rows whose target counts, read on the CPU."""
    counted = torch.ones(shape, dtype=torch.bool, device=target.device)
    if target.ignored is not None:
        counted &= ~_later(target.ignored, shift)
    weight = _constant_weight(options)
    if weight is not None and not is_asynchronous(weight.device):
        counted &= _later(weight, shift) != 0
    outputs = None if bool(counted.all()) else counted.reshape(-1).nonzero()[:, 0]
    n_rows = shape.numel() if outputs is None else len(outputs)
    if options.n_counted is not None and n_rows > options.n_counted:
        raise ValueError(f"n_counted={options.n_counted}, but {n_rows} targets count: pass their number, or more")
    batch = CountedBatch(target, n_rows, shape, shape, outputs, outputs, outputs)
    if not shift:
        return batch
    # hidden[..., t, :] goes with target[..., t + shift]: rows of T - shift pairs inside rows of T tokens
    places = torch.arange(n_rows, device=target.device) if outputs is None else outputs
    inputs = places + places // max(shape[-1], 1) * shift
    return batch._replace(inputs=inputs, targets=inputs + shift, outputs=places)


def _sent(batch: CountedBatch, options: ReduceOptions, device: torch.device) -> CountedBatch:
    """A batch read on the CPU, for hidden states or logits on another device."""
    assert batch.target.classes is not None
    target = Target(sent(batch.target.classes, device), None, None)
    inputs, targets, outputs = (
        None if x is None else sent(x, device) for x in (batch.inputs, batch.targets, batch.outputs)
    )
    batch = batch._replace(target=target, inputs=inputs, targets=targets, outputs=outputs)
    weight = _constant_weight(options)
    at = rows_between(batch.targets, 0, batch.n_rows)
    return batch if weight is None else batch._replace(counted=weight.reshape(-1)[at] != 0)


def _marked(target: Target, lead: torch.Size, shape: torch.Size, shift: int, options: ReduceOptions) -> CountedBatch:
    """All rows of `lead`, marked by whether they count; the first `n_counted` that do, if that is given."""
    device = target.device
    counted, targets = None if target.ignored is None else ~target.ignored, None
    if (weight := _constant_weight(options)) is not None:
        counted = weight != 0 if counted is None else counted & (weight != 0)
    if shift:  # a row's last positions have no target: they take its first ones and do not count
        counted = torch.ones(lead, dtype=torch.bool, device=device) if counted is None else counted
        counted = counted.roll(-shift, -1)
        counted[..., lead[-1] - shift :] = False
        targets = torch.arange(lead.numel(), device=device).view(lead).roll(-shift, -1).reshape(-1)
    counted = None if counted is None else counted.reshape(-1)
    batch = CountedBatch(target, lead.numel(), shape, lead, None, targets, None, counted)
    if options.n_counted is None or counted is None:
        return batch
    too_many = counted.sum() > options.n_counted
    check_later(~too_many, f"n_counted={options.n_counted}, but more targets count")
    invalid = too_many.expand(lead) if target.invalid is None else target.invalid | too_many
    first = counted.argsort(stable=True, descending=True)[: options.n_counted]
    targets = first if targets is None else targets[first]
    return batch._replace(
        target=replace(target, invalid=invalid), n_rows=len(first), inputs=first, targets=targets, outputs=first,
        counted=counted[first],
    )  # fmt: skip


def _later(x: Tensor, shift: int) -> Tensor:
    return x[..., shift:] if shift else x


def _constant_weight(options: ReduceOptions) -> Tensor | None:
    """Token weights whose zeros do not count: a learned weight of 0 still has a gradient, the row's loss."""
    weight = options.token_weight
    return None if weight is None or weight.requires_grad else weight


def _weighed(
    batch: CountedBatch, class_weight: Tensor | None, options: ReduceOptions, dtype: torch.dtype
) -> CountedBatch:
    classes, device = batch.target.classes, batch.target.device
    at = rows_between(batch.targets, 0, batch.n_rows)
    k = torch.ones(batch.n_rows, dtype=dtype, device=device)
    if batch.target.is_class and class_weight is not None:
        assert classes is not None
        k = class_weight.to(dtype)[take_rows(classes, at)[:, 0]]
    weight = torch.ones_like(k)
    if options.token_weight is not None:
        weight = options.token_weight.reshape(-1)[at].to(dtype)
    if batch.counted is not None:
        weight = weight.masked_fill(~batch.counted, 0)
    if batch.target.invalid is not None:  # the loss and the gradient of these rows become NaN
        weight = weight.masked_fill(batch.target.invalid.reshape(-1)[at], torch.nan)
    batch = batch._replace(k=k, weight=weight)
    return batch if options.reduction != "mean" else _averaged(batch, options.normalizer)


def _averaged(batch: CountedBatch, normalizer: float | Tensor | None) -> CountedBatch:
    """The weights over the normalizer. A normalizer of 0 leaves nothing to average: the loss is 0.0, not 0 / 0."""
    if is_abstract(normalizer):
        raise ValueError("normalizer is on the meta device, but the target has values: pass a number")
    if normalizer is None:
        normalizer = (batch.weight * batch.k).sum()
    elif isinstance(normalizer, Tensor):
        normalizer = normalizer.to(batch.k.device, batch.k.dtype).reshape(())
    if isinstance(normalizer, Tensor) and is_asynchronous(normalizer.device):
        counted = (normalizer != 0).expand(batch.n_rows).contiguous()
        counted = counted if batch.counted is None else counted & batch.counted
        return batch._replace(counted=counted, weight=(batch.weight / normalizer).masked_fill(~counted, 0))
    if normalizer == 0:
        none = torch.empty(0, dtype=torch.long, device=batch.k.device)
        return batch._replace(
            n_rows=0, inputs=none, targets=none, outputs=none, counted=None, k=batch.k[:0], weight=batch.weight[:0]
        )
    return batch._replace(weight=batch.weight / normalizer)


def _one_shift(shift: Shift, lead: torch.Size) -> int:
    shift = one_shift(shift)
    if shift and not lead:
        raise ValueError(f"shift={shift} needs a sequence dimension, but hidden or logits is a single row")
    if shift and shift > lead[-1]:
        raise ValueError(f"shift must be at most the sequence length {lead[-1]}, got {shift}")
    return shift
