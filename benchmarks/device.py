"""A device that is measured: its clock, its allocator, and what its speed depends on.

Operations run behind the caller, so time is taken between marks that the device itself passes. Memory is what torch's
allocator has handed out, at its peak.
"""

import os
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any, Protocol, TypeVar

import torch

from benchmarks.memory import STATUS, status_bytes
from cynosure.loss import devices

MOST_REPETITIONS = 50
SMI_FIELDS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw", "power.limit")

T = TypeVar("T")


class Mark(Protocol):
    """A point in the device's work."""

    def record(self) -> None:
        """Put the mark behind the work so far."""

    def elapsed_time(self, later: Any) -> float:
        """Milliseconds from this mark to a later one; both must have been passed."""


class Device(Protocol):
    """What measuring needs of a device."""

    place: torch.device
    memory_method: str

    def mark(self) -> Mark: ...

    def wait(self) -> None:
        """Wait for all work."""

    def start_peak(self) -> int:
        """Forget the peak; return the bytes that are held now."""

    def peak(self) -> int: ...

    def release(self) -> None:
        """Give free memory back: other processes share the device."""

    def about(self) -> dict[str, Any]:
        """Name, memory and versions."""


class Cuda:
    """The current GPU of NVIDIA or AMD. Raises ValueError where there is none."""

    memory_method = "torch.cuda.max_memory_allocated"

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise ValueError(f"--device cuda: torch {torch.__version__} finds no GPU here")
        self.place = torch.device("cuda", torch.cuda.current_device())

    def mark(self) -> Mark:
        event: Any = torch.cuda.Event
        mark: Mark = event(enable_timing=True)
        return mark

    def wait(self) -> None:
        torch.cuda.synchronize()

    def start_peak(self) -> int:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()

    def release(self) -> None:
        torch.cuda.empty_cache()

    def about(self) -> dict[str, Any]:
        found = torch.cuda.get_device_properties(self.place)
        return {
            "name": found.name,
            "capability": f"{found.major}.{found.minor}",
            "multiprocessors": found.multi_processor_count,
            "memory_bytes": found.total_memory,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            **smi(("driver_version",)),
        }


class HostMark:
    """A mark of the CPU's clock."""

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, later: "HostMark") -> float:
        return 1e3 * (later.seconds - self.seconds)


class Fake:
    """The CPU in the place of a GPU, for a dry run: our loss takes it for a device behind the caller."""

    memory_method = "resident set"

    def __init__(self) -> None:
        self.place = torch.device("cpu")
        devices.SYNCHRONOUS = frozenset()

    def mark(self) -> Mark:
        return HostMark()

    def wait(self) -> None: ...

    def start_peak(self) -> int:
        return self.peak()

    def peak(self) -> int:
        return status_bytes("VmRSS") if STATUS.exists() else 0

    def release(self) -> None: ...

    def about(self) -> dict[str, Any]:
        return {"name": "the CPU in the place of a GPU: a dry run, no result", **smi(("driver_version",))}


DEVICES: dict[str, Callable[[], Device]] = {"cuda": Cuda, "fake": Fake}


def smi(fields: tuple[str, ...] = SMI_FIELDS) -> dict[str, str]:
    """What nvidia-smi says of the GPU that is used, by field; nothing where there is no nvidia-smi."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    query = ["nvidia-smi", f"--id={first}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (value.strip() for value in answer.strip().split(",")), strict=False))


def measured(
    device: Device, step: Callable[[], T], seconds: float, meanwhile: Callable[[], None] = lambda: None
) -> tuple[T, dict[str, Any]]:
    """What a step gives, the median time of as many as fit into so many seconds, and the memory of one.

    The first step is not timed: it compiles kernels, and takes the memory that later ones use again.
    """
    step()
    device.wait()
    once = times(device, step, 1)[0]
    taken = times(device, step, max(1, min(MOST_REPETITIONS, int(seconds / once))), meanwhile)
    held = device.start_peak()
    outcome = step()
    device.wait()
    peak = device.peak()
    reply = {"seconds": median(taken), "extra_bytes": max(0, peak - held), "peak_bytes": peak}
    return outcome, reply | {"memory_method": device.memory_method}


def times(
    device: Device, step: Callable[[], Any], n_repetitions: int, meanwhile: Callable[[], None] = lambda: None
) -> list[float]:
    """Seconds of each of several steps, one behind the other; `meanwhile` is called while the device works."""
    marks = [device.mark() for _ in range(n_repetitions + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    meanwhile()
    device.wait()
    return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]
