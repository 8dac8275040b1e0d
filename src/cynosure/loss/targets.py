"""Targets of every kind, and the rows of a batch that count.

A row kernel handles two forms: sparse (K classes with their probabilities) and dense (probabilities of all V classes).
Class indices are the sparse form with K = 1 and probability 1.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cynosure.loss.options import ReduceOptions, RowOptions, accumulation_dtype
from cynosure.loss.tensors import is_abstract

TargetLike = Tensor | tuple[Tensor, Tensor]


class TargetRows(NamedTuple):
    """The targets of r rows, as a row kernel reads them."""

    classes: Tensor | None  # (r, K) int64, or None if probability covers all given logits
    probability: Tensor  # (r, K), (r, V) or, for a piece, (r, v); in the accumulation dtype
    k: Tensor  # (r,) multiplier of the z-loss: the class weight for class indices, else 1


@dataclass(frozen=True)
class Target:
    """A checked target: (..., K) indices with (..., K) probabilities, or (..., V) probabilities."""

    classes: Tensor | None  # int64
    probability: Tensor | None  # None: class indices, which have probability 1
    ignored: Tensor | None  # (...) bool, only for class indices

    @property
    def device(self) -> torch.device:
        """The device of the target."""
        return self._part.device

    @property
    def is_abstract(self) -> bool:
        """Whether the target has no values (on the meta device, or fake)."""
        return is_abstract(self._part)

    @property
    def _part(self) -> Tensor:
        part = self.classes if self.classes is not None else self.probability
        assert part is not None
        return part

    @property
    def is_class(self) -> bool:
        """True for class indices, False for distributions."""
        return self.probability is None

    def rows(self, at: "slice | Tensor", k: Tensor, columns: slice = slice(None)) -> TargetRows:
        """Return the targets of flat rows `at`, with their k (r,); `columns` selects classes of a dense target."""
        classes = None if self.classes is None else take_rows(self.classes, at)
        if self.probability is None:
            return TargetRows(classes, torch.ones_like(k)[:, None], k)
        probability = self.probability if classes is not None else self.probability[..., columns]
        return TargetRows(classes, take_rows(probability, at).to(k.dtype), k)


class CountedBatch(NamedTuple):
    """The n rows that count: their positions, and how the reduction weighs them."""

    target: Target
    n_rows: int
    inputs: Tensor | None  # (n,) flat rows of hidden or logits; None: all of them, in order
    targets: Tensor | None  # (n,) flat rows of the target, likewise
    outputs: Tensor | None  # (n,) flat rows of a result of shape `shape`, likewise
    shape: torch.Size  # of an unreduced result: (..., T - shift)
    k: Tensor  # (n,) multiplier of the z-loss
    weight: Tensor  # (n,) factor of each row's loss: the token weight, divided by the normalizer for "mean"


def take_rows(x: Tensor, at: "slice | Tensor") -> Tensor:
    """Return rows (r, C) of x (..., C) by flat position, without copying the others, for any strides."""
    n_rows, n_columns = x.shape[:-1].numel(), x.shape[-1]
    if x.is_contiguous() or x.ndim == 1:
        return x.reshape(n_rows, n_columns)[at]
    if x.ndim == 2:
        return x[at]
    if isinstance(at, slice):
        at = torch.arange(n_rows, device=x.device)[at]
    return x[torch.unravel_index(at, x.shape[:-1])]


def rows_between(rows: Tensor | None, start: int, stop: int) -> "slice | Tensor":
    """Return the flat rows of counted rows start to stop."""
    return slice(start, stop) if rows is None else rows[start:stop]


def probability_of(target: TargetLike) -> Tensor | None:
    """Return the part of a target that may require grad: its probabilities, or None for class indices."""
    probability = target[1] if isinstance(target, (tuple, list)) else target
    return probability if probability.is_floating_point() else None


def check_target(
    target: TargetLike, lead: torch.Size, vocab_size: int, device: torch.device, ignore_index: int
) -> Target:
    """Check class indices (...), probabilities (..., V), or a pair (indices (..., K), probabilities (..., K))."""
    if isinstance(target, (tuple, list)):
        if len(target) != 2:
            raise TypeError(f"a sparse target is a pair (indices, probabilities), got {len(target)} items")
        _check_no_ignore_index(ignore_index)
        return _check_sparse(target[0], target[1], lead, vocab_size, device)
    _check_tensor("target", target, device)
    if target.is_floating_point():
        _check_shape("target (probabilities)", target, (*lead, vocab_size))
        _check_no_ignore_index(ignore_index)
        return Target(None, target.detach(), None)
    _check_integral("target", target)
    _check_shape("target (class indices)", target, tuple(lead))
    ignored = _equal(target, ignore_index)
    classes = _check_range("target", target, ~ignored, vocab_size, f", or ignore_index={ignore_index}")
    return Target(classes.unsqueeze(-1), None, ignored)


def _check_sparse(
    index: Tensor, probability: Tensor, lead: torch.Size, vocab_size: int, device: torch.device
) -> Target:
    _check_tensor("target indices", index, device)
    _check_tensor("target probabilities", probability, device)
    _check_integral("target indices", index)
    if not probability.is_floating_point():
        raise TypeError(f"target probabilities must be floating point, got {probability.dtype}")
    if index.ndim != len(lead) + 1 or index.shape[:-1] != lead:
        raise ValueError(f"target indices must have shape {_text((*lead, 'K'))}, got {tuple(index.shape)}")
    _check_shape("target probabilities", probability, tuple(index.shape))
    classes = _check_range("target indices", index, torch.ones_like(index, dtype=torch.bool), vocab_size, "")
    return Target(classes, probability.detach(), None)


def _check_no_ignore_index(ignore_index: int) -> None:
    """Refuse an ignore_index that could be a class. As in torch, negative values pass: the default is negative."""
    if ignore_index >= 0:
        raise ValueError(
            f"ignore_index={ignore_index} has no meaning for a target of probabilities: leave it out, and give the "
            f"positions to ignore a token_weight of 0"
        )


def make_batch(
    target: Target, lead: torch.Size, row: RowOptions, options: ReduceOptions, dtype: torch.dtype
) -> CountedBatch:
    """Pair inputs with targets, drop ignored pairs and weigh the others. `lead` is the shape (...) of the inputs."""
    shift, device = options.shift, target.device
    _check_shift(shift, lead)
    _check_token_weight(options.token_weight, lead, device)
    shape = torch.Size((*lead[:-1], lead[-1] - shift)) if shift else lead
    if target.is_abstract:
        return CountedBatch(target, shape.numel(), None, None, None, shape, torch.empty(0), torch.empty(0))
    outputs = _counted(target, options, shape, device)
    batch = CountedBatch(target, shape.numel(), None, None, None, shape, torch.empty(0), torch.empty(0))
    if outputs is not None or shift:
        batch = _paired(batch, torch.arange(shape.numel(), device=device) if outputs is None else outputs, shift)
    _check_probabilities(batch)
    return _weighed(batch, row.class_weight, options, accumulation_dtype(dtype))


def _counted(target: Target, options: ReduceOptions, shape: torch.Size, device: torch.device) -> Tensor | None:
    """Return the flat positions of the result whose target counts, or None if all count."""
    counted = torch.ones(shape, dtype=torch.bool, device=device)
    if target.ignored is not None:
        counted &= ~_shifted(target.ignored, options.shift)
    weight = options.token_weight
    if weight is not None and not weight.requires_grad:  # a learned weight of 0 still has a gradient: the row's loss
        counted &= _shifted(weight, options.shift) != 0
    return None if bool(counted.all()) else counted.reshape(-1).nonzero()[:, 0]


def _shifted(x: Tensor, shift: int) -> Tensor:
    return x[..., shift:] if shift else x


def _paired(batch: CountedBatch, outputs: Tensor, shift: int) -> CountedBatch:
    """Pair hidden[..., t, :] with target[..., t + shift]: a sequence of T tokens has T - shift pairs."""
    if shift == 0:
        return batch._replace(n_rows=len(outputs), inputs=outputs, targets=outputs, outputs=outputs)
    inputs = outputs + outputs // max(batch.shape[-1], 1) * shift
    return batch._replace(n_rows=len(outputs), inputs=inputs, targets=inputs + shift, outputs=outputs)


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
    if options.reduction != "mean":
        return batch._replace(k=k, weight=weight)
    if options.normalizer is None:
        normalizer = (weight * k).sum()
    elif is_abstract(options.normalizer):
        raise ValueError("normalizer is on the meta device, but the target has values: pass a number")
    else:
        normalizer = torch.as_tensor(options.normalizer, dtype=dtype, device=device)
    if normalizer == 0:  # nothing to average over: the loss is 0.0, not 0 / 0
        nothing = torch.empty(0, dtype=torch.long, device=device)
        return batch._replace(n_rows=0, inputs=nothing, targets=nothing, outputs=nothing, k=k[:0], weight=weight[:0])
    return batch._replace(k=k, weight=weight / normalizer)


def _check_shift(shift: int, lead: torch.Size) -> None:
    if shift and not lead:
        raise ValueError(f"shift={shift} needs a sequence dimension, but hidden or logits is a single row")
    if shift and shift > lead[-1]:
        raise ValueError(f"shift must be at most the sequence length {lead[-1]}, got {shift}")


def _check_token_weight(weight: Tensor | None, lead: torch.Size, device: torch.device) -> None:
    if weight is not None:
        _check_tensor("token_weight", weight, device)
        _check_shape("token_weight", weight, tuple(lead))


def _check_tensor(name: str, x: object, device: torch.device) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}, but hidden or logits is on {device}")


def _check_integral(name: str, x: Tensor) -> None:
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name} must be integers (class indices) or floating point (probabilities), got {x.dtype}")


def _check_shape(name: str, x: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(x.shape) != expected:
        raise ValueError(f"{name} must have shape {_text(expected)}, got {tuple(x.shape)}")


def _equal(x: Tensor, value: int) -> Tensor:
    """Return x == value. If x's dtype cannot hold the value, torch would wrap it: -100 to 156 in uint8."""
    limits = torch.iinfo(x.dtype)
    return x == value if limits.min <= value <= limits.max else torch.zeros_like(x, dtype=torch.bool)


