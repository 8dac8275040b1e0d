"""The row kernel in torch operations: any device, the one every other backend must equal.

A row kernel visits a block of r rows of raw logits z (r, V), held in the accumulation dtype and its to overwrite.
`loss_rows` gives each row's loss and may leave d(logits) in z; `stats_rows` gives the figures of `token_stats`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cynosure.loss.options import RowOptions
from cynosure.loss.targets import TargetRows

UNDERFLOW = -1e4  # exp of it is 0 in every dtype, while 0 * it is 0 and not NaN as 0 * -inf would be


class Weighed(NamedTuple):
    """The weighted, smoothed target q of each row, and what the loss needs of it."""

    q: Tensor  # (r, K) or (r, V), without the smoothing where it is (r, K)
    mass: Tensor  # (r,) sum of q
    dot: Tensor  # (r,) sum of q * z


def loss_rows(z: Tensor, target: TargetRows, options: RowOptions, upstream: Tensor | None = None) -> Tensor:
    """Loss (r,) of each row; with upstream (r,), z becomes upstream * d(loss)/d(logits)."""
    slope = cap_(z, options, with_slope=upstream is not None)
    m = z.amax(-1, keepdim=True)
    z.sub_(m)
    weighed = weigh(z, target, options)
    s = z.exp_().sum(-1)
    log_s = s.log()
    loss = weighed.mass * log_s - weighed.dot
    per_p = weighed.mass
    if options.z_loss:
        lse = m[:, 0] + log_s
        loss = loss + target.k * options.z_loss * lse.square()
        per_p = per_p + 2 * target.k * options.z_loss * lse
    if upstream is not None:
        z.mul_((upstream * per_p / s)[:, None])
        subtract_target_(z, target, weighed.q, options, upstream)
        if slope is not None:
            z.mul_(slope)
        if options.scale != 1.0:
            z.mul_(options.scale)
    return loss


def cap_(z: Tensor, options: RowOptions, with_slope: bool = False) -> Tensor | None:
    """Scale and cap z in place; the cap's slope (r, V) where asked and not 1."""
    if options.scale != 1.0:
        z.mul_(options.scale)
    if options.softcap is None:
        return None
    z.div_(options.softcap).tanh_()
    slope = z.square().neg_().add_(1) if with_slope else None
    z.mul_(options.softcap)
    return slope


def weigh(z: Tensor, target: TargetRows, options: RowOptions) -> Weighed:
    """q and its sums, from z with the row's maximum already subtracted."""
    eps, c = options.label_smoothing, options.class_weight
    if target.classes is None:
        q = target.probability * (1 - eps) + eps / z.shape[-1]
        if c is not None:
            q.mul_(c)
        return Weighed(q, q.sum(-1), _dot(q, z))
    q = target.probability * (1 - eps)
    if c is not None:
        q = q * c[target.classes]
    mass, dot = q.sum(-1), _dot(q, z.gather(-1, target.classes))
    if eps:
        share = eps / z.shape[-1]
        mass = mass + share * (z.shape[-1] if c is None else c.sum())
        dot = dot + share * (z.sum(-1) if c is None else _dot(c, z))
    return Weighed(q, mass, dot)


def _dot(q: Tensor, z: Tensor) -> Tensor:
    """Sum of q * z over the last dimension, where q = 0 counts 0 even against -inf."""
    return (q * z).masked_fill_(q == 0, 0).sum(-1)


def subtract_target_(dz: Tensor, target: TargetRows, q: Tensor, options: RowOptions, upstream: Tensor) -> None:
    """dz -= upstream * q, the smoothing's share included."""
    if target.classes is None:
        dz.sub_(q.mul_(upstream[:, None]))
        return
    dz.scatter_add_(-1, target.classes, -upstream[:, None] * q)
    if options.label_smoothing:
        share = (upstream * (options.label_smoothing / dz.shape[-1]))[:, None]
        if options.class_weight is None:
            dz.sub_(share)
        else:
            dz.addcmul_(share, options.class_weight[None], value=-1)


class StatsRows(NamedTuple):
    """Figures of r rows; fields as in `TokenStats`."""

    nll: Tensor
    lse: Tensor
    entropy: Tensor
    rank: Tensor
    argmax: Tensor
    confidence: Tensor
    margin: Tensor
    brier: Tensor
    top_ids: Tensor  # (r, topk)
    top_logprobs: Tensor  # (r, topk)
    nll_at_temperature: Tensor  # (r, n_temperatures)


def stats_rows(z: Tensor, index: Tensor, options: RowOptions, topk: int, temperatures: list[float]) -> StatsRows:
    """Every figure of each row of z (r, V) for its target index (r,)."""
    cap_(z, options)
    index = index[:, None]
    z_target = z.gather(-1, index)
    rank = 1 + (z > z_target).sum(-1)
    m, argmax = z.max(-1, keepdim=True)
    top = z.topk(topk, -1)
    second = z.scatter_(-1, argmax, -torch.inf).amax(-1, keepdim=True)
    z.scatter_(-1, argmax, m).sub_(m)
    z_target, gap = z_target - m, second - m
    nll_t = [(z / t).exp_().sum(-1).log_() - z_target[:, 0] / t for t in temperatures]
    e = z.exp()
    s = e.sum(-1)
    log_s = s.log()
    entropy = log_s - z.clamp_(min=UNDERFLOW).mul_(e).sum(-1) / s
    others = e.scatter_(-1, index, 0)  # brier from what is not the target: 1 - p would cancel
    brier = (others.sum(-1) / s).square() + others.square_().sum(-1) / s.square()
    return StatsRows(
        nll=log_s - z_target[:, 0],
        lse=m[:, 0] + log_s,
        entropy=entropy,
        rank=rank,
        argmax=argmax[:, 0],
        confidence=1 / s,
        margin=-gap[:, 0].expm1() / s,
        brier=brier,
        top_ids=top.indices,
        top_logprobs=top.values - m - log_s[:, None],
        nll_at_temperature=torch.stack(nll_t, -1) if nll_t else z.new_empty(len(z), 0),
    )
