"""What every loss here asks of its arguments. Values are read on a CPU alone, and not while a graph is captured.

B sequences, T tokens
"""

from typing import Literal

import torch
from torch import Tensor

from cynosure.loss import accumulation_dtype, is_plain

Reduction = Literal["mean", "none"]

# How far rounding may lift a log-probability above 0. A loss, or a probability, is mostly further above.
ROUNDING = 0.1


def of_sequences(**logprobs: Tensor) -> tuple[Tensor, ...]:
    """Check log-probabilities (B,), and return them in the dtype of the loss, which the first of them decides."""
    name, first = next(iter(logprobs.items()))
    check_floating(name, first)
    if first.ndim != 1:
        raise ValueError(
            f"{name} must have shape (B,), one log-probability for each sequence, got {tuple(first.shape)}: "
            "add up those of its tokens with sequence_logprobs"
        )
    return tuple(_alike(logprobs))


def of_tokens(mask: Tensor, **logprobs: Tensor) -> tuple[Tensor, ...]:
    """Check log-probabilities and their mask; return the mask as bool, and the others with 0 where it is False."""
    name, first = next(iter(logprobs.items()))
    check_floating(name, first)
    counted = as_bool("mask", mask, name, first)
    return counted, *_alike(logprobs, counted)


def check_rows(name: str, logprobs: Tensor) -> None:
    """Refuse log-probabilities that have no shape (B, T)."""
    if logprobs.ndim != 2:
        raise ValueError(f"{name} must have shape (B, T), one row for each sequence, got {tuple(logprobs.shape)}")


def check_floating(name: str, x: Tensor) -> None:
    """Refuse what is not a tensor of floating point."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}")


def as_bool(name: str, mask: Tensor, like: str, other: Tensor) -> Tensor:
    """Return a mask of zeros and ones as bool, checked to have the shape and the device of `other`."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(mask).__name__}")
    check_alike(name, mask, like, other)
    if mask.dtype == torch.bool:
        return mask
    counted = mask != 0
    if can_read(mask) and not torch.equal(counted.to(mask.dtype), mask):
        raise ValueError(f"{name} must be bool, or hold 0 and 1 alone, got other values")
    return counted


def check_alike(name: str, x: Tensor, like: str, other: Tensor) -> None:
    """Refuse a tensor that differs from another in shape or device."""
    if x.shape != other.shape:
        raise ValueError(f"{name} must have the shape of {like}, {tuple(other.shape)}, got {tuple(x.shape)}")
    if x.device != other.device:
        raise ValueError(f"{name} must be on the device of {like}, {other.device}, got {x.device}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not one of the choices."""
    if value not in choices:
        *most, last = map(repr, choices)
        raise ValueError(f"{name} must be {', '.join(most)} or {last}, got {value!r}")


def can_read(x: Tensor) -> bool:
    """Whether its values can be read without a wait and without a break in a captured graph."""
    return not torch.compiler.is_compiling() and x.is_cpu and is_plain(x)


def _alike(logprobs: dict[str, Tensor], counted: Tensor | None = None) -> list[Tensor]:
    """Return log-probabilities in the dtype of the loss, checked to be equal in shape and to be log-probabilities."""
    like, first = next(iter(logprobs.items()))
    wide = []
    for name, x in logprobs.items():
        check_floating(name, x)
        check_alike(name, x, like, first)
        x = x.to(accumulation_dtype(first.dtype))
        x = x if counted is None else torch.where(counted, x, 0.0)
        if x.numel() and can_read(x) and (largest := x.max().item()) > ROUNDING:
            raise ValueError(
                f"{name} must hold log-probabilities, which are at most 0, got {largest:.6g}: "
                "pass log p itself, neither a loss (its negative) nor a probability"
            )
        wide.append(x)
    return wide
