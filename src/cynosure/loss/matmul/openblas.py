"""OpenBLAS from numpy, scipy or the system, for float32 matmuls where torch's are slow.

On AMD processors torch's MKL does not use AVX-512; OpenBLAS does. We call its C interface, which can accumulate into
the output; numpy's interface cannot.
"""

import ctypes
import ctypes.util
from collections.abc import Iterator
from ctypes import c_float, c_int, c_void_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from cynosure.loss.tensors import address

ROW_MAJOR, AS_IS, TRANSPOSED = 101, 111, 112
# The wheels of numpy and scipy rename its functions: (package, file, prefix, suffix, type of a dimension).
WHEELS: tuple[tuple[str, str, str, str, type], ...] = (
    ("numpy", "libscipy_openblas64_*", "scipy_", "64_", ctypes.c_int64),
    ("scipy", "libscipy_openblas*", "scipy_", "", ctypes.c_int32),
)


class OpenBlas:
    """A loaded OpenBLAS library."""

    def __init__(self, path: str, prefix: str, suffix: str, dimension: type) -> None:
        library = ctypes.CDLL(path)
        self.path = path
        self.sgemm = library[f"{prefix}cblas_sgemm{suffix}"]
        self.sgemm.restype = None
        self.sgemm.argtypes = [
            *[c_int] * 3, *[dimension] * 3, c_float, c_void_p, dimension, c_void_p, dimension, c_float, c_void_p,
            dimension,
        ]  # fmt: skip
        self.get_threads = library[f"{prefix}openblas_get_num_threads{suffix}"]
        self.set_threads = library[f"{prefix}openblas_set_num_threads{suffix}"]
        config = library[f"{prefix}openblas_get_config{suffix}"]
        config.restype = ctypes.c_char_p
        self.config = " ".join(config().decode().split()[:2])  # name and version

    def matmul(self, a: Tensor, b: Tensor, out: Tensor, add: bool) -> None:
        """Compute out (M, N) = a (M, K) @ b (K, N), or += with `add`, in float32; each has one stride of 1."""
        (m, k), n = a.shape, b.shape[1]
        (at, lda), (bt, ldb) = layout(a), layout(b)
        threads = self.get_threads()
        self.set_threads(torch.get_num_threads())
        try:
            self.sgemm(
                ROW_MAJOR, at, bt, m, n, k, 1.0, address(a), lda, address(b), ldb, float(add), address(out),
                out.stride(0),
            )  # fmt: skip
        finally:
            self.set_threads(threads)


def layout(x: Tensor) -> tuple[int, int]:
    """Return how BLAS must read x, and its leading dimension."""
    if x.stride(1) == 1 and x.stride(0) >= x.shape[1]:
        return AS_IS, x.stride(0)
    return TRANSPOSED, x.stride(1)


@cache
def find_openblas() -> OpenBlas | None:
    """Return the first library that loads: numpy's, scipy's or the system's."""
    for path, prefix, suffix, dimension in candidates():
        try:
            return OpenBlas(path, prefix, suffix, dimension)
        except (OSError, AttributeError):
            continue
    return None


def candidates() -> Iterator[tuple[str, str, str, type]]:
    for package, pattern, prefix, suffix, dimension in WHEELS:
        spec = find_spec(package)
        if spec is not None and spec.origin:
            folder = Path(spec.origin).parents[1] / f"{package}.libs"
            for path in sorted(folder.glob(pattern)):
                yield str(path), prefix, suffix, dimension
    if system := ctypes.util.find_library("openblas"):
        yield system, "", "", ctypes.c_int32
