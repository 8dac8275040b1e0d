"""Check the arguments of a divergence and build its job.

... leading shape, N tokens in all, D hidden size of a model, V vocabulary
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cynosure.loss.backends.registry import choose_backend
from cynosure.loss.batch import CountedBatch, make_batch
from cynosure.loss.chunked import LossJob
from cynosure.loss.divergence.chunks import DivergenceJob, HeadInputs
from cynosure.loss.divergence.options import DivergenceOptions
from cynosure.loss.jobs import check_head, matmul_dtype
from cynosure.loss.linear import OwnHead, check_frozen
from cynosure.loss.options import ReduceOptions, RowOptions, as_integer, check_chunk_tokens
from cynosure.loss.targets import Target
from cynosure.loss.tensors import multiplies_itself


class ModelHead(NamedTuple):
    """The hidden states (..., D) of one model and its head: plain tensors, or a weight with its own matmul."""

    hidden: Tensor
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    head_dtype: torch.dtype | None = None

    def check(self, of: str) -> None:
        """Check shapes, dtypes and devices, and that a weight with its own matmul is frozen."""
        if isinstance(check_head(*self, of=of), OwnHead):
            check_frozen(self.weight, of)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matmuls."""
        return matmul_dtype(self.hidden, self.head_dtype)

    def first_classes(self, of: str, n: int) -> "ModelHead":
        """Return the head of the first n classes."""
        if self.weight.shape[0] == n:
            return self
        if self.weight.shape[0] < n:
            raise ValueError(f"vocab_size={n}, but {of}weight has only {self.weight.shape[0]} rows")
        if multiplies_itself(self.weight):
            raise NotImplementedError(
                f"{of}weight is a {type(self.weight).__name__}, whose first {n} rows cannot be multiplied alone: "
                "pass its values as a plain weight (weight.dequantize(), if it has that method)"
            )
        return self._replace(weight=self.weight[:n], bias=None if self.bias is None else self.bias[:n])

    def inputs(self) -> HeadInputs:
        """Return what autograd differentiates: a weight with its own matmul is a constant of the job."""
        weight = None if multiplies_itself(self.weight) else self.weight
        return HeadInputs(self.hidden.reshape(-1, self.hidden.shape[-1]), weight, self.bias)

    def job(self, batch: CountedBatch, options: RowOptions, chunk_tokens: int | None) -> LossJob:
        """Return the model's job: its logits, and the gradients of its inputs."""
        own_weight = self.weight if multiplies_itself(self.weight) else None
        backend, _ = choose_backend(None, self.hidden.device)
        return LossJob(batch, options, backend, self.dtype, self.weight.dtype, chunk_tokens, own_weight)


def checked_heads(student: ModelHead, teacher: ModelHead, vocab_size: int | None) -> tuple[ModelHead, ModelHead]:
    """Check both heads, which have the same classes; with vocab_size, return the heads of the first classes of both."""
    student.check("student_")
    teacher.check("teacher_")
    if vocab_size is not None:
        vocab_size = as_integer("vocab_size", vocab_size)
        if vocab_size < 1:
            raise ValueError(f"vocab_size must be at least 1, or None, got {vocab_size}")
        return student.first_classes("student_", vocab_size), teacher.first_classes("teacher_", vocab_size)
    if student.weight.shape[0] != teacher.weight.shape[0]:
        raise ValueError(
            f"student_weight has {student.weight.shape[0]} rows and teacher_weight {teacher.weight.shape[0]}: if they "
            "are padded heads of one vocabulary, pass its size as vocab_size"
        )
    return student, teacher


def divergence_job(
    student: ModelHead, teacher: ModelHead, options: DivergenceOptions, reduce: ReduceOptions, chunk_tokens: int | None
) -> DivergenceJob:
    """Return the job of checked heads with the same classes."""
    lead = student.hidden.shape[:-1]
    if teacher.hidden.shape[:-1] != lead:
        raise ValueError(
            "student_hidden and teacher_hidden must have the same leading shape, got "
            f"{tuple(student.hidden.shape)} and {tuple(teacher.hidden.shape)}"
        )
    if teacher.hidden.device != student.hidden.device:
        raise ValueError(
            f"teacher_hidden is on {teacher.hidden.device}, but student_hidden is on {student.hidden.device}"
        )
    chunk_tokens = check_chunk_tokens(chunk_tokens)
    wide = torch.float64 in (student.dtype, teacher.dtype)
    batch = rows_batch(student.hidden, reduce, torch.float64 if wide else torch.float32)
    return DivergenceJob(
        student.job(batch, options.student, chunk_tokens), teacher.job(batch, options.teacher, chunk_tokens), options
    )


def rows_batch(hidden: Tensor, reduce: ReduceOptions, dtype: torch.dtype) -> CountedBatch:
    """Return the rows of hidden (..., D) that count by their token weights. Class 0 stands for their missing target."""
    lead = hidden.shape[:-1]
    classes = hidden.new_zeros((), dtype=torch.long).expand(*lead, 1)
    return make_batch(Target(classes, None, None), lead, hidden.device, RowOptions(), reduce, dtype)
