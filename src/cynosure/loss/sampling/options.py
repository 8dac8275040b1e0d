"""What a caller sets of the sampled backward: the error that it may add, and where its draws come from."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cynosure.loss.devices import is_asynchronous
from cynosure.loss.options import as_number

GradTolerance = float | Literal["dtype"]

OF_DTYPE = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # a dtype's own rounding; wider dtypes are exact
SEEDS = 2**62  # seeds are drawn below this
APART = 0x9E3779B97F4A7C15  # between the seeds of two processes: 2**64 over the golden ratio


class Sampling(NamedTuple):
    """How one call samples its backward."""

    tolerance: float  # greater than 0: the relative error in norm that sampling may add to dhidden, and to dweight
    seed: int  # of every draw of the call: a second backward repeats the first


def check_tolerance(grad_tolerance: Any, dtype: torch.dtype) -> float:
    """Return the tolerance as a number, for matmuls in this dtype; 0 is the exact backward.

    Raises ValueError or TypeError for anything but "dtype" or a number in [0, 1).

    >>> check_tolerance("dtype", torch.bfloat16), check_tolerance("dtype", torch.float32)
    (0.00390625, 0.0)
    """
    if isinstance(grad_tolerance, str):
        if grad_tolerance != "dtype":
            raise ValueError(f"grad_tolerance must be 'dtype' or a number in [0, 1), got {grad_tolerance!r}")
        return OF_DTYPE.get(dtype, 0.0)
    tolerance = as_number("grad_tolerance", grad_tolerance, "in [0, 1), or 'dtype'", 0.0, 1.0)
    if tolerance == 1:
        raise ValueError("grad_tolerance must be below 1: an error as large as the gradient leaves nothing of it")
    return tolerance


def check_device(tolerance: float, device: torch.device) -> None:
    """Raise NotImplementedError if a tolerance above 0 is given for tensors on a device other than a CPU.

    Tensors on the meta device have no values, and nothing is sampled.
    """
    if tolerance > 0 and device.type != "meta" and is_asynchronous(device):
        raise NotImplementedError(
            f"the sampled backward runs on a CPU, but hidden is on {device}: leave grad_tolerance out there"
        )


def check_generator(generator: Any) -> None:
    """Raise TypeError for anything but a generator or None, ValueError for a generator of another device."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
    if generator.device.type != "cpu":
        raise ValueError(
            f"generator must be on the CPU, got one on {generator.device}: pass torch.Generator(device='cpu')"
        )


def draw_seed(generator: torch.Generator | None = None) -> Tensor:
    """Draw a seed (0-d, int64) from a CPU generator, or from torch's default one.

    Processes of one training often seed their default generators alike: there each makes another seed of the same draw.
    """
    seed = torch.randint(SEEDS, (), generator=generator, dtype=torch.int64, device="cpu")
    return seed if generator is not None else (seed + rank() * APART % SEEDS) % SEEDS


def rank() -> int:
    """Return the number of this process in torch.distributed, 0 without it."""
    is_one_of_many = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if is_one_of_many else 0
