"""How a loss will be computed, and why: backend, chunk rows, matrix products, bytes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from cynosure.loss import rows_native, rows_torch
from cynosure.loss.gemm import Gemm, choose_gemm
from cynosure.loss.native.library import library
from cynosure.loss.options import Reduction, accumulation_dtype, as_integer, check_reduction
from cynosure.loss.pieces import LossPart, StatsPart

MIB = 2**20
MOST_CHUNK_TOKENS = 256  # on a CPU the matrix products gain a twentieth from 200 to 256 rows, and little after that
LEAST_CHUNK_TOKENS = 205  # a short batch goes in fifths: a tenth of the memory of its full logits and their gradient
MIN_LOGITS_BYTES = 16 * MIB  # small vocabularies take more rows: fewer, larger products
MAX_LOGITS_BYTES = 256 * MIB  # huge ones take fewer
BLOCK_BYTES = 2 * MIB  # what torch operations visit at a time: it stays in the CPU's last-level cache
PIECE_BYTES = 24 * MIB  # of logits that are not turned into gradients: visited while they are in a CPU's cache
ALIGNED = 64  # columns of a piece are a multiple of this, which suits every product
PIECE_TOKENS = 2048  # and the rows of such a piece: each product packs the weights it reads anew
NATIVE_BLOCK_BYTES = 64 * MIB  # enough rows for every thread; a dense target's are converted for as many


class Backend(NamedTuple):
    """A row kernel: the functions documented in `rows_torch`, and what they can be handed.

    Logits of another dtype reach it in the accumulation dtype, block by block. One that works `in_place` needs no copy
    of logits that must not be changed unless it is to leave their gradient there.
    """

    name: str
    loss_rows: Callable[..., torch.Tensor]
    loss_piece: Callable[..., LossPart]
    stats_piece: Callable[..., StatsPart]
    dtypes: tuple[torch.dtype, ...]
    block_bytes: int  # of logits (in the accumulation dtype) at a time on a CPU
    in_place: bool


def native(instructions: str) -> Backend:
    """The C++ kernel with one of its instruction sets."""
    kernel = rows_native.NativeRows(instructions)
    functions = kernel.loss_rows, kernel.loss_piece, kernel.stats_piece
    return Backend(f"native-{instructions}", *functions, rows_native.DTYPES, NATIVE_BLOCK_BYTES, True)


TORCH = Backend(
    "torch", rows_torch.loss_rows, rows_torch.loss_piece, rows_torch.stats_piece, (torch.float32, torch.float64),
    BLOCK_BYTES, False,
)  # fmt: skip
BACKENDS = {backend.name: backend for backend in (*map(native, ("avx512", "avx2", "portable")), TORCH)}
NATIVE = "native"  # stands for the best of them


class BackendStatus(NamedTuple):
    """Whether a backend can run here, and the reason."""

    name: str
    available: bool
    reason: str


def backends(device: str | torch.device = "cpu") -> list[BackendStatus]:
    """Every backend there is for tensors on this device, best first.

    >>> [status.name for status in backends()]
    ['native-avx512', 'native-avx2', 'native-portable', 'torch']
    """
    return [_status(name, torch.device(device)) for name in BACKENDS]


def _status(name: str, device: torch.device) -> BackendStatus:
    if name == "torch":
        return BackendStatus(name, True, "torch operations run on any device and in any float dtype")
    instructions, found = name.removeprefix("native-"), library()
    if device.type != "cpu":
        return BackendStatus(name, False, f"it works in a CPU's memory, the tensors are on {device.type}")
    if found.functions is None:
        return BackendStatus(name, False, found.reason)
    if instructions not in found.instructions:
        return BackendStatus(name, False, f"this processor has no {instructions.upper()}")
    return BackendStatus(name, True, "C++, compiled for any processor" if instructions == "portable" else "C++")


def choose_backend(name: str | None, device: str | torch.device = "cpu") -> tuple[Backend, str]:
    """The backend of that name, or the best one for None, and why; a name that cannot run is an error."""
    statuses = [status for status in backends(device) if name in (None, status.name, status.name.partition("-")[0])]
    if not statuses:
        known = ", ".join(repr(known) for known in (NATIVE, *BACKENDS))
        raise ValueError(f"unknown backend {name!r}: there is {known}, or None to choose")
    for status in statuses:
        if status.available:
            return BACKENDS[status.name], "asked for by name" if name else f"the best here: {status.reason}"
    raise ValueError(f"backend {name!r} cannot run here: {statuses[0].reason}")


def check_chunk_tokens(chunk_tokens: int | None) -> int | None:
    """None, or an integer of at least 1."""
    if chunk_tokens is None:
        return None
    chunk_tokens = as_integer("chunk_tokens", chunk_tokens)
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, or None to choose, got {chunk_tokens}")
    return chunk_tokens


def choose_chunk_tokens(n_tokens: int, vocab_size: int, dtype: torch.dtype, chunk_tokens: int | None) -> int:
    """Rows of logits held at once: as asked, else by size, in chunks as even as they come."""
    if chunk_tokens is not None:
        return max(1, min(chunk_tokens, n_tokens))
    row_bytes = vocab_size * dtype.itemsize
    most = min(MOST_CHUNK_TOKENS, max(LEAST_CHUNK_TOKENS, n_tokens // 5))
    most = max(most, MIN_LOGITS_BYTES // row_bytes)
    most = max(1, min(most, MAX_LOGITS_BYTES // row_bytes))
    return evenly(n_tokens, most)


def evenly(n_tokens: int, most: int) -> int:
    """Rows of a chunk, of as few chunks as there can be, as even as they come."""
    return max(1, math.ceil(n_tokens / max(1, math.ceil(n_tokens / most))))


def choose_piece(
    n_tokens: int, vocab_size: int, dtype: torch.dtype, device: torch.device, chunk_tokens: int | None
) -> tuple[int, int]:
    """Rows and columns of the logits held at once where no gradient is wanted: as even as they come."""
    rows = evenly(n_tokens, chunk_tokens or PIECE_TOKENS)
    n_bytes = PIECE_BYTES if device.type == "cpu" else MAX_LOGITS_BYTES
    columns = math.ceil(vocab_size / math.ceil(rows * vocab_size * dtype.itemsize / n_bytes))
    return rows, min(vocab_size, columns if columns < ALIGNED else math.ceil(columns / ALIGNED) * ALIGNED)


def block_rows(
    backend: Backend, n_rows: int, vocab_size: int, dtype: torch.dtype, device: torch.device, copied: bool = False
) -> int:
    """Rows a kernel takes at a time: all of them but on a CPU."""
    if device.type != "cpu":
        return max(1, n_rows)
    n_bytes = backend.block_bytes if dtype in backend.dtypes and not copied else BLOCK_BYTES
    return max(1, min(n_rows, n_bytes // (vocab_size * accumulation_dtype(dtype).itemsize)))


@dataclass(frozen=True)
class Plan:
    """What one call costs. Bytes are beyond the inputs and the gradients themselves.

    `chunk_vocab` classes of the vocabulary are taken at a time: all, unless no gradient is wanted.
    `accumulator_bytes` is what half-precision dW is added up in beside itself: a float32 copy of it, or with our own
    products the lower halves of float32 numbers.
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

    def __str__(self) -> str:
        def size(n_bytes: int) -> str:
            return f"{n_bytes / MIB:,.1f} MiB"

        by = f", by {self.chunk_vocab:,} classes" if self.chunk_vocab < self.vocab_size else ""
        return "\n".join(
            [
                f"backend      {self.backend} ({self.reason})",
                f"products     {self.gemm.provider} ({self.gemm.reason})",
                f"chunks       {self.n_chunks} of {self.chunk_tokens} tokens{by}, {self.n_gemms} matrix products each",
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
) -> Plan:
    """How `linear_cross_entropy` would treat these shapes: backend and reason, chunk rows, GEMMs, bytes.

    Every target is taken to be counted.

    Args:
        n_tokens: rows of hidden.
        hidden_size: D, the columns of hidden and weight.
        vocab_size: V, the rows of weight.
        dtype: of hidden and weight.
        device: where they are.
        reduction: "mean", "sum" or "none".
        requires_grad: whether the gradients of hidden and weight are wanted.
        backend: as of `linear_cross_entropy`.
        chunk_tokens: as of `linear_cross_entropy`.

    Returns:
        The plan, which prints as a table.

    Raises:
        ValueError: a size, chunk, reduction or backend that cannot be.

    Example:
        >>> plan = explain(1024, 640, 262_144, dtype=torch.bfloat16)
        >>> plan.n_gemms, plan.full_logits_bytes // plan.logits_bytes
        (3, 4)
        >>> print(explain(1024, 640, 262_144, dtype=torch.float16, backend="torch"))
        backend      torch (asked for by name)
        products     torch (it alone has float16 products on this device)
        chunks       5 of 205 tokens, 3 matrix products each
        logits       102.5 MiB held, instead of 512.0 MiB
        scratch      2.0 MiB
        accumulator  640.0 MiB
    """
    chunk_tokens = check_chunk_tokens(chunk_tokens)
    check_reduction(reduction)
    for name, size, least in (
        ("n_tokens", n_tokens, 0),
        ("hidden_size", hidden_size, 1),
        ("vocab_size", vocab_size, 1),
    ):
        if size < least:
            raise ValueError(f"{name} must be at least {least}, got {size}")
    chosen, reason = choose_backend(backend, device)
    device = torch.device(device)
    if requires_grad:
        rows, columns = choose_chunk_tokens(n_tokens, vocab_size, dtype, chunk_tokens), vocab_size
    else:
        rows, columns = choose_piece(n_tokens, vocab_size, dtype, device, chunk_tokens)
    half, n_chunks = accumulation_dtype(dtype) != dtype, math.ceil(n_tokens / rows)
    block = block_rows(chosen, rows, columns, dtype, device)
    gemm = choose_gemm(2.0 * rows * hidden_size * vocab_size, dtype, device)
    summed = (2 if gemm.provider == "native" else 4) if half and requires_grad and n_chunks > 1 else 0
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
        logits_bytes=rows * columns * dtype.itemsize,
        scratch_bytes=0 if dtype in chosen.dtypes else block * columns * 4,
        accumulator_bytes=vocab_size * hidden_size * summed,
        full_logits_bytes=n_tokens * vocab_size * dtype.itemsize,
    )
