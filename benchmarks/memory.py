"""Peak memory of a piece of work, beyond what the process held before it.

On Linux the kernel keeps the peak of the resident set (VmHWM), and forgets it when asked to (proc_pid_clear_refs(5)).
Elsewhere a thread looks at the resident set every few milliseconds, and may miss a short peak.
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
    """A context manager; `n_bytes` is the growth of the resident set to its peak inside, `peak_bytes` that peak,
    `method` how it was seen. What the process holds free is given back first, or counts as held before.

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
    """Follows the resident set of this process."""

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
        """Bytes at the start, and at the peak."""
        self._peak = max(self._peak, self._process.memory_info().rss)
        self._done.set()
        self.join()
        return int(self._before), int(self._peak)


def can_reset_peak() -> bool:
    """Whether the kernel keeps a peak and lets this process reset it."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
        return status_bytes("VmHWM") > 0
    except (OSError, KeyError):
        return False


def status_bytes(field: str) -> int:
    """A field of /proc/self/status, which counts in KiB."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def give_back_free_memory() -> None:
    """What the C library holds free goes back to the system, where it can, so that the next run has to take it anew."""
    trim = None if os.name == "nt" else getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
