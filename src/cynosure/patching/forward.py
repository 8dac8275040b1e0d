"""The forward that replaces a patched model's own."""

import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple
from uuid import uuid4

# Attributes of a patch's forward and its wrappers: `functools.wraps` copies them.
MARK = "cynosure_number"
REPLACED = "cynosure_replaced"  # the forward in whose place it is


class Forward:
    """The `forward` of a patched model. It looks like a bound method, but can be pickled.

    It finds the patch through the model that it is called on, so that a deep copy or a pickle of a patched model is
    patched too. If that patch has been undone or applied again since, it calls the model's own forward.
    """

    __name__ = "forward"

    def __init__(self, model: Any) -> None:
        self.model, self.own, self.number = model, model.forward, uuid4().hex
        self.__doc__ = self.own.__doc__
        setattr(self, MARK, self.number)
        setattr(self, REPLACED, self.own)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__func__(self.model, *args, **kwargs)

    @property
    def __self__(self) -> Any:
        return self.model

    @cached_property
    def __func__(self) -> Callable[..., Any]:  # Accelerate wraps this, and binds it to the model again
        own, model, number = self.own, self.model, self.number

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            patched = vars(self).get("_cynosure_patch")
            if patched is None or patched.installed.number != number or patched.paused:
                return own(*args, **kwargs) if self is model else type(self).forward(self, *args, **kwargs)
            return patched.called(*args, **kwargs)

        signature = self.__signature__
        parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *signature.parameters.values()]
        forward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        forward.__doc__ = own.__doc__
        setattr(forward, MARK, number)
        setattr(forward, REPLACED, own)
        return forward

    @cached_property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.own)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("__func__", "__signature__")}


def leads_to(function: Any, installed: Forward) -> bool:
    """Whether a model's forward is this one, or wraps it."""
    while function is not None:
        if getattr(function, MARK, None) == installed.number:
            return True
        function = getattr(function, "__wrapped__", None)
    return False


class FusedHead(NamedTuple):
    """The options of the fused head that a TRL trainer adds to a model; the names are those of `add_fused_lm_head`."""

    temperature: float = 1.0  # divides the logits, after the cap
    cast_lm_head_to_fp32: bool = False
    outputs: tuple[str, ...] = ()  # the values of every token


def fused_head(function: Any) -> FusedHead | None:
    """Return the fused head that a TRL trainer has added to a model's forward; None if there is none."""
    while function is not None:
        code = getattr(function, "__code__", None)
        if code is not None and "fused_lm_head" in code.co_varnames:
            cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
            return FusedHead(**{name: cells[name].cell_contents for name in FusedHead._fields if name in cells})
        # Accelerate's autocast around it, or a patch, even one that was undone under autocast.
        function = getattr(function, "__wrapped__", None) or getattr(function, REPLACED, None)
    return None
