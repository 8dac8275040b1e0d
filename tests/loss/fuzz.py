"""Random cases of the C++ kernels: `python -m tests.loss.fuzz KERNEL --seconds N --seed S --library FOLDER`.

KERNEL is rows, gemm or columns. Rows and columns are held to the torch kernel, and rows to it in float64 where all
numbers are ordinary; matmuls to float64. FOLDER has a
library compiled with other flags, such as a sanitizer's (`make sanitize`). --verbose prints each case before it runs.
"""

import argparse
import random
import sys
import time
from pathlib import Path
from unittest.mock import patch

import torch

from cynosure.loss import cross_entropy, linear_cross_entropy, token_stats
from cynosure.loss.backends import torch_rows
from cynosure.loss.backends.registry import backends, choose_backend
from cynosure.loss.matmul import rivals
from cynosure.loss.native import library
from cynosure.loss.options import accumulation_dtype
from cynosure.loss.sampling.row_sums import SparseSums, WideSums

INF, NAN = float("inf"), float("nan")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
VOCABULARIES = (1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 65, 127, 129, 257, 1000, 4095, 4097, 5003, 20_011)
SIZES = (
    1,
    2,
    3,
    5,
    11,
    12,
    13,
    16,
    17,
    31,
    32,
    33,
    63,
    65,
    100,
    191,
    193,
    205,
    511,
    513,
    639,
    640,
    641,
    700,
    1281,
    2000,
)
SPECIAL = (INF, -INF, NAN, 1e-40, -1e-45, 3e38, -3e38, 1e30, 3e9, 0.0, -0.0)
THREADS = (1, 2, 3, 8, 10_000)
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-7, torch.bfloat16: 5e-2}


def strided(rng, x):
    """x (r, c), half the time in rows further apart than they are long."""
    pad = rng.choice((0, 0, 0, 1, 3, 64))
    return torch.full((x.shape[0], x.shape[1] + pad), 7.0, dtype=x.dtype)[:, pad:].copy_(x)


def some_special(rng, x):
    """Some elements replaced by a value at the edge of what there is."""
    value, share = rng.choice(SPECIAL), rng.choice((0.001, 0.05, 0.5))
    return x.masked_fill(torch.rand(x.shape) < share, value)


def make_target(rng, n_rows, vocab_size):
    kind = rng.choice(("indices", "indices", "dense", "sparse"))
    if kind == "dense":
        return torch.randn(n_rows, vocab_size).softmax(-1)
    if kind == "sparse":
        k = rng.choice((1, 2, 5, 40))
        return torch.randint(vocab_size, (n_rows, k)), torch.randn(n_rows, k).softmax(-1)
    return torch.randint(vocab_size, (n_rows,)).masked_fill_(torch.rand(n_rows) < rng.choice((0.0, 0.5)), -100)


def make_options(rng, vocab_size):
    options = {"scale": rng.choice((1.0, 1.0, 0.3, -1.5, 30.0)), "softcap": rng.choice((None, None, 5.0, 30.0))}
    if rng.random() < 0.3:
        options["label_smoothing"] = rng.choice((0.1, 0.9, 1.0))
    if rng.random() < 0.3:
        options["z_loss"] = 1e-3
    if rng.random() < 0.3:
        options["class_weight"] = torch.rand(vocab_size)
    return options


def results(backend, hidden, weight, logits, target, options, stats):
    """Everything that a backend computes, by name."""
    leaves = [x.detach().clone().requires_grad_() for x in (hidden, weight, logits)]
    loss = linear_cross_entropy(*leaves[:2], target, reduction="none", backend=backend, **options)
    given = cross_entropy(leaves[2], target, reduction="none", backend=backend, **options)
    with torch.no_grad():
        forward = linear_cross_entropy(hidden, weight, target, reduction="none", backend=backend, **options)
        given_forward = cross_entropy(logits, target, reduction="none", backend=backend, **options)
    found = {"loss": loss.detach(), "forward": forward, "given": given.detach(), "given_forward": given_forward}
    loss.sum().backward(), given.sum().backward()
    found |= {name: x.grad for name, x in zip(("dhidden", "dweight", "dlogits"), leaves, strict=True)}
    if stats is not None:
        capped = {name: options[name] for name in ("scale", "softcap")}
        figures = token_stats(hidden, weight, target, backend=backend, **capped, **stats)
        found |= {name: getattr(figures, name) for name in ("nll", "lse", "entropy", "confidence", "brier")}
    return found


