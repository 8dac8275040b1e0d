"""Choose how many rows and columns of logits are held in memory at once."""

import math
from typing import NamedTuple

import torch

from cynosure.loss.options import accumulation_dtype

MIB = 2**20
ALIGNED = 64  # columns of a piece are a multiple of this, which suits every matmul


class Sizes(NamedTuple):
    """Sizes that suit a backend on a device; the defaults are for a CPU. Bytes count logits; None means no limit."""

    most_tokens: int = 256  # of a chunk: on a CPU matmuls gain a twentieth from 200 to 256 rows, and little after that
    least_tokens: int = 205  # a short batch goes in fifths: a tenth of the memory of its full logits and their gradient
    min_bytes: int = 16 * MIB  # of a chunk: small vocabularies take more rows, so that matmuls are fewer and larger
    max_bytes: int = 256 * MIB  # huge ones take fewer
    fewest_tokens: int = 1  # of a chunk, whatever its bytes
    piece_tokens: int = 2048  # where no gradient is wanted: each matmul packs the weights it reads anew
    piece_bytes: int = 24 * MIB  # read while they are in a CPU's cache
    block_bytes: int | None = 2 * MIB  # that a row kernel takes at a time, in the accumulation dtype
    copied_bytes: int | None = 2 * MIB  # the same of logits that are copied for it: they stay in a CPU's cache

    def chunk_rows(self, n_tokens: int, vocab_size: int, dtype: torch.dtype, chunk_tokens: int | None) -> int:
        """Return the rows of logits held at once: `chunk_tokens`, or else by size, in even chunks."""
        if chunk_tokens is not None:
            return max(1, min(chunk_tokens, n_tokens))
        row_bytes = vocab_size * dtype.itemsize
        most = min(self.most_tokens, max(self.least_tokens, n_tokens // 5))
        most = max(most, self.min_bytes // row_bytes)
        most = max(self.fewest_tokens, min(most, self.max_bytes // row_bytes))
        return evenly(n_tokens, most)

    def piece(self, n_tokens: int, vocab_size: int, dtype: torch.dtype, chunk_tokens: int | None) -> tuple[int, int]:
        """Return the rows and columns of logits held at once without gradients, as even as possible."""
        rows = evenly(n_tokens, chunk_tokens or self.piece_tokens)
        columns = math.ceil(vocab_size / math.ceil(rows * vocab_size * dtype.itemsize / self.piece_bytes))
        return rows, min(vocab_size, columns if columns < ALIGNED else math.ceil(columns / ALIGNED) * ALIGNED)

    def block_rows(self, n_rows: int, vocab_size: int, dtype: torch.dtype, copied: bool) -> int:
        """Return the rows that a row kernel processes at a time."""
        n_bytes = self.copied_bytes if copied else self.block_bytes
        if n_bytes is None:
            return max(1, n_rows)
        return max(1, min(n_rows, n_bytes // (vocab_size * accumulation_dtype(dtype).itemsize)))


# dW of R rows is 2 R V D floating-point operations over 8 V D bytes of float32 sums, read and written: below about
# 1,200 rows a GPU waits for its memory. There is no cache to stay in, and every launch costs.
BUDGET = 1024 * MIB
ON_DEVICE = Sizes(
    min_bytes=BUDGET, max_bytes=BUDGET, fewest_tokens=1024, piece_tokens=4096, piece_bytes=BUDGET, block_bytes=None,
    copied_bytes=256 * MIB,
)  # fmt: skip


def evenly(n_tokens: int, most: int) -> int:
    """Return the rows per chunk for the fewest chunks of at most `most` rows."""
    return max(1, math.ceil(n_tokens / max(1, math.ceil(n_tokens / most))))
