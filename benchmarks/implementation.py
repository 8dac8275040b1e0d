"""An implementation in a benchmark: a function that prepares and returns the timed step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OURS = "cynosure"
LIMIT = "limit"
PLACES = ("cpu", "device")
TOLERANCE = 2.0**-8  # of sampled gradients: what "dtype" is in bfloat16
DTYPES = ("float32", "bfloat16", "autocast")


class Unavailable(Exception):
    """An implementation cannot run here. The message is the reason, which the table shows."""


@dataclass(frozen=True)
class Implementation:
    """One implementation. `build` does all one-time work, including compilation, and returns the step to time.

    It raises Unavailable or ImportError if the implementation cannot run. `checked` is False if the step computes no
    loss, `trains` is False if it has no backward. `places` are the CPU, a device (a GPU), or both.
    """

    name: str
    title: str
    build: Callable[[Any], Callable[[], Any]]  # called with what the benchmark's worker provides
    dtypes: tuple[str, ...] = DTYPES
    checked: bool = True
    trains: bool = True
    places: tuple[str, ...] = PLACES
    grad_tolerance: float = 0.0  # error in norm that the gradients may have beyond that of exact ones


def by_name(*implementations: Implementation) -> dict[str, Implementation]:
    return {implementation.name: implementation for implementation in implementations}
