"""The recipe for logits that are not materialized: hidden states, a head, and the operations after their matmul.

h (..., D) hidden states, w (V, D) the head's weight, b (V,) its bias. Models do only a few things between head and
loss. They multiply by a number, add a constant per class, cap with tanh, cast, drop padded classes, take the
log-softmax, and reshape, permute or select rows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cynosure.loss import autocast_to, capped, readable
from cynosure.system.upstream import times_changed


@dataclass(frozen=True)
class Recipe:
    """logits = softcap * tanh(scale * (h w^T + b) / softcap), or without softcap scale * (h w^T + b); cast to dtype."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    dtype: torch.dtype
    head_dtype: torch.dtype  # of the matmul h w^T + b
    own_dtype: torch.dtype  # of that matmul in the model itself, under the autocast that it ran in
    before_backward: tuple[Callable[[Tensor], Any], ...] = ()  # hooks of the model's wrappers
    versions: tuple[int, ...] = ()  # number of in-place changes of weight and bias; () takes the current ones
    normalized: bool = False  # log-probabilities: the log-softmax of these logits
    after: int = 0  # number of row dimensions after the class dimension
    lead: torch.Size | None = None  # hidden's (...) as the head received it; None takes the current one
    places: Tensor | None = None  # flat position of each row in `lead`; None means all rows in order

    def __post_init__(self) -> None:
        if not self.versions:
            object.__setattr__(self, "versions", versions(self.weight, self.bias))
        if self.lead is None:
            object.__setattr__(self, "lead", self.rows)

    @property
    def matrix(self) -> Tensor:
        """The weight as a tensor that can be modified: a quantized weight is dequantized."""
        return readable(self.weight)

    @property
    def stale(self) -> bool:
        """Whether the weights have changed since, for example by an optimizer's step."""
        return self.versions != versions(self.weight, self.bias)

    @property
    def operands(self) -> tuple[Tensor | None, ...]:
        """The tensors that have gradients: hidden, weight and bias."""
        return self.hidden, self.weight, self.bias

    @property
    def requires_grad(self) -> bool:
        return any(x is not None and x.requires_grad for x in self.operands)

    @property
    def rows(self) -> torch.Size:
        """The shape without the classes."""
        return self.hidden.shape[:-1]

    @property
    def n_classes(self) -> int:
        return self.weight.shape[0]

    @property
    def axis(self) -> int:
        """The dimension of the classes."""
        return len(self.rows) - self.after

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.rows[: self.axis], self.n_classes, *self.rows[self.axis :]))

    def times(self, factor: float) -> "Recipe":
        if self.softcap is None:
            return replace(self, scale=self.scale * factor)
        return replace(self, scale=self.scale * factor, softcap=self.softcap * factor)

    def capped(self) -> "Recipe | None":
        """Apply tanh; None if there is a cap already."""
        return replace(self, softcap=1.0) if self.softcap is None else None

    def classes(self, n: int) -> "Recipe":
        """Keep only the first n classes."""
        return replace(self, weight=self.matrix[:n], bias=None if self.bias is None else self.bias[:n])

    def times_each(self, factor: Tensor | float) -> "Recipe | None":
        """Multiply by a factor per class, (V,), or by one number of any sign; None if there is a cap.

        The weight is multiplied, so that a learned factor gets its gradient.
        """
        if self.softcap is not None:
            return None
        column = factor[:, None] if isinstance(factor, Tensor) else factor
        bias = None if self.bias is None else (self.bias * factor).to(self.kept(self.bias))
        return self.changed(weight=(self.matrix * column).to(self.kept(self.weight)), bias=bias)

    def plus_each(self, offset: Tensor, sign: float = 1) -> "Recipe | None":
        """Add `sign` times an offset per class, (V,); None if there is a cap."""
        if self.softcap is not None:
            return None
        offset = (offset * (sign / self.scale)).to(self.hidden.device, self.kept(self.hidden))
        return self.changed(bias=offset.expand(self.n_classes) if self.bias is None else self.bias + offset)

    def kept(self, part: Tensor) -> torch.dtype:
        """Return the dtype of what is computed from a weight or bias: at least that of the head."""
        return torch.promote_types(part.dtype, self.head_dtype)

    def projected(self, matrix: Tensor) -> Tensor | None:
        """Multiply by a matrix (V, K), K <= D, without materializing the logits; None if that is not exact."""
        narrow = matrix.ndim == 2 and matrix.shape[0] == self.n_classes and matrix.shape[1] <= self.hidden.shape[-1]
        if not narrow or self.softcap is not None or self.normalized or self.after or self.stale:
            return None
        matrix = matrix * self.scale
        bias = None if self.bias is None else self.bias.to(matrix.dtype) @ matrix
        return F.linear(self.hidden.to(matrix.dtype), matrix.t() @ self.matrix.to(matrix.dtype), bias)

    def changed(self, **parts: Any) -> "Recipe":
        """Replace states or weights by others that were computed from them; the result is stale if this recipe is."""
        return replace(self, **parts, versions=(-1,) if self.stale else ())

    def plus(self, other: "Recipe") -> "Recipe | None":
        """Add two matmuls as one, of concatenated hidden states and weights; None if there is a cap.

        So a head and its low-rank update become one head, even if dropout has changed the states of the update.
        """
        if self.softcap is not None or other.softcap is not None or self.shape != other.shape:
            return None
        if self.hidden is other.hidden:
            hidden, weight = self.hidden, self.matrix * self.scale + other.matrix * other.scale
        else:
            hidden = torch.cat([self.hidden * self.scale, other.hidden * other.scale], -1)
            weight = torch.cat([self.matrix, other.matrix], 1)
        biases = [part.scale * part.bias for part in (self, other) if part.bias is not None]
        bias = sum(biases[1:], biases[0]).to(hidden.dtype) if biases else None
        hooks = self.before_backward + other.before_backward
        total = self.changed(hidden=hidden, weight=weight, bias=bias, scale=1.0, before_backward=hooks)
        return replace(total, versions=(-1,)) if other.stale else total

    def laid(self, change: Callable[[Tensor], Tensor], after: int = 0) -> "Recipe":
        """Reshape, permute or select rows: `change` maps tensors (..., C) whose leading dimensions are rows."""
        places = self.places
        if places is None:
            places = torch.arange(self.rows.numel(), device=self.hidden.device).view(self.rows)
        return replace(self, hidden=change(self.hidden), places=change(places[..., None])[..., 0], after=after)

    def hooked(self, result: Tensor) -> Tensor:
        """Add the hooks that must run before the backward of the logits to a tensor computed from them."""
        for hook in self.before_backward if result.requires_grad else ():
            result.register_hook(hook)  # type: ignore[no-untyped-call]
        return result

    def logits(self) -> Tensor:
        """Materialize the logits, of shape `shape`."""
        return self.logits_of(self.matmul())

    def matmul(self) -> Tensor:
        """Return h w^T + b of shape (..., V), in the head's dtype whatever autocast is on now."""
        dtype, weight = self.head_dtype, self.weight
        weight = weight if weight.dtype == dtype else self.matrix.to(dtype)
        with autocast_to(self.hidden.device, None):
            return F.linear(self.hidden.to(dtype), weight, None if self.bias is None else self.bias.to(dtype))

    def logits_of(self, z: Tensor) -> Tensor:
        """Return the logits, given the result z (..., V) of the head's matmul."""
        z = capped(z, self.scale, self.softcap).to(self.dtype)
        return (z.log_softmax(-1) if self.normalized else z).movedim(-1, self.axis)


def versions(*tensors: Tensor | None) -> tuple[int, ...]:
    """Return how often each tensor has been changed in place."""
    return tuple(0 if x is None or x.is_inference() else times_changed(x) for x in tensors)


def matmul_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype in which `F.linear` computes: autocast's if it is on, else that of the hidden states."""
    kind = hidden.device.type
    casts = torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if casts else hidden.dtype
