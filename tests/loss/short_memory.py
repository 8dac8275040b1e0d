"""Runs each kernel with too little memory: `python -m tests.loss.short_memory allocations|limit`.

`allocations` lets every request for memory or a thread fail in turn (under failing_malloc.c); `limit` raises RLIMIT_AS
step by step. A kernel must raise MemoryError or give the result it gives otherwise. Prints how often it did which.
"""

import ctypes
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from cynosure.loss.backends.registry import choose_backend
from cynosure.loss.matmul.rivals import native_matmul
from cynosure.loss.native import library as native
from cynosure.loss.options import RowOptions
from cynosure.loss.pieces import Best, Piece
from cynosure.loss.targets import TargetRows

N_THREADS = 3
STEP, N_STEPS = 96 * 1024, 64
NAMES = ("cynosure_loss_rows", "cynosure_stats_rows", "cynosure_product")


def matmul(m, k, n):
    a, b, out = torch.randn(m, k).bfloat16(), torch.randn(k, n).bfloat16(), torch.zeros(m, n).bfloat16()

    def run():
        native_matmul(a, b, out.zero_())
        return [out]

    return run


def loss_rows(n_rows=8, vocab_size=32768, n_classes=20_000):
    z, upstream = torch.randn(n_rows, vocab_size), torch.ones(n_rows)
    classes, probability = torch.randint(vocab_size, (n_rows, n_classes)), torch.rand(n_rows, n_classes)
    target, dz = TargetRows(classes, probability, torch.ones(n_rows)), z.clone()

    def run():
        return [choose_backend("native")[0].loss_rows(dz.copy_(z), target, RowOptions(), upstream), dz]

    return run


def stats_rows(n_rows=8, vocab_size=32768, topk=20_000):
    z, index = torch.randn(n_rows, vocab_size), torch.arange(n_rows)
    beta, logit = (0.5, 1.0, 3.0), z.gather(-1, index[:, None])[:, 0]
    best, new = (Best.none(n_rows, topk, z.device) for _ in range(2))

    def run():
        best.z.copy_(new.z), best.ids.copy_(new.ids)
        piece = Piece(0, vocab_size)
        return [*choose_backend("native")[0].stats_piece(z, piece, index, logit, RowOptions(), best, beta), *best]

    return run


def cases():
    found = {"loss": loss_rows(), "stats": stats_rows()}
    if native.library().has_bfloat16:
        found |= {
            "along_n": matmul(64, 700, 5000),
            "along_m": matmul(5000, 64, 300),
            "along_k": matmul(64, 5000, 300),
        }
    return found


def outcome(run, truth):
    """Whether it raised MemoryError. Anything but that and the right result ends the process."""
    try:
        result = run()
    except MemoryError as error:
        return is_ours(error)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # torch's own word, for its tensors
            raise
        return False
    assert all(torch.equal(x, y) for x, y in zip(result, truth, strict=True)), "another result than with enough memory"
    return False


def is_ours(error):
    return "cannot allocate" in str(error) and any(name in str(error) for name in NAMES)


def every_allocation(run, truth):
    """Raised and succeeded, of runs in which each request fails alone, and then with all that follow it."""
    shim, real, state = ctypes.CDLL(None), native.library(), SimpleNamespace(first=0, later=0, n=ctypes.c_int64(0))
    shim.run_failing.restype = ctypes.c_int64

    def failing(name):
        address = ctypes.cast(getattr(real.functions, name), ctypes.c_void_p)
        return lambda arguments: shim.run_failing(
            address, arguments, ctypes.c_int64(state.first), state.later, ctypes.byref(state.n)
        )

    functions = SimpleNamespace(**{name: failing(name) for name in NAMES if hasattr(real.functions, name)})
    native.library = lambda: real._replace(functions=functions)
    outcomes = []
    for state.later in (0, 1):
        state.first, state.n.value = 0, 0
        while state.first <= state.n.value:  # the last run has fewer requests than that
            state.first += 1
            outcomes.append(outcome(run, truth))
    native.library = lambda: real
    assert len(outcomes) >= 2 * (N_THREADS + 1), "memory and threads were not asked for"
    return outcomes


def limit(n_bytes):
    resource.setrlimit(resource.RLIMIT_AS, (n_bytes, resource.RLIM_INFINITY))


def every_limit(run, truth):
    libc, outcomes = ctypes.CDLL(None), []
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    for n_bytes in (i * STEP for i in range(N_STEPS)):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit(used)
        filled = list(iter(lambda: libc.malloc(STEP), None))  # what malloc holds from before would hide the limit
        limit(used + n_bytes)
        try:
            outcomes.append(outcome(run, truth))
        finally:
            limit(resource.RLIM_INFINITY)
            for block in filled:
                libc.free(block)
    return outcomes


def main(walk):
    torch.manual_seed(0)
    torch.set_num_threads(N_THREADS)
    for name, run in cases().items():
        outcomes = walk(run, [x.clone() for x in run()])
        print(f"{name}: {sum(outcomes)} raised, {len(outcomes) - sum(outcomes)} succeeded")
        assert 0 < sum(outcomes) < len(outcomes), name


if __name__ == "__main__":
    main({"allocations": every_allocation, "limit": every_limit}[sys.argv[1]])
