"""Under torch.compile an operation here is one graph break: it runs as it is, and the graphs around it are compiled."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function, never traced by torch.compile.

    `torch.compiler.disable` does the same but loads the compiler at once, a second that most users never need.
    """
    disabled: Callable[P, R] = _disable_dynamo(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return disabled(*args, **kwargs) if torch.compiler.is_compiling() else function(*args, **kwargs)

    return call
