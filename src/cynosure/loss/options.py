"""The options of the loss as one frozen record, checked once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from cynosure.loss.devices import is_asynchronous
from cynosure.loss.tensors import is_abstract

Reduction = Literal["mean", "sum", "none"]
Shift = int | tuple[int, ...]


@dataclass(frozen=True)
class RowOptions:
    """The options on which the loss of a single row depends."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    scale: float = 1.0
    class_weight: Tensor | None = None  # (V,)

    def __post_init__(self) -> None:
        _set(self, "label_smoothing", as_number("label_smoothing", self.label_smoothing, "in [0, 1]", 0.0, 1.0))
        _set(self, "z_loss", as_number("z_loss", self.z_loss, "finite and not negative", low=0.0))
        _set(self, "scale", as_number("scale", self.scale, "finite"))
        if self.softcap is not None:
            _set(self, "softcap", as_positive("softcap", self.softcap))
        if self.class_weight is not None and not isinstance(self.class_weight, Tensor):
            raise TypeError(f"class_weight must be None or a tensor, got {type(self.class_weight).__name__}")
        if self.class_weight is not None and self.class_weight.requires_grad:
            raise ValueError("class_weight must be a constant: it has requires_grad=True; pass class_weight.detach()")


@dataclass(frozen=True)
class ReduceOptions:
    """The options that select, weigh and reduce rows."""

    ignore_index: int = -100
    reduction: Reduction = "mean"
    token_weight: Tensor | None = None  # (...), aligned with the target
    normalizer: float | Tensor | None = None
    shift: Shift = 0  # a tuple: several, each with its own hidden states
    n_counted: int | None = None  # rows that count, at most
    shift_weight: tuple[float, ...] | None = None  # of several shifts; None: 1 each

    def __post_init__(self) -> None:
        check_reduction(self.reduction)
        _set(self, "ignore_index", as_integer("ignore_index", self.ignore_index))
        _set(self, "shift", check_shift(self.shift))
        if self.shift_weight is not None:
            _set(self, "shift_weight", check_shift_weight(self.shift_weight, self.shift))
        if self.n_counted is not None:
            _set(self, "n_counted", as_integer("n_counted", self.n_counted))
            if self.n_counted < 0:
                raise ValueError(f"n_counted must not be negative, got {self.n_counted}")
        if self.normalizer is not None:
            if self.reduction != "mean":
                raise ValueError(f"normalizer needs reduction='mean', got reduction={self.reduction!r}: leave one out")
            constant = self.normalizer.detach() if isinstance(self.normalizer, Tensor) else self.normalizer
            if is_abstract(constant) or (isinstance(constant, Tensor) and is_asynchronous(constant.device)):
                check_one_element("normalizer", constant)
                _set(self, "normalizer", constant)
            else:
                _set(self, "normalizer", as_number("normalizer", constant, "finite and not negative", low=0.0))


def _set(record: object, name: str, value: object) -> None:
    """Set a field of a frozen record in its __post_init__."""
    object.__setattr__(record, name, value)


def check_shift(shift: Shift) -> Shift:
    """Return one shift, or a tuple of several, checked to be integers and not negative."""
    several = tuple(shift) if isinstance(shift, (tuple, list)) else None
    if several == ():
        raise ValueError("shift must have at least one entry, got ()")
    checked = tuple(as_integer("shift", k) for k in several or (shift,))
    if min(checked) < 0:
        raise ValueError(f"shift must not be negative, got {min(checked)}")
    return checked if several else checked[0]


def one_shift(shift: Shift) -> int:
    """Return a single shift; refuse several."""
    if isinstance(shift, (tuple, list)):
        raise TypeError(f"shift must be an integer here, got {shift}: only linear_cross_entropy takes several")
    return shift


def check_shift_weight(shift_weight: Sequence[float], shift: Shift) -> tuple[float, ...]:
    """Return the weights of several shifts, checked to be as many."""
    if not isinstance(shift, tuple):
        raise ValueError(f"shift_weight needs a tuple of shifts, got shift={shift!r}: leave shift_weight out")
    weights = tuple(as_number("shift_weight", x, "finite") for x in shift_weight)
    if len(weights) != len(shift):
        raise ValueError(f"shift_weight must have one number for each of {len(shift)} shifts, got {len(weights)}")
    return weights


def check_reduction(reduction: str) -> None:
    """Raise ValueError for an unknown reduction."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def check_chunk_tokens(chunk_tokens: int | None) -> int | None:
    """Return chunk_tokens, checked to be None or an integer of at least 1."""
    if chunk_tokens is None:
        return None
    chunk_tokens = as_integer("chunk_tokens", chunk_tokens)
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, or None, got {chunk_tokens}")
    return chunk_tokens


def as_integer(name: str, value: object) -> int:
    """Convert to int: an integer of Python or NumPy, or a tensor or array with one element."""
    only = _only_element(name, value)
    if not isinstance(only, Integral) or isinstance(only, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    return int(only)


def as_number(name: str, value: object, wanted: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Convert any type of number to float; `wanted` describes the valid range in errors."""
    only = _only_element(name, value)
    if not isinstance(only, (Real, Decimal)) or isinstance(only, bool):
        raise TypeError(f"{name} must be a number {wanted}, got {value!r}")
    try:
        number = float(only)
    except OverflowError:  # an integer or a fraction beyond the largest float
        number = math.inf
    if not (math.isfinite(number) and low <= number <= high):
        raise ValueError(f"{name} must be {wanted}, got {number}")
    return number


def as_positive(name: str, value: object) -> float:
    """Convert a positive number to float."""
    return as_number(name, value, "positive and finite", low=math.ulp(0.0))


def _only_element(name: str, value: Any) -> object:
    """Return the only element of a tensor or array of any shape; return other values unchanged."""
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(
            f"{name} must be a number, got a tensor that requires grad: it is a constant of the loss; "
            f"pass {name}.item(), or fold a learned one into hidden or logits"
        )
    if not hasattr(value, "item") or not hasattr(value, "shape"):
        return value
    check_one_element(name, value)
    return value.item()


def check_one_element(name: str, value: Any) -> None:
    """Refuse a tensor or array of another number of elements."""
    if math.prod(value.shape) != 1:
        raise ValueError(f"{name} must be a number or have one element, got shape {tuple(value.shape)}")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of losses and sums: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32
