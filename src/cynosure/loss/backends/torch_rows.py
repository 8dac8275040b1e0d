"""The row kernel in torch operations. It runs on any device, and every other backend must give the same results.

`registry.Backend` documents `loss_rows`, `loss_piece` and `stats_piece`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cynosure.loss.backends.registry import ColumnSums, register
from cynosure.loss.devices import is_asynchronous, widest_dtype
from cynosure.loss.options import RowOptions, accumulation_dtype
from cynosure.loss.pieces import INF, Best, LossPart, Piece, StatsPart, base_of
from cynosure.loss.sizes import ON_DEVICE, Sizes
from cynosure.loss.targets import TargetRows

SUMMED_BYTES = 8 * 2**20  # of d(logits) whose columns are summed at a time
UNDERFLOW = -1e4  # its exp is 0 in every dtype, and 0 times it is 0, while 0 * -inf would be NaN


class Weighed(NamedTuple):
    """The weighted, smoothed target q of each row, and its sums."""

    q: Tensor  # (r, V), or (r, K) without the smoothing
    mass: Tensor  # (r,) sum of q
    dot: Tensor  # (r,) sum of q * z


def loss_rows(z: Tensor, target: TargetRows, options: RowOptions, upstream: Tensor | None = None) -> Tensor:
    """Return the loss (r,) of each row; with upstream (r,), z becomes upstream * d(loss)/d(logits)."""
    slope = cap_(z, options, with_slope=upstream is not None)
    m = z.amax(-1, keepdim=True)
    z.sub_(m)
    weighed = weigh(z, target, options, Piece(0, z.shape[-1]))
    entropy = target.entropy
    below = z if entropy is None else z.clamp(min=UNDERFLOW)
    s = z.exp_().sum(-1)
    log_s = s.log()
    loss = weighed.mass * log_s - weighed.dot
    per_p = weighed.mass
    if entropy is not None:
        mean = (below * z).sum(-1) / s
        loss = loss + entropy * (log_s - mean)
        per_p = per_p + entropy * mean
    if options.z_loss:
        lse = m[:, 0] + log_s
        loss = loss + target.k * options.z_loss * lse.square()
        per_p = per_p + 2 * target.k * options.z_loss * lse
    if upstream is not None:
        # With a z-loss, per_p is not a round number. Then upstream is multiplied last, so that it is rounded once.
        first = torch.ones_like(upstream) if options.z_loss else upstream
        if entropy is None:
            z.mul_((first * per_p / s)[:, None])
        else:
            z.mul_(below.mul_(-entropy[:, None]).add_(per_p[:, None]).mul_((first / s)[:, None]))
        subtract_target_(z, target, weighed.q, options, first)
        if options.z_loss:
            z.mul_(upstream[:, None])
        if slope is not None:
            z.mul_(slope)
        if options.scale != 1.0:
            z.mul_(options.scale)
    if target.counted is not None:
        loss.masked_fill_(~target.counted, 0)
        if upstream is not None:
            z.masked_fill_(~target.counted[:, None], 0)
    return loss


def cap_(z: Tensor, options: RowOptions, with_slope: bool = False) -> Tensor | None:
    """Scale and cap z in place. Return the cap's derivative (r, V) with `with_slope`, or None if it is 1."""
    if options.scale != 1.0:
        z.mul_(options.scale)
    if options.softcap is None:
        return None
    z.div_(options.softcap).tanh_()
    slope = z.square().neg_().add_(1) if with_slope else None
    z.mul_(options.softcap)
    return slope


def weigh(z: Tensor, target: TargetRows, options: RowOptions, piece: Piece) -> Weighed:
    """Compute q and its sums from z, from which the piece's largest logit is already subtracted."""
    eps, c = options.label_smoothing, options.class_weight
    share = eps / piece.vocab_size
    if c is not None:
        c = c[piece.first : piece.first + z.shape[-1]]
    if target.classes is None:
        q = target.probability.to(z.dtype) * (1 - eps) + share
        if c is not None:
            q.mul_(c)
        return Weighed(q, q.sum(-1), _dot(q, z))
    q, classes = target.probability.to(z.dtype) * (1 - eps), target.classes
    if z.shape[-1] < piece.vocab_size:
        classes = classes - piece.first
        outside = (classes < 0) | (classes >= z.shape[-1])
        q, classes = q.masked_fill(outside, 0), classes.masked_fill_(outside, 0)
    if c is not None:
        q = q * c[classes]
    mass, dot = q.sum(-1), _dot(q, z.gather(-1, classes))
    if eps:
        mass = mass + share * (z.shape[-1] if c is None else c.sum())
        dot = dot + share * (z.sum(-1) if c is None else _dot(c, z))
    return Weighed(q, mass, dot)


def _dot(q: Tensor, z: Tensor) -> Tensor:
    """Return the sum of q * z over the last dimension; terms with q = 0 are 0, even if z is -inf."""
    return (q * z).masked_fill_(q == 0, 0).sum(-1)


def subtract_target_(dz: Tensor, target: TargetRows, q: Tensor, options: RowOptions, upstream: Tensor) -> None:
    """Compute dz -= upstream * q, including the smoothing."""
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


