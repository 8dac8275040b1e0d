"""Matrix products: by torch, or on a CPU by whoever a trial shows to be faster.

In float32 that may be OpenBLAS, in bfloat16 our own kernel, which adds up in float32 inside the product. The trial is
made once on a machine and remembered in the cache folder. `$CYNOSURE_GEMM` names a provider instead, for every size, so
that a run can be repeated bit for bit; torch has the dtypes that the one named has not.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from cynosure.loss.machine import cache_directory, cpu_name
from cynosure.loss.native.library import Product, call, library
from cynosure.loss.openblas import find_openblas
from cynosure.loss.tensors import address
from cynosure.system.apart import apart
from cynosure.system.files import write_whole

RIVALS = {torch.float32: "openblas", torch.bfloat16: "native"}  # of torch
DTYPES = {rival: dtype for dtype, rival in RIVALS.items()}
PROVIDERS = ("torch", *RIVALS.values())
VARIABLE = "CYNOSURE_GEMM"
WORTH_IT = 1e9  # floating-point operations below which torch does them, whoever is faster
WORTH_THREADS = 1e8  # below which starting threads takes longer than our own product
TRIAL = (192, 640, 8192)  # rows, hidden size, vocabulary: three products of 2 GFLOP, a hundredth of a second each
TRIAL_RUNS = 4
KEPT = "gemm.json"  # in the cache folder: what the trials have shown
MOST_KEPT_BYTES = 2**20  # of it: thousands of trials
SUM_ROWS = 2048  # of a half-precision dW that torch makes at a time


SETTLED: dict[torch.dtype, "Gemm"] = {}  # in this process, whoever a trial shows to be faster


LARGE: list[bool] = []  # not empty: inside of `as_if_large`


class Gemm(NamedTuple):
    """Who does a product, and why."""

    provider: str
    reason: str


def choose_gemm(flops: float, dtype: torch.dtype, device: torch.device) -> Gemm:
    """The provider for products of so many floating-point operations. Raises ValueError for a name there is not."""
    if dtype not in RIVALS or device.type != "cpu":
        return Gemm("torch", f"it alone has {str(dtype).removeprefix('torch.')} products on this device")
    if asked := os.environ.get(VARIABLE):
        if asked not in PROVIDERS:
            raise ValueError(f"{VARIABLE} must be one of {', '.join(PROVIDERS)}, got {asked!r}")
        if asked != "torch" and (missing := why_missing(asked)):
            raise ValueError(f"{VARIABLE}={asked}, but {missing}")
        return Gemm(asked if asked == RIVALS[dtype] else "torch", f"asked for by {VARIABLE}={asked}")
    if flops < WORTH_IT and not (LARGE and flops > 0):
        return Gemm("torch", "the products are small")
    return SETTLED.get(dtype) or fastest(dtype, torch.get_num_threads())


@contextmanager
def as_if_large() -> Iterator[None]:
    """Inside, products of any size are made by the provider of large ones."""
    LARGE.append(True)
    try:
        yield
    finally:
        LARGE.pop()


def providers() -> dict[str, str]:
    """Who does large products on this machine's CPU, by dtype: what `settle` takes."""
    chosen = {dtype: choose_gemm(WORTH_IT, dtype, torch.device("cpu")).provider for dtype in RIVALS}
    return {str(dtype).removeprefix("torch."): provider for dtype, provider in chosen.items()}


def settle(chosen: dict[str, str]) -> list[str]:
    """Let these do large products from now on, so that another process's sums can be repeated; who of them is missing.

    >>> settle(providers())
    []
    """
    missing = []
    for dtype, rival in RIVALS.items():
        provider = chosen.get(str(dtype).removeprefix("torch."), "torch")
        if provider != "torch" and (provider != rival or why_missing(provider)):
            missing.append(provider)
        else:
            SETTLED[dtype] = Gemm(provider, "settled for this process")
    return missing


def why_missing(provider: str) -> str:
    """Why one of the rivals is not there; nothing if it is."""
    if provider == "openblas":
        return "" if find_openblas() else "there is no OpenBLAS beside torch: numpy from PyPI brings one"
    if library().functions is None:
        return f"the C++ library is missing: {library().reason}"
    return "" if library().bfloat16_products else "this processor has no bfloat16 products in AVX-512"


def product(a: Tensor, b: Tensor, out: Tensor, add: bool = False, provider: str | None = None) -> Tensor:
    """out (M, N) = a (M, K) @ b (K, N), or += with `add`; by the provider named, or the one to choose."""
    flops = 2.0 * a.shape[0] * a.shape[1] * b.shape[1]
    provider = provider or choose_gemm(flops, a.dtype, a.device).provider
    ours = provider == "openblas" or (provider == "native" and not add)
    if ours and takes(DTYPES[provider], a, b, out) and by_rows(out):
        multiply(a, b, out, add=add)
        return out
    return torch.addmm(out, a, b, out=out) if add else torch.mm(a, b, out=out)  # addmm_ is not counted as FLOPs


