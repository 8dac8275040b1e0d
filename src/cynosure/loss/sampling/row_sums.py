"""The gradient dW (V, D) of a sampled backward, added up from rows of kept columns, whole chunks and one direction."""

from typing import Protocol

import torch
from torch import Tensor

from cynosure.loss.linear import matmul
from cynosure.loss.matmul.choice import choose_gemm
from cynosure.loss.matmul.rivals import multiply, takes
from cynosure.loss.matmul.weight_sum import SUM_ROWS
from cynosure.loss.options import accumulation_dtype


class RowSums(Protocol):
    """What a sampled dW is added up in. Call `finish` last, once."""

    def add_rows(self, ids: Tensor, part: Tensor) -> None:
        """Add part (K, D), in the accumulation dtype, to the rows `ids` (K,), which are distinct."""

    def add_product(self, a: Tensor, b: Tensor) -> None:
        """Add a (V, K) @ b (K, D) to all rows."""

    def finish(self, along: Tensor, axis: Tensor) -> None:
        """Add the outer product of along (V,) and axis (D,), and round to the dtype of dW."""


class WideSums:
    """Sums in the accumulation dtype: in dW itself where it has that dtype, else in a matrix beside it."""

    def __init__(self, dweight: Tensor) -> None:
        self.dweight = dweight
        dtype = accumulation_dtype(dweight.dtype)
        self.wide = dweight.zero_() if dweight.dtype == dtype else torch.zeros_like(dweight, dtype=dtype)

    def add_rows(self, ids: Tensor, part: Tensor) -> None:
        """Add part (K, D) to the rows `ids`."""
        self.wide.index_copy_(0, ids, self.wide[ids].add_(part))

    def add_product(self, a: Tensor, b: Tensor) -> None:
        """Add a (V, K) @ b (K, D) to all rows."""
        for start in range(0, len(a), SUM_ROWS):
            at = slice(start, start + SUM_ROWS)
            add_matmul(a[at], b, self.wide[at], add=True)

    def finish(self, along: Tensor, axis: Tensor) -> None:
        """Add the outer product of along (V,) and axis (D,), and round."""
        for start in range(0, len(along), SUM_ROWS):
            at = slice(start, start + SUM_ROWS)
            self.wide[at].addr_(along[at], axis)
            if self.wide is not self.dweight:
                self.dweight[at] = self.wide[at]


def add_matmul(a: Tensor, b: Tensor, total: Tensor, add: bool) -> None:
    """Compute total (M, N) = a (M, K) @ b (K, N), or += with `add`; total is in the accumulation dtype."""
    if a.dtype == total.dtype:
        matmul(a, b, total, add=add)
        return
    provider = choose_gemm(2.0 * a.shape[0] * a.shape[1] * b.shape[1], a.dtype, a.device).provider
    if provider == "native" and takes(torch.bfloat16, a, b):
        multiply(a, b, total, add=add)
    elif add:
        total.add_(a @ b)
    else:
        total.copy_(a @ b)
