"""log(1 - p) from log p, accurate at both ends."""

import math

import torch
from torch import Tensor


def log1mexp(logprobs: Tensor) -> Tensor:
    """Return log(1 - exp(logprobs)); its derivative is -p / (1 - p).

    1 - p is at least the rounding of the dtype: log p is 0.0 for a p that rounds to 1, and the result and its
    derivative would be infinite. The derivative goes through that limit, so that the most certain token has one too.
    """
    most = -torch.finfo(logprobs.dtype).eps
    x = torch.where(logprobs > most, logprobs - logprobs.detach() + most, logprobs)
    near_one = x > -math.log(2)  # there expm1 is exact, below it log1p
    # each branch gets an argument that it can take, since the gradient of the other one is not left out, but times 0
    above = torch.log(-torch.expm1(torch.where(near_one, x, -1.0)))
    below = torch.log1p(-torch.exp(torch.where(near_one, -1.0, x)))
    return torch.where(near_one, above, below)
