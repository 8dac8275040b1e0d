"""Convert the arguments of public operations to plain tensors, except a head's weight with its own matmul.

A plain tensor is a `torch.Tensor` or `Parameter` and no subclass, strided, with memory of its own on its device: a
kernel may read it by its address. A subclass may keep its values anywhere (DTensor, quantized weights). It is made
plain here, and its gradient comes back as the subclass keeps it; where that is not exact, one sentence says why.
"""

import sys
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from cynosure.loss.transforms import NO_TRACING, NO_TRANSFORMS
from cynosure.system.upstream import (
    COLLECTIVES,
    FAKE_TENSORS,
    Keys,
    coo_parts,
    dispatch_keys_of,
    has_storage,
    is_faking,
    is_functionalizing,
    is_traceable_wrapper_subclass,
    is_under_transform,
    is_zero_tensor,
    storage_id,
    without_modes,
)


def is_plain(x: Any) -> bool:
    """Whether x is a plain tensor, or holds no other."""
    if type(x) is not Tensor and type(x) is not Parameter:
        return all(map(is_plain, x)) if isinstance(x, (tuple, list)) else not isinstance(x, Tensor)
    keys = dispatch_keys(x)
    if keys != ON_CPU.usual:
        usual, made_in_inference_mode = plain_keys(x.device.type)
        if keys != usual and not (keys == made_in_inference_mode and torch.is_inference_mode_enabled()):
            return False
    start = x.data_ptr()
    return start % x.itemsize == 0 if start else x.numel() == 0


def dispatch_keys(x: Tensor) -> int:
    """What torch's dispatcher goes by: a bit for every way in which a tensor is more than memory."""
    keys: int = dispatch_keys_of(x).raw_repr()
    return keys


class PlainKeys(NamedTuple):
    """The dispatch keys of a plain tensor, and of one made in inference mode."""

    usual: int
    made_in_inference_mode: int


@cache
def plain_keys(device: str) -> PlainKeys:
    """Those on a device; on meta, no tensor is plain."""
    if device == "meta":
        return PlainKeys(0, 0)
    with without_modes():
        with torch.inference_mode(False):
            usual = torch.empty(0, device=device)
        with torch.inference_mode():
            inference = torch.empty(0, device=device)
    return PlainKeys(dispatch_keys(usual), dispatch_keys(inference))


ON_CPU = plain_keys("cpu")


def address(x: Tensor) -> int:
    """Where the memory of a plain tensor on the CPU begins, for a kernel."""
    start = x.data_ptr()
    if (type(x) is not Tensor and type(x) is not Parameter) or not (start or x.numel() == 0) or not x.is_cpu:
        raise NotImplementedError(
            f"the fused loss needs plain tensors on the CPU for its buffers, but a torch mode that is active gives "
            f"{type(x).__name__} on {x.device}: leave the mode for this call"
        )
    return start


def place(x: Tensor) -> tuple[object, ...]:
    """Where a tensor's values begin: the same for tied weights, and for no two others that are there at a time.

    A subclass without memory of its own has its values in its parts, whose places are its place.
    """
    if parts := parts_of(x):
        return tuple(map(place, parts.values()))
    return (storage_id(x), x.storage_offset()) if has_storage(x) else (id(x),)


def parts_of(x: Tensor) -> dict[str, Tensor]:
    """The tensors that hold the values of a subclass without memory or of a sparse tensor; none for others."""
    if is_traceable_wrapper_subclass(x):
        parts = {name: getattr(x, name) for name in x.__tensor_flatten__()[0]}
        return {name: part for name, part in parts.items() if isinstance(part, Tensor)}  # DTensor's mesh is none
    if x.layout is torch.sparse_coo:
        return coo_parts(x)
    return {name: getattr(x, name)() for name in PARTS_OF_LAYOUT.get(x.layout, ())}


