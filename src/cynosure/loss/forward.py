"""The driver without gradients: logits in pieces of the vocabulary, processed while they are in the cache.

It takes one GEMM, and never holds a whole row of logits. n counted tokens, R rows and C columns of logits at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from cynosure.loss.backends.registry import Backend
from cynosure.loss.batch import CountedBatch, rows_between
from cynosure.loss.chunked import LossJob, given_rows, on_blocks
from cynosure.loss.devices import autocast_to
from cynosure.loss.linear import HeadWeights, OwnHead, capped
from cynosure.loss.matmul.choice import choose_gemm
from cynosure.loss.options import RowOptions, accumulation_dtype
from cynosure.loss.pieces import Best, LossPart, Piece, RowStats, StatsPart, put_stats_together, put_together, row_stats
from cynosure.loss.sizes import Sizes
from cynosure.loss.targets import TargetRows

MANY = 8  # parts merged at a time: few enough that torch uses one thread, which does not disturb the matmuls' threads
TARGETS = 64  # rows whose target logits are computed at a time

Part = TypeVar("Part", LossPart, StatsPart)


class RowChunk(NamedTuple):
    """Counted rows start to stop, and the tensors from which their logits are computed."""

    start: int
    stop: int
    hidden: Tensor  # (r, D)
    head: HeadWeights | OwnHead
    buffer: Tensor
    columns: int
    provider: str
    sizes: Sizes

    def pieces(self) -> Iterator[tuple[Piece, Tensor]]:
        """Yield each piece of the vocabulary with its logits (r, C), which are valid until the next piece."""
        n_rows, vocab_size = len(self.hidden), self.head.shape[0]
        for first in range(0, vocab_size, self.columns):
            columns = slice(first, first + self.columns)
            head = self.head if isinstance(self.head, OwnHead) else self.head.classes(columns)
            stride = self.sizes.row_stride(head.shape[0], self.buffer.dtype)
            out = self.buffer[: n_rows * stride].view(n_rows, stride)[:, : head.shape[0]]
            yield Piece(first, vocab_size), head.linear(self.hidden, out, self.provider)

    def target_logits(self, index: Tensor) -> Tensor:
        """Compute the logits (r,) of these classes with the same matmuls as all others, so that ties stay ties."""
        assert isinstance(self.head, HeadWeights)  # an OwnHead has one piece, the whole vocabulary
        head, parts = self.head.classes(index), []
        for start in range(0, len(index), TARGETS):  # only matmuls in this loop: two thread pools would compete
            hidden, targets = self.hidden[start : start + TARGETS], head.classes(slice(start, start + TARGETS))
            parts.append(targets.linear(hidden, hidden.new_empty(len(hidden), len(hidden)), self.provider))
        return torch.cat([x.diagonal() for x in parts])


def rows_of(
    hidden: Tensor, head: HeadWeights | OwnHead, batch: CountedBatch, backend: Backend, chunk_tokens: int | None
) -> Iterator[RowChunk]:
    """Yield the counted rows, R at a time; they share one buffer."""
    (vocab_size, hidden_size), n_rows, sizes = head.shape, batch.n_rows, backend.sizes(hidden.device)
    if isinstance(head, OwnHead):
        n_chunk, columns = sizes.chunk_rows(n_rows, vocab_size, hidden.dtype, chunk_tokens), vocab_size
    else:
        n_chunk, columns = sizes.piece(n_rows, vocab_size, hidden.dtype, chunk_tokens)
    provider = choose_gemm(2.0 * n_chunk * hidden_size * vocab_size, hidden.dtype, hidden.device).provider
    buffer = hidden.new_empty(n_chunk * sizes.row_stride(columns, hidden.dtype) if n_rows else 0)
    for start in range(0, n_rows, n_chunk):
        stop = min(start + n_chunk, n_rows)
        chunk = batch.masked(hidden[rows_between(batch.inputs, start, stop)], start)
        yield RowChunk(start, stop, chunk, head, buffer, columns, provider, sizes)


def on_piece(backend: Backend, logits: Tensor, kernel: Callable[[Tensor, int, int], Part]) -> Part:
    """Run the kernel on each block (z, start, stop) of these rows (r, C), and join the results."""
    parts: list[Part] = []
    on_blocks(backend, logits, lambda z, start, stop: parts.append(kernel(z, start, stop)))
    if len(parts) == 1:
        return parts[0]
    return type(parts[0])(*map(_joined, zip(*parts, strict=True)))


def _joined(field: tuple[Any, ...]) -> Any:
    return None if field[0] is None else torch.cat(field, -1)


def compute_loss(job: LossJob, hidden: Tensor, head: HeadWeights | OwnHead) -> Tensor:
    """Compute the loss (n,) of every counted row with one GEMM."""
    batch = job.batch
    with torch.no_grad(), autocast_to(hidden.device, None):
        hidden, head = hidden.to(job.dtype), head.to(job.dtype)
        loss = torch.empty(batch.n_rows, dtype=accumulation_dtype(job.dtype), device=hidden.device)
        for rows in rows_of(hidden, head, batch, job.backend, job.chunk_tokens):
            parts: list[LossPart] = []
            for piece, logits in rows.pieces():
                parts.append(on_piece(job.backend, logits, _loss_kernel(job, rows.start, piece, logits.shape[-1])))
                parts = [put_together(parts)] if len(parts) == MANY else parts
            k = batch.k[rows.start : rows.stop]
            loss[rows.start : rows.stop] = put_together(parts).loss(k, job.options.z_loss)
    return loss if batch.counted is None else loss.masked_fill_(~batch.counted, 0)


def _loss_kernel(job: LossJob, offset: int, piece: Piece, n_columns: int) -> Callable[[Tensor, int, int], LossPart]:
    batch, columns = job.batch, slice(piece.first, piece.first + n_columns)

    def kernel(z: Tensor, start: int, stop: int) -> LossPart:
        start, stop = start + offset, stop + offset
        at, counted = rows_between(batch.targets, start, stop), batch.counted_rows(start, stop)
        target = batch.target.rows(at, batch.k[start:stop], columns, counted)
        return job.backend.loss_piece(z, piece, target, job.options)

    return kernel


class RowLogprobs(NamedTuple):
    """The log-probabilities of each row's given ids, and its entropy."""

    logprobs: Tensor  # (n, K)
    entropy: Tensor  # (n,); empty if it is not wanted

    @classmethod
    def of(cls, job: LossJob, entropy: bool) -> "RowLogprobs":
        """Return the record of all counted rows, to be filled."""
        n_rows, new = job.batch.n_rows, job.batch.k.new_empty
        return cls(new(n_rows, job.batch.classes(0, 0).shape[-1]), new(n_rows if entropy else 0))

    def put(self, start: int, part: LossPart, logits: Tensor, options: RowOptions) -> None:
        """Store the rows from `start` on, from their merged sums and the raw logits (r, K) of their ids."""
        stop, top = start + len(logits), part.top[:, None]
        log_s = part.exp.log().masked_fill_(~part.top.isfinite(), torch.nan)
        z = capped(logits.to(accumulation_dtype(logits.dtype)), options.scale, options.softcap).to(top.dtype)
        self.logprobs[start:stop] = torch.minimum(z, top) - top - log_s[:, None]  # a kernel's tanh may round otherwise
        if part.surprise is not None:
            self.entropy[start:stop] = log_s - part.surprise / part.exp


