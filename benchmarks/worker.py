"""One process, one contestant: it does what the parent asks over a pipe, and works only while it is asked.

parent                                  worker
{"task": "build", "n_tokens": N}        {} or {"plan"} or {"unavailable": reason} or {"failed": reason}
{"task": "run", "compare": bool}        what `Row.add` takes, or the same
None                                    ends
"""

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from benchmarks.contestants import OURS, Contestant, Outputs, Step, Unavailable
from benchmarks.prepared import Prepared

MISLEADING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # where set, they force a kernel on OpenBLAS
SETTINGS = {"JAX_PLATFORMS": "cpu", "TORCHINDUCTOR_COMPILE_THREADS": "1"}  # no pool of compilers beside the runs

T = TypeVar("T")


class Worker(ABC):
    """A contestant at one number of tokens; what it is given and how its work is timed are its subclass's."""

    @abstractmethod
    def build(self, n_tokens: int) -> dict[str, Any]:
        """Get ready."""

    @abstractmethod
    def run(self, compare: bool) -> dict[str, Any]:
        """One timed run, `compare` if its outcome is to be checked."""

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """What was asked for, or why there is none of it."""
        try:
            building = message["task"] == "build"
            return self.build(message["n_tokens"]) if building else self.run(message["compare"])
        except Unavailable as reason:
            return {"unavailable": str(reason)}
        except ModuleNotFoundError as error:
            return {"unavailable": f"{error.name} is not installed"}
        except Exception as error:  # whatever a peer raises is its reason in the table
            return {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}


def measured(step: Callable[[], T], give_back: bool = True) -> tuple[T, dict[str, Any]]:
    """What a step gives, and its time and memory as they go into a `Row`; `give_back` as in `PeakMemory`."""
    from benchmarks.memory import PeakMemory

    with PeakMemory(give_back) as memory:
        start = time.perf_counter()
        outcome = step()
        seconds = time.perf_counter() - start
    reply = {"seconds": seconds, "extra_bytes": memory.n_bytes, "peak_bytes": memory.peak_bytes}
    return outcome, reply | {"memory_method": memory.method}


class LossWorker(Worker):
    """A loss on a head's hidden states."""

    def __init__(self, contestant: Contestant, prepared: Prepared, dtype: str, backward: bool = True) -> None:
        self.contestant, self.prepared, self.dtype, self.backward = contestant, prepared, dtype, backward
        self.n_tokens = 0
        self.step: Step | None = None

    def build(self, n_tokens: int) -> dict[str, Any]:
        from benchmarks.inputs import load_inputs
        from benchmarks.limit import plan_of

        self.step, self.n_tokens = None, n_tokens
        inputs = load_inputs(self.prepared, self.dtype, n_tokens)._replace(backward=self.backward)
        inputs.weight.sum()  # maps every page, so that inputs do not count as memory of the run
        self.step = self.contestant.build(inputs)
        if self.contestant.name != OURS:
            return {}
        plan = plan_of(inputs)
        told = {"backend": plan.backend, "products": plan.gemm.provider, "reason": plan.gemm.reason}
        sizes = ("chunk_tokens", "chunk_vocab", "accumulator_bytes")
        return {"plan": told | {name: getattr(plan, name) for name in sizes}}

    def run(self, compare: bool) -> dict[str, Any]:
        assert self.step is not None
        outputs, reply = measured(self.step)
        made = sum(x.nbytes for x in (outputs.dhidden, outputs.dweight) if x is not None)
        reply["extra_bytes"] = max(0, reply["extra_bytes"] - made)
        return reply | (self.compare(outputs) if compare and self.contestant.checked else {})

    def compare(self, outputs: Outputs) -> dict[str, Any]:
        import torch

        from benchmarks.inputs import load_truth
        from benchmarks.reference import allowed, errors_of

        truth, eager = load_truth(self.prepared, self.dtype, self.n_tokens)
        errors, bounds = errors_of(outputs, truth), allowed(eager, getattr(torch, self.dtype))._asdict()
        return {"errors": errors, "allowed": {name: bounds[name] for name in errors}}


def serve(pipe: Connection, log: str, kind: Callable[..., Worker], *arguments: Any) -> None:
    """The whole life of a worker, `kind(*arguments)`."""
    settle(log)
    worker = kind(*arguments)
    while (message := pipe.recv()) is not None:
        pipe.send(worker.answer(message))


def prepare_inputs(pipe: Connection, log: str, name: str, dtypes: list[str], tokens: list[int]) -> None:
    """A process that makes a head's files and describes the machine: it sends {"say": line}, and at last one reply."""
    settle(log)
    from benchmarks.environment import environment
    from benchmarks.inputs import prepare

    try:
        made = prepare(name, dtypes, tokens, lambda line: pipe.send({"say": line}))
        pipe.send({"prepared": made, "environment": environment()})
    except ModuleNotFoundError as error:
        pipe.send({"unavailable": f"{error.name} is not installed"})
    except (FileNotFoundError, ValueError) as error:
        pipe.send({"unavailable": str(error)})


def settle(log: str) -> None:
    """What a peer prints goes to a file; settings that would mislead a library go before any is loaded."""
    for name in MISLEADING:
        os.environ.pop(name, None)
    os.environ.update(SETTINGS)
    sys.stdout.flush()
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
