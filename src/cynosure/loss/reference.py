"""The mathematics of the loss: forward and hand-derived backward on full logits, in any float dtype.

The tests compare every backend with this file in float64. It is written to be read, not to be fast or to save memory,
and nothing in the package calls it.
`docs/explanation/math.md` derives each line.

    N tokens, V vocabulary entries.  logits x (N, V), target distribution y (N, V), class_weight c (V,)
    z = cap(scale * x)         cap(a) = softcap * tanh(a / softcap), or a
    q = c * ((1 - eps) * y + eps / V)
    loss = sum_v q (lse - z) + k * z_loss * lse^2           k = c[target] for class indices, 1 for distributions
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Terms(NamedTuple):
    """The constants of the loss: a target distribution and a z-loss multiplier per token, and the scalar options."""

    q: Tensor  # (N, V) weighted, smoothed target distribution
    k: Tensor  # (N,) multiplier of the z-loss
    z_loss: float = 0.0
    scale: float = 1.0
    softcap: float | None = None


def one_hot(target: Tensor, vocab_size: int, dtype: torch.dtype) -> Tensor:
    """Convert class indices (N,) to distributions (N, V)."""
    return torch.nn.functional.one_hot(target, vocab_size).to(dtype)


def smooth(y: Tensor, label_smoothing: float = 0.0, class_weight: Tensor | None = None) -> Tensor:
    """Return q (N, V): y (N, V) mixed with the uniform distribution, each class multiplied by its weight (V,)."""
    q = (1 - label_smoothing) * y + label_smoothing / y.shape[-1]
    return q if class_weight is None else q * class_weight


def cap(logits: Tensor, terms: Terms) -> Tensor:
    """Return z (N, V): the logits, scaled and then bounded to (-softcap, softcap)."""
    z = terms.scale * logits
    return z if terms.softcap is None else terms.softcap * torch.tanh(z / terms.softcap)


def forward(logits: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
    """Return the loss and the log-sum-exp of every token, both (N,), from raw logits (N, V).

    >>> logits = torch.zeros(1, 4, dtype=torch.float64)  # a uniform prediction over four classes
    >>> y = one_hot(torch.tensor([2]), 4, torch.float64)
    >>> loss, lse = forward(logits, Terms(q=y, k=torch.ones(1)))
    >>> round(loss.item(), 6)  # ln 4
    1.386294
    """
    z = cap(logits, terms)
    m = z.amax(-1, keepdim=True)
    log_s = (z - m).exp().sum(-1).log()
    surprise = log_s[:, None] - (z - m)  # lse - z, without the common offset
    nll = torch.where(terms.q == 0, 0.0, terms.q * surprise).sum(-1)
    lse = m[:, 0] + log_s
    return nll + terms.k * terms.z_loss * lse.square(), lse


def backward(logits: Tensor, terms: Terms, dloss: Tensor) -> Tensor:
    """Return d(logits) (N, V) from the upstream gradient dloss (N,).

    This is (sum q + 2 k z_loss lse) p - q, multiplied by the derivatives of cap and scale.

    >>> logits = torch.zeros(1, 2, dtype=torch.float64)
    >>> y = one_hot(torch.tensor([0]), 2, torch.float64)
    >>> backward(logits, Terms(q=y, k=torch.ones(1)), torch.ones(1)).tolist()  # p - y
    [[-0.5, 0.5]]
    """
    z = cap(logits, terms)
    p = z.softmax(-1)
    lse = z.logsumexp(-1)
    mass = terms.q.sum(-1) + 2 * terms.k * terms.z_loss * lse
    dz = dloss[:, None] * (mass[:, None] * p - terms.q)
    slope = 1.0 if terms.softcap is None else 1 - (z / terms.softcap).square()
    return dz * slope * terms.scale


def backward_target(
    logits: Tensor, terms: Terms, dloss: Tensor, label_smoothing: float = 0.0, class_weight: Tensor | None = None
) -> Tensor:
    """Return d(y) (N, V) for a given distribution y, the input of `smooth`: (1 - eps) c (lse - z).

    >>> logits = torch.zeros(1, 2, dtype=torch.float64)
    >>> backward_target(logits, Terms(q=torch.tensor([[0.5, 0.5]]), k=torch.ones(1)), torch.ones(1)).exp()  # 1 / p
    tensor([[2., 2.]], dtype=torch.float64)
    """
    z = cap(logits, terms)
    dy = dloss[:, None] * (1 - label_smoothing) * (z.logsumexp(-1, keepdim=True) - z)
    return dy if class_weight is None else dy * class_weight
