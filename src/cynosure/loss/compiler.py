"""Wrap a public operation for torch: one graph break for the compiler, one name in the profiler."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from cynosure.loss.tensors import is_plain, plain_arguments
from cynosure.loss.transforms import COMPILED, refuse_script, refuse_transforms
from cynosure.system.upstream import is_profiling, n_dispatch_modes, without_compiler

P = ParamSpec("P")
R = TypeVar("R")


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Make a public operation: torch.compile does not trace it, and its arguments become plain (`tensors.py`)."""
    parameters = inspect.signature(function).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        is_simple = not n_dispatch_modes() and all(map(is_plain, (*args, *kwargs.values())))
        if is_simple or len(args) > len(names):
            return function(*args, **kwargs)
        return function(**plain_arguments(dict(zip(names, args, strict=False)) | kwargs))  # type: ignore[call-arg]

    return uncompiled(call)


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Keep torch.compile from tracing the function, refuse transforms, and show its name in a profile."""
    disabled = without_compiler(function, COMPILED)
    name = function.__name__

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling():
            result: R = disabled(*args, **kwargs)
            return result
        refuse_transforms(name, (*args, *kwargs.values()))
        if is_profiling():
            with torch.autograd.profiler.record_function(f"cynosure::{name}"):
                return function(*args, **kwargs)
        return function(*args, **kwargs)

    vars(call)["__prepare_scriptable__"] = refuse_script(name)
    return call
