"""Functions of a trainer that are replaced by others with the same arguments."""

from collections.abc import Callable
from inspect import signature
from types import FunctionType, MethodType
from typing import Any


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
