"""Targets of every kind, and their checks.

A row kernel handles two forms: sparse (K classes with their probabilities) and dense (probabilities of all V classes).
Class indices are the sparse form with K = 1 and probability 1.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cynosure.loss.devices import check_later, is_asynchronous
from cynosure.loss.tensors import is_abstract

TargetLike = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class GivenIds:
    """Ids of the classes whose log-probabilities are wanted."""

    ids: Tensor  # (..., K)


class TargetRows(NamedTuple):
    """The targets of r rows, as a row kernel reads them."""

    classes: Tensor | None  # (r, K) int64, or None if probability covers all given logits
    probability: Tensor  # (r, K), (r, V) or, for a piece, (r, v); of any floating dtype
    k: Tensor  # (r,) multiplier of the z-loss: the class weight for class indices, else 1
    counted: Tensor | None = None  # (r,) bool: where False, the loss and the gradient are 0 whatever the logits
    entropy: Tensor | None = None  # (r,) multiplier of the entropy, a term of the loss; only with classes, unsmoothed


@dataclass(frozen=True)
class Target:
    """A checked target: (..., K) indices with (..., K) probabilities, (..., V) probabilities, or (..., K) given ids."""

    classes: Tensor | None  # int64
    probability: Tensor | None  # None: class indices, which have probability 1, or given ids
    ignored: Tensor | None  # (...) bool, only for class indices and given ids
    invalid: Tensor | None = None  # (...) bool, on a device: positions with a class index outside the vocabulary

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
        """True for class indices and given ids, False for distributions."""
        return self.probability is None

    def rows(
        self, at: "slice | Tensor", k: Tensor, columns: slice = slice(None), counted: Tensor | None = None
    ) -> TargetRows:
        """Return the targets of flat rows `at`, with k and counted (r,); `columns` selects classes, if it is dense."""
        classes = None if self.classes is None else take_rows(self.classes, at)
        if self.probability is None:
            return TargetRows(classes, torch.ones_like(k)[:, None], k, counted)
        probability = self.probability if classes is not None else self.probability[..., columns]
        return TargetRows(classes, take_rows(probability, at), k, counted)


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


def probability_of(target: TargetLike) -> Tensor | None:
    """Return the part of a target that may require grad: its probabilities, or None for class indices."""
    probability = target[1] if isinstance(target, (tuple, list)) else target
    return probability if probability.is_floating_point() else None


def check_target(
    target: TargetLike | GivenIds, lead: torch.Size, vocab_size: int, device: torch.device, ignore_index: int
) -> Target:
    """Check class indices (...), probabilities (..., V), a pair (indices (..., K), probabilities (..., K)), or ids."""
    if isinstance(target, GivenIds):
        return _check_ids(target.ids, lead, vocab_size, device, ignore_index)
    if isinstance(target, (tuple, list)):
        if len(target) != 2:
            raise TypeError(f"a sparse target is a pair (indices, probabilities), got {len(target)} items")
        _check_no_ignore_index(ignore_index)
        return _check_sparse(target[0], target[1], lead, vocab_size, device)
    check_tensor("target", target, device, or_cpu=True)
    if target.is_floating_point():
        check_tensor("target (probabilities)", target, device)
        _check_shape("target (probabilities)", target, (*lead, vocab_size))
        _check_no_ignore_index(ignore_index)
        return Target(None, target.detach(), None)
    _check_integral("target", target)
    _check_shape("target (class indices)", target, tuple(lead))
    ignored = is_index(target, ignore_index)
    classes, bad = _check_range("target", target, ~ignored, vocab_size, f", or ignore_index={ignore_index}")
    return Target(classes.unsqueeze(-1), None, ignored, bad)


def _check_ids(ids: Tensor, lead: torch.Size, vocab_size: int, device: torch.device, ignore_index: int) -> Target:
    check_tensor("target (given ids)", ids, device, or_cpu=True)
    _check_integral("target (given ids)", ids)
    if ids.shape[:-1] != lead or ids.shape[-1] == 0:
        raise ValueError(
            f"target (given ids) must have shape {_text((*lead, 'K'))} with K >= 1, got {tuple(ids.shape)}"
        )
    ignored = is_index(ids, ignore_index)
    classes, bad = _check_range("target", ids, ~ignored, vocab_size, f", or ignore_index={ignore_index}")
    return Target(classes.masked_fill(ignored, 0), None, ignored.all(-1), None if bad is None else bad.any(-1))


def _check_sparse(
    index: Tensor, probability: Tensor, lead: torch.Size, vocab_size: int, device: torch.device
) -> Target:
    check_tensor("target indices", index, device)
    check_tensor("target probabilities", probability, device)
    _check_integral("target indices", index)
    if not probability.is_floating_point():
        raise TypeError(f"target probabilities must be floating point, got {probability.dtype}")
    if index.ndim != len(lead) + 1 or index.shape[:-1] != lead:
        raise ValueError(f"target indices must have shape {_text((*lead, 'K'))}, got {tuple(index.shape)}")
    _check_shape("target probabilities", probability, tuple(index.shape))
    classes, bad = _check_range("target indices", index, torch.ones_like(index, dtype=torch.bool), vocab_size, "")
    return Target(classes, probability.detach(), None, None if bad is None else bad.any(-1))


def _check_no_ignore_index(ignore_index: int) -> None:
    """Refuse an ignore_index that could be a class. As in torch, negative values pass: the default is negative."""
    if ignore_index >= 0:
        raise ValueError(
            f"ignore_index={ignore_index} has no meaning for a target of probabilities: leave it out, and give the "
            f"positions to ignore a token_weight of 0"
        )


def check_tensor(
    name: str, x: object, device: torch.device, shape: tuple[int, ...] | None = None, or_cpu: bool = False
) -> None:
    """Check that x is a tensor on this device and of this shape."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.device != device and not (or_cpu and x.device.type == "cpu" and device.type != "meta"):
        raise ValueError(f"{name} is on {x.device}, but hidden or logits is on {device}")
    if shape is not None:
        _check_shape(name, x, shape)


