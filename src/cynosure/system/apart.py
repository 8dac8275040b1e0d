"""Run a function isolated from the caller's torch state."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def apart(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function in a new thread and return its result.

    torch keeps modes, transforms, tracing, autocast, default device and profiler per thread. So the caller's counters
    do not see this work, and the caller's settings do not change it.

    >>> apart(divmod, 7, 2)
    (3, 1)
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(function, *args, **kwargs).result()