def target_gradient(z: Tensor, classes: Tensor | None, options: RowOptions, upstream: Tensor) -> Tensor:
    """Return upstream (r,) * d(loss)/d(probability) for classes (r, K), or for all V, from raw logits z (unchanged)."""
    z = z.to(upstream.dtype, copy=True)
    cap_(z, options)
    z.sub_(z.amax(-1, keepdim=True))
    log_s = z.exp().sum(-1, keepdim=True).log()
    factor = (upstream * (1 - options.label_smoothing))[:, None]
    if options.class_weight is not None:
        factor = factor * (options.class_weight if classes is None else options.class_weight[classes])
    surprise = (z if classes is None else z.gather(-1, classes)).neg_().add_(log_s)
    return surprise.mul_(factor).masked_fill_(factor == 0, 0)


def loss_piece(z: Tensor, piece: Piece, target: TargetRows, options: RowOptions) -> LossPart:
    """Return what a piece of r rows adds to their loss; a dense target has the piece's probabilities (r, v)."""
    cap_(z, options)
    top = z.amax(-1)
    z.sub_(base_of(top)[:, None])
    weighed = weigh(z, target, options, piece)
    below = None if target.entropy is None else z.clamp(min=UNDERFLOW)
    sums = [top, z.exp_().sum(-1), weighed.dot, weighed.mass]
    if below is not None:
        sums.append(below.mul_(z).sum(-1))
    dtype = widest_dtype(z.device)
    return LossPart(*(x.to(dtype) for x in sums))


def stats_piece(
    z: Tensor, piece: Piece, index: Tensor, target_logit: Tensor, options: RowOptions, best: Best, beta: Sequence[float]
) -> StatsPart:
    """Return what a piece of r rows adds to their statistics; update `best`. index and target_logit are (r,)."""
    cap_(z, options)
    target_z = target_logit.clone()
    cap_(target_z, options)
    inside = (index >= piece.first) & (index < piece.first + z.shape[-1])
    at = (index - piece.first).clamp_(0, z.shape[-1] - 1)[:, None]
    z.scatter_(-1, at, z.gather(-1, at).masked_fill_(inside[:, None], -INF))
    above = (z > target_z[:, None]).sum(-1)
    _keep_best(z, piece, index, best)
    top, argmax = z.max(-1, keepdim=True)
    second = z.scatter_(-1, argmax, -INF).amax(-1)
    base = base_of(top)
    z.scatter_(-1, argmax, top).sub_(base)
    tempered = [(z * b).exp_().sum(-1) for b in beta]
    e, dtype = z.exp(), widest_dtype(z.device)
    return StatsPart(
        target_z.to(dtype),
        top[:, 0].to(dtype),
        second.to(dtype),
        exp=e.sum(-1).to(dtype),
        surprise=z.clamp_(min=UNDERFLOW).mul_(e).sum(-1).to(dtype),
        square=e.square_().sum(-1).to(dtype),
        tempered=torch.stack(tempered).to(dtype) if tempered else top.new_empty(0, len(z), dtype=dtype),
        above=above,
        argmax=argmax[:, 0] + piece.first,
    )


def _keep_best(z: Tensor, piece: Piece, index: Tensor, best: Best) -> None:
    if best.z.shape[-1]:
        top = z.topk(min(best.z.shape[-1], z.shape[-1]), -1)
        ids = top.indices + piece.first
        kept = best.with_others(top.values.to(best.z.dtype), ids.masked_fill_(ids == index[:, None], -1))
        best.z.copy_(kept.z)
        best.ids.copy_(kept.ids)


def column_sums(dlogits: Tensor, weight: Tensor | None, along: Tensor | None) -> ColumnSums:
    """Sum over the rows of d(logits) (r, V), some rows at a time."""
    (n_rows, vocab_size), dtype = dlogits.shape, accumulation_dtype(dlogits.dtype)
    squares = dlogits.new_zeros(vocab_size, dtype=dtype)
    weighed, projected = dlogits.new_zeros(2, 0 if along is None else vocab_size, dtype=dtype)
    n_block = max(1, SUMMED_BYTES // (vocab_size * dtype.itemsize))
    for start in range(0, n_rows, n_block):
        at = slice(start, start + n_block)
        d = dlogits[at].to(dtype)
        if along is not None:
            projected.addmv_(d.t(), along[at])
        d = d.square()
        squares += d.sum(0)
        if weight is not None:
            weighed.addmv_(d.t(), weight[at])
    return ColumnSums(squares, weighed, projected)


def take_columns(dlogits: Tensor, ids: Tensor, factor: Tensor) -> Tensor:
    """Return the columns `ids` (K,) of d(logits) (r, V), each times its factor (K,), as a matrix (r, K)."""
    return (dlogits[:, ids] * factor).to(dlogits.dtype)


def row_squares(weight: Tensor) -> Tensor:
    """Return the squared norms (V,) of the rows of a weight (V, D)."""
    norms: Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=accumulation_dtype(weight.dtype))
    return norms.square_()


class TorchRows:
    """The functions of this file as a backend."""

    name, priority, in_place = "torch", 0, False
    about = "torch operations run on any device and in any float dtype"
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
    loss_rows = staticmethod(loss_rows)
    loss_piece = staticmethod(loss_piece)
    stats_piece = staticmethod(stats_piece)
    column_sums = staticmethod(column_sums)
    take_columns = staticmethod(take_columns)
    row_squares = staticmethod(row_squares)

    def unavailable(self, device: torch.device) -> str | None:
        """Return None: it runs on every device."""
        return None

    def sizes(self, device: torch.device) -> Sizes:
        """Return the numbers of rows of logits that suit it on this device."""
        return ON_DEVICE if is_asynchronous(device) else Sizes()


register(TorchRows())
