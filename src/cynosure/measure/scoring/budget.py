"""Choose the default batch size: as many positions as fit in memory and still speed up the model."""

import torch

from cynosure.models import SplitModel
from cynosure.system.machine import memory_bytes

MOST = {"cpu": 1024}  # more positions are no faster there
MOST_ELSEWHERE = 65536
LEAST = 128
SHARE = 4  # a batch may take one fourth of the memory
STATES = 64  # memory of a position inside a layer, in hidden states, with a margin
UNKNOWN = 16384  # for devices that do not report their memory
UNIT_SECONDS = 20  # approximate time of a unit on a slow CPU, which an interruption costs
UNIT_BATCHES = 16  # maximum per unit: more windows need not be sorted by length together
FLOPS_PER_THREAD = 5e10  # FLOP/s of a slow CPU


def default_batch_tokens(model: SplitModel) -> int:
    """Return a power of two that fits the machine's memory on a CPU, and the free memory of any other device."""
    device, weight = model.device, model.head.weight
    n_bytes = device_bytes(device)
    if n_bytes is None:
        return UNKNOWN
    return fitting(n_bytes, weight.shape[1] * weight.element_size(), MOST.get(device.type, MOST_ELSEWHERE))


def default_unit_tokens(model: SplitModel, batch_tokens: int) -> int:
    """Return the positions of a unit of work, in whole batches: on a CPU those of some seconds."""
    batches = UNIT_BATCHES
    if model.device.type == "cpu":
        n_parameters = sum({p: p.numel() for module in model.modules for p in module.parameters()}.values())
        per_second = FLOPS_PER_THREAD * torch.get_num_threads() / (2 * max(1, n_parameters))
        batches = min(batches, int(UNIT_SECONDS * per_second / batch_tokens))
    return max(1, batches) * batch_tokens


def device_bytes(device: torch.device) -> int | None:
    """Return the memory of a machine on a CPU, so that its budget is constant; elsewhere what is free, if known."""
    if device.type == "cpu":
        return memory_bytes()
    tell = getattr(torch.get_device_module(device), "mem_get_info", None)
    return None if tell is None else int(tell(device)[0])


def fitting(n_bytes: int, state_bytes: int, most: int) -> int:
    """Return the largest power of two of positions whose layers fit; `state_bytes` is the size of a hidden state.

    >>> fitting(80 * 2**30, 4096 * 2, 65536), fitting(24 * 2**30, 576 * 4, 1024), fitting(2**28, 8192 * 2, 65536)
    (32768, 1024, 128)
    """
    fit = n_bytes // (SHARE * STATES * state_bytes)
    return max(LEAST, min(most, 1 << max(0, fit.bit_length() - 1)))
