"""Huge pages for large tensors on a CPU.

The system clears fresh memory when it is first touched, page by page. In pages of 4 KiB that takes longer than to write
the memory, in pages of 2 MiB a quarter of the time. A step of training allocates its gradients anew.
"""

import ctypes
import sys
from collections.abc import Callable
from functools import cache

from torch import Tensor

from cynosure.loss.tensors import address

LEAST_BYTES = 64 * 2**20
PAGE = 4096
MADV_HUGEPAGE = 14


def in_huge_pages(x: Tensor) -> Tensor:
    """Ask for huge pages for a large new tensor, and return it. Without them nothing changes."""
    if x.nbytes >= LEAST_BYTES and x.device.type == "cpu" and (advise := madvise()):
        start = -(-address(x) // PAGE) * PAGE
        advise(start, (address(x) + x.nbytes) // PAGE * PAGE - start, MADV_HUGEPAGE)
    return x


@cache
def madvise() -> Callable[[int, int, int], int] | None:
    """Return the C library's function on Linux, else None."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    return function
