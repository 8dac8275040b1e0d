"""The mathematics of log-probabilities at given ids and of the entropy, on full logits, like `reference.py`.

N tokens, V vocabulary entries, K given ids of each token.  logits x (N, V), ids (N, K)
z = cap(scale * x) / temperature        p = softmax(z)
logprobs_k = z[ids_k] - lse             entropy H = -sum_v p_v log p_v, where an impossible class adds 0
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cynosure.loss.reference import Terms, cap


class Logprobs(NamedTuple):
    """The results of every token."""

    logprobs: Tensor  # (N, K)
    entropy: Tensor  # (N,)


def log_softmax(logits: Tensor, terms: Terms, temperature: float = 1.0) -> Tensor:
    """Return log p (N, V) of raw logits (N, V). Of the terms only scale and softcap are read."""
    return (cap(logits, terms) / temperature).log_softmax(-1)


def forward(logits: Tensor, ids: Tensor, terms: Terms, temperature: float = 1.0) -> Logprobs:
    """Return the log-probabilities of the ids (N, K), and the entropies, from raw logits (N, V).

    >>> terms = Terms(q=torch.empty(0), k=torch.empty(0))
    >>> logprobs, entropy = forward(torch.zeros(1, 4), torch.tensor([[2, 2]]), terms)
    >>> logprobs.exp(), entropy.exp()  # a uniform prediction over four classes
    (tensor([[0.2500, 0.2500]]), tensor([4.]))
    """
    log_p = log_softmax(logits, terms, temperature)
    p = log_p.exp()
    return Logprobs(log_p.gather(-1, ids), -(p * log_p.masked_fill(p == 0, 0)).sum(-1))


def backward(
    logits: Tensor, ids: Tensor, terms: Terms, dlogprobs: Tensor, dentropy: Tensor, temperature: float = 1.0
) -> Tensor:
    """Return d(logits) (N, V) from the upstream gradients dlogprobs (N, K) and dentropy (N,).

    With u_v the sum of the upstream gradients of id v: u_v - p_v sum u - dentropy p_v (log p_v + H), over the
    temperature, multiplied by the derivatives of cap and scale.

    >>> terms = Terms(q=torch.empty(0), k=torch.empty(0))
    >>> backward(torch.zeros(1, 2), torch.tensor([[0]]), terms, torch.ones(1, 1), torch.ones(1))  # H is at its largest
    tensor([[ 0.5000, -0.5000]])
    """
    log_p = log_softmax(logits, terms, temperature)
    p = log_p.exp()
    log_p = log_p.masked_fill(p == 0, 0)
    u = torch.zeros_like(p).scatter_add(-1, ids, dlogprobs)
    entropy = -(p * log_p).sum(-1, keepdim=True)
    dz = u - p * u.sum(-1, keepdim=True) - dentropy[:, None] * p * (log_p + entropy)
    slope = 1.0 if terms.softcap is None else 1 - (cap(logits, terms) / terms.softcap).square()
    return dz / temperature * slope * terms.scale
