"""The gradient dW (V, D) of a sampled backward, added up from rows of kept columns, whole chunks and one direction."""

from typing import Protocol

import torch
from torch import Tensor

from cynosure.loss.linear import matmul
from cynosure.loss.matmul.choice import choose_gemm
from cynosure.loss.matmul.rivals import multiply, takes
from cynosure.loss.matmul.weight_sum import SUM_ROWS
from cynosure.loss.native.library import INSTRUCTIONS, AddRows, FinishRows, WeightRows, call, library
from cynosure.loss.options import accumulation_dtype
from cynosure.loss.tensors import address


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


class SparseSums:
    """Sums in the C++ library: rows to which nothing was added are not read before the end, nor allocated twice.

    dW is float32, or bfloat16 with the lower halves of the sums in `low`.
    """

    def __init__(self, dweight: Tensor, instructions: int) -> None:
        self.dweight = dweight
        self.low = torch.empty_like(dweight) if dweight.dtype == torch.bfloat16 else None
        self.touched = torch.zeros(len(dweight), dtype=torch.bool)
        low = None if self.low is None else address(self.low)
        self.rows = WeightRows(
            address(dweight), low, address(self.touched), *dweight.shape, instructions, torch.get_num_threads()
        )

    def add_rows(self, ids: Tensor, part: Tensor) -> None:
        """Add part (K, D) to the rows `ids`."""
        call("cynosure_add_rows", AddRows(self.rows, address(ids), address(part), len(ids)))

    def add_product(self, a: Tensor, b: Tensor) -> None:
        """Add a (V, K) @ b (K, D) to all rows."""
        if a.dtype != self.dweight.dtype or (self.low is not None and not is_native(a, b)):
            for ids in torch.split(torch.arange(len(a)), SUM_ROWS):
                part = torch.empty(len(ids), b.shape[1])
                add_matmul(a[ids[0] : ids[-1] + 1], b, part, add=False)
                self.add_rows(ids, part)
            return
        add = bool(self.touched.any())
        if add:
            self.dweight[~self.touched] = 0
        if self.low is None:
            matmul(a, b, self.dweight, add=add)
        else:
            if add:
                self.low[~self.touched] = 0
            multiply(a, b, self.dweight, self.low, add=add, keep_low=True)
        self.touched.fill_(True)

    def finish(self, along: Tensor, axis: Tensor) -> None:
        """Add the outer product of along (V,) and axis (D,), and round."""
        call("cynosure_finish_rows", FinishRows(self.rows, address(along), address(axis)))


def row_sums(dweight: Tensor) -> RowSums:
    """Return what suits a dW (V, D)."""
    if library().functions is None or dweight.dtype not in (torch.float32, torch.bfloat16):
        return WideSums(dweight)
    return SparseSums(dweight, INSTRUCTIONS.index(library().instructions[0]))


def bytes_beside(dtype: torch.dtype) -> int:
    """Return the bytes per number of a dW of this dtype, beside those of dW itself, that its sums take at most."""
    if dtype == accumulation_dtype(dtype):
        return 0
    return 2 if dtype == torch.bfloat16 and library().functions is not None else accumulation_dtype(dtype).itemsize


def add_matmul(a: Tensor, b: Tensor, total: Tensor, add: bool, provider: str | None = None) -> None:
    """Compute total (M, N) = a (M, K) @ b (K, N), or += with `add`, in the accumulation dtype.

    `provider` is that of factors in half precision, whose sums it rounds or not. Without it, and in float32, the size
    decides: OpenBLAS starts its threads too slowly for small matmuls between operations of torch.
    """
    if a.dtype == total.dtype:
        matmul(a, b, total, add=add)
    elif (provider or provider_of(a, b)) == "native" and takes(torch.bfloat16, a, b):
        multiply(a, b, total, add=add)
    elif add:
        total.add_(a @ b)
    else:
        total.copy_(a @ b)


def provider_of(a: Tensor, b: Tensor) -> str:
    """Return the provider of a @ b."""
    return choose_gemm(2.0 * a.shape[0] * a.shape[1] * b.shape[1], a.dtype, a.device).provider


def is_native(a: Tensor, b: Tensor) -> bool:
    """Whether our own kernel multiplies these in bfloat16."""
    return provider_of(a, b) == "native" and takes(torch.bfloat16, a, b)
