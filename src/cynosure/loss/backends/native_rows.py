"""The row kernel in C++, for rows in a CPU's memory: one backend for each of its instruction sets.

One call takes a whole chunk, its rows split over as many threads as torch uses.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cynosure.loss.backends.registry import ColumnSums, register
from cynosure.loss.backends.torch_rows import column_sums, row_squares, take_columns
from cynosure.loss.devices import is_asynchronous
from cynosure.loss.native.library import (
    INSTRUCTIONS,
    STORED,
    ColumnSumsArguments,
    Logits,
    LossRows,
    RowSquares,
    StatsRows,
    TakeColumns,
    call,
    library,
)
from cynosure.loss.options import RowOptions, accumulation_dtype
from cynosure.loss.pieces import Best, LossPart, Piece, StatsPart
from cynosure.loss.sizes import MIB, Sizes
from cynosure.loss.targets import TargetRows
from cynosure.loss.tensors import address

SIZES = Sizes(block_bytes=64 * MIB)  # enough rows for every thread; a dense target is converted block by block


class NativeRows:
    """The kernel with one of the instruction sets."""

    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16)
    in_place = True

    def __init__(self, instructions: str) -> None:
        self.name, self.instructions = f"native-{instructions}", instructions
        self.code = INSTRUCTIONS.index(instructions)
        self.priority = 10 + self.code
        self.about = "C++, compiled for any processor" if instructions == "portable" else "C++"

    def unavailable(self, device: torch.device) -> str | None:
        """Return why it cannot run on this device, or None if it can."""
        if is_asynchronous(device):
            return f"it needs tensors on the CPU, got tensors on {device.type}"
        if library().functions is None:
            return library().reason
        if self.instructions not in library().instructions:
            return f"this processor has no {self.instructions.upper()}"
        return None

    def sizes(self, device: torch.device) -> Sizes:
        """Return the numbers of rows of logits that suit it."""
        return SIZES

    def loss_rows(self, z: Tensor, target: TargetRows, options: RowOptions, upstream: Tensor | None = None) -> Tensor:
        """Return the loss (r,) of each row; with upstream (r,), z becomes upstream * d(loss)/d(logits)."""
        loss = torch.empty(len(z), dtype=accumulation_dtype(z.dtype), device=z.device)
        self._call(z, Piece(0, z.shape[-1]), target, options, upstream, loss=address(loss))
        return loss

    def loss_piece(self, z: Tensor, piece: Piece, target: TargetRows, options: RowOptions) -> LossPart:
        """Return what a piece of r rows adds to their loss."""
        n_sums = 4 if target.entropy is None else 5
        part = LossPart(*torch.empty(n_sums, len(z), dtype=torch.float64, device=z.device))
        self._call(z, piece, target, options, None, **{name: pointer(x) for name, x in part._asdict().items()})
        return part

    def _call(
        self, z: Tensor, piece: Piece, target: TargetRows, options: RowOptions,
        upstream: Tensor | None = None, **results: int | None,
    ) -> None:  # fmt: skip
        assert target.entropy is None or (target.classes is not None and options.label_smoothing == 0)
        classes, probability = contiguous(target.classes), target.probability.to(target.k.dtype)
        if probability.stride(-1) != 1:
            probability = probability.contiguous()
        class_weight = options.class_weight
        if class_weight is not None:
            class_weight = class_weight[piece.first : piece.first + z.shape[-1]].contiguous()
        k, upstream, entropy = contiguous(target.k), contiguous(upstream), contiguous(target.entropy)
        arguments = LossRows(
            self.logits(z, options), piece.first, pointer(classes), pointer(probability), probability.shape[-1],
            probability.stride(0), pointer(k), pointer(class_weight), pointer(upstream), pointer(entropy),
            1 - options.label_smoothing, options.label_smoothing / piece.vocab_size, options.z_loss, **results,
        )  # fmt: skip
        call("cynosure_loss_rows", arguments)

    def stats_piece(
        self, z: Tensor, piece: Piece, index: Tensor, target_logit: Tensor, options: RowOptions, best: Best,
        beta: Sequence[float],
    ) -> StatsPart:  # fmt: skip
        """Return what a piece of r rows adds to their statistics; updates `best`."""
        sums, (above, argmax) = (
            torch.empty(6 + len(beta), len(z), dtype=torch.float64, device=z.device),
            torch.empty(2, len(z), dtype=torch.int64, device=z.device),
        )
        part = StatsPart._make([*sums[:6], sums[6:], above, argmax])
        index, target_logit = index.contiguous(), target_logit.contiguous()
        betas = torch.tensor(beta, dtype=torch.float64, device=z.device)
        arguments = StatsRows(
            self.logits(z, options), piece.first, pointer(index), pointer(target_logit), pointer(betas), len(beta),
            equal_steps(betas), **{name: pointer(x) for name, x in part._asdict().items()}, topk=best.z.shape[-1],
            top_z=pointer(best.z), top_ids=pointer(best.ids),
        )  # fmt: skip
        call("cynosure_stats_rows", arguments)
        return part

    def column_sums(self, dlogits: Tensor, weight: Tensor | None, along: Tensor | None) -> ColumnSums:
        """Sum over the rows of d(logits) (r, V)."""
        if dlogits.dtype not in self.dtypes:
            return column_sums(dlogits, weight, along)
        dtype, vocab_size = accumulation_dtype(dlogits.dtype), dlogits.shape[1]
        squares = dlogits.new_zeros(vocab_size, dtype=dtype)
        sums = ColumnSums(squares, *dlogits.new_zeros(2, 0 if along is None else vocab_size, dtype=dtype))
        arguments = ColumnSumsArguments(
            self.logits(dlogits, RowOptions()), pointer(weight), pointer(along), *map(address, sums)
        )
        call("cynosure_column_sums", arguments)
        return sums

    def take_columns(self, dlogits: Tensor, ids: Tensor, factor: Tensor) -> Tensor:
        """Return the columns `ids` (K,) of d(logits) (r, V), each times its factor (K,), as a matrix (r, K)."""
        if dlogits.dtype not in self.dtypes:
            return take_columns(dlogits, ids, factor)
        taken = dlogits.new_empty(len(dlogits), len(ids))
        arguments = TakeColumns(
            self.logits(dlogits, RowOptions()), address(ids), address(factor), len(ids), address(taken)
        )
        call("cynosure_take_columns", arguments)
        return taken

    def row_squares(self, weight: Tensor) -> Tensor:
        """Return the squared norms (V,) of the rows of a weight (V, D)."""
        if weight.dtype not in self.dtypes or weight.stride(-1) != 1:
            return row_squares(weight)
        squares = torch.empty(len(weight), dtype=accumulation_dtype(weight.dtype))
        call("cynosure_row_squares", RowSquares(self.logits(weight, RowOptions()), address(squares)))
        return squares

    def logits(self, z: Tensor, options: RowOptions) -> Logits:
        """Describe z (r, V), with contiguous rows, for the library."""
        assert z.stride(-1) == 1 or z.shape[-1] == 1
        return Logits(
            address(z), STORED[str(z.dtype).removeprefix("torch.")], z.shape[0], z.shape[1], z.stride(0),
            options.scale, options.softcap or 0.0, self.code, torch.get_num_threads(),
        )  # fmt: skip


def contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def pointer(x: Tensor | None) -> int | None:
    return None if x is None else address(x)


def equal_steps(beta: Tensor) -> bool:
    """Whether ascending beta are an arithmetic series, to the rounding of 1 / temperature."""
    steps = beta.diff()
    return len(beta) > 2 and bool((steps - steps[0]).abs().max() <= 1e-12 * beta[-1])


register(*map(NativeRows, INSTRUCTIONS))
