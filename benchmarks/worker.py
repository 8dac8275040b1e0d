"""The process of one implementation: it answers the parent's messages over a pipe, and is idle between them.

parent                                  worker
{"task": "build", "n_tokens": N}        {} or {"plan"} or {"unavailable": reason} or {"failed": reason}
{"task": "run", "compare": bool}        what `Result.add` takes, or the same
None                                    ends
"""

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from benchmarks.implementation import Implementation, Unavailable

MISLEADING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # if set, they force a kernel on OpenBLAS
SETTINGS = {"JAX_PLATFORMS": "cpu", "TORCHINDUCTOR_COMPILE_THREADS": "1"}  # no compiler processes during the runs

T = TypeVar("T")


class Worker(ABC):
    """An implementation in one dtype. Each benchmark defines how to build it and how to time it."""

    def __init__(self, implementation: Implementation, benchmark: Any, prepared: Any, dtype: str) -> None:
        self.implementation, self.benchmark = implementation, benchmark
        self.prepared, self.dtype = prepared, dtype
        self.step: Any = None

    @abstractmethod
    def build(self, n_tokens: int) -> dict[str, Any]:
        """Prepare for inputs of this many tokens."""

    @abstractmethod
    def run(self, compare: bool) -> dict[str, Any]:
        """Time one run; if `compare`, check its results."""

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a message, or the reason why there is none."""
        try:
            building = message["task"] == "build"
            return self.build(message["n_tokens"]) if building else self.run(message["compare"])
        except Unavailable as reason:
            return {"unavailable": str(reason)}
        except ModuleNotFoundError as error:
            return {"unavailable": f"{error.name} is not installed"}
        except Exception as error:  # the table shows any error of another library as the reason
            return {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}


def measured(step: Callable[[], T], give_back: bool = True) -> tuple[T, dict[str, Any]]:
    """Run a step; return its result, and its time and memory for a `Result`. `give_back` as for `PeakMemory`."""
    from benchmarks.memory import PeakMemory

    with PeakMemory(give_back) as memory:
        start = time.perf_counter()
        outcome = step()
        seconds = time.perf_counter() - start
    reply = {"seconds": seconds, "extra_bytes": memory.n_bytes, "peak_bytes": memory.peak_bytes}
    return outcome, reply | {"memory_method": memory.method}


def serve(pipe: Connection, log: str, kind: Callable[..., Worker], *arguments: Any) -> None:
    """Run the worker `kind(*arguments)` until it is told to end."""
    settle(log)
    worker = kind(*arguments)
    while (message := pipe.recv()) is not None:
        pipe.send(worker.answer(message))


def prepare(pipe: Connection, log: str, benchmark: Any, subject: str) -> None:
    """Prepare a subject and describe the machine, in a separate process: send {"say": line}s, then one reply."""
    settle(log)
    from benchmarks.environment import environment

    try:
        prepared = benchmark.prepare(subject, lambda line: pipe.send({"say": line}))
        pipe.send({"prepared": prepared, "environment": environment() | benchmark.about()})
    except ModuleNotFoundError as error:
        pipe.send({"unavailable": f"{error.name} is not installed"})
    except (FileNotFoundError, ValueError) as error:
        pipe.send({"unavailable": str(error)})


def settle(log: str) -> None:
    """Redirect the output of libraries to a file, and set the environment before any library is loaded."""
    for name in MISLEADING:
        os.environ.pop(name, None)
    os.environ.update(SETTINGS)
    sys.stdout.flush()
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
