"""Choose how many rows and columns of logits are held in memory at once."""

import math
from typing import NamedTuple

import torch

from cynosure.loss.options import accumulation_dtype

MIB = 2**20
ALIGNED = 64  # columns of a piece are a multiple of this, which suits every matmul
PAGE, LINE = 4096, 64  # bytes of a CPU's memory page and cache line


class Sizes(NamedTuple):
    """Sizes that suit a backend on a device; the defaults are for a CPU.

    Bytes count logits, without the space between rows. None means no limit.
    """

    most_tokens: int = 256  # per chunk: a CPU's matmuls gain 5% from 200 to 256 rows, and little beyond
    half_tokens: int = 512  # the same in half precision, where each chunk also reads and writes the float32 sums of dW
    least_tokens: int = 205  # a short batch is split in fifths, or in half precision in quarters, of at least this many
    min_bytes: int = 16 * MIB  # per chunk: small vocabularies get more rows, so that matmuls are fewer and larger
    max_bytes: int = 256 * MIB  # per chunk: huge vocabularies get fewer rows
    fewest_tokens: int = 1  # per chunk, whatever its bytes
    piece_tokens: int = 2048  # without gradients: many rows, since each matmul packs the weights again
    piece_bytes: int = 24 * MIB  # small enough that they are read from a CPU's cache
    block_bytes: int | None = 2 * MIB  # per call of a row kernel, in the accumulation dtype
    copied_bytes: int | None = 2 * MIB  # the same for logits that are copied first: the copy stays in a CPU's cache
    row_unit: int = 1  # a row of logits begins at a multiple of this many
    spread_bytes: int | None = 64 * 1024  # rows of at least so many bytes begin half a page apart: see `row_stride`
    most_whole_tokens: int = 1024  # rows in one chunk instead of several whose dW needs an accumulator

    def chunk_rows(
        self, n_tokens: int, vocab_size: int, dtype: torch.dtype, chunk_tokens: int | None, summed_columns: int = 0,
        spared: int = 0,
    ) -> int:  # fmt: skip
        """Return the rows of logits held at once: `chunk_tokens`, or else by size, in even chunks.

        `summed_columns` is D if more than one chunk needs an accumulator for a half-precision dW (V, D). A single chunk
        needs none: it holds all logits where these take no more memory than a chunk of them and the accumulator.
        `spared` rows of a large chunk are not held, since other things take their memory.
        """
        if chunk_tokens is not None:
            return max(1, min(chunk_tokens, n_tokens))
        row_bytes = vocab_size * dtype.itemsize
        largest, parts = (self.half_tokens, 4) if dtype.itemsize == 2 else (self.most_tokens, 5)
        most = min(largest, max(self.least_tokens, n_tokens // parts))
        most = max(most, self.min_bytes // row_bytes)
        most = max(self.fewest_tokens, min(most, self.max_bytes // row_bytes))
        most = most - spared if most > 2 * spared else most
        rows = evenly(n_tokens, most)
        whole = summed_columns > 0 and n_tokens <= min(self.most_whole_tokens, rows + summed_columns)
        return max(1, n_tokens) if whole else rows

    def piece(self, n_tokens: int, vocab_size: int, dtype: torch.dtype, chunk_tokens: int | None) -> tuple[int, int]:
        """Return the rows and columns of logits held at once without gradients, as even as possible."""
        rows = evenly(n_tokens, chunk_tokens or self.piece_tokens)
        columns = math.ceil(vocab_size / math.ceil(rows * vocab_size * dtype.itemsize / self.piece_bytes))
        return rows, min(vocab_size, columns if columns < ALIGNED else math.ceil(columns / ALIGNED) * ALIGNED)

    def row_stride(self, n_columns: int, dtype: torch.dtype) -> int:
        """Return the distance between rows of logits in memory.

        The matmul of dW reads a few columns of all rows. If rows are a power of two apart, as those of 262,144 logits,
        these all compete for the same few places in a CPU's caches. Half a page and one cache line more than whole
        pages give every row a place of its own.
        """
        stride = math.ceil(n_columns / self.row_unit) * self.row_unit
        if self.spread_bytes is not None and stride * dtype.itemsize >= self.spread_bytes:
            page = PAGE // dtype.itemsize
            stride += ((PAGE // 2 + LINE) // dtype.itemsize - stride) % page
        return stride

    def block_rows(self, n_rows: int, vocab_size: int, dtype: torch.dtype, copied: bool) -> int:
        """Return the rows that a row kernel processes at a time."""
        n_bytes = self.copied_bytes if copied else self.block_bytes
        if n_bytes is None:
            return max(1, n_rows)
        return max(1, min(n_rows, n_bytes // (vocab_size * accumulation_dtype(dtype).itemsize)))


# A GPU wants large chunks. Adding R rows to dW takes 2 R V D operations, and reads and writes 8 V D bytes: below 1,200
# rows an H100 waits for its memory. Every launch costs time, and no cache holds a block. Matmuls and kernels read and
# write 16 bytes at once where every row begins at a multiple of them, which Triton sees in a stride of 16 elements.
BUDGET = 1024 * MIB
ON_DEVICE = Sizes(
    min_bytes=BUDGET, max_bytes=BUDGET, fewest_tokens=1024, piece_tokens=4096, piece_bytes=BUDGET, block_bytes=None,
    copied_bytes=256 * MIB, row_unit=16, spread_bytes=None,
)  # fmt: skip


def evenly(n_tokens: int, most: int) -> int:
    """Return the rows per chunk for the fewest chunks of at most `most` rows."""
    return max(1, math.ceil(n_tokens / max(1, math.ceil(n_tokens / most))))
