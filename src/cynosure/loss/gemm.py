"""Matrix products: by torch, or in float32 on a CPU by OpenBLAS where a trial shows it to be faster.

The trial is made once on a machine and remembered in the cache folder. `$CYNOSURE_GEMM` names a provider instead, for
every size, so that a run can be repeated bit for bit.
"""

import json
import os
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cynosure.loss.machine import cache_directory, cpu_name
from cynosure.loss.openblas import OpenBlas, find_openblas, takes

PROVIDERS = ("torch", "openblas")
VARIABLE = "CYNOSURE_GEMM"
WORTH_IT = 1e9  # floating-point operations below which torch does them, whoever is faster
TRIAL = (192, 640, 8192)  # M, K, N: 2 GFLOP, a hundredth of a second
TRIAL_RUNS = 4
MUCH_FASTER = 1.1  # by less than this torch stays: its threads are awake already


class Gemm(NamedTuple):
    """Who does a product, and why."""

    provider: str
    reason: str


def choose_gemm(flops: float, dtype: torch.dtype, device: torch.device) -> Gemm:
    """The provider for products of so many floating-point operations. Raises ValueError for a name there is not."""
    if dtype != torch.float32 or device.type != "cpu":
        return Gemm("torch", f"it alone has {str(dtype).removeprefix('torch.')} products on this device")
    if asked := os.environ.get(VARIABLE):
        if asked not in PROVIDERS:
            raise ValueError(f"{VARIABLE} must be one of {', '.join(PROVIDERS)}, got {asked!r}")
        if asked == "openblas" and find_openblas() is None:
            raise ValueError(f"{VARIABLE}=openblas, but there is no OpenBLAS: numpy from PyPI brings one")
        return Gemm(asked, f"asked for by {VARIABLE}")
    if flops < WORTH_IT:
        return Gemm("torch", "the products are small")
    return fastest(torch.get_num_threads())


def product(a: Tensor, b: Tensor, out: Tensor, add: bool = False, provider: str | None = None) -> Tensor:
    """out (M, N) = a (M, K) @ b (K, N), or += with `add`; by the provider named, or the one to choose."""
    if provider is None:
        provider = choose_gemm(2.0 * a.shape[0] * a.shape[1] * b.shape[1], a.dtype, a.device).provider
    if provider == "openblas" and takes(a, b, out) and out.stride(1) == 1:
        blas = find_openblas()
        assert blas is not None
        blas.product(a, b, out, add)
        return out
    return out.addmm_(a, b) if add else torch.mm(a, b, out=out)


@cache
def fastest(n_threads: int) -> Gemm:
    """The faster provider of float32 products on this machine, as remembered or tried."""
    blas = find_openblas()
    if blas is None:
        return Gemm("torch", "no OpenBLAS was found beside it: numpy from PyPI brings one")
    if not agrees(blas):
        return Gemm("torch", f"{blas.path} gives other products than torch")
    kernels = os.environ.get("OPENBLAS_CORETYPE", "its own choice of kernels")
    key = f"{cpu_name()}, {n_threads} threads, torch {torch.__version__}, {blas.path}, {kernels}"
    kept = cache_directory() / "gemm.json"
    rates = remembered(kept).get(key)
    if rates is None:
        rates = {name: trial(name) for name in PROVIDERS}
        remember(kept, key, rates)
    told = f"OpenBLAS {rates['openblas']:.0f} GFLOP/s, torch {rates['torch']:.0f} in a trial"
    return Gemm("openblas" if rates["openblas"] > MUCH_FASTER * rates["torch"] else "torch", told)


def agrees(blas: OpenBlas) -> bool:
    """Whether its products are torch's, for every layout that is asked for."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(33, 65, generator=generator), torch.randn(65, 17, generator=generator)
    for x, y in ((a, b), (a.t().contiguous().t(), b), (a, b.t().contiguous().t())):
        out = torch.ones(33, 17)
        blas.product(x, y, out, add=True)
        blas.product(x, y, out, add=True)
        if not torch.allclose(out, 2 * (a @ b) + 1, rtol=1e-4, atol=1e-4):
            return False
    return True


def trial(provider: str) -> float:
    """GFLOP/s of a product in float32."""
    m, k, n = TRIAL
    a, b, out = torch.ones(m, k), torch.ones(n, k).t(), torch.empty(m, n)
    seconds = []
    for _ in range(TRIAL_RUNS):
        start = time.perf_counter()
        product(a, b, out, provider=provider)
        seconds.append(time.perf_counter() - start)
    return round(2e-9 * m * k * n / min(seconds), 1)


def remembered(path: Path) -> dict[str, dict[str, float]]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def remember(path: Path, key: str, rates: dict[str, float]) -> None:
    """Written beside, then renamed; a folder that cannot be written costs the next process a trial."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({**remembered(path), key: rates}, indent=1), encoding="utf-8")
        partial.replace(path)
    except OSError:
        return
