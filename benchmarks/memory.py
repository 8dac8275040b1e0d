"""Measure the peak memory of some work, beyond what the process held before.

On Linux the kernel records the peak of the resident set (VmHWM) and can reset it (proc_pid_clear_refs(5)). Elsewhere a
thread samples the resident set every few milliseconds, and may miss a short peak.
"""

import ctypes
import gc
import os
import threading
from pathlib import Path
from types import TracebackType

SAMPLE_SECONDS = 0.002
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"


class PeakMemory:
    """A context manager that measures the peak of the resident set inside its block.

    `n_bytes` is the growth to the peak, `peak_bytes` the peak itself, and `method` how it was measured. Free memory of
    the process is returned to the system first; otherwise it would count as held before.

    >>> with PeakMemory() as memory:
    ...     block = bytearray(64 * 2**20)
    >>> 60 * 2**20 < memory.n_bytes < 80 * 2**20
    True
    """

    def __init__(self, give_back: bool = True) -> None:
        self.give_back = give_back
        self.n_bytes = self.peak_bytes = 0
        self.method = "VmHWM" if can_reset_peak() else f"resident set every {SAMPLE_SECONDS * 1e3:.0f} ms"

    def __enter__(self) -> "PeakMemory":
        if self.give_back:
            gc.collect()
            give_back_free_memory()
        if self.method == "VmHWM":
            CLEAR_REFS.write_text(RESET_PEAK)
            self._before = status_bytes("VmRSS")
        else:
            self._sampler = Sampler()
            self._sampler.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.method == "VmHWM":
            before, self.peak_bytes = self._before, status_bytes("VmHWM")
        else:
            before, self.peak_bytes = self._sampler.stop()
        self.n_bytes = max(0, self.peak_bytes - before)


class Sampler(threading.Thread):
    """Samples the resident set of this process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        import psutil

        self._process = psutil.Process()
        self._before = self._peak = self._process.memory_info().rss
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def stop(self) -> tuple[int, int]:
        """Return the bytes at the start and at the peak."""
        self._peak = max(self._peak, self._process.memory_info().rss)
        self._done.set()
        self.join()
        return int(self._before), int(self._peak)


def can_reset_peak() -> bool:
    """Whether the kernel records a peak that this process can reset."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
        return status_bytes("VmHWM") > 0
    except (OSError, KeyError):
        return False


def status_bytes(field: str) -> int:
    """Return a field of /proc/self/status, which counts in KiB, in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def give_back_free_memory() -> None:
    """Return free memory of the C library to the system if possible, so that the next run allocates it again."""
    trim = None if os.name == "nt" else getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