PARTS_OF_LAYOUT = {
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def is_abstract(x: object) -> bool:
    """Whether x has a shape and a dtype but no values: on the meta device, or fake."""
    return isinstance(x, Tensor) and (x.device.type == "meta" or is_fake(x))


def is_fake(x: object) -> bool:
    return is_a(FAKE_TENSORS, "FakeTensor", x)


def is_distributed(x: object) -> bool:
    """Whether x is a DTensor."""
    return is_a("torch.distributed.tensor", "DTensor", x)


def is_a(module: str, name: str, x: object) -> bool:
    """Whether x is of a class in a module, which nobody has to load to find out."""
    return module in sys.modules and isinstance(x, getattr(sys.modules[module], name))


def multiplies_itself(x: object) -> bool:
    """Whether x is a subclass that says itself what torch's operations do with it, such as a quantized weight."""
    if not isinstance(x, Tensor) or is_abstract(x) or x.is_nested or hasattr(type(x), "full_tensor"):
        return False
    return dispatch_keys_of(x).has(Keys.Python)


def plain_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a public operation, made plain; a weight that multiplies itself stays as it is."""
    check_modes(arguments)
    check_replicated(arguments)
    return {name: x if name == "weight" and multiplies_itself(x) else plain(name, x) for name, x in arguments.items()}


def tensors_of(arguments: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in them, and the argument's name."""
    for name, x in arguments.items():
        yield from ((name, part) for part in (x if isinstance(x, (tuple, list)) else (x,)) if isinstance(part, Tensor))


def check_modes(arguments: dict[str, Any]) -> None:
    """Refuse modes that record torch's operations, which do not see a kernel, and fake tensors beside real ones."""
    if is_functionalizing():
        raise NotImplementedError(NO_TRACING)
    fake = is_faking()
    tensors = list(tensors_of(arguments))
    if fake or any(is_fake(x) for _, x in tensors):
        for name, x in tensors:
            if not is_fake(x):
                raise TypeError(
                    f"{name} is a real tensor, but FakeTensorMode is on or other arguments are fake: make every "
                    "tensor fake (FakeTensorMode.from_tensor), or none"
                )


def check_replicated(arguments: dict[str, Any]) -> None:
    """Refuse DTensors whose gradient would miss what other processes add: where each has hidden states of its own."""
    rows = next((arguments[name] for name in ("hidden", "logits") if name in arguments), None)
    if is_distributed(rows) or not torch.is_grad_enabled():
        return
    for name, x in tensors_of(arguments):
        if is_distributed(x) and x.requires_grad and x.device_mesh.size() > 1:  # type: ignore[attr-defined]
            raise NotImplementedError(
                f"{name} is a DTensor over {x.device_mesh.size()} processes that requires grad, but hidden is a plain "  # type: ignore[attr-defined]
                "tensor, which may differ between them: give hidden and target as DTensors too (DTensor.from_local)"
            )


def plain(name: str, x: Any) -> Any:
    """A tensor made plain, in a way that autograd follows, or one sentence; anything else as it is."""
    if is_plain(x) or is_abstract(x):
        return x
    if isinstance(x, (tuple, list)):
        return tuple(map(plain, (f"{name} indices", f"{name} probabilities", *[name] * len(x)), x))
    if is_under_transform(x):
        raise NotImplementedError(NO_TRANSFORMS)
    if hasattr(type(x), "full_tensor"):
        return plain(name, gathered(name, x))
    check_readable(name, x)
    if type(x) is not Tensor and type(x) is not Parameter:
        return plain(name, x.as_subclass(Tensor))  # a subclass that adds methods, not another way to keep values
    x = x.resolve_neg() if x.is_neg() else x.clone()
    if not is_plain(x):
        raise TypeError(f"{name} must be a plain tensor, got one with {dispatch_keys_of(x)}")
    return x


def gathered(name: str, x: Any) -> Tensor:
    """A DTensor in full, whose gradient goes back to its placements."""
    try:
        full: Tensor = x.full_tensor()
    except Exception as error:
        raise NotImplementedError(
            f"{name} is a {type(x).__name__} whose full_tensor() fails: pass a plain tensor of its values"
        ) from error
    return full.clone() if is_a(COLLECTIVES, "AsyncCollectiveTensor", full) else full


def check_readable(name: str, x: Tensor) -> None:
    """Refuse what has no values that can be read as they lie, with the way to get such values."""
    kind, way = type(x).__name__, ""
    if isinstance(x, (UninitializedBuffer, UninitializedParameter)):
        raise ValueError(f"{name} is an uninitialized parameter: call the lazy module once, so that it gets its shape")
    if x.is_nested:
        way = "padded with ignore_index in the target (torch.nested.to_padded_tensor), or flat"
        raise TypeError(f"{name} is a nested tensor: pass one tensor of all rows, {way}")
    if x.is_quantized:
        raise TypeError(f"{name} is quantized, {x.dtype}: pass {name}.dequantize()")
    if x.layout is not torch.strided:
        raise TypeError(f"{name} has the layout {x.layout}: pass {name}.to_dense()")
    if dispatch_keys_of(x).has(Keys.Python):
        raise TypeError(f"{name} is a {kind}, which keeps its values in a way of its own: pass a plain tensor of them")
    if not has_storage(x) or (x.numel() and not is_zero_tensor(x) and not x.data_ptr()):
        raise ValueError(
            f"{name} has no memory: its storage was freed, as FSDP does with a sharded parameter. Gather it first, say "
            "with FSDP.summon_full_params"
        )
