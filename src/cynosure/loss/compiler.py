"""Wrap a public operation for torch: an operator in a graph, one name in the profiler, no transforms."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch

from cynosure.loss.tensors import is_plain, plain_arguments
from cynosure.loss.transforms import COMPILED, is_recording, refuse_capture, refuse_script, refuse_transforms
from cynosure.system.upstream import is_profiling, n_dispatch_modes, without_compiler

# What calls the operators in a graph: `tracing.trace`. `operations.py` puts it here, since it needs the operations.
TRACERS: list[Callable[..., Any]] = []

P = ParamSpec("P")
R = TypeVar("R")


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Make a public operation: an operator in a graph; elsewhere its arguments become plain (`tensors.py`)."""
    parameters = inspect.signature(function).parameters
    names = [name for name, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    defaults = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        is_simple = not n_dispatch_modes() and all(map(is_plain, (*args, *kwargs.values())))
        if is_simple or len(args) > len(names):
            return function(*args, **kwargs)
        return function(**plain_arguments(dict(zip(names, args, strict=False)) | kwargs))  # type: ignore[call-arg]

    untraced = uncompiled(call)

    def captured(*args: Any, **kwargs: Any) -> Any:
        arguments = dict(zip(names, args, strict=False)) | kwargs
        if len(args) > len(names) or not set(names) <= set(arguments) <= {*names, *defaults}:
            return untraced(*args, **kwargs)
        return TRACERS[0](function, {**defaults, **arguments}, untraced)

    return _entry(call, captured)


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Keep torch.compile from tracing the function, refuse transforms, and show its name in a profile."""

    @wraps(function)
    def untraced(*args: P.args, **kwargs: P.kwargs) -> R:
        refuse_capture(function.__name__)
        return function(*args, **kwargs)

    return _entry(function, without_compiler(untraced, COMPILED))


def _entry(function: Callable[P, R], captured: Callable[..., Any]) -> Callable[P, R]:
    """The function, or `captured` where a graph is captured."""
    name = function.__name__

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return cast(R, captured(*args, **kwargs))
        refuse_transforms(name, (*args, *kwargs.values()))
        if is_recording():
            return cast(R, captured(*args, **kwargs))
        if is_profiling():
            with torch.autograd.profiler.record_function(f"cynosure::{name}"):
                return function(*args, **kwargs)
        return function(*args, **kwargs)

    vars(call)["__prepare_scriptable__"] = refuse_script(name)
    return call
