"""Recognize a head's matmul in any of its forms: `F.linear`, `@`, `addmm`, `einsum`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MATMULS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.__matmul__, Tensor.mm)


class HeadMatmul(NamedTuple):
    """hidden (..., D) @ weight (V, D)^T + bias (V,)."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None


def matmul_of(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> HeadMatmul | None:
    """Return the matmul of hidden states and one matrix that a call computes; None for any other call.

    >>> h, w = torch.ones(1, 2, 3), torch.ones(5, 3)
    >>> matmul_of(torch.einsum, ("btd,vd->btv", h, w), {}).weight.shape
    torch.Size([5, 3])
    """
    read = READERS.get(func)
    try:
        matmul = None if read is None else read(*args, **kwargs)
    except TypeError:  # unusual arguments (for example `out`), or invalid ones
        return None
    if matmul is None or not all(isinstance(x, Tensor) for x in matmul[:2]):
        return None
    hidden, weight, bias = matmul
    fits = weight.ndim == 2 and hidden.ndim >= 2 and hidden.shape[-1] == weight.shape[1]
    return matmul if fits and (bias is None or bias.shape == weight.shape[:1]) else None


def of_linear(input: Any, weight: Any, bias: Any = None) -> HeadMatmul:
    return HeadMatmul(input, weight, bias)


def of_matmul(input: Any, other: Any) -> HeadMatmul | None:
    if not isinstance(input, Tensor) or not isinstance(other, Tensor) or not 2 <= other.ndim <= input.ndim:
        return None
    one_matrix = other.shape[:-2].numel() == 1
    return HeadMatmul(input, other.reshape(other.shape[-2:]).t()) if one_matrix else None


def of_addmm(input: Any, mat1: Any, mat2: Any) -> HeadMatmul:
    return HeadMatmul(mat1, mat2.t(), input)


def of_einsum(equation: Any, *operands: Any) -> HeadMatmul | None:
    """`btd,vd->btv`, with any letters and in either order."""
    operands = tuple(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    if not isinstance(equation, str) or len(operands) != 2 or "->" not in equation:
        return None
    inputs, _, output = equation.replace(" ", "").partition("->")
    first, _, second = inputs.partition(",")
    pairs = [(first, operands[0]), (second, operands[1])]
    for (states, hidden), (matrix, weight) in (pairs, pairs[::-1]):
        if output[:-1] == states[:-1] and states[-1] not in output:
            if matrix == output[-1] + states[-1]:
                return HeadMatmul(hidden, weight)
            if matrix == states[-1] + output[-1]:
                return HeadMatmul(hidden, weight.t())
    return None


READERS: dict[Callable[..., Any], Callable[..., HeadMatmul | None]] = {
    F.linear: of_linear,
    torch.inner: of_linear,
    torch.addmm: of_addmm,
    torch.einsum: of_einsum,
    **dict.fromkeys(MATMULS, of_matmul),
}
