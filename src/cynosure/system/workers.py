"""The processes of a run: one, or as many as torchrun started."""

import atexit
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

LET_GO_SECONDS = 0.2  # see `leave`
PATIENCE = timedelta(days=7)  # others may work for long; torchrun ends all processes if one dies


class Workers:
    """This process among the processes of a run. They split the work, exchange values and wait for each other."""

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.count > 1:
            atexit.register(leave)
            if not dist.is_initialized():
                dist.init_process_group("gloo", timeout=PATIENCE)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def shares(self, unit: int) -> bool:
        """Whether this process does a unit of work."""
        return unit % self.count == self.rank

    def told(self, value: Any) -> Any:
        """Broadcast the leader's value to every process."""
        if self.count == 1:
            return value
        values = [value]
        with together():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def meet(self) -> None:
        """Wait for all processes."""
        if self.count > 1:
            with together():
                dist.barrier()


def leave() -> None:
    """Destroy the process group before the process ends, after gloo's threads have dropped their tensors.

    Such a thread reports a collective as done before it drops its tensors, for which it needs the GIL. Before Python
    3.14 an interpreter that shuts down ends the waiting thread, and C++ aborts the process: "terminate called without
    an active exception". `destroy_process_group` joins the threads only if nothing else holds the group, but DDP, FSDP2
    and default arguments of `torch.distributed.nn.functional` do.
    """
    if dist.is_initialized():
        time.sleep(LET_GO_SECONDS)
        dist.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """Raise ConnectionError if another process has ended."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError("another process of this run has ended: see its error message") from error
