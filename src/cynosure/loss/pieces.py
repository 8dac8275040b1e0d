"""Partial sums over pieces of the vocabulary, and how they merge into a row's loss or statistics.

r rows, P pieces. All sums are float64 (float32 on a device without it), and relative to the `base` of their piece: its
largest logit, or 0 if that is minus infinity.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cynosure.loss.devices import widest_dtype

INF = float("inf")


class Piece(NamedTuple):
    """The classes from `first` on, out of `vocab_size`."""

    first: int
    vocab_size: int


class LossPart(NamedTuple):
    """The contribution of one piece to the loss of r rows. q is its part of the target; z are the final logits."""

    top: Tensor  # (r,) largest z
    exp: Tensor  # (r,) sum of e = exp(z - base)
    dot: Tensor  # (r,) sum of q (z - base), where terms with q = 0 are 0
    mass: Tensor  # (r,) sum of q
    surprise: Tensor | None = None  # (r,) sum of (z - base) e, if the target asks for the entropy

    def loss(self, k: Tensor, z_loss: float) -> Tensor:
        """Return the loss (r,) of each row. This part must be merged from all pieces."""
        log_s = self.exp.log()
        loss = self.mass * log_s - self.dot + k * z_loss * (self.top + log_s).square()
        return loss.masked_fill_(~self.top.isfinite(), torch.nan)  # the loss of an infinite or NaN row is NaN


class StatsPart(NamedTuple):
    """The contribution of one piece to the statistics of r rows, from all its logits except the target's."""

    target_z: Tensor  # (r,) the target's z, the same in every piece
    top: Tensor  # (r,) largest z; NaN if any is
    second: Tensor  # (r,) second largest z
    exp: Tensor  # (r,) sum of e = exp(z - base)
    square: Tensor  # (r,) sum of e^2
    surprise: Tensor  # (r,) sum of (z - base) e
    tempered: Tensor  # (B, r) sums of exp(beta (z - base))
    above: Tensor  # (r,) int64: number of z strictly above the target's
    argmax: Tensor  # (r,) int64: first class with the largest z


class Best(NamedTuple):
    """The likeliest classes so far, in no order: z (r, k) in the dtype of sums and ids (r, k), padded with id -1."""

    z: Tensor
    ids: Tensor

    @classmethod
    def none(cls, n_rows: int, topk: int, device: torch.device) -> "Best":
        """Return the record of rows before their first piece."""
        z = torch.full((n_rows, topk), -INF, dtype=widest_dtype(device), device=device)
        return cls(z, torch.full((n_rows, topk), -1, device=device))

    def rows(self, start: int, stop: int) -> "Best":
        """Return views of rows start to stop."""
        return Best(self.z[start:stop], self.ids[start:stop])

    def with_others(self, z: Tensor, ids: Tensor) -> "Best":
        """Return the k likeliest of these and others, likeliest first; on ties, the lower id first."""
        topk, last = self.z.shape[-1], torch.iinfo(torch.int64).max
        ids = torch.cat([self.ids, ids], -1)
        ids, order = ids.masked_fill_(ids < 0, last).sort(-1)
        z, by_z = torch.cat([self.z, z], -1).gather(-1, order).sort(stable=True, dim=-1, descending=True)
        ids = ids.gather(-1, by_z)
        return Best(z[:, :topk], ids.masked_fill_(ids == last, -1)[:, :topk])


def base_of(top: Tensor) -> Tensor:
    """Return the base that is subtracted from the logits of each row, given their largest."""
    return top.masked_fill(top == -INF, 0)


def scaled(total: Tensor, shift: Tensor) -> Tensor:
    """Return total * exp(shift); 0 stays 0 for any shift."""
    return total * shift.masked_fill(total == 0, 0).exp()


def surprise_moved(surprise: Tensor, exp: Tensor, shift: Tensor) -> Tensor:
    """Return the sum of (z - base) e for a base that is -shift higher; impossible classes add 0."""
    return scaled(surprise + (shift * exp).masked_fill_(exp == 0, 0), shift)


