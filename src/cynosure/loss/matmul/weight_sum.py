"""The gradient dW (V, D) of a weight in half precision, added up chunk by chunk."""

from functools import cache

import torch
from torch import Tensor

from cynosure.loss.devices import is_asynchronous
from cynosure.loss.matmul.rivals import multiply, takes

SUM_ROWS = 2048  # rows of a half-precision dW that torch computes at a time on a CPU
SUM_BYTES = 256 * 2**20  # the same in bytes, on a device whose matmuls cannot add to float32


@cache
def adds_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether this dtype's matmuls can add to a float32 matrix on this device: on CUDA since torch 2.10."""
    try:
        add_in_float32(torch.zeros(8, 8, device=device), *torch.zeros(2, 8, 8, dtype=dtype, device=device))
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return True


def add_in_float32(total: Tensor, a: Tensor, b: Tensor, beta: int = 1) -> None:
    """Set total (M, N) float32 = beta * total + a (M, K) @ b (K, N) of half precision, in one launch."""
    torch.ops.aten.addmm.dtype_out(total, a, b, torch.float32, beta=beta, out=total)


class WeightSum:
    """dW (V, D) in half precision, or of half-precision factors: summed chunk by chunk in float32, then narrowed.

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
        elif is_asynchronous(a.device):
            self._add_on_device(a, b, first, last)
        else:
            self._add_by_rows(a, b, first, last, SUM_ROWS)

    def _add_on_device(self, a: Tensor, b: Tensor, first: bool, last: bool) -> None:
        assert self.wide is not None
        if self.wide.dtype == a.dtype:  # a single chunk, which the matmul sums in float32 and rounds once, or float32
            torch.addmm(self.wide, a, b, beta=int(not first), out=self.wide)
        elif a.dtype != torch.float32 and adds_in_float32(a.device, a.dtype):
            add_in_float32(self.wide, a, b, beta=0 if first else 1)
        else:
            self._add_by_rows(a, b, first, last, max(1, SUM_BYTES // (b.shape[1] * a.itemsize)))
            return
        if last and self.wide is not self.dweight:
            self.dweight.copy_(self.wide)

    def _add_by_rows(self, a: Tensor, b: Tensor, first: bool, last: bool, n_rows: int) -> None:
        assert self.wide is not None
        part = a.new_empty(min(n_rows, len(self.wide)), b.shape[1])
        for start in range(0, len(self.wide), n_rows):  # on a CPU each part is added while it is in the cache
            stop = min(start + n_rows, len(self.wide))
            made = torch.mm(a[start:stop], b, out=part[: stop - start])
            total = self.wide[start:stop]
            total = total.copy_(made) if first else total.add_(made)
            if last and self.wide is not self.dweight:
                self.dweight[start:stop] = total
