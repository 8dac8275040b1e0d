"""The options of the loss as one frozen record, checked once."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from cynosure.loss.tensors import is_abstract

Reduction = Literal["mean", "sum", "none"]


@dataclass(frozen=True)
class RowOptions:
    """What the loss of a single row depends on beside its logits and target."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    scale: float = 1.0
    class_weight: Tensor | None = None  # (V,)

    def __post_init__(self) -> None:
        _check_number("label_smoothing", self.label_smoothing, "in [0, 1]", low=0.0, high=1.0)
        _check_number("z_loss", self.z_loss, "finite and not negative", low=0.0)
        _check_number("scale", self.scale, "finite")
        if self.softcap is not None:
            _check_number("softcap", self.softcap, "None or finite and positive", low=0.0)
            if self.softcap == 0:
                raise ValueError("softcap must be None or finite and positive, got 0")
        if self.class_weight is not None and not isinstance(self.class_weight, Tensor):
            raise TypeError(f"class_weight must be None or a tensor, got {type(self.class_weight).__name__}")
        if self.class_weight is not None and self.class_weight.requires_grad:
            raise ValueError("class_weight must be a constant: it has requires_grad=True; pass class_weight.detach()")


@dataclass(frozen=True)
class ReduceOptions:
    """Which rows count, how much, and how they are put together."""

    ignore_index: int = -100
    reduction: Reduction = "mean"
    token_weight: Tensor | None = None  # (...), aligned with the target
    normalizer: float | Tensor | None = None
    shift: int = 0

    def __post_init__(self) -> None:
        check_reduction(self.reduction)
        check_integer("ignore_index", self.ignore_index)
        check_integer("shift", self.shift)
        if self.shift < 0:
            raise ValueError(f"shift must not be negative, got {self.shift}")
        if self.normalizer is not None:
            self._check_normalizer(self.normalizer)

    def _check_normalizer(self, normalizer: float | Tensor) -> None:
        if self.reduction != "mean":
            raise ValueError(f"normalizer is read by reduction='mean' alone, got reduction={self.reduction!r}")
        if isinstance(normalizer, Tensor):
            if normalizer.ndim != 0:
                raise ValueError(f"normalizer must be a number or a 0-d tensor, got shape {tuple(normalizer.shape)}")
            if is_abstract(normalizer):
                return
            normalizer = normalizer.item()
        _check_number("normalizer", normalizer, "finite and not negative", low=0.0)


def check_reduction(reduction: str) -> None:
    """Refuse anything but the three there are."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def check_integer(name: str, value: object) -> None:
    """Refuse anything that is not a plain integer."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")


def _check_number(name: str, value: object, wanted: str, low: float = -math.inf, high: float = math.inf) -> None:
    if isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a number, got a tensor of shape {tuple(value.shape)}: it is a constant of the loss; "
            f"pass {name}.item(), or fold a learned one into hidden or logits"
        )
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number {wanted}, got {value!r}")
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} must be {wanted}, got {value}")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower: what losses and sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32