def put_together(parts: list[LossPart]) -> LossPart:
    """Merge several parts into one."""
    if len(parts) == 1:
        return parts[0]
    top, exp, dot, mass = (torch.stack(field) for field in zip(*(part[:4] for part in parts), strict=True))
    largest = top.amax(0)
    shift = base_of(top) - base_of(largest)
    surprises = [part.surprise for part in parts if part.surprise is not None]
    surprise = surprise_moved(torch.stack(surprises), exp, shift).sum(0) if surprises else None
    return LossPart(largest, scaled(exp, shift).sum(0), (dot + mass * shift).sum(0), mass.sum(0), surprise)


def put_stats_together(parts: list[StatsPart], beta: Sequence[float]) -> StatsPart:
    """Merge several parts, in the order of their classes, into one."""
    if len(parts) == 1:
        return parts[0]
    all_parts = StatsPart(*(torch.stack(field) for field in zip(*parts, strict=True)))
    largest, first = all_parts.top.amax(0), all_parts.top.argmax(0, keepdim=True)
    shift = base_of(all_parts.top) - base_of(largest)
    tempered = [scaled(x, b * shift).sum(0) for x, b in zip(all_parts.tempered.unbind(1), beta, strict=True)]
    return StatsPart(
        target_z=parts[0].target_z,
        top=largest,
        second=torch.maximum(all_parts.top.scatter(0, first, -INF).amax(0), all_parts.second.amax(0)),
        exp=scaled(all_parts.exp, shift).sum(0),
        square=scaled(all_parts.square, 2 * shift).sum(0),
        surprise=surprise_moved(all_parts.surprise, all_parts.exp, shift).sum(0),
        tempered=torch.stack(tempered) if tempered else parts[0].tempered,
        above=all_parts.above.sum(0),
        argmax=all_parts.argmax.gather(0, first)[0],
    )


class RowStats(NamedTuple):
    """Statistics of r rows; fields as in `TokenStats`."""

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
    nll_at_temperature: Tensor  # (r, B)
    correct: Tensor


def row_stats(others: StatsPart, target: Tensor, best: Best, beta: Sequence[float]) -> RowStats:
    """All statistics of r rows with targets (r,), from the merged sums of all other classes.

    1 - p is computed as the probability of the other classes, not as a difference. So it stays exact if p is near 1.
    """
    z = others.target_z
    top = torch.maximum(others.top, z)
    gap, shift = z - top, base_of(others.top) - top
    e, exp = gap.exp(), scaled(others.exp, shift)
    s = exp + e
    log_s = s.log()
    surprise = surprise_moved(others.surprise, others.exp, shift) + (gap * e).masked_fill_(e == 0, 0)
    first = (z > others.top) | z.isnan() & ~others.top.isnan()
    equal = (z == others.top) | z.isnan() & others.top.isnan()
    argmax = torch.where(equal, torch.minimum(target, others.argmax), torch.where(first, target, others.argmax))
    second = torch.minimum(z, others.top).maximum(others.second)
    tempered = [scaled(x, b * shift) + (b * gap).exp() for x, b in zip(others.tempered, beta, strict=True)]
    nll_at = [x.log() - b * gap for x, b in zip(tempered, beta, strict=True)]
    best = best.with_others(z[:, None], target[:, None])
    nll = torch.where(gap == 0, exp.log1p(), log_s - gap)
    return RowStats(
        nll=nll,
        lse=top + log_s,
        entropy=log_s - surprise / s,
        rank=1 + others.above,
        argmax=argmax,
        confidence=1 / s,
        margin=-(second - top).expm1() / s,
        brier=(exp / s).square() + scaled(others.square, 2 * shift) / s.square(),
        top_ids=best.ids,
        top_logprobs=best.z - top[:, None] - log_s[:, None],
        nll_at_temperature=torch.stack(nll_at, -1) if nll_at else nll.new_empty(len(nll), 0),
        correct=(argmax == target).to(nll.dtype).masked_fill_(nll.isnan(), torch.nan),
    )
