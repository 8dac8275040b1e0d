"""Functions of a trainer that are replaced by others with the same arguments and results."""

from collections.abc import Callable, Iterable
from inspect import signature
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor


def arguments(function: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return all arguments of a call by their names."""
    given = signature(function).bind(*args, **kwargs)
    given.apply_defaults()
    return given.arguments


def calling(method: MethodType, functions: dict[str, Callable[..., Any]]) -> MethodType:
    """Return a copy of a method that finds these functions where it looks for global names."""
    own: Any = method.__func__
    copy = FunctionType(own.__code__, own.__globals__ | functions, own.__name__, own.__defaults__, own.__closure__)
    copy.__kwdefaults__ = own.__kwdefaults__
    return MethodType(copy, method.__self__)


def agree(results: Iterable[tuple[Tensor, Tensor]]) -> bool:
    """Whether the results of a replacement and of the function are close.

    The replacement goes first, since the function may change its arguments. What another version of the function takes
    or returns may raise any of these errors.
    """
    try:
        return all(torch.allclose(ours, own.to(ours), rtol=1e-4, atol=1e-5) for ours, own in results)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return False