def assert_close(ours, theirs, tolerance, names, size=1.0):
    """Undefined in the same places and close where both are finite, relative to `size` or to the values themselves."""
    for name in names:
        x, y = ours[name].double(), theirs[name].double()
        finite = x.isfinite() & y.isfinite()
        assert torch.equal(x.isnan(), y.isnan()), f"{name}: NaN elsewhere"
        torch.testing.assert_close(x[finite], y[finite], rtol=tolerance, atol=tolerance * size, msg=f"{name} differs")


def threads(n_threads):
    """Our kernels take so many threads. Torch itself keeps its own: sanitizers do not understand its OpenMP."""
    return patch.object(torch, "get_num_threads", lambda: n_threads)


def rows(rng, tell):
    """One case of every row kernel."""
    dtype, n_rows, vocab_size = rng.choice(DTYPES), rng.choice((1, 2, 3, 5, 17, 33, 64)), rng.choice(VOCABULARIES)
    backend = rng.choice([name for name, available, _ in backends() if available])
    shapes = (n_rows, d := rng.choice((1, 2, 8, 17, 65))), (vocab_size, d), (n_rows, vocab_size)
    tensors, special = [torch.randn(shape).to(dtype) for shape in shapes], rng.random() < 0.5
    tensors = [strided(rng, some_special(rng, x) if special and rng.random() < 0.7 else x) for x in tensors]
    target, options = make_target(rng, n_rows, vocab_size), make_options(rng, vocab_size)
    stats = None
    if isinstance(target, torch.Tensor) and not target.is_floating_point():
        temperatures = rng.choice(
            (None, [1.0], [0.5, 0.75, 1.0, 2.0], [0.3, 1.7, 0.9, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0])
        )
        stats = {"topk": rng.choice((0, 1, min(33, vocab_size), vocab_size)), "temperatures": temperatures}
    n_threads = rng.choice(THREADS)
    tell(f"{dtype} {n_rows}x{vocab_size}x{d} {backend} {n_threads} threads, {options}, {stats}, special {special}")
    with threads(n_threads):
        ours = results(backend, *tensors, target, options, stats)
    theirs, tolerance, gradients = (
        results("torch", *tensors, target, options, stats),
        TOLERANCE[dtype],
        ("dhidden", "dweight"),
    )
    largest = max(x.double().nan_to_num(0, 0, 0).abs().max().item() for x in tensors)  # of such terms, which cancel
    assert_close(ours, theirs, tolerance, ours.keys() - gradients)
    assert_close(ours, theirs, tolerance, gradients, max(1.0, largest))
    if not special:
        wide = results("torch", *(x.double() for x in tensors), target, options, None)
        assert_close(ours, wide, 2e-4, ("given", "given_forward"))


def matmul(rng, tell):
    """One case of our own bfloat16 matmul, in one of its four ways."""
    m, n, k = (rng.choice(SIZES) for _ in range(3))
    while m * n * k > 3e7:
        m, n, k = (rng.choice(SIZES) for _ in range(3))
    a, b = (strided(rng, torch.randn(*shape).bfloat16()) for shape in ((m, k), (k, n)))
    a, b = (x if rng.random() < 0.5 else strided(rng, x.t()).t() for x in (a, b))
    way, n_threads = rng.choice(("narrow", "wide", "add", "split")), rng.choice(THREADS)
    tell(f"{m}x{k}x{n}, strides {a.stride()} {b.stride()}, {way}, {n_threads} threads")
    truth = a.double() @ b.double()
    out = strided(rng, torch.ones(m, n, dtype=torch.bfloat16 if way in ("narrow", "split") else torch.float32))
    out = out.contiguous() if way == "split" else out
    low = torch.empty_like(out)
    with threads(n_threads):
        if way == "split":
            for i in range(3):
                rivals.native_matmul(a, b, out, low, add=i > 0, keep_low=i < 2)
        else:
            rivals.native_matmul(a, b, out, add=way == "add")
    truth = 3 * truth if way == "split" else truth + (way == "add")
    tolerance = 2**-8 if out.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(out.double(), truth, rtol=tolerance, atol=1e-5 * k)


