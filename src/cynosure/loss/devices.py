"""What the loss must know of a device: whether reading one of its values waits for it, and its widest floats."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from cynosure.system.upstream import assert_later

SYNCHRONOUS = frozenset({"cpu"})
WITHOUT_FLOAT64 = frozenset({"mps"})


def is_asynchronous(device: torch.device) -> bool:
    """Whether operations on this device run behind the caller, so that reading a value waits for all of them.

    On such a device the loss reads no value and asks for no shape that depends on one: a wait would leave the device
    idle, and is an error while a CUDA graph is captured.
    """
    return device.type not in SYNCHRONOUS


def widest_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of sums over the vocabulary: float64, or float32 on a device without it."""
    return torch.float64 if has_float64(device) else torch.float32


def has_float64(device: torch.device) -> bool:
    """Whether this device computes in float64: MPS does not, and some XPUs do not."""
    if device.type == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return device.type not in WITHOUT_FLOAT64


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


def autocast_to(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast to this dtype, or leave autocast for None; do nothing on a device that has none."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, dtype, enabled=dtype is not None) if known else nullcontext()
