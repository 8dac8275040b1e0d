"""The processes of a run: one, or as many as torchrun started."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

PATIENCE = timedelta(days=7)  # the others may be at work for long; torchrun ends us all when one of them dies


class Workers:
    """This process among its fellows. They share the units of work, and meet to agree and when all are done."""

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.count > 1 and not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
            atexit.register(dist.destroy_process_group)

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


@contextmanager
def together() -> Iterator[None]:
    """Among processes that are all alive; ConnectionError when one is not, or no longer."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError("another process of this run has ended: what it said tells why") from error
