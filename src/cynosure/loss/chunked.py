"""The driver: chunks of hidden rows -> logits buffer -> row kernel -> gradient GEMMs.

N tokens, n of them counted, D hidden size, V vocabulary, R chunk rows
hidden (N, D)  weight (V, D)  bias (V,)  buffer (R, V)  loss, upstream (n,)
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cynosure.loss.backends.registry import Backend
from cynosure.loss.backends.torch_rows import target_gradient
from cynosure.loss.batch import CountedBatch, rows_between
from cynosure.loss.devices import autocast_to, is_asynchronous
from cynosure.loss.linear import HeadWeights, OwnHead, matmul
from cynosure.loss.matmul.choice import choose_gemm
from cynosure.loss.matmul.weight_sum import WeightSum
from cynosure.loss.options import RowOptions, accumulation_dtype
from cynosure.loss.sampling.options import Sampling
from cynosure.loss.sampling.sampler import Sampler, mean_hidden, spared_rows
from cynosure.loss.targets import Target, take_rows


class LossJob(NamedTuple):
    """Everything constant about one call."""

    batch: CountedBatch
    options: RowOptions
    backend: Backend
    dtype: torch.dtype  # of the matmuls: autocast's, else the inputs'
    dweight_dtype: torch.dtype  # the weight's own
    chunk_tokens: int | None
    own_weight: Tensor | None = None  # a weight with its own matmul: a constant, hidden from autograd
    sampling: Sampling | None = None  # None: the exact backward

    def head(self, weight: Tensor | None, bias: Tensor | None) -> HeadWeights | OwnHead:
        """Return the head with this weight, or with `own_weight` if there is one."""
        if self.own_weight is not None:
            return OwnHead(self.own_weight, bias)
        assert weight is not None
        return HeadWeights(weight, bias)


class Chunk(NamedTuple):
    """Counted rows start to stop, their hidden states and a buffer with their logits."""

    start: int
    stop: int
    hidden: Tensor  # (r, D)
    logits: Tensor  # (r, V)


class Wanted(NamedTuple):
    """The gradients that must be computed."""

    dhidden: bool
    dweight: bool
    dbias: bool
    dtarget: bool  # of the target's probabilities

    @property
    def dlogits(self) -> bool:
        """Whether the gradient of the logits is needed on the way."""
        return self.dhidden or self.dweight or self.dbias


def logits_chunks(
    job: LossJob, hidden: Tensor, head: HeadWeights | OwnHead, summed_columns: int = 0, spared: int = 0
) -> Iterator[Chunk]:
    """Yield the logits of the n counted rows, R at a time, in one reused buffer: one GEMM in all."""
    vocab_size, rows, n_rows = head.shape[0], job.batch.inputs, job.batch.n_rows
    sizes = job.backend.sizes(hidden.device)
    n_chunk = sizes.chunk_rows(n_rows, vocab_size, hidden.dtype, job.chunk_tokens, summed_columns, spared)
    shape = n_chunk if n_rows else 0, sizes.row_stride(vocab_size, hidden.dtype)
    buffer = hidden.new_empty(shape)[:, :vocab_size]
    for start in range(0, n_rows, n_chunk):
        stop = min(start + n_chunk, n_rows)
        h = job.batch.masked(hidden[rows_between(rows, start, stop)], start)
        yield Chunk(start, stop, h, head.linear(h, buffer[: stop - start]))


def on_blocks(
    backend: Backend, logits: Tensor, kernel: Callable[[Tensor, int, int], None], write_back: bool = False
) -> None:
    """Run the kernel on each block (z, start, stop) of logits (r, V), which it may overwrite.

    If the backend does not read the dtype, each block is copied to a scratch block in the accumulation dtype.
    """
    direct = logits.dtype in backend.dtypes
    for start, stop in blocks(backend, logits, len(logits)):
        block = logits[start:stop]
        z = block if direct else block.to(accumulation_dtype(logits.dtype))
        kernel(z, start, stop)
        if write_back and not direct:
            block.copy_(z)


def blocks(backend: Backend, logits: Tensor, n_rows: int, copied: bool = False) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of each block that a row kernel processes at once; smaller if blocks are copied for it."""
    copied = copied or logits.dtype not in backend.dtypes
    n_block = backend.sizes(logits.device).block_rows(n_rows, logits.shape[-1], logits.dtype, copied)
    for start in range(0, n_rows, n_block):
        yield start, min(start + n_block, n_rows)


