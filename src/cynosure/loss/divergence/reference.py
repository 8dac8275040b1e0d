"""The mathematics of the divergences: forward and hand-derived backward on full logits, in any float dtype.

The tests compare the row kernels with this file in float64. It is written to be read, and nothing in the package calls
it. `docs/explanation/math.md` derives each line.

    N tokens, V vocabulary entries.  logits x (N, V) of each model
    z = cap(scale * x)         cap(a) = softcap * tanh(a / softcap), or a
    t, s = softmax(z / T) of the teacher and the student         m = beta t + (1 - beta) s
    forward = KL(t || s)       reverse = KL(s || t)       jsd = beta KL(t || m) + (1 - beta) KL(s || m)
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class ModelLogits(NamedTuple):
    """Raw logits of one model, and its options."""

    logits: Tensor  # (N, V)
    scale: float = 1.0
    softcap: float | None = None


class Both(NamedTuple):
    """One value for the student and one for the teacher."""

    student: Tensor
    teacher: Tensor


def cap(rows: ModelLogits) -> Tensor:
    """Return z (N, V): the logits, scaled and then bounded to (-softcap, softcap)."""
    z = rows.scale * rows.logits
    return z if rows.softcap is None else rows.softcap * torch.tanh(z / rows.softcap)


def mixture(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """Return log m (N, V) of m = beta p + (1 - beta) q."""
    return torch.logaddexp(log_p + math.log(beta), log_q + math.log(1 - beta))


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) (N,). Where p is 0 the term is 0, whatever q."""
    p = log_p.exp()
    return torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(-1)


def forward(
    student: ModelLogits, teacher: ModelLogits, direction: str, beta: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """Return the divergence (N,) of every token.

    >>> sure, even = ModelLogits(torch.tensor([[0.0, -torch.inf]])), ModelLogits(torch.zeros(1, 2))
    >>> forward(sure, even, "reverse").exp()  # 1 * log(1 / 0.5)
    tensor([2.])
    >>> forward(sure, even, "forward")
    tensor([inf])
    """
    log_s, log_t = ((cap(rows) / temperature).log_softmax(-1) for rows in (student, teacher))
    if direction == "forward":
        return kl(log_t, log_s)
    if direction == "reverse":
        return kl(log_s, log_t)
    log_m = mixture(log_t, log_s, beta)
    return beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m)


def backward(
    student: ModelLogits,
    teacher: ModelLogits,
    upstream: Tensor,
    direction: str,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Both:
    """Return d(logits) (N, V) of both models from the upstream gradient (N,).

    >>> sure, even = ModelLogits(torch.tensor([[0.0, -torch.inf]])), ModelLogits(torch.zeros(1, 2))
    >>> backward(sure, even, torch.ones(1), "forward").student  # s - t
    tensor([[ 0.5000, -0.5000]])
    """
    log_s, log_t = ((cap(rows) / temperature).log_softmax(-1) for rows in (student, teacher))
    s, t = log_s.exp(), log_t.exp()
    if direction == "forward":
        dz = Both(s - t, _own(log_t, log_s))
    elif direction == "reverse":
        dz = Both(_own(log_s, log_t), t - s)
    else:
        log_m = mixture(log_t, log_s, beta)
        dz = Both((1 - beta) * _own(log_s, log_m), beta * _own(log_t, log_m))
    c = upstream[:, None] / temperature
    return Both(*(c * d * _slope(rows) for d, rows in zip(dz, (student, teacher), strict=True)))


def _own(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the derivative of KL(p || q) by the logits of p: p (log(p / q) - KL)."""
    p = log_p.exp()
    return torch.where(p == 0, 0.0, p * (log_p - log_q - kl(log_p, log_q)[:, None]))


def _slope(rows: ModelLogits) -> Tensor | float:
    """Return dz/dx (N, V)."""
    return rows.scale if rows.softcap is None else rows.scale * (1 - (cap(rows) / rows.softcap).square())
