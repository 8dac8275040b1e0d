"""Measure once per machine whether torch or its alternative is faster, and remember it in the cache folder."""

import json
import math
import os
import time
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from cynosure.loss.matmul.openblas import find_openblas
from cynosure.loss.matmul.rivals import RIVALS, Gemm, multiplied, why_missing
from cynosure.loss.matmul.weight_sum import WeightSum
from cynosure.system.apart import apart
from cynosure.system.files import write_whole
from cynosure.system.machine import cache_directory, cpu_name

TRIAL = (192, 640, 8192)  # rows, hidden size, vocabulary: three matmuls of 2 GFLOP, a hundredth of a second each
TURNS, RUNS = 3, 2  # of each provider, runs in a row: torch's idle threads compete with the first run after them
BUSY = 0.75  # this thread's share of a processor during a trial: below it, other work took the rest
TOLERATED = {torch.bfloat16: 0.95}  # of torch's rate: our own matmuls need half the memory for the sums of dW
KEPT = "matmuls.json"  # results of the trials, in the cache folder
MOST_KEPT_BYTES = 2**20  # enough for thousands of trials


@cache
def fastest(dtype: torch.dtype, n_threads: int) -> Gemm:
    """Return the faster provider of a dtype's matmuls on this machine, as remembered or measured."""
    return apart(_fastest, dtype, n_threads)


def _fastest(dtype: torch.dtype, n_threads: int) -> Gemm:
    rival = RIVALS[dtype]
    if missing := why_missing(rival):
        return Gemm("torch", missing)
    if not agrees(rival, dtype):
        return Gemm("torch", f"{rival} gives other results than torch")
    kernels = os.environ.get("OPENBLAS_CORETYPE", "its own choice of kernels")
    about = f"{find_openblas().path}, {kernels}" if rival == "openblas" else ""  # type: ignore[union-attr]
    key = f"{dtype}, {cpu_name()}, {n_threads} threads, torch {torch.__version__}, {rival} {about}".strip()
    rates = remembered().get(key, {})
    if not rates.keys() >= {"torch", rival}:
        start, start_thread = time.perf_counter(), time.thread_time()
        rates = trial(("torch", rival), dtype)
        if time.thread_time() - start_thread >= BUSY * (time.perf_counter() - start):
            remember(key, rates)  # otherwise the next process tries again
    reason = f"{rival} {rates[rival]:.0f} GFLOP/s, torch {rates['torch']:.0f} in a trial"
    return Gemm(rival if rates[rival] > TOLERATED.get(dtype, 1.0) * rates["torch"] else "torch", reason)


def agrees(provider: str, dtype: torch.dtype) -> bool:
    """Whether its matmuls equal torch's in every layout that we use."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((33, 65), (65, 17)))
    truth = a.double() @ b.double()
    tolerance = 8 * torch.finfo(dtype).eps
    for x, y in ((a, b), (a.t().contiguous().t(), b), (a, b.t().contiguous().t())):
        out = multiply_by(provider, x, y, torch.empty(33, 17, dtype=dtype))
        if not torch.allclose(out.double(), truth, rtol=tolerance, atol=8 * tolerance):
            return False
    return True


def trial(providers: tuple[str, ...], dtype: torch.dtype) -> dict[str, float]:
    """Measure GFLOP/s of a chunk's three matmuls by each provider.

    They take turns, so that other work on the machine slows down all of them.
    """
    rows, hidden_size, vocab_size = TRIAL
    least = dict.fromkeys(providers, math.inf)
    chunks = {name: chunk_matmuls(name, dtype) for name in providers}
    for _ in range(TURNS):
        for name, run in chunks.items():
            for _ in range(RUNS):
                start = time.perf_counter()
                run()
                least[name] = min(least[name], time.perf_counter() - start)
    return {name: round(6e-9 * rows * hidden_size * vocab_size / seconds, 1) for name, seconds in least.items()}


def chunk_matmuls(provider: str, dtype: torch.dtype) -> Callable[[], None]:
    """Return what runs a chunk's three matmuls."""
    rows, hidden_size, vocab_size = TRIAL
    hidden, weight = torch.ones(rows, hidden_size, dtype=dtype), torch.ones(vocab_size, hidden_size, dtype=dtype)
    logits, dhidden = torch.zeros(rows, vocab_size, dtype=dtype), torch.empty_like(hidden)
    dweight = torch.zeros_like(weight)
    if dtype == torch.float32:
        add_dweight: Callable[[], object] = partial(multiply_by, provider, logits.t(), hidden, dweight, add=True)
    else:
        total = WeightSum(dweight, dtype, provider)
        total.add(logits.t(), hidden, first=True, last=False)  # allocates
        add_dweight = partial(total.add, logits.t(), hidden, first=False, last=False)

    def run() -> None:
        multiply_by(provider, hidden, weight.t(), logits)
        multiply_by(provider, logits, weight, dhidden)
        add_dweight()

    return run


def multiply_by(provider: str, a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> Tensor:
    """Compute out = a @ b, or += with `add`, with this provider."""
    if provider != "torch" and multiplied(provider, a, b, out, add):
        return out
    return torch.addmm(out, a, b, out=out) if add else torch.mm(a, b, out=out)


def remembered() -> dict[str, dict[str, float]]:
    """Read the rates in the cache folder, by key. Anything that `remember` did not write is ignored."""
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
    """Whether x maps providers to GFLOP/s."""
    return isinstance(x, dict) and all(isinstance(rate, float) and 0 <= rate < math.inf for rate in x.values())


def remember(key: str, rates: dict[str, float]) -> None:
    """Add rates to the file, atomically. If the folder cannot be written, the next process repeats the trial."""
    try:
        path = cache_directory() / KEPT
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({**remembered(), key: rates}, indent=1).encode())
    except OSError:
        return
