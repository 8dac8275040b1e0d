"""The driver: chunks of both models' hidden rows -> two buffers of logits -> row kernel -> gradient GEMMs.

N tokens, n of them counted, D hidden size of a model, V vocabulary
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cynosure.loss.batch import CountedBatch
from cynosure.loss.chunked import Chunk, Gradients, LossJob, Wanted, blocks, logits_chunks, unit_of
from cynosure.loss.devices import autocast_to
from cynosure.loss.divergence.options import DivergenceOptions
from cynosure.loss.divergence.rows import LogitsPair, Overwritten, divergence_rows, reads
from cynosure.loss.linear import HeadWeights, OwnHead


class HeadInputs(NamedTuple):
    """The tensors of one model: hidden states (N, D) and its head, whose weight is None if the job holds it."""

    hidden: Tensor
    weight: Tensor | None
    bias: Tensor | None


class DivergenceJob(NamedTuple):
    """Everything constant about one call: a job of each model, with the same batch and backend."""

    student: LossJob
    teacher: LossJob
    options: DivergenceOptions

    @property
    def batch(self) -> CountedBatch:
        """The rows that count."""
        return self.student.batch

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the divergences."""
        return torch.float64 if torch.float64 in (self.student.dtype, self.teacher.dtype) else torch.float32


class ModelPass(NamedTuple):
    """One model in a call: its inputs in the dtype of its matmuls, and its gradients if any is wanted."""

    job: LossJob
    hidden: Tensor
    head: HeadWeights | OwnHead
    gradients: Gradients | None

    @classmethod
    def of(cls, job: LossJob, given: HeadInputs, wanted: Wanted, unit: float | Tensor) -> "ModelPass":
        """Cast the inputs, and allocate the gradients."""
        hidden, head = given.hidden.to(job.dtype), job.head(given.weight, given.bias).to(job.dtype)
        return cls(job, hidden, head, Gradients(hidden, head, job, wanted, unit) if any(wanted) else None)

    def chunks(self, n_rows: int) -> Iterator[Chunk]:
        """Yield the logits of the counted rows, n_rows at a time."""
        return logits_chunks(self.job._replace(chunk_tokens=n_rows), self.hidden, self.head)


def compute(
    job: DivergenceJob, given: tuple[HeadInputs, HeadInputs], upstream: Tensor | None, wanted: tuple[Wanted, Wanted]
) -> tuple[Tensor, list[Gradients | None]]:
    """Compute the divergence (n,) of every counted row and the gradients of sum(upstream * divergence), by model.

    Two GEMMs of logits, and two more for each model with gradients. Nothing is `wanted` without upstream.
    """
    jobs = job.student, job.teacher
    with torch.no_grad(), autocast_to(given[0].hidden.device, None):
        unit: float | Tensor = 1.0
        if upstream is not None and torch.float16 in (job.student.dtype, job.teacher.dtype):
            unit = unit_of(upstream, torch.float16)
            upstream = upstream / unit
        passes = [ModelPass.of(*each, unit) for each in zip(jobs, given, wanted, strict=True)]
        divergence = torch.empty(job.batch.n_rows, dtype=job.dtype, device=given[0].hidden.device)
        written, n_chunk = Overwritten(*map(any, wanted)), chunk_rows(job, passes)
        for chunks in zip(*(each.chunks(n_chunk) for each in passes), strict=True):
            _compare(
                job, LogitsPair(*(chunk.logits for chunk in chunks)), chunks[0].start, divergence, upstream, written
            )
            for each, chunk in zip(passes, chunks, strict=True):
                if each.gradients is not None:
                    each.gradients.add(chunk, each.head)
    return divergence, [each.gradients for each in passes]


def chunk_rows(job: DivergenceJob, passes: list[ModelPass]) -> int:
    """Return the rows of logits of each model held at once."""
    sizes, numbers = job.student.backend.sizes(passes[0].hidden.device), []
    for each in passes:
        # Two buffers of logits take twice the memory for which a single chunk saves the accumulator of dW.
        columns = 0 if each.gradients is None else each.gradients.summed_columns // 2
        vocab_size = each.head.shape[0]
        numbers.append(
            sizes.chunk_rows(job.batch.n_rows, vocab_size, each.hidden.dtype, each.job.chunk_tokens, columns)
        )
    return min(numbers)


def _compare(
    job: DivergenceJob, pair: LogitsPair, first: int, divergence: Tensor, upstream: Tensor | None, written: Overwritten
) -> None:
    """Fill the divergences of the rows from `first` on; the logits `written` become their gradients."""
    backend, batch = job.student.backend, job.batch
    copied = not all(reads(backend, pair, logits.dtype) for logits in pair)
    for start, stop in blocks(backend, pair.student, len(pair.student), copied):
        rows = [logits[start:stop] for logits in pair]
        block = LogitsPair(*(x if reads(backend, pair, x.dtype) else x.to(pair.dtype) for x in rows))
        at = slice(first + start, first + stop)
        counted = batch.counted_rows(at.start, at.stop)
        up = None if upstream is None else upstream[at]
        found = divergence_rows(backend, block, job.options, up, written)
        divergence[at] = found if counted is None else found.masked_fill_(~counted, 0)
        for x, z, is_written in zip(rows, block, written, strict=True):
            if is_written and counted is not None:
                z.masked_fill_(~counted[:, None], 0)
            if is_written and z is not x:
                x.copy_(z)
