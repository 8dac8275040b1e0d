"""What takes part in a benchmark: one function that gets ready, and gives the step that is timed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OURS = "cynosure"
LIMIT = "limit"
PLACES = ("cpu", "device")
DTYPES = ("float32", "bfloat16", "autocast")


class Unavailable(Exception):
    """Why an implementation cannot take part here; the table says so."""


@dataclass(frozen=True)
class Implementation:
    """`build` does what is needed once, compilation included, and gives the step that is timed.

    It raises Unavailable, or ImportError, where it cannot run. One that is not `checked` computes no loss, and one that
    is not `trains` has no backward. `places` are the CPU, a device (a GPU), or both.
    """

    name: str
    title: str
    build: Callable[[Any], Callable[[], Any]]  # from what the benchmark's worker gives it
    dtypes: tuple[str, ...] = DTYPES
    checked: bool = True
    trains: bool = True
    places: tuple[str, ...] = PLACES


def by_name(*implementations: Implementation) -> dict[str, Implementation]:
    return {implementation.name: implementation for implementation in implementations}