def _check_integral(name: str, x: Tensor) -> None:
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name} must be integers (class indices) or floating point (probabilities), got {x.dtype}")


def _check_shape(name: str, x: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(x.shape) != expected:
        raise ValueError(f"{name} must have shape {_text(expected)}, got {tuple(x.shape)}")


def is_index(x: Tensor, value: int) -> Tensor:
    """Return x == value. If x's dtype cannot hold the value, torch would wrap it: -100 to 156 in uint8."""
    limits = torch.iinfo(x.dtype)
    return x == value if limits.min <= value <= limits.max else torch.zeros_like(x, dtype=torch.bool)


def _check_range(
    name: str, x: Tensor, counted: Tensor, vocab_size: int, otherwise: str
) -> tuple[Tensor, Tensor | None]:
    """Return x as int64; check that every counted entry is a class.

    On an asynchronous device all other entries become class 0, and the second result marks those out of range.
    """
    index = x.long()  # torch compares uint8 but no other unsigned integers; a uint64 that is too large becomes negative
    if is_abstract(x):
        return index, None
    bad = counted & ((index < 0) | (index >= vocab_size))
    if is_asynchronous(x.device):
        check_later(~bad.any(), f"{name} has a class index outside [0, {vocab_size}), the vocabulary{otherwise}")
        return index.masked_fill(~counted | bad, 0), bad
    if bool(bad.any()):
        place = tuple(bad.nonzero()[0].tolist())
        raise IndexError(
            f"{name}[{_place(place)}] is {x[place].item()}, "
            f"but it must be in [0, {vocab_size}), the vocabulary{otherwise}"
        )
    return index, None


def check_probabilities(target: Target, at: Tensor | None) -> None:
    """Refuse negative, infinite or NaN probabilities in the flat rows `at` of the target, or in all; one pass."""
    probability = target.probability
    if probability is None or probability.numel() == 0:
        return
    # torch has no aminmax of float8
    low, high = torch.aminmax(probability if probability.dtype.itemsize > 1 else probability.half(), dim=-1)
    bad = ~((low >= 0) & (high < torch.inf)).reshape(-1)  # NaN is neither
    rows = bad.nonzero()[:, 0] if at is None else at[bad[at]]
    if len(rows):
        name = "target" if target.classes is None else "target probabilities"
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