class WeightSum:
    """dW (V, D) of half-precision factors, added up chunk by chunk as float32 and then narrowed to its own dtype.

    Our own products keep in `dweight` the upper half of each sum and in `low` the lower one; with torch's, or where dW
    is wider than its factors, `wide` is a float32 matrix beside it, or it itself.
    """

    def __init__(self, dweight: Tensor, dtype: torch.dtype, flops: float) -> None:
        self.dweight = dweight
        ours = dtype == torch.bfloat16 and dweight.dtype in (torch.bfloat16, torch.float32)
        self.native = ours and choose_gemm(flops, dtype, dweight.device).provider == "native"
        self.low: Tensor | None = None
        self.wide: Tensor | None = None

    def add(self, a: Tensor, b: Tensor, first: bool, last: bool) -> None:
        """dW += a (V, K) @ b (K, D)."""
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
        for start in range(0, len(self.wide), SUM_ROWS):  # which are added while they are still in a CPU's cache
            stop = min(start + SUM_ROWS, len(self.wide))
            made = torch.mm(a[start:stop], b, out=part[: stop - start])
            total = self.wide[start:stop]
            total = total.copy_(made) if first else total.add_(made)
            if last and self.wide is not self.dweight:
                self.dweight[start:stop] = total


def multiply(
    a: Tensor, b: Tensor, out: Tensor, low: Tensor | None = None, add: bool = False, keep_low: bool = False
) -> None:
    """out = a @ b, or += with `add`, by torch's rival for the dtype; low and keep_low as of `native_product`.

    Dispatch modes, such as `FlopCounterMode`, and the profiler see operations of torch alone: while one is active this
    is one, `cynosure::gemm`, whose floating-point operations are registered. Else that would be overhead.
    """
    watched = torch._C._len_torch_dispatch_stack() > 0 or torch._C._autograd._profiler_enabled()
    (torch.ops.cynosure.gemm if watched else unseen)(a, b, out, low, add, keep_low)


def unseen(a: Tensor, b: Tensor, out: Tensor, low: Tensor | None, add: bool, keep_low: bool) -> None:
    """The product itself."""
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
    arguments = Product(
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


@cache
def fastest(dtype: torch.dtype, n_threads: int) -> Gemm:
    """The faster provider of a dtype's products on this machine, as remembered or tried."""
    return apart(_fastest, dtype, n_threads)


def _fastest(dtype: torch.dtype, n_threads: int) -> Gemm:
    rival = RIVALS[dtype]
    if missing := why_missing(rival):
        return Gemm("torch", missing)
    if not agrees(rival, dtype):
        return Gemm("torch", f"{rival} gives other products than torch")
    kernels = os.environ.get("OPENBLAS_CORETYPE", "its own choice of kernels")
    about = f"{find_openblas().path}, {kernels}" if rival == "openblas" else ""  # type: ignore[union-attr]
    key = f"{dtype}, {cpu_name()}, {n_threads} threads, torch {torch.__version__}, {rival} {about}".strip()
    rates = remembered().get(key, {})
    if not rates.keys() >= {"torch", rival}:
        rates = {name: trial(name, dtype) for name in ("torch", rival)}
        remember(key, rates)
    told = f"{rival} {rates[rival]:.0f} GFLOP/s, torch {rates['torch']:.0f} in a trial"
    return Gemm(max(("torch", rival), key=rates.__getitem__), told)


def agrees(provider: str, dtype: torch.dtype) -> bool:
    """Whether its products are torch's, for every layout that is asked for."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((33, 65), (65, 17)))
    truth = a.double() @ b.double()
    tolerance = 8 * torch.finfo(dtype).eps
    for x, y in ((a, b), (a.t().contiguous().t(), b), (a, b.t().contiguous().t())):
        out = product(x, y, torch.empty(33, 17, dtype=dtype), provider=provider)
        if not torch.allclose(out.double(), truth, rtol=tolerance, atol=8 * tolerance):
            return False
    return True


def trial(provider: str, dtype: torch.dtype) -> float:
    """GFLOP/s of a chunk's three products."""
    rows, hidden_size, vocab_size = TRIAL
    hidden, weight = torch.ones(rows, hidden_size, dtype=dtype), torch.ones(vocab_size, hidden_size, dtype=dtype)
    logits, dhidden = torch.empty(rows, vocab_size, dtype=dtype), torch.empty_like(hidden)
    dweight = torch.zeros_like(weight)
    total = WeightSum(dweight, dtype, -math.inf)  # by nobody's choice: this trial is what a choice goes by
    total.native = provider == "native"
    seconds = []
    for i in range(TRIAL_RUNS):
        start = time.perf_counter()
        product(hidden, weight.t(), logits, provider=provider)
        product(logits, weight, dhidden, provider=provider)
        if dtype == torch.float32:
            product(logits.t(), hidden, dweight, add=True, provider=provider)
        else:
            total.add(logits.t(), hidden, first=i == 0, last=False)
        seconds.append(time.perf_counter() - start)
    return round(6e-9 * rows * hidden_size * vocab_size / min(seconds), 1)


def remembered() -> dict[str, dict[str, float]]:
    """The rates kept in the cache folder, by key. Anything that `remember` did not write counts as absent."""
    try:
        path = cache_directory() / KEPT
        if not path.is_file():
            return {}
        with path.open("rb") as file:
            kept = json.loads(file.read(MOST_KEPT_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: rates for key, rates in kept.items() if are_rates(rates)} if isinstance(kept, dict) else {}


def are_rates(x: object) -> bool:
    """Whether these are GFLOP/s by provider."""
    return isinstance(x, dict) and all(isinstance(rate, float) and 0 <= rate < math.inf for rate in x.values())


def remember(key: str, rates: dict[str, float]) -> None:
    """Written beside, then renamed; a folder that cannot be written costs the next process a trial."""
    try:
        path = cache_directory() / KEPT
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({**remembered(), key: rates}, indent=1).encode())
    except OSError:
        return