def _check_range(name: str, x: Tensor, counted: Tensor, vocab_size: int, otherwise: str) -> Tensor:
    """Return x as int64; check that every counted entry is a class."""
    index = x.long()  # torch compares uint8 but no other unsigned integers; a uint64 that is too large becomes negative
    if is_abstract(x):
        return index
    bad = counted & ((index < 0) | (index >= vocab_size))
    if bool(bad.any()):
        place = tuple(bad.nonzero()[0].tolist())
        raise IndexError(
            f"{name}[{_place(place)}] is {x[place].item()}, "
            f"but it must be in [0, {vocab_size}), the vocabulary{otherwise}"
        )
    return index


def _check_probabilities(batch: CountedBatch) -> None:
    """Refuse negative, infinite or NaN probabilities in rows that count.

    Only on a CPU: elsewhere the check would wait for the device.
    """
    probability = batch.target.probability
    if probability is None or probability.device.type != "cpu" or probability.numel() == 0:
        return
    # torch has no aminmax of float8
    low, high = torch.aminmax(probability if probability.dtype.itemsize > 1 else probability.half(), dim=-1)
    bad = ~((low >= 0) & (high < torch.inf)).reshape(-1)  # NaN is neither
    rows = bad.nonzero()[:, 0] if batch.targets is None else batch.targets[bad[batch.targets]]
    if len(rows):
        name = "target" if batch.target.classes is None else "target probabilities"
        entries = take_rows(probability, rows[:1])[0].double()
        column = int((~((entries >= 0) & (entries < torch.inf))).nonzero()[0])
        place = *(int(i) for i in torch.unravel_index(rows[0], probability.shape[:-1])), column
        raise ValueError(
            f"{name}[{_place(place)}] is {entries[column].item():.6g}, but probabilities must be finite and not "
            f"negative{_likely(name, entries)}"
        )


def _likely(name: str, entries: Tensor) -> str:
    """Return what the entries of a bad row look like, and how to fix them."""
    if bool((entries <= 0).all()):
        return f". They look like log-probabilities: pass {name}.exp()"
    if bool(entries.isfinite().all()):
        return f". They look like logits: pass {name}.softmax(-1)"
    return ""


def _place(place: tuple[int, ...]) -> str:
    return ", ".join(map(str, place))


def _text(shape: tuple[object, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
