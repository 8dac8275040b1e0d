"""The stored top-k log-probabilities of a teacher: their checks, and the outcomes that they stand for.

n counted tokens, K classes of each
"""

import torch
from torch import Tensor

from cynosure.loss.batch import CountedBatch, rows_between
from cynosure.loss.devices import is_asynchronous
from cynosure.loss.divergence.options import Tail
from cynosure.loss.jobs import check_floating
from cynosure.loss.targets import check_tensor, take_rows

LN_2 = 0.6931471805599453
IGNORED = -100


def check_stored(ids: Tensor, logprobs: Tensor, lead: torch.Size, vocab_size: int, device: torch.device) -> None:
    """Check shapes, dtypes and devices of ids and logprobs (..., K)."""
    check_tensor("ids", ids, device)
    check_tensor("logprobs", logprobs, device)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"ids must be class indices (an integer tensor), got a tensor of {ids.dtype}")
    check_floating("logprobs", logprobs)
    if ids.ndim != len(lead) + 1 or ids.shape[:-1] != lead or not 1 <= ids.shape[-1] <= vocab_size:
        shape = ", ".join(map(str, (*lead, "K")))
        raise ValueError(
            f"ids must have shape ({shape}), the leading shape of student_hidden and K from 1 to {vocab_size}, the "
            f"vocabulary, got {tuple(ids.shape)}"
        )
    if logprobs.shape != ids.shape:
        raise ValueError(f"logprobs must have the shape of ids, {tuple(ids.shape)}, got {tuple(logprobs.shape)}")


def stored_ids(ids: Tensor, logprobs: Tensor, batch: CountedBatch, vocab_size: int) -> Tensor:
    """Return the ids (..., K), IGNORED in the rows that do not count. The values of both are checked on a CPU."""
    if batch.target.is_abstract:
        return ids.new_empty(ids.shape, dtype=torch.long)
    at = rows_between(batch.inputs, 0, batch.n_rows)
    classes = take_rows(ids, at).long()
    if not is_asynchronous(ids.device):
        _check_ids(classes, vocab_size, ids, batch)
        _check_logprobs(take_rows(logprobs, at).detach(), logprobs, batch)
    if batch.counted is not None:
        classes = classes.masked_fill(~batch.counted[:, None], IGNORED)
    if batch.inputs is not None:
        whole = classes.new_full((ids.shape[:-1].numel(), ids.shape[-1]), IGNORED)
        classes = whole.index_copy(0, batch.inputs, classes)
    return classes.view(ids.shape)


def _check_ids(classes: Tensor, vocab_size: int, ids: Tensor, batch: CountedBatch) -> None:
    bad = (classes < 0) | (classes >= vocab_size)
    if bool(bad.any()):
        i, k = bad.nonzero()[0].tolist()
        raise IndexError(
            f"{_name('ids', i, ids, batch, k)} is {int(classes[i, k])}, but it must be in [0, {vocab_size}), the "
            "vocabulary"
        )
    ordered = classes.sort(-1).values
    twice = ordered[:, 1:] == ordered[:, :-1]
    if bool(twice.any()):
        i, k = twice.nonzero()[0].tolist()
        raise ValueError(
            f"{_name('ids', i, ids, batch)} has the class {int(ordered[i, k])} twice, but the ids of a position "
            "must be distinct"
        )


def _check_logprobs(rows: Tensor, logprobs: Tensor, batch: CountedBatch) -> None:
    eps = torch.finfo(rows.dtype).eps
    bad = ~(rows <= max(1e-4, 4 * eps))  # NaN is neither
    if bool(bad.any()):
        i, k = bad.nonzero()[0].tolist()
        value = rows[i, k].item()
        likely = ": pass logprobs.log() of probabilities" if 0 < value <= 1 else ": pass log_softmax(-1) of logits"
        raise ValueError(
            f"{_name('logprobs', i, logprobs, batch, k)} is {value:.6g}, but log-probabilities are at most "
            f"0{likely if value == value else ''}"
        )
    total = rows.to(torch.promote_types(rows.dtype, torch.float32)).exp().sum(-1)
    over = total > 1 + max(1e-3, 8 * eps)
    if bool(over.any()):
        i = int(over.nonzero()[0, 0])
        raise ValueError(
            f"{_name('logprobs', i, logprobs, batch)} has probabilities that add up to {total[i].item():.6g}, but "
            "those of distinct classes add up to at most 1: pass the log-softmax over the whole vocabulary"
        )


def _name(name: str, row: int, x: Tensor, batch: CountedBatch, *column: int) -> str:
    """Return the name of a counted row of x (..., K), or of its entry in a column."""
    flat = torch.tensor(row) if batch.inputs is None else batch.inputs[row]
    lead = torch.unravel_index(flat, x.shape[:-1]) if x.ndim > 1 else ()
    place = ", ".join(map(str, (*map(int, lead), *column)))
    return f"{name}[{place}]" if place else name


def outcomes(teacher: Tensor, student: Tensor, tail: Tail, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of the outcomes that are compared, from those of the K classes (n, K) of each.

    These are the K classes alone, renormalized, or also one bucket of all other classes, if there are any.
    """
    if tail == "renormalize":
        return teacher.log_softmax(-1), student.log_softmax(-1)
    n_classes = teacher.shape[-1]
    if n_classes == vocab_size:
        return teacher, student
    # The rest of several classes is only as exact as their sum. That of one is exact, since nll is near p = 1.
    rest = log_rest(student, torch.finfo(torch.float64 if n_classes == 1 else student.dtype).eps)
    total = teacher.logsumexp(-1, keepdim=True)
    nothing = total >= 0  # by rounding, or because the teacher has no rest
    teacher_rest = log_rest(teacher, torch.finfo(teacher.dtype).tiny).masked_fill(nothing, -torch.inf)
    return torch.cat([teacher, teacher_rest], -1), torch.cat([student, rest], -1)


def log_rest(logprobs: Tensor, least: float) -> Tensor:
    """Return log(1 - sum of p) (n, 1) of log-probabilities (n, K), where the sum is at most 1 - `least`."""
    total = logprobs.logsumexp(-1, keepdim=True).clamp(max=-least)
    near = total > -LN_2  # 1 - e^x without cancellation, on either side
    of_near = torch.where(near, total, -LN_2).expm1().neg().log()
    of_far = torch.where(near, -LN_2, total).exp().neg().log1p()
    return torch.where(near, of_near, of_far)


def kl_of(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) (n,) of outcomes (n, C); where p is 0 the term is 0, whatever q."""
    p = log_p.exp()
    return (p * (log_p - log_q).masked_fill(p == 0, 0)).sum(-1)