def compute_logprobs(job: LossJob, hidden: Tensor, head: HeadWeights | OwnHead, entropy: bool) -> RowLogprobs:
    """Compute the log-probabilities of the given ids of every counted row, and its entropy, with one GEMM."""
    found = RowLogprobs.of(job, entropy)
    with torch.no_grad(), autocast_to(hidden.device, None):
        hidden, head = hidden.to(job.dtype), head.to(job.dtype)
        for rows in rows_of(hidden, head, job.batch, job.backend, job.chunk_tokens):
            ids = job.batch.classes(rows.start, rows.stop)
            of_ids, parts = hidden.new_zeros(ids.shape), list[LossPart]()
            for piece, logits in rows.pieces():
                of_ids = _with_logits(of_ids, logits, ids - piece.first)
                kernel = _sums_kernel(job, rows.start, piece, entropy)
                parts.append(on_piece(job.backend, logits, kernel))
                parts = [put_together(parts)] if len(parts) == MANY else parts
            found.put(rows.start, put_together(parts), of_ids, job.options)
    return found


def logits_logprobs(job: LossJob, logits: Tensor, entropy: bool) -> RowLogprobs:
    """Compute the same from given logits (..., V)."""
    found, piece = RowLogprobs.of(job, entropy), Piece(0, logits.shape[-1])
    with torch.no_grad():
        for start, stop, z, _ in given_rows(job.backend, logits, job.batch.inputs, job.batch.n_rows):
            of_ids = z.gather(-1, job.batch.classes(start, stop))
            found.put(start, _sums_kernel(job, 0, piece, entropy)(z, start, stop), of_ids, job.options)
    return found