class Gradients:
    """dhidden (N, D), dweight (V, D), dbias (V,) and dtarget, summed chunk by chunk and scaled by `1 / unit`.

    dW of half-precision inputs is summed in float32. Adding the last chunk also narrows it to the weight's dtype, which
    saves a pass over dW. A single chunk needs no accumulator.
    """

    def __init__(
        self, hidden: Tensor, head: HeadWeights | OwnHead, job: LossJob, wanted: Wanted, unit: float | Tensor
    ) -> None:
        self.unit, self.job = unit, job
        dtype = accumulation_dtype(job.dtype)
        new = torch.zeros_like if job.batch.inputs is not None else torch.empty_like
        self.dhidden = new(hidden, memory_format=torch.contiguous_format) if wanted.dhidden else None
        self.dweight: Tensor | None = None
        self.sum_dweight: WeightSum | None = None
        if wanted.dweight:
            make = torch.empty if job.batch.n_rows else torch.zeros
            self.dweight = make(head.shape, dtype=job.dweight_dtype, device=hidden.device)
        self.dbias = torch.zeros(head.shape[0], dtype=dtype, device=hidden.device) if wanted.dbias else None
        self.dtarget = new_dtarget(job.batch) if wanted.dtarget else None
        self.sampler = self.new_sampler(hidden, head, wanted)

    def new_sampler(self, hidden: Tensor, head: HeadWeights | OwnHead, wanted: Wanted) -> Sampler | None:
        """Return what samples dhidden and dweight; None for the exact gradients."""
        sampling, batch = self.job.sampling, self.job.batch
        if sampling is None or not batch.n_rows or not (wanted.dhidden or wanted.dweight):
            return None
        values = head.weight if isinstance(head, HeadWeights) else head.values
        if values is None:
            return None
        mean = mean_hidden(hidden, batch.inputs)
        return Sampler(sampling, self.job.backend, values if wanted.dhidden else None, self.dweight, mean)

    @property
    def summed_columns(self) -> int:
        """D if dW needs an accumulator for more than one chunk, and only then, else 0."""
        if self.dweight is None or self.sampler is not None or self.dweight.dtype == accumulation_dtype(self.job.dtype):
            return 0
        return self.dweight.shape[1]

    @property
    def spared_rows(self) -> int:
        """The rows of logits whose memory a sampler takes."""
        return 0 if self.sampler is None else spared_rows(self.job.dtype)

    def add(self, chunk: Chunk, head: HeadWeights | OwnHead) -> None:
        """Add the chunk's part to each gradient with two GEMMs. The chunk's buffer must hold d(logits)."""
        dlogits, rows = chunk.logits, self.job.batch.inputs
        at = rows_between(rows, chunk.start, chunk.stop)
        if self.dhidden is None:
            part = chunk.hidden[:0]
        else:
            part = self.dhidden[at] if rows is None else self.dhidden.new_empty(len(dlogits), self.dhidden.shape[1])
        if self.sampler is not None:
            self.sampler.add(dlogits, chunk.hidden, self.target_classes(chunk), head, part)
            if chunk.stop == self.job.batch.n_rows:
                self.sampler.finish()
        else:
            self.add_exactly(chunk, head, part)
        if self.dhidden is not None and rows is not None:
            self.dhidden[at] = part
        if self.dbias is not None:
            for start, stop in blocks(self.job.backend, dlogits, len(dlogits)):
                self.dbias += dlogits[start:stop].sum(0, dtype=self.dbias.dtype)

    def target_classes(self, chunk: Chunk) -> Tensor | None:
        """Return the classes of the chunk's targets; None for distributions."""
        batch = self.job.batch
        if not batch.target.is_class:
            return None
        return batch.classes(chunk.start, chunk.stop)[:, 0]

    def add_exactly(self, chunk: Chunk, head: HeadWeights | OwnHead, part: Tensor) -> None:
        """Add the chunk's part to dweight, and write its part of dhidden."""
        dlogits = chunk.logits
        if self.dhidden is not None:
            head.dhidden(dlogits, chunk.hidden, part)
        if self.dweight is not None and self.dweight.dtype == accumulation_dtype(dlogits.dtype) == dlogits.dtype:
            matmul(dlogits.t(), chunk.hidden, self.dweight, add=chunk.start > 0)
        elif self.dweight is not None:
            first, last = chunk.start == 0, chunk.stop == self.job.batch.n_rows
            if first:
                flops = 2.0 * dlogits.numel() * self.dweight.shape[1]
                provider = choose_gemm(flops, dlogits.dtype, dlogits.device).provider
                self.sum_dweight = WeightSum(self.dweight, dlogits.dtype, provider)
            assert self.sum_dweight is not None
            self.sum_dweight.add(dlogits.t(), chunk.hidden, first, last)
            if last:
                self.sum_dweight = None

    def take(self, upstream: Tensor | None, dtypes: list[torch.dtype | None]) -> list[Tensor | None]:
        """Return the gradients times unit and upstream (0-d), in these dtypes. Call once: they are not kept."""
        factor = self.unit
        if upstream is not None:
            # On a CPU the value is read, since 1 saves a pass over dW. On other devices reading would synchronize.
            factor = factor * (upstream if is_asynchronous(upstream.device) else upstream.item())
        if isinstance(factor, Tensor):
            factor = factor.view(1)  # torch rounds a 0-d factor to the gradient's dtype, in which it may overflow
        parts = (self.dhidden, self.dweight, self.dbias, self.dtarget)
        self.dhidden = self.dweight = self.dbias = self.dtarget = None
        one = isinstance(factor, float) and factor == 1.0
        scaled = [d if d is None or one else d.mul_(factor) for d in parts]
        return [None if d is None else d.to(dtype) for d, dtype in zip(scaled, dtypes, strict=True)]


