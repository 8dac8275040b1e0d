"""Refuse the function transforms of torch that our operations do not support, each with a clear error.

Our kernels read memory directly, which torch does not record. A graph traced through them would contain the numbers of
one call as constants. torch.compile and torch.export capture the operators of `operators.py` instead.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from torch import Tensor
from torch.autograd import forward_ad

from cynosure.system.upstream import current_transform, dispatch_keys_of, is_forward_mode, is_jit_tracing

FULL = "torch.nn.functional.cross_entropy (of a divergence, kl_div) on full logits"
REVERSE = f"use torch.autograd.grad or backward, or {FULL}"
WITHOUT = f"keep the loss outside the captured code, or use {FULL}"

# By torch's name of the transform: what the user called, why it fails and what to do instead.
FUNC = {
    "Vmap": (
        "torch.func.vmap",
        f"a batched tensor owns no memory; pass the whole batch to one call (any shape works), or use {FULL}",
    ),
    "Grad": ("torch.func.grad, vjp and jacrev", f"they hide the memory of tensors; {REVERSE}"),
    "Jvp": ("torch.func.jvp and jacfwd", f"it has no forward-mode derivative; {REVERSE}"),
    "Functionalize": ("torch.func.functionalize", f"it hides the memory of tensors; call it outside, or use {FULL}"),
}
CAPTURE = f"it is an operator with a Python implementation, which TorchScript does not record; {WITHOUT}"
BATCHED = (
    "a batch of gradients (is_grads_batched=True, jacobian with vectorize=True) cannot go back through the fused loss, "
    "whose kernels take one at a time: loop over them with retain_graph=True (vectorize=False), or use " + FULL
)
COMPILED = (
    "torch.compile and torch.export cannot capture this call: they take the loss with plain tensors and Python "
    f"numbers, without a generator, outside the transforms of torch.func and outside a patched model; {WITHOUT}"
)
# Raised when tensors are converted to plain ones and a transform's tensors or modes are still in use.
NO_TRANSFORMS = (
    "the fused loss does not run under the transforms of torch.func (grad, vjp, jvp, vmap): use torch.autograd.grad or "
    "backward, or torch.nn.functional.cross_entropy on full logits"
)
NO_TRACING = (
    "the fused loss cannot be traced into a graph (torch.export, make_fx) with these arguments: pass plain tensors and "
    "Python numbers and no generator, or use torch.nn.functional.cross_entropy on full logits"
)


def refuse_transforms(name: str, tensors: Iterable[Any]) -> None:
    """Raise NotImplementedError if the named operation is called under a transform or recorded by torch.jit.trace."""
    if interpreter := current_transform():
        called, why = FUNC[interpreter.key().name]
        raise NotImplementedError(f"{called} cannot transform {name}: {why}")
    if is_jit_tracing():
        raise NotImplementedError(f"torch.jit.trace cannot record {name}: {CAPTURE}")
    if is_forward_mode() and any(map(is_dual, tensors)):
        raise NotImplementedError(f"forward mode cannot go through {name}: {FUNC['Jvp'][1]}")


def is_recording() -> bool:
    """Whether operations are recorded as a graph: by make_fx, or by torch.export."""
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")
    return proxies is not None and proxies.get_proxy_mode() is not None


def refuse_capture(name: str) -> None:
    """Raise NotImplementedError if operations are recorded as a graph."""
    if is_recording():
        raise NotImplementedError(
            f"torch.export and make_fx cannot capture {name} with these arguments: pass plain tensors and Python "
            f"numbers and no generator, or use {FULL}"
        )


def is_dual(x: Any) -> bool:
    """Whether a tensor carries a tangent of forward mode."""
    return isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def refuse_batched(upstream: Tensor) -> None:
    """Raise NotImplementedError if a backward is run for several upstream gradients at once."""
    if "Batched" in str(dispatch_keys_of(upstream)):
        raise NotImplementedError(BATCHED)


def refuse_script(name: str) -> Callable[[], NoReturn]:
    """Return a `__prepare_scriptable__` hook that makes torch.jit.script raise a clear error."""

    def refuse() -> NoReturn:
        raise NotImplementedError(f"torch.jit.script cannot compile {name}: {CAPTURE}")

    return refuse
