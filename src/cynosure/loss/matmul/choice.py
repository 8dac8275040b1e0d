"""Choose the provider of a matmul.

`$CYNOSURE_GEMM` names a provider for all sizes, so that a run can be repeated bit for bit. Torch handles the dtypes
that it does not support. Without the variable, a trial decides for large matmuls.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cynosure.loss.devices import is_asynchronous
from cynosure.loss.matmul.rivals import RIVALS, Gemm, why_missing
from cynosure.loss.matmul.trials import fastest

PROVIDERS = ("torch", *RIVALS.values())
VARIABLE = "CYNOSURE_GEMM"
WORTH_IT = 1e9  # floating-point operations below which torch is always used

SETTLED: dict[torch.dtype, Gemm] = {}  # fixed for this process, without a trial
LARGE: list[bool] = []  # not empty inside `as_if_large`


def choose_gemm(flops: float, dtype: torch.dtype, device: torch.device) -> Gemm:
    """Choose the provider of a matmul of `flops` operations. Raises ValueError if the variable has an invalid name."""
    if dtype not in RIVALS or is_asynchronous(device):
        return Gemm("torch", f"the only provider of {str(dtype).removeprefix('torch.')} matmuls on this device")
    if name := os.environ.get(VARIABLE):
        if name not in PROVIDERS:
            raise ValueError(f"{VARIABLE} must be one of {', '.join(PROVIDERS)}, got {name!r}")
        if name != "torch" and (missing := why_missing(name)):
            raise ValueError(f"{VARIABLE}={name}, but {missing}")
        return Gemm(name if name == RIVALS[dtype] else "torch", f"selected by {VARIABLE}={name}")
    if flops < WORTH_IT and not (LARGE and flops > 0):
        return Gemm("torch", "the matmuls are small")
    return SETTLED.get(dtype) or fastest(dtype, torch.get_num_threads())


@contextmanager
def as_if_large() -> Iterator[None]:
    """Inside, matmuls of any size go to the provider of large ones."""
    LARGE.append(True)
    try:
        yield
    finally:
        LARGE.pop()


def providers() -> dict[str, str]:
    """Return the provider of large matmuls on this machine's CPU by dtype, as `settle` accepts it."""
    chosen = {dtype: choose_gemm(WORTH_IT, dtype, torch.device("cpu")).provider for dtype in RIVALS}
    return {str(dtype).removeprefix("torch."): provider for dtype, provider in chosen.items()}


def settle(chosen: dict[str, str]) -> list[str]:
    """Fix the providers of large matmuls, to repeat the sums of another process. Return the missing providers.

    >>> settle(providers())
    []
    """
    missing = []
    for dtype, rival in RIVALS.items():
        provider = chosen.get(str(dtype).removeprefix("torch."), "torch")
        if provider != "torch" and (provider != rival or why_missing(provider)):
            missing.append(provider)
        else:
            SETTLED[dtype] = Gemm(provider, "fixed for this process")
    return missing