def compute(
    job: LossJob, hidden: Tensor, head: HeadWeights | OwnHead, upstream: Tensor, wanted: Wanted
) -> tuple[Tensor, Gradients]:
    """Compute the loss (n,) of every counted row and the gradients of sum(upstream * loss): three GEMMs."""
    with torch.no_grad(), autocast_to(hidden.device, None):
        hidden, head = hidden.to(job.dtype), head.to(job.dtype)
        loss = torch.empty(job.batch.n_rows, dtype=accumulation_dtype(job.dtype), device=hidden.device)
        unit = unit_of(upstream, job.dtype)
        upstream = upstream if isinstance(unit, float) and unit == 1 else upstream / unit
        gradients = Gradients(hidden, head, job, wanted, unit)
        for chunk in logits_chunks(job, hidden, head, gradients.summed_columns, gradients.spared_rows):
            if gradients.dtarget is not None:
                for start, stop in blocks(job.backend, chunk.logits, len(chunk.logits), copied=True):
                    _put_dtarget(gradients.dtarget, job, chunk.start + start, chunk.logits[start:stop], upstream)
            kernel = _row_kernel(job, chunk.start, loss, upstream if wanted.dlogits else None)
            on_blocks(job.backend, chunk.logits, kernel, write_back=True)
            gradients.add(chunk, head)
    return loss, gradients


def new_dtarget(batch: CountedBatch) -> Tensor:
    """Allocate the gradient of the target's probabilities; zeros if some rows are ignored."""
    probability = batch.target.probability
    assert probability is not None
    new = torch.empty_like if batch.targets is None else torch.zeros_like
    return new(probability, memory_format=torch.contiguous_format)


def _put_dtarget(dtarget: Tensor, job: LossJob, start: int, logits: Tensor, upstream: Tensor) -> None:
    """Fill the rows of dtarget that belong to these logits (r, V) of the counted rows from `start` on."""
    batch, stop = job.batch, start + len(logits)
    at = rows_between(batch.targets, start, stop)
    classes = None if batch.target.classes is None else take_rows(batch.target.classes, at)
    part, counted = target_gradient(logits, classes, job.options, upstream[start:stop]), batch.counted_rows(start, stop)
    if counted is not None:
        part.masked_fill_(~counted[:, None], 0)
    flat = dtarget.view(-1, dtarget.shape[-1])
    if isinstance(at, slice):
        flat[at] = part.to(dtarget.dtype)
    else:
        flat.index_add_(0, at, part.to(dtarget.dtype))  # several shifts share their targets


def _row_kernel(job: LossJob, offset: int, loss: Tensor, upstream: Tensor | None) -> Callable[[Tensor, int, int], None]:
    batch = job.batch

    def kernel(z: Tensor, start: int, stop: int) -> None:
        start, stop = start + offset, stop + offset
        counted = batch.counted_rows(start, stop)
        target = batch.target.rows(rows_between(batch.targets, start, stop), batch.k[start:stop], counted=counted)
        if batch.entropy is not None:
            target = target._replace(entropy=batch.entropy[start:stop])
        up = None if upstream is None else upstream[start:stop]
        loss[start:stop] = job.backend.loss_rows(z, target, job.options, up)

    return kernel


