"""A public operation as torch's machinery meets it: one graph break to the compiler, one name to the profiler."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo

from cynosure.loss.tensors import is_plain, plain_arguments
from cynosure.loss.transforms import COMPILED, refuse_script, refuse_transforms

P = ParamSpec("P")
R = TypeVar("R")


def public(function: Callable[P, R]) -> Callable[P, R]:
    """A public operation: never traced by torch.compile, and called with plain tensors, as `tensors.py` makes them."""
    parameters = inspect.signature(function).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        is_simple = not torch._C._len_torch_dispatch_stack() and all(map(is_plain, (*args, *kwargs.values())))
        if is_simple or len(args) > len(names):
            return function(*args, **kwargs)
        return function(**plain_arguments(dict(zip(names, args, strict=False)) | kwargs))  # type: ignore[call-arg]

    return uncompiled(call)


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function: never traced by torch.compile, refused under transforms, and by its name in a profile.

    `torch.compiler.disable` does the same but loads the compiler at once, a second that most users never need.
    """
    disabled: Any = _disable_dynamo(function)
    disabled._torchdynamo_disable, disabled._torchdynamo_disable_msg = True, COMPILED  # what full graphs are told
    name = function.__name__

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling():
            found: R = disabled(*args, **kwargs)
            return found
        refuse_transforms(name, (*args, *kwargs.values()))
        if torch._C._autograd._profiler_enabled():
            with torch.autograd.profiler.record_function(f"cynosure::{name}"):
                return function(*args, **kwargs)
        return function(*args, **kwargs)

    vars(call)["__prepare_scriptable__"] = refuse_script(name)
    return call
