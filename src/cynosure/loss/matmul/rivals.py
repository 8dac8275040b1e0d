"""Alternatives to torch's matmuls on a CPU: OpenBLAS in float32, and in bfloat16 our own kernel with float32 sums."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from cynosure.loss.matmul.openblas import find_openblas
from cynosure.loss.native.library import MatmulArguments, call, library
from cynosure.loss.tensors import address
from cynosure.system.upstream import is_profiling, n_dispatch_modes

RIVALS = {torch.float32: "openblas", torch.bfloat16: "native"}
DTYPES = {rival: dtype for dtype, rival in RIVALS.items()}
WORTH_THREADS = 1e8  # floating-point operations below which starting threads takes longer than our own matmul


class Gemm(NamedTuple):
    """The provider of a matmul, and why."""

    provider: str
    reason: str


def why_missing(provider: str) -> str:
    """Return why an alternative is not available, or "" if it is."""
    if provider == "openblas":
        return "" if find_openblas() else "OpenBLAS is not installed: install numpy from PyPI, which includes it"
    if library().functions is None:
        return f"the C++ library is missing: {library().reason}"
    return "" if library().has_bfloat16 else "this processor has no bfloat16 instructions in AVX-512"


def multiplied(provider: str, a: Tensor, b: Tensor, out: Tensor, add: bool) -> bool:
    """Compute out = a @ b, or += with `add`, with this alternative. If it cannot read these tensors, return False."""
    ours = provider == "openblas" or (provider == "native" and not add)
    if not (ours and takes(DTYPES[provider], a, b, out) and by_rows(out)):
        return False
    multiply(a, b, out, add=add)
    return True


def multiply(
    a: Tensor, b: Tensor, out: Tensor, low: Tensor | None = None, add: bool = False, keep_low: bool = False
) -> None:
    """Compute out = a @ b, or += with `add`, with the dtype's alternative; low and keep_low as for `native_matmul`.

    Dispatch modes (for example `FlopCounterMode`) and the profiler only see torch operations. While one is active, this
    runs as `cynosure::gemm`, whose floating-point operations are registered. Otherwise that would be overhead.
    """
    watched = n_dispatch_modes() > 0 or is_profiling()
    (torch.ops.cynosure.gemm if watched else unseen)(a, b, out, low, add, keep_low)


def unseen(a: Tensor, b: Tensor, out: Tensor, low: Tensor | None, add: bool, keep_low: bool) -> None:
    """Compute the matmul without telling torch."""
    if a.dtype == torch.float32:
        blas = find_openblas()
        assert blas is not None
        blas.matmul(a, b, out, add)
    else:
        native_matmul(a, b, out, low, add, keep_low)


torch.library.define(
    "cynosure::gemm", "(Tensor a, Tensor b, Tensor(a!) out, Tensor(b!)? low, bool add, bool keep_low) -> ()"
)
torch.library.impl("cynosure::gemm", "cpu", unseen)


@register_flop_formula(torch.ops.cynosure.gemm)
def gemm_flops(a_shape: tuple[int, int], b_shape: tuple[int, int], *_: Any, **__: Any) -> int:
    """Return the floating-point operations that `FlopCounterMode` counts for `cynosure::gemm`."""
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


def native_matmul(
    a: Tensor, b: Tensor, out: Tensor, low: Tensor | None = None, add: bool = False, keep_low: bool = False
) -> None:
    """Compute out = a @ b in bfloat16, or += with `add`, with float32 sums; gemm.h documents out and low."""
    flops = 2.0 * a.shape[0] * a.shape[1] * b.shape[1]
    n_threads = torch.get_num_threads() if flops >= WORTH_THREADS else 1
    wide, narrow = (address(out), None) if out.dtype == torch.float32 else (None, address(out))
    arguments = MatmulArguments(
        address(a), *a.stride(), address(b), *b.stride(), a.shape[0], b.shape[1], a.shape[1], wide, narrow,
        None if low is None else address(low), out.stride(0), add, keep_low and low is not None, n_threads,
    )  # fmt: skip
    call("cynosure_product", arguments)


def takes(dtype: torch.dtype, *tensors: Tensor) -> bool:
    """Whether a provider other than torch can read these: dense, not empty matrices in a CPU's memory."""
    return all(
        x.device.type == "cpu" and x.dtype == dtype and x.numel() > 0 and (by_rows(x) or by_rows(x.t()))
        for x in tensors
    )


def by_rows(x: Tensor) -> bool:
    """Whether rows are contiguous and do not overlap."""
    return x.stride(1) == 1 and x.stride(0) >= x.shape[1]
