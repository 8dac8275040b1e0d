"""Explain how a loss will be computed, and why: backend, chunk rows, matmuls, bytes."""

import math
from dataclasses import dataclass

import torch

from cynosure.loss.backends.registry import choose_backend
from cynosure.loss.matmul.choice import choose_gemm
from cynosure.loss.matmul.rivals import Gemm
from cynosure.loss.options import Reduction, accumulation_dtype, check_chunk_tokens, check_reduction
from cynosure.loss.sampling.choice import expected_columns
from cynosure.loss.sampling.options import GradTolerance, check_device, check_tolerance
from cynosure.loss.sampling.row_sums import bytes_beside
from cynosure.loss.sampling.sampler import spared_rows
from cynosure.loss.sizes import MIB


@dataclass(frozen=True)
class Plan:
    """The cost of one call. Bytes do not include the inputs and their gradients.

    `chunk_vocab` classes are processed at a time: the whole vocabulary, or a part of it if no gradient is computed.
    `accumulator_bytes` is extra memory to sum a half-precision dW: a float32 copy, or with our own matmuls the lower
    halves of float32 numbers.

    `columns_kept` is the number of columns of a chunk that a backward within `grad_tolerance` is expected to multiply;
    `vocab_size` if it is exact.
    """

    backend: str
    reason: str
    gemm: Gemm
    n_tokens: int
    vocab_size: int
    dtype: torch.dtype
    chunk_tokens: int
    chunk_vocab: int
    n_chunks: int
    n_gemms: int
    logits_bytes: int
    scratch_bytes: int
    accumulator_bytes: int
    full_logits_bytes: int
    grad_tolerance: float
    columns_kept: int

    def __str__(self) -> str:
        def size(n_bytes: int) -> str:
            return f"{n_bytes / MIB:,.1f} MiB"

        columns = f" x {self.chunk_vocab:,} classes" if self.chunk_vocab < self.vocab_size else ""
        kept, work = self.columns_kept, 1 + (self.n_gemms - 1) * self.columns_kept / self.vocab_size
        sampled = f"sampled: about {kept:,} columns of a trained model, the work of {work:.2f} matmuls"
        backward = [f"backward     {sampled}"] if kept < self.vocab_size else []
        return "\n".join(
            [
                f"backend      {self.backend} ({self.reason})",
                f"matmuls      {self.gemm.provider} ({self.gemm.reason})",
                f"chunks       {self.n_chunks} of {self.chunk_tokens} tokens{columns}, {self.n_gemms} matmuls each",
                *backward,
                f"logits       {size(self.logits_bytes)} held, instead of {size(self.full_logits_bytes)}",
                f"scratch      {size(self.scratch_bytes)}",
                f"accumulator  {size(self.accumulator_bytes)}",
            ]
        )


def explain(
    n_tokens: int,
    hidden_size: int,
    vocab_size: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    reduction: Reduction = "mean",
    requires_grad: bool = True,
    backend: str | None = None,
    chunk_tokens: int | None = None,
    grad_tolerance: GradTolerance = 0.0,
) -> Plan:
    """Explain how `linear_cross_entropy` would process these shapes: backend and reason, chunk rows, GEMMs, bytes.

    The plan assumes that no target is ignored.

    Args:
        n_tokens: rows of hidden.
        hidden_size: D, the columns of hidden and weight.
        vocab_size: V, the rows of weight.
        dtype: dtype of hidden and weight.
        device: device of hidden and weight.
        reduction: "mean", "sum" or "none".
        requires_grad: whether the gradients of hidden and weight are computed.
        backend: as for `linear_cross_entropy`.
        chunk_tokens: as for `linear_cross_entropy`.
        grad_tolerance: as for `linear_cross_entropy`. How many columns are kept depends on the values; the plan has
            what the heads of SmolLM2 and Gemma-3-270M take on real text.

    Returns:
        The plan, which prints as a table.

    Raises:
        ValueError: a size, chunk_tokens, reduction, backend or grad_tolerance is invalid.
        NotImplementedError: grad_tolerance is not 0, and the device is not a CPU.

    Example:
        >>> plan = explain(1024, 640, 262_144, dtype=torch.bfloat16)
        >>> plan.n_gemms, plan.full_logits_bytes // plan.logits_bytes
        (3, 3)
        >>> print(explain(1024, 640, 262_144, dtype=torch.float16, backend="torch"))
        backend      torch (selected by name)
        matmuls      torch (the only provider of float16 matmuls on this device)
        chunks       4 of 256 tokens, 3 matmuls each
        logits       128.5 MiB held, instead of 512.0 MiB
        scratch      2.0 MiB
        accumulator  640.0 MiB
    """
    chunk_tokens = check_chunk_tokens(chunk_tokens)
    check_reduction(reduction)
    tolerance = check_tolerance(grad_tolerance, dtype)
    check_device(tolerance, torch.device(device))
    for name, size, least in (
        ("n_tokens", n_tokens, 0),
        ("hidden_size", hidden_size, 1),
        ("vocab_size", vocab_size, 1),
    ):
        if size < least:
            raise ValueError(f"{name} must be at least {least}, got {size}")
    chosen, reason = choose_backend(backend, device)
    device = torch.device(device)
    sizes, direct, half = chosen.sizes(device), dtype in chosen.dtypes, accumulation_dtype(dtype) != dtype
    if requires_grad:
        summed_columns = hidden_size if half and not tolerance else 0
        spared, columns = spared_rows(dtype) if tolerance else 0, vocab_size
        rows = sizes.chunk_rows(n_tokens, vocab_size, dtype, chunk_tokens, summed_columns, spared)
    else:
        rows, columns = sizes.piece(n_tokens, vocab_size, dtype, chunk_tokens)
    n_chunks = math.ceil(n_tokens / rows)
    block = sizes.block_rows(rows, columns, dtype, copied=not direct)
    gemm = choose_gemm(2.0 * rows * hidden_size * vocab_size, dtype, device)
    kept = expected_columns(tolerance, vocab_size) if requires_grad else vocab_size
    summed = (2 if gemm.provider == "native" else 4) if half and requires_grad and n_chunks > 1 else 0
    if tolerance and requires_grad:
        summed = bytes_beside(dtype)
    return Plan(
        backend=chosen.name,
        reason=reason,
        gemm=gemm,
        n_tokens=n_tokens,
        vocab_size=vocab_size,
        dtype=dtype,
        chunk_tokens=rows,
        chunk_vocab=columns,
        n_chunks=n_chunks,
        n_gemms=1 if not requires_grad else 4 if reduction == "none" else 3,
        logits_bytes=rows * sizes.row_stride(columns, dtype) * dtype.itemsize,
        scratch_bytes=0 if direct else block * columns * 4,
        accumulator_bytes=vocab_size * hidden_size * summed,
        full_logits_bytes=n_tokens * vocab_size * dtype.itemsize,
        grad_tolerance=tolerance,
        columns_kept=kept,
    )