def columns(rng, tell):
    """One case of the sampled backward's kernels: sums over columns, columns taken, rows added up."""
    dtype, n_rows, vocab_size = rng.choice(DTYPES), rng.choice((1, 2, 3, 4, 5, 17, 33)), rng.choice(VOCABULARIES)
    backend = choose_backend(rng.choice([name for name, available, _ in backends() if available and "native" in name]))[
        0
    ]
    d, n_threads = strided(rng, torch.randn(n_rows, vocab_size).to(dtype)), rng.choice(THREADS)
    tell(f"{dtype} {n_rows}x{vocab_size} {backend.name} {n_threads} threads")
    exact = accumulation_dtype(dtype)
    weight, along = torch.rand(n_rows, dtype=exact), torch.randn(n_rows, dtype=exact)
    ids = (torch.rand(vocab_size) < rng.choice((0.02, 0.5, 1.0))).nonzero()[:, 0]
    factor = torch.rand(len(ids), dtype=exact) * 10
    with threads(n_threads):
        ours = backend.column_sums(d, weight, along)._asdict() | {
            "alone": backend.column_sums(d, None, None).squares, "taken": backend.take_columns(d, ids, factor),
            "norms": backend.row_squares(d),
        }  # fmt: skip
    theirs = torch_rows.column_sums(d, weight, along)._asdict() | {
        "alone": torch_rows.column_sums(d, None, None).squares, "taken": torch_rows.take_columns(d, ids, factor),
        "norms": torch_rows.row_squares(d),
    }  # fmt: skip
    assert_close(ours, theirs, 1e-5, ours)
    add_up(rng, rng.choice((torch.float32, torch.bfloat16)), vocab_size, n_threads)


def add_up(rng, dtype, vocab_size, n_threads):
    """Rows of dW in both forms, from NaN and in some of the rows only."""
    hidden_size = rng.choice((1, 7, 16, 17, 64, 65))
    empty = torch.full((vocab_size, hidden_size), NAN, dtype=dtype)
    kept, truth = SparseSums(empty, rng.randrange(len(library.library().instructions))), WideSums(empty.clone())
    with threads(n_threads):
        for sums in (kept, truth):
            torch.manual_seed(vocab_size)
            for share in (0.1, 0.9):
                ids = (torch.rand(vocab_size) < share).nonzero()[:, 0]
                sums.add_rows(ids, torch.randn(len(ids), hidden_size))
            sums.finish(torch.randn(vocab_size), torch.randn(hidden_size))
    tolerance = 2**-7 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(kept.dweight, truth.dweight, rtol=tolerance, atol=1e-5)


KERNELS = {"rows": rows, "gemm": matmul, "columns": columns}


def run(kernel, seed, n_cases=None, seconds=INF, tell=lambda text: None):
    """How many cases have passed, until there are enough or the time is up."""
    rng, start, n = random.Random(seed), time.monotonic(), 0
    torch.manual_seed(seed)
    with patch.object(rivals, "WORTH_THREADS", 1e5):
        while n != n_cases and time.monotonic() - start < seconds:
            KERNELS[kernel](rng, tell)
            n += 1
    return n


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kernel", choices=KERNELS)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--library", type=Path, default=library.HERE)
    parser.add_argument("--verbose", action="store_true")
    chosen = parser.parse_args()
    library.HERE = chosen.library
    if missing := library.library().reason:
        sys.exit(missing)
    tell = print if chosen.verbose else lambda text: None
    n = run(chosen.kernel, chosen.seed, seconds=chosen.seconds, tell=tell)
    print(f"{chosen.kernel}, seed {chosen.seed}: {n:,} cases passed")


if __name__ == "__main__":
    main()
