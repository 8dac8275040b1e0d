"""What the loss must know of a device: whether reading one of its values waits for it."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from cynosure.system.upstream import assert_later

SYNCHRONOUS = frozenset({"cpu"})


def is_asynchronous(device: torch.device) -> bool:
    """Whether operations on this device run behind the caller, so that reading a value waits for all of them.

    On such a device the loss reads no value and asks for no shape that depends on one: a wait would leave the device
    idle, and is an error while a CUDA graph is captured.
    """
    return device.type not in SYNCHRONOUS


def check_later(ok: Tensor, message: str) -> None:
    """Raise an error with this message at the next synchronisation if ok (0-d, bool) is False.

    Only on CUDA and ROCm: other devices have no such check.
    """
    if ok.device.type == "cuda":
        assert_later(ok, message)


def sent(x: Tensor, device: torch.device) -> Tensor:
    """x, in the memory of the CPU, on another device, without waiting for it."""
    if device.type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Leave autocast on this device, if it has one."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()
