"""Torch's rivals on a CPU: OpenBLAS in float32; in bfloat16 our own kernel, which sums in float32 inside the matmul."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from cynosure.loss.matmul.openblas import find_openblas
from cynosure.loss.native.library import MatmulArguments, call, library
from cynosure.loss.tensors import address
from cynosure.system.upstream import is_profiling, n_dispatch_modes

RIVALS = {torch.float32: "openblas", torch.bfloat16: "native"}  # of torch
DTYPES = {rival: dtype for dtype, rival in RIVALS.items()}
WORTH_THREADS = 1e8  # floating-point operations below which starting threads takes longer than our own matmul


class Gemm(NamedTuple):
    """The provider of a matmul, and why."""

    provider: str
    reason: str


def why_missing(provider: str) -> str:
    """Why one of the rivals is not there; nothing if it is."""
    if provider == "openblas":
        return "" if find_openblas() else "there is no OpenBLAS beside torch: numpy from PyPI brings one"
    if library().functions is None:
        return f"the C++ library is missing: {library().reason}"
    return "" if library().bfloat16_products else "this processor has no bfloat16 products in AVX-512"


def multiplied(provider: str, a: Tensor, b: Tensor, out: Tensor, add: bool) -> bool:
    """out = a @ b, or += with `add`, by the rival of this name; False, and nothing done, where it cannot read these."""
    ours = provider == "openblas" or (provider == "native" and not add)
    if not (ours and takes(DTYPES[provider], a, b, out) and by_rows(out)):
        return False
    multiply(a, b, out, add=add)
    return True


def multiply(
    a: Tensor, b: Tensor, out: Tensor, low: Tensor | None = None, add: bool = False, keep_low: bool = False
) -> None:
    """out = a @ b, or += with `add`, by torch's rival for the dtype; low and keep_low as of `native_product`.

    Dispatch modes, such as `FlopCounterMode`, and the profiler see operations of torch alone: while one is active this
    is one, `cynosure::gemm`, whose floating-point operations are registered. Else that would be overhead.
    """
    watched = n_dispatch_modes() > 0 or is_profiling()
    (torch.ops.cynosure.gemm if watched else unseen)(a, b, out, low, add, keep_low)


def unseen(a: Tensor, b: Tensor, out: Tensor, low: Tensor | None, add: bool, keep_low: bool) -> None:
    """The matmul itself."""
    if a.dtype == torch.float32:
        blas = find_openblas()
        assert blas is not None
        blas.product(a, b, out, add)
    else:
        native_product(a, b, out, low, add, keep_low)


torch.library.define(
    "cynosure::gemm", "(Tensor a, Tensor b, Tensor(a!) out, Tensor(b!)? low, bool add, bool keep_low) -> ()"
)
torch.library.impl("cynosure::gemm", "cpu", unseen)


@register_flop_formula(torch.ops.cynosure.gemm)
def gemm_flops(a_shape: tuple[int, int], b_shape: tuple[int, int], *_: Any, **__: Any) -> int:
    """What `FlopCounterMode` counts for `cynosure::gemm`."""
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


def native_product(
    a: Tensor, b: Tensor, out: Tensor, low: Tensor | None = None, add: bool = False, keep_low: bool = False
) -> None:
    """out = a @ b of bfloat16 factors, or += with `add`, summed in float32; out and low as gemm.h has them."""
    flops = 2.0 * a.shape[0] * a.shape[1] * b.shape[1]
    n_threads = torch.get_num_threads() if flops >= WORTH_THREADS else 1
    wide, narrow = (address(out), None) if out.dtype == torch.float32 else (None, address(out))
    arguments = MatmulArguments(
        address(a), *a.stride(), address(b), *b.stride(), a.shape[0], b.shape[1], a.shape[1], wide, narrow,
        None if low is None else address(low), out.stride(0), add, keep_low and low is not None, n_threads,
    )  # fmt: skip
    call("cynosure_product", arguments)


def takes(dtype: torch.dtype, *tensors: Tensor) -> bool:
    """Whether a provider other than torch can read these: matrices in a CPU's memory, stored densely, not empty."""
    return all(
        x.device.type == "cpu" and x.dtype == dtype and x.numel() > 0 and (by_rows(x) or by_rows(x.t()))
        for x in tensors
    )


def by_rows(x: Tensor) -> bool:
    """Whether rows are contiguous and do not overlap."""
    return x.stride(1) == 1 and x.stride(0) >= x.shape[1]
