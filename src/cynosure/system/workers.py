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
PATIENCE = timedelta(days=7)  # the others may be at work for long; torchrun ends us all when one of them dies


class Workers:
    """This process among its fellows. They share the units of work, and meet to agree and when all are done."""

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
        """Whether a unit of work is this process's."""
        return unit % self.count == self.rank

    def told(self, value: Any) -> Any:
        """The leader's value, in every process."""
        if self.count == 1:
            return value
        values = [value]
        with together():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def meet(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            with together():
                dist.barrier()


def leave() -> None:
    """Destroy the process group before the process ends, once gloo's threads have let go of their tensors.

    Such a thread reports that a collective is done before it drops its tensors, for which it needs the GIL. Before
    Python 3.14 the GIL of an interpreter that shuts down ends the thread, and C++ aborts the process: "terminate called
    without an active exception". `destroy_process_group` joins the threads only if nothing else holds the group, but
    DDP, FSDP2 and default arguments of `torch.distributed.nn.functional` do.
    """
    if dist.is_initialized():
        time.sleep(LET_GO_SECONDS)
        dist.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """Among processes that are all alive; ConnectionError when one is not, or no longer."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError("another process of this run has ended: see its error message") from error
