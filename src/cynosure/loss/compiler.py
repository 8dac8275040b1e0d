"""A public operation as torch's machinery meets it: one graph break to the compiler, one name to the profiler."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo

from cynosure.loss.transforms import COMPILED, refuse_script, refuse_transforms

P = ParamSpec("P")
R = TypeVar("R")


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
