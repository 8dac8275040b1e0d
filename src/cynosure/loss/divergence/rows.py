"""The row kernel: two rows of raw logits -> their divergence and, in place of the logits, its gradients.

r rows, V vocabulary. In torch operations for any device, and in C++ for rows in a CPU's memory.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cynosure.loss.backends.native_rows import NativeRows, pointer
from cynosure.loss.backends.registry import Backend
from cynosure.loss.backends.torch_rows import cap_
from cynosure.loss.divergence.options import DivergenceOptions
from cynosure.loss.native.library import DivergenceRows, call
from cynosure.loss.options import RowOptions
from cynosure.loss.tensors import address

DIRECTIONS = ("forward", "reverse", "jsd")  # in the order of divergence.h


class Overwritten(NamedTuple):
    """Whose logits the gradient overwrites."""

    student: bool
    teacher: bool


class LogitsPair(NamedTuple):
    """Raw logits (r, V) of both models, which a kernel may overwrite."""

    student: Tensor
    teacher: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the rows are compared."""
        wide = torch.float64 in (self.student.dtype, self.teacher.dtype)
        return torch.float64 if wide else torch.float32


class Kl(NamedTuple):
    """KL(p || q) of each row, and what its gradients need."""

    p: Tensor  # (r, V)
    ratio: Tensor  # (r, V) log(p / q)
    divergence: Tensor  # (r,)

    @classmethod
    def of(cls, p: Tensor, ratio: Tensor) -> "Kl":
        """Sum p log(p / q); where p is 0 the term is 0, whatever the ratio."""
        return cls(p, ratio, (p * ratio).masked_fill_(p == 0, 0).sum(-1))

    def own_gradient(self) -> Tensor:
        """Return its derivative by the logits of p, as those of q are constant or cancel: p (log(p / q) - KL)."""
        return ((self.ratio - self.divergence[:, None]) * self.p).masked_fill_(self.p == 0, 0)


def divergence_rows(
    backend: Backend, pair: LogitsPair, options: DivergenceOptions, upstream: Tensor | None, written: Overwritten
) -> Tensor:
    """Return the divergence (r,) of each row; with upstream (r,), the logits `written` become their gradient.

    The logits are of dtypes that `reads` accepts.
    """
    if isinstance(backend, NativeRows):
        return native_rows(backend, pair, options, upstream, written)
    return torch_rows(pair, options, upstream, written)


def reads(backend: Backend, pair: LogitsPair, dtype: torch.dtype) -> bool:
    """Whether the kernel reads logits of this dtype; it reads copies in the pair's dtype of others."""
    return dtype in backend.dtypes if isinstance(backend, NativeRows) else dtype == pair.dtype


def native_rows(
    backend: NativeRows, pair: LogitsPair, options: DivergenceOptions, upstream: Tensor | None, written: Overwritten
) -> Tensor:
    """Compute the rows in C++."""
    assert pair.student.shape == pair.teacher.shape  # the library reads both by the student's shape
    divergence = torch.empty(len(pair.student), dtype=pair.dtype, device=pair.student.device)
    upstream = None if upstream is None else upstream.to(pair.dtype).contiguous()
    arguments = DivergenceRows(
        backend.logits(pair.student, options.student), backend.logits(pair.teacher, options.teacher),
        DIRECTIONS.index(options.direction), options.beta, options.temperature, pointer(upstream), written.student,
        written.teacher, address(divergence),
    )  # fmt: skip
    call("cynosure_divergence_rows", arguments)
    return divergence


def torch_rows(pair: LogitsPair, options: DivergenceOptions, upstream: Tensor | None, written: Overwritten) -> Tensor:
    """Compute the rows in torch operations."""
    with_gradient = upstream is not None
    log_s, s_slope = _log_softmax(pair.student, options.student, options, with_gradient and written.student)
    log_t, t_slope = _log_softmax(pair.teacher, options.teacher, options, with_gradient and written.teacher)
    found = _compare(log_s, log_t, options)
    if upstream is not None:
        c = (upstream / options.temperature)[:, None]
        if written.student:
            _put(pair.student, found.student().mul_(c), s_slope, options.student)
        if written.teacher:
            _put(pair.teacher, found.teacher().mul_(c), t_slope, options.teacher)
    return found.divergence.clamp_(min=0)  # only rounding makes it negative


class RowDerivatives(NamedTuple):
    """The divergence (r,) of each row, and how to compute its derivatives (r, V) by the tempered logits."""

    divergence: Tensor
    student: Callable[[], Tensor]
    teacher: Callable[[], Tensor]


def _compare(log_s: Tensor, log_t: Tensor, options: DivergenceOptions) -> RowDerivatives:
    s, t, gap, beta = log_s.exp(), log_t.exp(), log_t - log_s, options.beta
    if options.direction == "forward":
        kl = Kl.of(t, gap)
        return RowDerivatives(kl.divergence, lambda: s - t, kl.own_gradient)
    if options.direction == "reverse":
        kl = Kl.of(s, gap.neg_())
        return RowDerivatives(kl.divergence, kl.own_gradient, lambda: t - s)
    of_s, of_t = (Kl.of(p, ratio) for p, ratio in zip((s, t), _over_mixture(gap, beta), strict=True))
    return RowDerivatives(
        beta * of_t.divergence + (1 - beta) * of_s.divergence,
        lambda: of_s.own_gradient().mul_(1 - beta),
        lambda: of_t.own_gradient().mul_(beta),
    )


def _log_softmax(
    z: Tensor, options: RowOptions, pair: DivergenceOptions, with_slope: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the tempered log-softmax of raw logits z, which are overwritten, and the derivative of the cap."""
    slope = cap_(z, options, with_slope)
    return z.sub_(z.amax(-1, keepdim=True)).div_(pair.temperature).log_softmax(-1), slope


def _over_mixture(gap: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return log(s / m) and log(t / m) (r, V) from gap = log(t / s), without cancellation where s and t are close.

    The larger of s and t is taken out: m over it is w = w_larger + w_smaller e^-|gap|, or 1 + w_smaller (e^-|gap| - 1).
    """
    is_t, below = gap >= 0, gap.abs().neg_()
    smaller = torch.where(is_t, gap.new_full((), 1 - beta), gap.new_full((), beta))
    larger = torch.where(is_t, gap.new_full((), beta), gap.new_full((), 1 - beta))
    w = below.exp().mul_(smaller).add_(larger)
    log = torch.where(w > 0.5, below.expm1().mul_(smaller).log1p_(), w.log())
    of_larger, of_smaller = -log, below.sub_(log)
    return torch.where(is_t, of_smaller, of_larger), torch.where(is_t, of_larger, of_smaller)


def _put(logits: Tensor, dz: Tensor, slope: Tensor | None, options: RowOptions) -> None:
    if slope is not None:
        dz.mul_(slope)
    torch.mul(dz, options.scale, out=logits)
