"""The gradient dW (V, D) of a weight in half precision, added up chunk by chunk."""

import torch
from torch import Tensor

from cynosure.loss.matmul.rivals import multiply, takes

SUM_ROWS = 2048  # rows of a half-precision dW that torch computes at a time


class WeightSum:
    """dW (V, D) of half-precision factors, added up chunk by chunk in float32 and then narrowed to its dtype.

    Our own matmuls keep the upper half of each sum in `dweight` and the lower half in `low`. Otherwise `wide` holds the
    sums: `dweight` itself if it is float32, else a float32 matrix.
    """

    def __init__(self, dweight: Tensor, dtype: torch.dtype, provider: str) -> None:
        self.dweight = dweight
        ours = dtype == torch.bfloat16 and dweight.dtype in (torch.bfloat16, torch.float32)
        self.native = ours and provider == "native"
        self.low: Tensor | None = None
        self.wide: Tensor | None = None

    def add(self, a: Tensor, b: Tensor, first: bool, last: bool) -> None:
        """Add a (V, K) @ b (K, D) to dW."""
        if first:
            self.native = self.native and takes(torch.bfloat16, a, b)
            whole = last or self.dweight.dtype == torch.float32
            if self.native and not whole:
                self.low = torch.empty_like(self.dweight)
            elif not self.native:
                self.wide = self.dweight if whole else torch.empty_like(self.dweight, dtype=torch.float32)
        if self.native:
            multiply(a, b, self.dweight, self.low, add=not first, keep_low=not last)
        else:
            self._add_by_rows(a, b, first, last)

    def _add_by_rows(self, a: Tensor, b: Tensor, first: bool, last: bool) -> None:
        assert self.wide is not None
        part = a.new_empty(SUM_ROWS, b.shape[1])
        for start in range(0, len(self.wide), SUM_ROWS):  # each part is added while it is in a CPU's cache
            stop = min(start + SUM_ROWS, len(self.wide))
            made = torch.mm(a[start:stop], b, out=part[: stop - start])
            total = self.wide[start:stop]
            total = total.copy_(made) if first else total.add_(made)
            if last and self.wide is not self.dweight:
                self.dweight[start:stop] = total
