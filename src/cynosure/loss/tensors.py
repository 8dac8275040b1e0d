"""Convert the arguments of public operations to plain tensors, except a head's weight with its own matmul.

A plain tensor is a strided `torch.Tensor` or `Parameter`, not another subclass, and owns memory on its device: a kernel
can read it by its address. A subclass may store its values elsewhere (DTensor, quantized weights). It is converted to a
plain tensor here, and its gradient is converted back. If that would not be exact, an error says why.
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
    """Whether x is a plain tensor, or contains no tensor that is not."""
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
    """Return the dispatch keys of a tensor: one bit for each feature that torch's dispatcher must handle."""
    keys: int = dispatch_keys_of(x).raw_repr()
    return keys


class PlainKeys(NamedTuple):
    """The dispatch keys of a plain tensor, and of one created in inference mode."""

    usual: int
    made_in_inference_mode: int


@cache
def plain_keys(device: str) -> PlainKeys:
    """Return the keys of plain tensors on a device. On meta, no tensor is plain."""
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
    """Return the address of a plain tensor's memory on the CPU, for a kernel."""
    start = x.data_ptr()
    if (type(x) is not Tensor and type(x) is not Parameter) or not (start or x.numel() == 0) or not x.is_cpu:
        raise NotImplementedError(
            f"the fused loss needs plain tensors on the CPU as buffers, but an active torch mode creates "
            f"{type(x).__name__} on {x.device}: leave the mode for this call"
        )
    return start


def place(x: Tensor) -> tuple[object, ...]:
    """Return a key for where a tensor's values are stored: equal for tied weights, different for other live tensors.

    A subclass that owns no memory is identified by the tensors that hold its values.
    """
    if parts := parts_of(x):
        return tuple(map(place, parts.values()))
    return (storage_id(x), x.storage_offset()) if has_storage(x) else (id(x),)


def parts_of(x: Tensor) -> dict[str, Tensor]:
    """Return the tensors that hold the values of a sparse tensor or of a subclass without memory; {} for others."""
    if is_traceable_wrapper_subclass(x):
        parts = {name: getattr(x, name) for name in x.__tensor_flatten__()[0]}
        return {name: part for name, part in parts.items() if isinstance(part, Tensor)}  # not DTensor's mesh
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
    """Whether x is an instance of a module's class, without importing the module."""
    return module in sys.modules and isinstance(x, getattr(sys.modules[module], name))


def multiplies_itself(x: object) -> bool:
    """Whether x is a subclass that implements torch's operations itself, for example a quantized weight."""
    if not isinstance(x, Tensor) or is_abstract(x) or x.is_nested or hasattr(type(x), "full_tensor"):
        return False
    return dispatch_keys_of(x).has(Keys.Python)


HEADS = ("weight", "student_weight", "teacher_weight")


def plain_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Convert the arguments of a public operation to plain tensors, except a weight with its own matmul."""
    check_modes(arguments)
    check_replicated(arguments)
    check_draws(arguments)
    return {name: x if name in HEADS and multiplies_itself(x) else plain(name, x) for name, x in arguments.items()}


def tensors_of(arguments: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield (argument name, tensor) for every tensor in the arguments."""
    for name, x in arguments.items():
        yield from ((name, part) for part in (x if isinstance(x, (tuple, list)) else (x,)) if isinstance(part, Tensor))


def check_modes(arguments: dict[str, Any]) -> None:
    """Refuse modes that record torch operations, which miss our kernels, and fake tensors mixed with real ones."""
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
    """Refuse a DTensor that requires grad beside a plain hidden: its gradient would miss other processes' tokens."""
    if not torch.is_grad_enabled():
        return
    for name, x in tensors_of(arguments):
        if not (is_distributed(x) and x.requires_grad and x.device_mesh.size() > 1):  # type: ignore[attr-defined]
            continue
        own = "_".join((name.partition("_")[0], "hidden"))  # of one of several models
        rows = next(row for row in (own, "hidden", "logits", "student_hidden") if row in arguments)
        if not is_distributed(arguments[rows]):
            raise NotImplementedError(
                f"{name} is a DTensor over {x.device_mesh.size()} processes that requires grad, but {rows} is a plain "  # type: ignore[attr-defined]
                "tensor, which may differ between them: give it and the target as DTensors too (DTensor.from_local)"
            )


def check_draws(arguments: dict[str, Any]) -> None:
    """Refuse a sampled backward of DTensors without a generator: every process would compute another gradient."""
    tolerance = arguments.get("grad_tolerance", 0.0)
    is_exact = isinstance(tolerance, (int, float)) and tolerance == 0
    if is_exact or arguments.get("generator") is not None or not torch.is_grad_enabled():
        return
    for name, x in tensors_of({name: arguments[name] for name in ("hidden", "weight") if name in arguments}):
        if is_distributed(x) and x.requires_grad and x.device_mesh.size() > 1:  # type: ignore[attr-defined]
            raise NotImplementedError(
                f"grad_tolerance with {name} as a DTensor over several processes needs the same draws in all of them: "
                "pass a generator that every process seeds alike, or leave grad_tolerance out"
            )


def plain(name: str, x: Any) -> Any:
    """Convert a tensor to a plain one, differentiably, or raise a clear error. Return other values unchanged."""
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
        return plain(name, x.as_subclass(Tensor))  # this subclass only adds methods: its values are stored as usual
    x = x.resolve_neg() if x.is_neg() else x.clone()
    if not is_plain(x):
        raise TypeError(f"{name} must be a plain tensor, got one with {dispatch_keys_of(x)}")
    return x


def gathered(name: str, x: Any) -> Tensor:
    """Return the full tensor of a DTensor; its gradient goes back to its placements."""
    try:
        full: Tensor = x.full_tensor()
    except Exception as error:
        raise NotImplementedError(
            f"{name} is a {type(x).__name__} whose full_tensor() fails: pass a plain tensor of its values"
        ) from error
    return full.clone() if is_a(COLLECTIVES, "AsyncCollectiveTensor", full) else full


def check_readable(name: str, x: Tensor) -> None:
    """Refuse a tensor whose values cannot be read from memory, and say how to get one."""
    if isinstance(x, (UninitializedBuffer, UninitializedParameter)):
        raise ValueError(f"{name} is an uninitialized parameter: call the lazy module once to set its shape")
    if x.is_nested:
        raise TypeError(
            f"{name} is a nested tensor: pass one tensor of all rows, padded with ignore_index in the target "
            "(torch.nested.to_padded_tensor), or flat"
        )
    if x.is_quantized:
        raise TypeError(f"{name} is quantized, {x.dtype}: pass {name}.dequantize()")
    if x.layout is not torch.strided:
        raise TypeError(f"{name} has the layout {x.layout}: pass {name}.to_dense()")
    if dispatch_keys_of(x).has(Keys.Python):
        raise TypeError(
            f"{name} is a {type(x).__name__}, which does not store its values as a plain tensor does: pass a plain "
            "tensor of its values"
        )
    if not has_storage(x) or (x.numel() and not is_zero_tensor(x) and not x.data_ptr()):
        raise ValueError(
            f"{name} has no memory: its storage was freed, as FSDP does with a sharded parameter. Gather it first, "
            "for example with FSDP.summon_full_params"
        )