def unit_of(upstream: Tensor, dtype: torch.dtype) -> float | Tensor:
    """Return a power of two near the largest upstream gradient: float16 d(logits) are stored relative to it.

    A mean over 100,000 tokens scales them by 1e-5, which float16 would round to 0 before any loss scaling helps.
    """
    if dtype != torch.float16 or upstream.numel() == 0:
        return 1.0
    if is_asynchronous(upstream.device):
        unit = upstream.abs().max().log2().floor().exp2()
        return unit.masked_fill(~((unit > 0) & (unit < math.inf)), 1)
    largest = upstream.abs().max().item()
    return 2.0 ** math.floor(math.log2(largest)) if 0 < largest < math.inf else 1.0


def logprobs_job(job: LossJob, dlogprobs: Tensor | None, dentropy: Tensor | None) -> tuple[LossJob, Tensor]:
    """Return the loss, with its upstream (n,), whose gradient is that of log-probabilities and entropies.

    It has a sparse target: minus the upstream gradients (n, K) of the log-probabilities, of any sign.
    """
    batch = job.batch
    ids = batch.classes(0, batch.n_rows)
    probability = batch.k.new_zeros(ids.shape) if dlogprobs is None else -dlogprobs
    weights = probability if dentropy is None else torch.cat([probability, dentropy[:, None]], -1)
    unit = unit_of(weights, job.dtype)
    entropy = None if dentropy is None else dentropy / unit
    batch = batch._replace(target=Target(ids, probability / unit, None), targets=None, entropy=entropy)
    return job._replace(batch=batch), torch.ones_like(batch.k) * unit


def compute_logits(job: LossJob, logits: Tensor) -> Tensor:
    """Compute the loss (n,) of every counted row of given logits (..., V)."""
    loss = torch.empty(job.batch.n_rows, dtype=accumulation_dtype(logits.dtype), device=logits.device)
    with torch.no_grad():
        _on_given(job, logits, loss, None, None)
    return loss


def compute_dlogits(job: LossJob, logits: Tensor, upstream: Tensor) -> Tensor:
    """Compute d(logits) (..., V) of sum(upstream * loss) from the logits."""
    with torch.no_grad():
        new = torch.zeros if job.batch.inputs is not None else torch.empty
        dlogits = new(logits.shape, dtype=logits.dtype, device=logits.device)
        _on_given(job, logits, torch.empty_like(upstream), upstream, dlogits.view(-1, logits.shape[-1]))
    return dlogits


def compute_dtarget(job: LossJob, logits: Tensor, upstream: Tensor) -> Tensor:
    """Compute d(probabilities), in the target's shape, of sum(upstream * loss) from logits (..., V)."""
    with torch.no_grad():
        dtarget = new_dtarget(job.batch)
        for start, stop in blocks(job.backend, logits, job.batch.n_rows, copied=True):
            rows = take_rows(logits, rows_between(job.batch.inputs, start, stop))
            _put_dtarget(dtarget, job, start, rows, upstream)
    return dtarget


def _on_given(job: LossJob, logits: Tensor, loss: Tensor, upstream: Tensor | None, dlogits: Tensor | None) -> None:
    """Run the row kernel on given logits, which must not change.

    If the kernel can read them directly, it works in the memory of dlogits, or without dlogits on the logits
    themselves. Otherwise it works on copies.
    """
    rows, kernel = job.batch.inputs, _row_kernel(job, 0, loss, upstream)
    for start, stop, z, direct in given_rows(job.backend, logits, rows, job.batch.n_rows):
        at = rows_between(rows, start, stop)
        if direct:
            kernel(z if dlogits is None else dlogits[at].copy_(z), start, stop)
            continue
        kernel(z, start, stop)
        if dlogits is not None:
            dlogits[at] = z.to(dlogits.dtype)


def given_rows(
    backend: Backend, logits: Tensor, rows: Tensor | None, n_rows: int
) -> Iterator[tuple[int, int, Tensor, bool]]:
    """Yield (start, stop, z, direct) for each block of counted rows of logits (..., V) that must not change.

    If `direct`, z is a view, for a kernel that does not change it. Otherwise it is a copy in the accumulation dtype.
    """
    direct = backend.in_place and rows is None and logits.dtype in backend.dtypes and logits.stride(-1) == 1
    for start, stop in blocks(backend, logits, n_rows, copied=not direct):
        z = take_rows(logits, rows_between(rows, start, stop))
        if not direct:
            z = z.to(accumulation_dtype(z.dtype), copy=True, memory_format=torch.contiguous_format)
        yield start, stop, z, direct
