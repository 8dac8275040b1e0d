"""Work that nothing of the caller's may see or change."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def apart(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What a function gives in a thread of its own.

    torch keeps modes, transforms, tracing, autocast, default device and profiler per thread: counters of the caller
    do not count what is done here, and what it has switched on does not reach it.

    >>> apart(divmod, 7, 2)
    (3, 1)
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(function, *args, **kwargs).result()