def _with_logits(of_ids: Tensor, logits: Tensor, at: Tensor) -> Tensor:
    """Return of_ids (r, K) with the logits that a piece (r, C) has at these columns (r, K)."""
    n_columns = logits.shape[-1]
    inside = (at >= 0) & (at < n_columns)
    return torch.where(inside, logits.gather(-1, at.clamp(0, n_columns - 1)), of_ids)


def _sums_kernel(job: LossJob, offset: int, piece: Piece, entropy: bool) -> Callable[[Tensor, int, int], LossPart]:
    """The kernel that sums a piece's exponentials, with the first id as its target: the others read no sum of it."""
    batch = job.batch

    def kernel(z: Tensor, start: int, stop: int) -> LossPart:
        start, stop = start + offset, stop + offset
        first, k, counted = batch.classes(start, stop)[:, :1], batch.k[start:stop], batch.counted_rows(start, stop)
        target = TargetRows(first, torch.ones_like(k)[:, None], k, counted, k if entropy else None)
        return job.backend.loss_piece(z, piece, target, job.options)

    return kernel


def logits_stats(
    z: Tensor, index: Tensor, backend: Backend, options: RowOptions, topk: int, beta: Sequence[float]
) -> RowStats:
    """Compute all statistics of r rows of logits z (r, V) for their targets (r,). Overwrites z; beta as below."""
    best, piece = Best.none(len(z), topk, z.device), Piece(0, z.shape[-1])
    target = z.gather(-1, index[:, None])[:, 0]
    return row_stats(backend.stats_piece(z, piece, index, target, options, best, beta), index, best, beta)


def compute_stats(
    rows: RowChunk, index: Tensor, backend: Backend, options: RowOptions, topk: int, beta: Sequence[float]
) -> RowStats:
    """Compute all statistics of these rows for their targets (r,), at ascending inverse temperatures beta (B,)."""
    best = Best.none(len(index), topk, index.device)
    parts: list[StatsPart] = []
    target: Tensor | None = None
    for piece, logits in rows.pieces():
        if target is None:
            whole = logits.shape[-1] == piece.vocab_size
            target = logits.gather(-1, index[:, None])[:, 0] if whole else rows.target_logits(index)

        def kernel(z: Tensor, start: int, stop: int, piece: Piece = piece, target: Tensor = target) -> StatsPart:
            at = slice(start, stop)
            return backend.stats_piece(
                z, piece, index[at], target[at].to(z.dtype), options, best.rows(start, stop), beta
            )

        parts.append(on_piece(backend, logits, kernel))
        parts = [put_stats_together(parts, beta)] if len(parts) == MANY else parts
    return row_stats(put_stats_together(parts, beta), index, best, beta)
